//! A program that talks in lines of JSON.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
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
