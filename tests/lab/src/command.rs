//! Commands that are run to their end, and what went wrong in them.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a command and returns what it wrote to standard output.
///
/// # Errors
/// It could not be started, or did not end with code 0; the message has the command line and its output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = run_for(&mut command, Duration::from_secs(60))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that must end with code 0 within `limit`, and returns its output.
///
/// # Errors
/// As [`run`], and when it has to be killed at the limit.
pub fn run_for(command: &mut Command, limit: Duration) -> Result<Output> {
    let output = output_within(command, limit)?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}\n{}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Runs a command to its end, whatever that is, but not beyond `limit`.
///
/// # Errors
/// It could not be started, or has to be killed at the limit.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<Output> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(
            || format!("cannot start `{}`; `cargo xtask setup` installs what is needed", line(command)),
        )?;
    let mut stdout = child.stdout.take().context("a piped child has an output")?;
    let mut stderr = child.stderr.take().context("a piped child has an error output")?;
    let drain = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let drain_stdout = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            let stderr = drain.join().map_or_else(|_| Vec::new(), |read| read.unwrap_or_default());
            bail!("`{}` did not end within {limit:?}\n{}", line(command), String::from_utf8_lossy(&stderr));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |reader: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    };
    Ok(Output { status, stdout: read(drain_stdout)?, stderr: read(drain)? })
}

pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// One request by curl.
pub struct Curl {
    command: Command,
    limit: Duration,
}

impl Curl {
    /// A GET of `url`.
    pub fn get(url: &str) -> Self {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--globoff", "--connect-timeout", "10"]);
        command.args(["--write-out", "\n%{http_code}", url]);
        Self { command, limit: Duration::from_secs(120) }
    }

    /// A POST of a file's bytes.
    pub fn post(url: &str, file: &Path) -> Self {
        let mut data = std::ffi::OsString::from("@");
        data.push(file);
        Self::get(url).argument("--data-binary").argument(data)
    }

    /// One more argument for curl.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Gives up after `limit`.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Status and body, whatever the status is.
    ///
    /// # Errors
    /// There was no answer.
    pub fn reply(mut self) -> Result<(u16, Vec<u8>)> {
        self.command.arg("--max-time").arg(format!("{:.1}", self.limit.as_secs_f64()));
        let mut body = run_for(&mut self.command, self.limit + Duration::from_secs(5))?.stdout;
        let cut = body.iter().rposition(|&b| b == b'\n').context("curl printed no status")?;
        let status = std::str::from_utf8(&body[cut + 1..])?.parse().context("curl printed no status")?;
        body.truncate(cut);
        Ok((status, body))
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// There was no answer, or another one.
    pub fn body(self) -> Result<Vec<u8>> {
        let what = line(&self.command);
        let (status, body) = self.reply()?;
        if status != 200 {
            bail!("`{what}`: status {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// The JSON body of a 200.
    ///
    /// # Errors
    /// There was no answer, another one, or it is not JSON.
    pub fn json(self) -> Result<serde_json::Value> {
        let body = self.body()?;
        serde_json::from_slice(&body).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&body)))
    }
}
