//! A program that is started, told and heard.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

/// How much of what a program complained of goes into a message.
const MAX_COMPLAINT_BYTES: usize = 2000;

/// A running program; killed when dropped.
pub struct Child {
    name: String,
    process: Process,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    complaints: PathBuf,
}

impl Child {
    /// Starts a program; what it writes to standard error goes to a file of its name in `folder`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let complaints = folder.join(name).with_extension("log");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&complaints)?);
        let mut process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let input = process.stdin.take();
        let output = process.stdout.take().context("a piped child has an output")?;
        let (sender, lines) = channel();
        // Ends with the program's output.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name: name.to_owned(), process, input, lines, complaints })
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Writes a line to the program.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input is closed")?;
        let said = writeln!(input, "{line}").and_then(|()| input.flush());
        said.with_context(|| format!("{} does not listen any more: {}", self.name, self.complaint()))
    }

    /// The next line that the program writes.
    pub fn line(&mut self, limit: Duration) -> Result<String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {limit:?}: {}", self.name, self.complaint())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.process.wait()?;
                bail!("{} ended with {status}: {}", self.name, self.complaint())
            }
        }
    }

    /// The next line, parsed.
    pub fn event<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        let line = self.line(limit)?;
        serde_json::from_str(&line).with_context(|| format!("{} said something else: {line}", self.name))
    }

    /// Reads lines until one has `text` in it.
    pub fn line_with(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            let line = self.line(end.saturating_duration_since(Instant::now()));
            let line = line.with_context(|| format!("waited for {text:?}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), Signal::INT)?)
    }

    /// Waits for the program's end, and fails if that is not a good one.
    pub fn wait(mut self, limit: Duration) -> Result<Vec<String>> {
        drop(self.input.take());
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait()? {
                if !status.success() {
                    bail!("{} ended with {status}: {}", self.name, self.complaint());
                }
                return Ok(self.lines.iter().collect());
            }
            if Instant::now() > end {
                bail!("{} does not end: {}", self.name, self.complaint());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the program wrote to standard error, its end.
    fn complaint(&self) -> String {
        let text = std::fs::read(&self.complaints).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(MAX_COMPLAINT_BYTES)..]);
        if text.trim().is_empty() { "it did not complain".to_owned() } else { text.trim().to_owned() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a veth pair that no protocol of the kernel's speaks on, and becomes the program.
const VETH: &str = "\
    ip link add veth0 arp off type veth peer name veth1 arp off; \
    for side in veth0 veth1; do \
        if [ -d /proc/sys/net/ipv6 ]; then echo 1 > /proc/sys/net/ipv6/conf/$side/disable_ipv6; fi; \
        ip link set $side up; \
    done; \
    exec \"$@\"";

/// A command whose words are a program and its arguments, and that ends whatever becomes of this process. With `veth`,
/// it runs in a network of its own that has one wire, from veth0 to veth1.
pub fn to_start(veth: bool) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if veth {
        command.args(["unshare", "--net"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-e", "-c", VETH, "sh"]);
    }
    command
}

/// The program of that name that lies beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(program.exists(), "there is no {}; build {name} into the same folder", program.display());
    Ok(program)
}

/// What EAL gets where programs are measured: memory without hugepages is what every machine has.
pub const EAL: [&str; 7] =
    ["--no-huge", "-m", "512", "--no-shconf", "--no-pci", "--iova-mode=va", "--no-telemetry"];

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Child {
        Child::start("script", Command::new("sh").args(["-c", script]), folder).expect("sh is there")
    }

    #[test]
    fn a_program_is_heard_and_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child =
            shell("read line; echo \"{\\\"heard\\\":\\\"$line\\\"}\"; read _; echo bye", folder.path());
        child.say("mark 1").expect("it listens");
        let event: serde_json::Value = child.event(Duration::from_secs(10)).expect("an answer");
        assert_eq!(event["heard"], "mark 1");
        assert_eq!(child.wait(Duration::from_secs(10)).expect("a good end"), ["bye"]);
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = shell("echo no such device >&2; exit 1", folder.path());
        let error = child.line(Duration::from_secs(10)).expect_err("it said nothing");
        assert!(error.to_string().contains("no such device"), "{error}");
        let child = shell("exit 3", folder.path());
        assert!(child.wait(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn a_program_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = shell("read line", folder.path());
        assert!(child.line(Duration::from_millis(10)).is_err());
        assert!(child.id() > 0);
    }
}
