//! A server under test, as the program that measures sees it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::wire::{KERNEL_V4, SERVER_V4, VETH_DEVICE};
use lab::{Connection, Lab, output_within};
use pmbench::protocol::{Mark, Mode, Ready, ServerCommand, ServerEvent};
use pmem::{Options, Region};
use tempfile::TempDir;

const PORT: u16 = 8080;

/// A running server; killed when dropped.
pub struct Bench {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
    pm: PathBuf,
    marks: u64,
    /// On tmpfs, as in the comparison.
    _directory: TempDir,
}

impl Bench {
    /// Starts a server on a store of 16 MiB, and returns once it serves.
    pub fn start(lab: &Lab, mode: Mode, options: &[&str]) -> Result<(Self, Ready)> {
        let directory = tempfile::tempdir_in("/dev/shm")?;
        let (mut command, pm, address) = command(lab, mode, &directory);
        let mut child = command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("it was asked for")?;
        let output = BufReader::new(child.stdout.take().context("it was asked for")?);
        let mut bench = Self { child, input, output, address, pm, marks: 0, _directory: directory };
        match bench.event()? {
            ServerEvent::Ready(ready) => {
                ensure!(ready.mode == mode, "{ready:?}");
                Ok((bench, ready))
            }
            event => bail!("{event:?} instead of a server"),
        }
    }

    /// How a server ends that is not expected to start, and what it complains of.
    pub fn refused(lab: &Lab, mode: Mode) -> Result<(ExitStatus, String)> {
        let directory = tempfile::tempdir_in("/dev/shm")?;
        let (mut command, ..) = command(lab, mode, &directory);
        // One that starts ends with its input.
        let output = output_within(&mut command, Duration::from_secs(60))?;
        Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    fn event(&mut self) -> Result<ServerEvent> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("no event: {line:?}"))
    }

    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.address)
    }

    pub fn mark(&mut self) -> Result<Mark> {
        self.marks += 1;
        writeln!(self.input, "{}", ServerCommand::Mark(self.marks))?;
        match self.event()? {
            ServerEvent::Mark(mark) if mark.id == self.marks => Ok(mark),
            event => bail!("{event:?} instead of mark {}", self.marks),
        }
    }

    /// Lets the server end, and gives the path of what it left.
    pub fn stop(mut self) -> Result<Stopped> {
        writeln!(self.input, "{}", ServerCommand::Stop)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        let directory = std::mem::replace(&mut self._directory, tempfile::tempdir()?);
        Ok(Stopped { pm: self.pm.clone(), _directory: directory })
    }
}

/// What starts a server, where its store will be, and its address.
fn command(lab: &Lab, mode: Mode, directory: &TempDir) -> (Command, PathBuf, SocketAddr) {
    // What is flushed by fdatasync must lie on a disk.
    let parent = if mode == Mode::StatusQuoFsync { lab.directory() } else { directory.path() };
    let pm = parent.join("bench.pm");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args(["serve", "--mode", &mode.to_string(), "--pm-size", "16MiB", "--pm"]).arg(&pm);
    let address = if mode.is_kernel() {
        let address = SocketAddr::from((KERNEL_V4, PORT));
        command.args(["--listen", &address.to_string()]);
        address
    } else {
        command.args(["--dev", VETH_DEVICE, "--ip", &format!("{SERVER_V4}/24")]);
        SocketAddr::from((SERVER_V4, PORT))
    };
    (command, pm, address)
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server left behind.
pub struct Stopped {
    pm: PathBuf,
    _directory: TempDir,
}

impl Stopped {
    pub fn path(&self) -> &Path {
        &self.pm
    }

    /// The records on the medium, with their numbers.
    pub fn records(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let options = Options { volatile: true, ..Options::default() };
        let shard = Region::open(&self.pm, &options)?.into_shard()?;
        let read = |seq| shard.record(seq).map(|record| (seq, record.to_vec())).context("a record is gone");
        shard.records(0).map(|info| read(info.seq)).collect()
    }
}
