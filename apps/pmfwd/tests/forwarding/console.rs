//! Commands through a pipe, and at a terminal.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::isolated;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::program::{PATIENCE, Pmfwd, command, number};

#[test]
fn a_session_through_a_pipe() {
    isolated(|_| {
        let mut pmfwd = Pmfwd::start(&["-i", "--dev", "net_ring0", "--dev", "net_null0"])?;
        pmfwd.wait_for("2 ports are ready")?;
        for (command, answer) in [
            ("help", "show port xstats all"),
            ("launch", "`launch` is no command"),
            ("stop", "no packets are being forwarded"),
            ("set fwd log", "mode log needs a store"),
            ("set fwd mac", "Set mac packet forwarding mode"),
            ("set burst 16", "Number of packets per burst set to 16"),
            ("set txpkts 64,200", "segments of 64,200 bytes"),
            ("show port info 0", "Driver name: net_ring"),
            ("show port info all", "Device name: net_null0"),
            ("show port stats 2", "there is no port 2"),
            ("start tx_first 2", "mac packet forwarding - ports=2 - cores=1 - streams=2 - packets/burst=16"),
            ("start", "already"),
            ("set burst 1", "stop first"),
            ("show port xstats 1", "rx_good_packets:"),
            ("show fwd stats all", "Accumulated forward statistics for all ports"),
        ] {
            pmfwd.tell(command)?;
            pmfwd.wait_for(answer)?;
        }
        // null makes frames without end, and what is sent to it is gone.
        pmfwd.wait_until_received(1, 1000)?;
        let [received, sent, dropped] = pmfwd.stop()?;
        ensure!(received > 1000 && sent > 0, "{received} {sent} {dropped}");
        pmfwd.tell("clear port stats all")?;
        ensure!(pmfwd.counted(1)?.rx_packets == 0, "counters are not cleared");
        pmfwd.tell("clear fwd stats all")?;
        pmfwd.tell("show fwd stats all")?;
        pmfwd.wait_for("Accumulated")?;
        ensure!(number(&pmfwd.wait_for("RX-packets:")?, "RX-packets:")? == 0, "sums are not cleared");
        pmfwd.tell("quit")?;
        let (status, said) = pmfwd.end()?;
        ensure!(status.success(), "{status}: {}", said.join("\n"));
        Ok(())
    });
}

#[test]
fn a_terminal_is_given_back_as_it_was() {
    isolated(|_| {
        let mut screen = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?);
        grantpt(&screen)?;
        unlockpt(&screen)?;
        let name = ptsname(&screen, Vec::new())?;
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let echoes = || -> Result<bool> { Ok(tcgetattr(&terminal)?.local_modes.contains(LocalModes::ECHO)) };
        ensure!(echoes()?, "a new terminal echoes");
        let mut command = command(&["-i", "--dev", "net_ring0"]);
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
        let mut child = command.spawn()?;
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            // It ends in an error when nobody has the terminal any more.
            let _ = screen.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let end = Instant::now() + PATIENCE;
        while echoes()? {
            ensure!(Instant::now() < end && child.try_wait()?.is_none(), "no line is read");
            std::thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let status = child.wait()?;
        let echoes = echoes()?;
        drop((command, terminal));
        let said = said.join().ok().context("the screen is read")?;
        ensure!(status.success() && echoes, "{status}: {said}");
        ensure!(said.contains("1 ports are ready") && said.contains("pmfwd> "), "{said}");
        Ok(())
    });
}
