//! `pmfwd` as a child process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; killed when dropped.
pub struct Pmfwd {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    heard: Vec<String>,
}

/// A port's counters: frames and bytes received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// The program with words of its own, and the same EAL arguments every time.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmfwd"));
    command.args(words).args(["--disable-link-check", "--", "--no-huge", "--no-shconf", "-m", "256"]);
    command
}

impl Pmfwd {
    /// Starts [`command`], with pipes for its input and all that it says.
    pub fn start(words: &[&str]) -> Result<Self> {
        let mut command = command(words);
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().context("pmfwd cannot be started")?;
        drop(command);
        let stdin = child.stdin.take().context("a piped child has an input")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines, heard: Vec::new() })
    }

    /// Types a command.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}")
            .with_context(|| format!("pmfwd has ended\n{}", self.heard.join("\n")))
    }

    /// The next line that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.heard.push(line.clone());
            if line.contains(text) {
                return Ok(line);
            }
        }
        bail!("pmfwd did not say {text:?}, but\n{}", self.heard.join("\n"))
    }

    /// A port's counters, as `show port stats` prints them.
    pub fn counted(&mut self, port: usize) -> Result<Counted> {
        self.tell(&format!("show port stats {port}"))?;
        self.wait_for(&format!("NIC statistics for port {port}"))?;
        let received = self.wait_for("RX-packets:")?;
        let sent = self.wait_for("TX-packets:")?;
        self.wait_for("Tx-pps:")?;
        Ok(Counted {
            rx_packets: number(&received, "RX-packets:")?,
            rx_bytes: number(&received, "RX-bytes:")?,
            tx_packets: number(&sent, "TX-packets:")?,
            tx_bytes: number(&sent, "TX-bytes:")?,
        })
    }

    /// Waits until a port has received as many frames.
    pub fn wait_until_received(&mut self, port: usize, frames: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.counted(port)?.rx_packets < frames {
            ensure!(Instant::now() < end, "port {port} has received {:?}", self.counted(port));
        }
        Ok(())
    }

    /// Stops, and returns the sums: received, and sent, with what was dropped on the way out.
    pub fn stop(&mut self) -> Result<[u64; 3]> {
        self.tell("stop")?;
        self.wait_for("Accumulated forward statistics for all ports")?;
        let received = self.wait_for("RX-packets:")?;
        let sent = self.wait_for("TX-packets:")?;
        Ok([number(&received, "RX-packets:")?, number(&sent, "TX-packets:")?, number(&sent, "TX-dropped:")?])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process has a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits until it has ended; returns how, and all that it said.
    pub fn end(mut self) -> Result<(ExitStatus, Vec<String>)> {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.heard.push(line);
        }
        ensure!(Instant::now() < end, "pmfwd does not end; it said\n{}", self.heard.join("\n"));
        let heard = std::mem::take(&mut self.heard);
        Ok((self.child.wait()?, heard))
    }
}

impl Drop for Pmfwd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number behind a name in a line.
pub fn number(line: &str, name: &str) -> Result<u64> {
    let word = line.split_once(name).and_then(|(_, behind)| behind.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("no number behind {name} in {line:?}"))
}
