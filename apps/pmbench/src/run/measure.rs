//! One cell: a server, a client, and what both did while it was measured.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use stack::profile::Stage;

use super::core_time::{CoreTime, CoreUse};
use super::matrix::Task;
use super::testbed::{CLIENT, DPDK_PAIR, KERNEL_PAIR, PORT, PREFIX, SERVER, SERVER_MAC, Testbed};
use crate::child::Child;
use crate::load::{LoadEvent, Summary};
use crate::protocol::{Mark, Mode, Ready, ServerCommand, ServerEvent};
use crate::results::{Cell, CoreShares, Detail, Kind, Link, Load, Profiled, StageShare};
use crate::run::cli::RunArgs;

/// How long a program has to start, to answer and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that serves, or the reason why it cannot.
pub enum Started {
    Serving(Server),
    Skipped(String),
}

/// A server that serves.
pub struct Server {
    child: Child,
    pub ready: Ready,
    marks: u64,
    /// What was heard while something else was waited for.
    said: VecDeque<ServerEvent>,
    said_by_client: VecDeque<LoadEvent>,
}

/// A line of a server, or of a client that is a thread of it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Server(ServerEvent),
    Client(LoadEvent),
}

/// How a server is reached.
pub struct ServerAddress {
    /// Its IPv4 address.
    pub ip: String,
    /// The DPDK modes' device.
    pub device: String,
}

impl Server {
    /// Starts a server on a new store, with `more` options.
    pub fn start(
        testbed: &Testbed,
        args: &RunArgs,
        mode: Mode,
        load: Load,
        address: &ServerAddress,
        more: &[&str],
    ) -> Result<Started> {
        let mut command = program(testbed)?;
        command.args(["serve", "--mode", &mode.to_string(), "--core", &testbed.cores().server.to_string()]);
        command.args(more);
        command.arg("--pm").arg(new_store(testbed, mode)?);
        command.args(["--pm-size", &args.pm_size.as_u64().to_string()]);
        command.args(["--persist-delay-us", &load.persist_delay_us.to_string()]);
        if load.is_stream() {
            command.args(["--max-record", &load.size.to_string()]);
        }
        // Some more than the load has: wrk tries one connection before it begins.
        command.args(["--max-connections", &(load.connections + 16).to_string()]);
        if mode.is_kernel() {
            command.args(["--listen", &format!("{}:{PORT}", address.ip)]);
        } else {
            command.args(["--dev", &address.device, "--ip", &format!("{}/{PREFIX}", address.ip)]);
            command.args(["--mac", SERVER_MAC, "--port", &PORT.to_string()]);
        }
        Self::begin(testbed, mode, &mut command)
    }

    /// Starts a server of a task on a new store, with `more` options, and a client in a thread of it.
    fn start_with_client(
        testbed: &Testbed,
        args: &RunArgs,
        task: Task,
        seconds: f64,
        more: &[&str],
    ) -> Result<Started> {
        let Task { mode, load, .. } = task;
        let cores = testbed.cores();
        let mut command = program(testbed)?;
        command.args(["ring", "--json", "--linger", "--mode", &mode.to_string()]).args(more);
        command.args([
            "--server-core",
            &cores.server.to_string(),
            "--client-core",
            &cores.client.to_string(),
        ]);
        command.arg("--pm").arg(new_store(testbed, mode)?);
        command.args(["--pm-size", &args.pm_size.as_u64().to_string()]);
        command.args(["--connections", &load.connections.to_string(), "--size", &load.size.to_string()]);
        command.args(["--seconds", &seconds.to_string(), "--warmup", &args.warmup.to_string()]);
        if load.kind == Kind::StreamDown {
            command.args(["--read", &records_read(args, load).to_string()]);
        }
        Self::begin(testbed, mode, &mut command)
    }

    fn begin(testbed: &Testbed, mode: Mode, command: &mut Command) -> Result<Started> {
        let mut child = Child::start("server", command, testbed.directory())?;
        match child.event(PATIENCE)? {
            ServerEvent::Ready(ready) => {
                let (said, said_by_client) = (VecDeque::new(), VecDeque::new());
                Ok(Started::Serving(Self { child, ready, marks: 0, said, said_by_client }))
            }
            ServerEvent::Skipped { reason } => {
                child.wait(PATIENCE)?;
                Ok(Started::Skipped(reason))
            }
            ServerEvent::Mark(_) => bail!("the server of mode {mode} began with a mark"),
        }
    }

    /// Asks for a mark.
    pub fn mark(&mut self) -> Result<Mark> {
        self.marks += 1;
        self.child.say(&ServerCommand::Mark(self.marks).to_string())?;
        match self.event()? {
            ServerEvent::Mark(mark) if mark.id == self.marks => Ok(mark),
            other => bail!("the server answered mark {} with {other:?}", self.marks),
        }
    }

    /// The next that the server says.
    fn event(&mut self) -> Result<ServerEvent> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            self.listen(PATIENCE)?;
        }
    }

    /// The next that the client says which is a thread of the server.
    fn client_event(&mut self, limit: Duration) -> Result<LoadEvent> {
        loop {
            if let Some(event) = self.said_by_client.pop_front() {
                return Ok(event);
            }
            self.listen(limit)?;
        }
    }

    fn listen(&mut self, limit: Duration) -> Result<()> {
        match self.child.event(limit)? {
            Said::Server(event) => self.said.push_back(event),
            Said::Client(event) => self.said_by_client.push_back(event),
        }
        Ok(())
    }

    /// Ends the server.
    pub fn stop(mut self) -> Result<()> {
        self.child.say(&ServerCommand::Stop.to_string())?;
        self.child.wait(PATIENCE).map(drop)
    }
}

/// A moment in the life of a server.
pub struct Moment {
    mark: Mark,
    core: CoreTime,
}

impl Moment {
    /// Now.
    pub fn now(server: &mut Server, core: usize) -> Result<Self> {
        // The processor's time first: the answer to the mark may have to wait for the loop.
        let core = CoreTime::read(core)?;
        Ok(Self { mark: server.mark()?, core })
    }
}

/// What a server did between two moments.
pub struct Window {
    /// Its own counters.
    pub mark: Mark,
    /// Its processor's.
    pub core: CoreUse,
}

impl Window {
    /// From one moment to another.
    pub fn between(from: &Moment, to: &Moment) -> Self {
        Self { mark: to.mark.since(&from.mark), core: to.core.since(&from.core) }
    }

    /// What `requests` took of the server's processor: for sockets of the kernel, all that it was busy with; for a
    /// polling loop, which is always busy, what the loop itself counts.
    pub fn cpu_ns(&self, requests: u64) -> f64 {
        self.mark.busy_ns.unwrap_or(self.core.busy_ns()) as f64 / requests as f64
    }
}

/// What came of a cell.
pub struct Measured {
    pub cell: Cell,
    pub detail: Detail,
    pub ready: Option<Ready>,
}

/// Measures a cell.
pub fn measure(testbed: &Testbed, args: &RunArgs, task: Task) -> Result<Measured> {
    let Task { link, mode, load, round } = task;
    match run_pair(testbed, args, task, args.seconds, &[])? {
        Ran::Served(served) => {
            let Served { ready, window, summary } = *served;
            let (cell, detail) = cell(task, &window, &summary);
            Ok(Measured { cell, detail, ready: Some(ready) })
        }
        Ran::Skipped(reason) => {
            let cell = Cell::skipped(link, mode, load, round, reason);
            Ok(Measured { cell, detail: Detail::default(), ready: None })
        }
    }
}

/// Measures where the time of a cell's server goes, for half of a cell's time.
pub fn profile(testbed: &Testbed, args: &RunArgs, task: Task) -> Result<Profiled> {
    match run_pair(testbed, args, task, args.seconds / 2.0, &["--profile"])? {
        Ran::Served(served) => profiled(task, &served.window, &served.summary),
        Ran::Skipped(reason) => bail!("the mode ran before, and is skipped now: {reason}"),
    }
}

/// A server and its client, together.
enum Ran {
    Served(Box<Served>),
    Skipped(String),
}

/// What the server says of itself, what it did, and what the client found.
struct Served {
    ready: Ready,
    window: Window,
    summary: Summary,
}

/// Runs a task's server, with `more` options, and its client for some time.
fn run_pair(testbed: &Testbed, args: &RunArgs, task: Task, seconds: f64, more: &[&str]) -> Result<Ran> {
    let Task { link, mode, load, .. } = task;
    let devices = devices(testbed, link, mode);
    let started = match &devices {
        Some([device, _]) => {
            let address = ServerAddress { ip: SERVER.to_owned(), device: device.clone() };
            Server::start(testbed, args, mode, load, &address, more)?
        }
        None => Server::start_with_client(testbed, args, task, seconds, more)?,
    };
    let mut server = match started {
        Started::Serving(server) => server,
        Started::Skipped(reason) => return Ok(Ran::Skipped(reason)),
    };
    let ready = server.ready.clone();
    let mut client = match &devices {
        Some([_, device]) => Client::Program(start_client(testbed, args, device, task, seconds)?),
        None => Client::Thread,
    };
    let limit = PATIENCE + Duration::from_secs_f64(args.warmup + seconds);
    let observed = observe(testbed, limit, &mut server, &mut client);
    // Whatever came of it, the server stops polling before the client closes its device: memif's driver unmaps the
    // rings of a port whose peer leaves.
    let stopped = server.stop();
    let (window, summary) = match (observed, &stopped) {
        (Err(error), Err(of_server)) => return Err(error.context(format!("{of_server:#}"))),
        (observed, _) => observed?,
    };
    if let Client::Program(client) = client {
        client.wait(PATIENCE)?;
    }
    stopped?;
    check(mode, &window)?;
    if link == Link::Veth && testbed.cores().steered {
        check_steering(&window)?;
    }
    Ok(Ran::Served(Box::new(Served { ready, window, summary })))
}

/// The client of a cell: a program of its own, or a thread of the server's.
enum Client {
    Program(Child),
    Thread,
}

impl Client {
    /// The next that it says.
    fn event(&mut self, server: &mut Server, limit: Duration) -> Result<LoadEvent> {
        match self {
            Self::Program(child) => child.event(limit),
            Self::Thread => server.client_event(limit),
        }
    }
}

/// What the server did while the client measured, and what the client found.
fn observe(
    testbed: &Testbed,
    limit: Duration,
    server: &mut Server,
    client: &mut Client,
) -> Result<(Window, Summary)> {
    let expect = |expected: LoadEvent, server: &mut Server, client: &mut Client| {
        let event = client.event(server, limit)?;
        ensure!(event == expected, "the client said {event:?} instead of {expected:?}");
        Ok(())
    };
    expect(LoadEvent::Measuring, server, client)?;
    let from = Moment::now(server, testbed.cores().server)?;
    expect(LoadEvent::Measured, server, client)?;
    let to = Moment::now(server, testbed.cores().server)?;
    let LoadEvent::Finished(summary) = client.event(server, PATIENCE)? else {
        bail!("the client has no result");
    };
    Ok((Window::between(&from, &to), summary))
}

/// Refuses figures that do not mean what they are called.
fn check(mode: Mode, window: &Window) -> Result<()> {
    ensure!(window.mark.errors == 0, "the server of mode {mode} counted {} errors", window.mark.errors);
    ensure!(window.mark.requests > 0, "the server of mode {mode} counted no request");
    Ok(())
}

/// Refuses figures of a server whose packets another CPU received.
fn check_steering(window: &Window) -> Result<()> {
    // Each request is at least one packet; a few may have come before the first moment.
    ensure!(
        window.core.packets as f64 > 0.9 * window.mark.requests as f64,
        "only {} packets of {} requests were received on the server's CPU: they are not steered there",
        window.core.packets,
        window.mark.requests
    );
    Ok(())
}

/// The requests of a window. A loop that sends frames back does not know which of them make one.
fn requests(mode: Mode, window: &Window, summary: &Summary) -> u64 {
    if mode == Mode::Limit { summary.requests } else { window.mark.requests }
}

fn cell(task: Task, window: &Window, summary: &Summary) -> (Cell, Detail) {
    let Task { link, mode, load, round } = task;
    let mark = &window.mark;
    let requests = requests(mode, window, summary);
    let each = |amount: u64| amount as f64 / requests as f64;
    let gbit = f64::from(load.size) * 8.0 / 1e9;
    let cell = Cell {
        requests_per_s: Some(summary.requests_per_s),
        p50_us: Some(summary.p50_us),
        p99_us: Some(summary.p99_us),
        p999_us: Some(summary.p999_us),
        server_cpu_ns_per_request: Some(window.cpu_ns(requests)),
        copied_bytes_per_request: Some(each(mark.copied_bytes)),
        flushed_lines_per_request: Some(each(mark.flushed_lines)),
        fences_per_request: Some(each(mark.fences)),
        pm_bytes_per_payload_byte: (mode.persists() && mark.payload_bytes > 0)
            .then(|| mark.pm_bytes as f64 / mark.payload_bytes as f64),
        gbit_per_s: load.is_stream().then_some(summary.requests_per_s * gbit),
        gbit_per_cpu_s: load.is_stream().then(|| gbit * 1e9 / window.cpu_ns(requests)),
        skipped: None,
        ..Cell::skipped(link, mode, load, round, String::new())
    };
    let detail = Detail {
        client_busy: summary.busy,
        server_core_busy: window.core.busy_ns() as f64 / window.core.elapsed_ns as f64,
        core: CoreShares {
            user_ns: each(window.core.user_ns),
            system_ns: each(window.core.system_ns),
            softirq_ns: each(window.core.softirq_ns),
        },
        retransmits: summary.retransmits,
    };
    (cell, detail)
}

fn profiled(task: Task, window: &Window, summary: &Summary) -> Result<Profiled> {
    let Task { link, mode, load, .. } = task;
    let requests = requests(mode, window, summary);
    let each = |ns: u64| ns as f64 / requests as f64;
    let stages = window.mark.stages.context("the server did not measure its stages")?;
    let share = |(&stage, &ns): (&Stage, &u64)| StageShare { stage, ns_per_request: each(ns) };
    Ok(Profiled {
        link,
        mode,
        load,
        requests_per_s: summary.requests_per_s,
        p50_us: summary.p50_us,
        server_cpu_ns_per_request: window.cpu_ns(requests),
        stages: Stage::ALL.iter().zip(&stages.ns).map(share).collect(),
        measuring_ns_per_request: each(stages.readings_ns + stages.recording_ns),
    })
}

/// The DPDK devices of server and client on a link; none where the two are threads of one program.
fn devices(testbed: &Testbed, link: Link, mode: Mode) -> Option<[String; 2]> {
    let pair = if mode.is_kernel() { KERNEL_PAIR } else { DPDK_PAIR };
    match link {
        Link::Veth => Some([pair.server, pair.client].map(|end| format!("net_af_packet0,iface={end}"))),
        Link::Memif => Some(["server", "client"].map(|role| memif(testbed, role))),
        Link::Ring => None,
    }
}

/// Starts the client of a cell on a device of its own.
fn start_client(testbed: &Testbed, args: &RunArgs, device: &str, task: Task, seconds: f64) -> Result<Child> {
    let Task { mode, load, .. } = task;
    let mut command = program(testbed)?;
    command.args(["load", "--json", "--linger", "--dev", device, "--ip", &format!("{CLIENT}/{PREFIX}")]);
    command.args(["--target", &format!("{SERVER}:{PORT}"), "--core", &testbed.cores().client.to_string()]);
    command.args(["--connections", &load.connections.to_string(), "--size", &load.size.to_string()]);
    command.args(["--seconds", &seconds.to_string(), "--warmup", &args.warmup.to_string()]);
    if load.kind == Kind::StreamDown {
        command.args(["--read", &records_read(args, load).to_string()]);
    }
    if mode == Mode::Limit {
        command.args(["--frames", "--target-mac", SERVER_MAC]);
    }
    Child::start("client", &mut command, testbed.directory())
}

/// Where a server of a mode makes its store; what the one before left is removed.
fn new_store(testbed: &Testbed, mode: Mode) -> Result<PathBuf> {
    let store = if mode == Mode::StatusQuoFsync { testbed.disk_file() } else { testbed.store() };
    for left in [&store, &testbed.memif_socket()] {
        match fs::remove_file(left) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", left.display()));
            }
            _ => {}
        }
    }
    Ok(store)
}

/// How many records a stream down consists of: an eighth of the store, so that none is trimmed, and more than what
/// caches of most processors hold.
fn records_read(args: &RunArgs, load: Load) -> u64 {
    (args.pm_size.as_u64() / 8 / u64::from(load.size)).max(1)
}

/// A port on shared memory: `role` is server or client.
fn memif(testbed: &Testbed, role: &str) -> String {
    format!("net_memif0,role={role},socket={},socket-abstract=no", testbed.memif_socket().display())
}

/// This program, to be run in another role. What EAL wants to write goes to the folder.
fn program(testbed: &Testbed) -> Result<Command> {
    let runtime = testbed.directory().join("runtime");
    make_folder(&runtime)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env("RUNTIME_DIRECTORY", runtime);
    Ok(command)
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Stages;

    fn window(busy_ns: Option<u64>) -> Window {
        let mark = Mark {
            busy_ns,
            requests: 100,
            payload_bytes: 100 * 1024,
            copied_bytes: 50 * 1024,
            flushed_lines: 1800,
            fences: 10,
            pm_bytes: 150 * 1024,
            ..Mark::default()
        };
        let core = CoreUse {
            elapsed_ns: 1_000_000,
            user_ns: 300_000,
            system_ns: 400_000,
            softirq_ns: 200_000,
            packets: 200,
        };
        Window { mark, core }
    }

    #[test]
    fn the_servers_time_is_that_of_its_kind() {
        assert_eq!(window(None).cpu_ns(100), 9000.0);
        assert_eq!(window(Some(300_000)).cpu_ns(100), 3000.0);
    }

    #[test]
    fn a_cell_is_per_request() {
        let load = Load::requests(1024, 50);
        let task = Task { link: Link::Memif, mode: Mode::Paste, load, round: 3 };
        let summary = Summary { requests: 99, requests_per_s: 5.0, ..Summary::default() };
        let (cell, detail) = cell(task, &window(Some(300_000)), &summary);
        assert_eq!(cell.requests_per_s, Some(5.0));
        assert_eq!(cell.server_cpu_ns_per_request, Some(3000.0));
        assert_eq!(cell.copied_bytes_per_request, Some(512.0));
        assert_eq!(cell.flushed_lines_per_request, Some(18.0));
        assert_eq!(cell.fences_per_request, Some(0.1));
        assert_eq!(cell.pm_bytes_per_payload_byte, Some(1.5));
        assert_eq!((cell.round, cell.skipped), (3, None));
        let core = CoreShares { user_ns: 3000.0, system_ns: 4000.0, softirq_ns: 2000.0 };
        assert_eq!((detail.core, detail.server_core_busy), (core, 0.9));
    }

    #[test]
    fn a_profile_is_per_request() {
        let load = Load::requests(1024, 50);
        let task = Task { link: Link::Memif, mode: Mode::Limit, load, round: 1 };
        let mut window = window(Some(300_000));
        let summary = Summary { requests: 50, ..Summary::default() };
        assert!(profiled(task, &window, &summary).is_err());
        let ns = [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000];
        window.mark.stages = Some(Stages { ns, readings_ns: 100, recording_ns: 50 });
        // Its own count is one of frames.
        let found = profiled(task, &window, &summary).expect("it was measured");
        assert_eq!(found.server_cpu_ns_per_request, 6000.0);
        assert_eq!(found.stages[2], StageShare { stage: Stage::Tcp, ns_per_request: 60.0 });
        assert_eq!(found.measuring_ns_per_request, 3.0);
    }

    #[test]
    fn figures_of_packets_that_went_elsewhere_are_refused() {
        assert!(check_steering(&window(None)).is_ok());
        let mut elsewhere = window(None);
        elsewhere.core.packets = 20;
        assert!(check_steering(&elsewhere).is_err());
    }

    #[test]
    fn figures_with_errors_or_without_requests_are_refused() {
        assert!(check(Mode::Paste, &window(None)).is_ok());
        let mut failed = window(None);
        failed.mark.errors = 1;
        assert!(check(Mode::Paste, &failed).is_err());
        let mut idle = window(None);
        idle.mark.requests = 0;
        assert!(check(Mode::Paste, &idle).is_err());
    }
}
