//! Load from wrk, with a record of what was acknowledged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Pmlog};

/// Connections, each in a thread of its own: see load.lua.
pub const CONNECTIONS: u64 = 16;
/// Length of each body.
pub const BODY_BYTES: usize = 1024;
/// How long wrk runs; the server is killed before.
pub const LIMIT: Duration = Duration::from_secs(4);

/// What a body is made from: the thread that sent it, and how many it had sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    thread: u64,
    counter: u64,
}

impl Tag {
    /// The body that load.lua makes from it.
    pub fn body(self) -> Vec<u8> {
        let tag = format!("{}:{};", self.thread, self.counter);
        tag.bytes().cycle().take(BODY_BYTES).collect()
    }
}

/// A wrk that runs.
pub struct Load {
    wrk: Child,
    output: PathBuf,
    logs: PathBuf,
}

/// Starts wrk.
pub fn start(lab: &Lab) -> Result<Load> {
    let script = lab.write("load.lua", include_bytes!("load.lua"))?;
    let logs = lab.path("load");
    fs::create_dir(&logs)?;
    let output = lab.path("wrk.log");
    let file = fs::File::create(&output)?;
    let count = CONNECTIONS.to_string();
    let mut command = Command::new("wrk");
    command.args(["--threads", &count, "--connections", &count]);
    command.args(["--duration", &format!("{}s", LIMIT.as_secs()), "--timeout", "1s", "--script"]).arg(script);
    command.arg(Pmlog::url("/append")).arg("--").arg(&logs).arg(BODY_BYTES.to_string());
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let wrk = command.spawn().context("cannot start wrk")?;
    Ok(Load { wrk, output, logs })
}

impl Load {
    /// Bytes that are written down as acknowledged so far.
    pub fn acknowledged(&self) -> Result<u64> {
        let mut bytes = 0;
        for log in fs::read_dir(&self.logs)? {
            bytes += log?.metadata()?.len();
        }
        Ok(bytes)
    }

    /// Waits for wrk's end, and returns each acknowledged record.
    pub fn finish(mut self) -> Result<Vec<(u64, Tag)>> {
        let end = Instant::now() + LIMIT + Duration::from_secs(10);
        while self.wrk.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "wrk does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut tags = Vec::new();
        for log in fs::read_dir(&self.logs)? {
            read_log(&log?.path(), &mut tags)?;
        }
        if tags.is_empty() {
            bail!("wrk had no acknowledgement\n{}", fs::read_to_string(&self.output)?);
        }
        Ok(tags)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.wrk.kill();
        let _ = self.wrk.wait();
    }
}

fn read_log(log: &Path, tags: &mut Vec<(u64, Tag)>) -> Result<()> {
    for line in fs::read_to_string(log)?.lines() {
        let mut numbers = line.split(' ').map(str::parse);
        let (Some(Ok(seq)), Some(Ok(thread)), Some(Ok(counter))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            bail!("{}: not an acknowledgement: {line:?}", log.display());
        };
        tags.push((seq, Tag { thread, counter }));
    }
    Ok(())
}
