//! The server under test, as a child process.

use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::time::ClockId;
use rustix::process::{Pid, Signal, kill_process};

use crate::Curl;
use crate::command::{line, output_within};
use crate::wire::{self, SERVER_V4, SERVER_V6, VETH_DEVICE, url};

/// How a server is started.
#[derive(Clone, Debug)]
pub struct PmlogOptions {
    binary: PathBuf,
    pm: PathBuf,
    arguments: Vec<String>,
    wrapper: Vec<String>,
    reached: Reached,
    has_ipv6: bool,
    is_in_memory: bool,
}

/// What carries the server.
#[derive(Clone, Debug)]
enum Reached {
    /// Its own stack, on this DPDK device.
    Device(String),
    /// The kernel's TCP, in this network namespace.
    Namespace(PathBuf),
}

impl PmlogOptions {
    /// A server on a store, on the far end of a [`veth`](crate::wire::veth) pair, with both addresses.
    ///
    /// # Errors
    /// There is no binary, or an old one.
    pub fn new(pm: &Path) -> Result<Self> {
        Ok(Self::of_binary(&pmlog_binary()?, pm))
    }

    /// As [`new`](Self::new), with the binary at a given path.
    pub fn of_binary(binary: &Path, pm: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            pm: pm.to_owned(),
            arguments: Vec::new(),
            wrapper: Vec::new(),
            reached: Reached::Device(VETH_DEVICE.to_owned()),
            has_ipv6: true,
            is_in_memory: false,
        }
    }

    /// Another port than the far end of the veth pair.
    pub fn device(mut self, device: &str) -> Self {
        self.reached = Reached::Device(device.to_owned());
        self
    }

    /// The kernel's TCP instead of a DPDK port, on all addresses of a network namespace, such as
    /// [`kernel_veth`](crate::wire::kernel_veth) makes.
    pub fn kernel(mut self, namespace: &Path) -> Self {
        self.reached = Reached::Namespace(namespace.to_owned());
        self
    }

    /// The IPv4 address only.
    pub fn without_ipv6(mut self) -> Self {
        self.has_ipv6 = false;
        self
    }

    /// A store in memory, gone when the server ends. Its path then only says where the server's output goes.
    pub fn in_memory(mut self) -> Self {
        self.is_in_memory = true;
        self
    }

    /// Another program that sets up its process, such as prlimit with its options, and then becomes the server.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper.extend(wrapper.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// One more option of `pmlog serve`, with its value.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// One more flag of `pmlog serve`.
    pub fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.to_owned());
        self
    }

    /// The command line.
    pub fn command(&self) -> Command {
        let mut words: Vec<OsString> = self.wrapper.iter().map(OsString::from).collect();
        if let Reached::Namespace(namespace) = &self.reached {
            words.extend(wire::enter(namespace));
        }
        words.push(self.binary.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("serve").arg("--pm");
        command.arg(if self.is_in_memory { Path::new("memory:") } else { &self.pm });
        match &self.reached {
            Reached::Device(device) => {
                let (v4, v6) = (format!("{SERVER_V4}/24"), format!("{SERVER_V6}/64"));
                command.args(["--dev", device, "--ip", &v4]);
                if self.has_ipv6 {
                    command.args(["--ip6", &v6]);
                }
            }
            Reached::Namespace(_) => {
                command.args(["--transport", "kernel", "--listen", "[::]:80"]);
            }
        }
        command.args(&self.arguments);
        command
    }

    /// Starts the server, and returns before it answers.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn(&self) -> Result<Pmlog> {
        let log = self.pm.with_extension("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = self.command();
        command.stdin(std::process::Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", line(&command)))?;
        Ok(Pmlog { child, log })
    }

    /// Starts the server, and returns once it answers.
    ///
    /// # Errors
    /// It ends, or does not answer within 30 s; the message has what it wrote.
    pub fn start(&self) -> Result<Pmlog> {
        let mut server = self.spawn()?;
        server.wait_for_answer()?;
        Ok(server)
    }

    /// Runs a server that is expected to refuse, and returns its output.
    ///
    /// # Errors
    /// It does not end within 30 s.
    pub fn refusal(&self) -> Result<Output> {
        output_within(&mut self.command(), Duration::from_secs(30))
    }
}

/// A running server; killed when dropped.
pub struct Pmlog {
    child: Child,
    log: PathBuf,
}

impl Pmlog {
    /// Waits until the server answers `GET /health`.
    ///
    /// # Errors
    /// It ends, or does not answer within 30 s; the message has what it wrote.
    pub fn wait_for_answer(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("pmlog ended with {status} instead of serving\n{}", self.output());
            }
            match Curl::get(&Self::url("/health")).limit(Duration::from_secs(1)).reply() {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => {
                    bail!("/health answers {status}: {}\n{}", String::from_utf8_lossy(&body), self.output())
                }
                Err(error) if Instant::now() > end => {
                    bail!("pmlog does not answer: {error:#}\n{}", self.output())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The URL of a path, over IPv4.
    pub fn url(path: &str) -> String {
        url(IpAddr::V4(SERVER_V4), path)
    }

    /// What `/health` says.
    ///
    /// # Errors
    /// No answer, or no JSON.
    pub fn health(&self) -> Result<serde_json::Value> {
        Curl::get(&Self::url("/health")).json()
    }

    /// What all servers on this store have written to their standard outputs.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |error| format!("(no output: {error})"),
            |text| String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that all its threads have taken so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(&self.child)
    }

    /// Cuts it off with SIGKILL, at whatever it was doing.
    ///
    /// # Errors
    /// It had ended already: then it was not killed in mid-load.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("pmlog had ended with {status} before it was killed\n{}", self.output());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGINT, and waits for that.
    ///
    /// # Errors
    /// It does not end within 20 s.
    pub fn interrupt(self) -> Result<ExitStatus> {
        self.signal(Signal::INT)
    }

    /// Asks it to end with a signal, and waits for that.
    ///
    /// # Errors
    /// It does not end within 20 s.
    pub fn signal(mut self, signal: Signal) -> Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a child has an id")?;
        kill_process(pid, signal)?;
        self.wait_for_end().with_context(|| format!("on {signal:?}"))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It does not end within 20 s.
    pub fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("pmlog does not end\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pmlog {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `pmlog` that the environment variable `PMLOG` names, or else the one that lies beside this executable
/// in the build folder.
///
/// # Errors
/// It is missing; the one in the build folder is older than its source.
pub fn pmlog_binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("PMLOG") {
        let binary = PathBuf::from(binary);
        ensure!(binary.is_file(), "PMLOG names {}, which is no file", binary.display());
        return Ok(binary);
    }
    built("pmlog", "-p pmlog")
}

/// What lies at `path` beside this executable in the build folder, and which `cargo build` makes of `arguments`.
///
/// # Errors
/// It is missing, or older than its source.
pub fn built(path: &str, arguments: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let folder = executable.parent().context("an executable lies in a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let release = if folder.ends_with("release") { " --release" } else { "" };
    let binary = folder.join(path);
    let remedy = format!("run `cargo build {arguments}{release}` first, or `cargo xtask test`");
    let Ok(built) = binary.metadata().and_then(|file| file.modified()) else {
        bail!("there is no {}; {remedy}", binary.display());
    };
    if let Some(source) = newer_source(&binary.with_extension("d"), built)? {
        bail!("{} is older than {}; {remedy}", binary.display(), source.display());
    }
    Ok(binary)
}

/// The first source, of those that cargo lists beside the binary, that changed after it was built.
fn newer_source(list: &Path, built: SystemTime) -> Result<Option<PathBuf>> {
    let text = std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let sources = text.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.split_whitespace().map(PathBuf::from) {
        if source.metadata().and_then(|file| file.modified()).is_ok_and(|changed| changed > built) {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

/// CPU time that a child process has taken so far, that of the kernel for it included.
///
/// # Errors
/// It has ended.
pub fn cpu_time(child: &Child) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into()?);
    let clock = ClockId::pid_cpu_clock_id(pid).context("the process has no CPU clock any more")?;
    Ok(clock.now()?.into())
}
