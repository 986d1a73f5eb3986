//! Commands through a pipe.

use anyhow::ensure;
use lab::isolated;

use crate::program::Pmfwd;

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
        ensure!(pmfwd.wait_for("RX-packets:")?.contains("RX-total: 0"));
        pmfwd.tell("quit")?;
        let (status, said) = pmfwd.end()?;
        ensure!(status.success(), "{status}: {}", said.join("\n"));
        Ok(())
    });
}
