//! `pmbench instructions`: how many instructions a server executes for a request, and in whose code.
//!
//! Times differ from machine to machine and from minute to minute; instructions do not. valgrind's callgrind counts
//! them in a server on memif, or on ring, whose client is as fast as the machine lets it, so that the server is behind
//! and its bursts are as long as there are connections. What is counted is all that the server's thread runs of its own
//! code and its libraries', from the driver's burst to the driver's burst, without the polls that find nothing to do
//! and their turns of the loop: those are counted apart. Kernel code is not counted, which is why the modes on kernel
//! sockets are left out.

mod callgrind;
mod room;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::child::{Child, EAL, to_start};
use crate::load::LoadEvent;
use crate::progress::Progress;
use crate::protocol::{Mark, Mode, ServerCommand, ServerEvent};
use crate::results::{Link, write_json};
use callgrind::Callee;

/// The drivers' libraries, of which each turn of a server's loop calls one once.
const DRIVERS: [&str; 2] = ["librte_net_memif", "librte_net_ring"];
/// callgrind's number of the first thread, in which every server serves.
const SERVING_THREAD: &str = "01";
/// Called once for each request by every server that is measured.
const ONCE_A_REQUEST: &str = "pmlog::http::head_cache::HeadCache::parse";
/// How long a program that valgrind runs has to start, to answer and to end.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long an idle server is watched.
const IDLE: Duration = Duration::from_secs(2);
/// Frames in a burst, and payload bytes in a frame, about.
const FULL_BURST: (f64, f64) = (64.0, 1448.0);
/// For how long a client loads: longer than anybody waits.
const LOAD: [&str; 4] = ["--seconds", "600", "--warmup", "0.5"];
/// The file of a profile, without its thread.
const PROFILE: &str = "profile";
/// What a count may exceed its ceiling by.
const TOLERANCE: f64 = 1.05;

/// What to count.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  Everything (3 minutes):
    pmbench instructions --out instructions
  One mode and size, held against what it may take:
    pmbench instructions --modes paste --sizes 1024 --ceiling ceiling.json --out instructions
Needs valgrind, two CPUs that nothing else uses, and no root.")]
pub struct InstructionsArgs {
    /// The modes: of those that run the stack or smoltcp on a DPDK port.
    #[arg(long, value_delimiter = ',', value_name = "MODES", value_parser = parse_mode,
        default_values = ["dpdk-copy", "paste", "paste-echo"])]
    pub modes: Vec<Mode>,
    /// The link: memif, where the driver copies frames on the server's CPU; or ring, where nobody does.
    #[arg(long, value_name = "LINK", value_parser = parse_link, default_value = "memif")]
    pub link: Link,
    /// Payload bytes of a request.
    #[arg(long, value_delimiter = ',', value_name = "BYTES", default_values_t = [64, 1024, 8192],
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sizes: Vec<u32>,
    /// Connections, each with one request on its way.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// Requests to count, at least.
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: u64,
    /// Fail if a count is more than 5 % above what this file says, which is written as results.json is.
    #[arg(long, value_name = "FILE")]
    pub ceiling: Option<PathBuf>,
    /// Where to write results.json.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// What was built, for the table's head.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub commit: String,
}

/// The sum over all rooms.
const ALL: &str = "all";
/// A turn of the loop that finds nothing to do, in the place of a request.
const EMPTY_POLL: &str = "empty poll";

/// A count, as results.json lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// The server.
    pub mode: Mode,
    /// Payload bytes of a request; 0 with an empty poll.
    pub size: u32,
    /// Connections; 0 with an empty poll.
    pub connections: u32,
    /// Whose code; `all` for the sum, `empty poll` for that of a turn without work.
    pub room: String,
    /// Instructions for each request, or for each turn.
    pub instructions_per_request: f64,
}

/// Counts, and writes the results and a table of them.
///
/// # Errors
/// A program is missing or failed, or something takes more than its ceiling allows.
pub fn run(args: &InstructionsArgs, out: &mut impl Write) -> Result<()> {
    let ceilings = args.ceiling.as_deref().map(read_ceilings).transpose()?.unwrap_or_default();
    let stop = program::stop_signal().context("signals cannot be handled")?;
    let scratch = lab::scratch_directory("instructions-")?;
    let bench = Bench { args, stop: &stop, folder: scratch.path() };
    let progress = Progress::start(args.modes.len() * (args.sizes.len() + 1));
    let mut counts = Vec::new();
    for &mode in &args.modes {
        let what = format!("{mode}, idle");
        progress.begin(&what);
        let idle = bench.idle(mode).with_context(|| what.clone())?;
        let empty_poll = idle.count(mode);
        progress.end(&what, &format!("{:.0} instructions a turn", empty_poll.instructions_per_request));
        counts.push(empty_poll);
        for &size in &args.sizes {
            let what = format!("{mode}, {size} bytes");
            progress.begin(&what);
            let found = bench.requests(mode, size, &idle).with_context(|| what.clone())?;
            progress.end(&what, &format!("{:.0} instructions a request", found[0].instructions_per_request));
            counts.extend(found);
        }
    }
    drop(progress);
    write!(out, "{}", table(&counts, args))?;
    write_json(&args.out, "results.json", &counts)?;
    hold(&counts, &ceilings)
}

fn read_ceilings(file: &Path) -> Result<Vec<Count>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no counts", file.display()))
}

/// Fails with all that takes more than it may.
fn hold(counts: &[Count], ceilings: &[Count]) -> Result<()> {
    let mut dearer = Vec::new();
    for ceiling in ceilings {
        let Count { mode, size, connections, room, instructions_per_request: allowed } = ceiling;
        let same = |count: &&Count| {
            (count.mode, count.size, count.connections) == (*mode, *size, *connections) && count.room == *room
        };
        // Ceilings may be kept for more than what is counted this time.
        let Some(count) = counts.iter().find(same) else { continue };
        let now = count.instructions_per_request;
        if now > allowed * TOLERANCE {
            dearer.push(format!("{mode}, {size} bytes, {room}: {now:.0}, and {allowed:.0} are allowed"));
        }
    }
    ensure!(
        dearer.is_empty(),
        "too many instructions:\n  {}\nfind what has become dearer, or raise the ceiling in a commit that says why",
        dearer.join("\n  ")
    );
    Ok(())
}

struct Bench<'a> {
    args: &'a InstructionsArgs,
    stop: &'a AtomicBool,
    folder: &'a Path,
}

/// What a loop takes that finds nothing to do.
struct Idle {
    /// The driver's function that looks for frames.
    poll: String,
    polls: u64,
    rooms: Rooms,
}

/// Instructions in each room.
type Rooms = BTreeMap<&'static str, u64>;

impl Bench<'_> {
    /// Counts what turns without work take in a mode.
    fn idle(&self, mode: Mode) -> Result<Idle> {
        // Without a client the link would be down, and what the server says of itself at the start would wait for it.
        let (server, client) = self.start(mode, &["--connections", "1", "--rate", "1"])?;
        // The first turns look at memory for the first time.
        thread::sleep(IDLE / 4);
        instrument(server.id(), true)?;
        thread::sleep(IDLE);
        instrument(server.id(), false)?;
        // The server ends first: memif's driver unmaps the rings of a port whose peer leaves.
        let profile = self.end(server)?;
        drop(client);
        let Tally { rooms, calls } = Tally::of(&profile)?;
        let of_driver = calls.into_iter().filter(|(callee, _)| is_of_driver(callee));
        let (poll, polls) =
            of_driver.max_by_key(|&(_, calls)| calls).context("the driver was never polled")?;
        Ok(Idle { poll: poll.function.to_owned(), polls, rooms })
    }

    /// Counts what requests of `size` bytes take in a mode: the sum first.
    fn requests(&self, mode: Mode, size: u32, idle: &Idle) -> Result<Vec<Count>> {
        let (connections, size_bytes) = (self.args.connections.to_string(), size.to_string());
        let (mut server, client) =
            self.start(mode, &["--connections", &connections, "--size", &size_bytes])?;
        let done = self.watch(&mut server)?;
        let profile = self.end(server)?;
        drop(client);
        let burst = done.requests as f64 / (done.turns - done.idle_turns).max(1) as f64;
        ensure!(
            burst >= self.least_burst(size),
            "bursts had only {burst:.1} requests of {} connections: leave the machine alone meanwhile",
            self.args.connections
        );
        let Tally { mut rooms, calls } = Tally::of(&profile)?;
        let calls_of = |is_it: &dyn Fn(&Callee<'_>) -> bool| -> u64 {
            calls.iter().filter(|(callee, _)| is_it(callee)).map(|(_, calls)| calls).sum()
        };
        let requests = calls_of(&|callee| callee.function == ONCE_A_REQUEST);
        ensure!(requests > 0, "{ONCE_A_REQUEST} was never called: there is nothing to divide by");
        let polls = calls_of(&|callee| is_of_driver(callee) && callee.function == idle.poll);
        // Of the polls of a turn one at most finds something.
        let in_vain = (polls as f64 - requests as f64 / burst).max(0.0);
        for (room, instructions) in &mut rooms {
            let each = idle.rooms.get(room).map_or(0.0, |&all| all as f64 / idle.polls as f64);
            *instructions = instructions.saturating_sub((in_vain * each) as u64);
        }
        let count = |room: &str, instructions: u64| Count {
            mode,
            size,
            connections: self.args.connections,
            room: room.to_owned(),
            instructions_per_request: instructions as f64 / requests as f64,
        };
        let sum = count(ALL, rooms.values().sum());
        let mut rooms: Vec<_> = rooms.into_iter().collect();
        rooms.sort_by_key(|&(_, instructions)| std::cmp::Reverse(instructions));
        Ok([sum].into_iter().chain(rooms.into_iter().map(|(room, all)| count(room, all))).collect())
    }

    /// The least length of bursts, in requests, that is taken for a server's that has enough to do: what a burst costs
    /// is shared by fewer in shorter ones. A quarter of what can come at once.
    fn least_burst(&self, size: u32) -> f64 {
        let (frames, bytes) = FULL_BURST;
        f64::from(self.args.connections).min(frames / (f64::from(size) / bytes).ceil()) / 4.0
    }

    /// Has a loaded server counted until it has answered enough requests, and returns what it did meanwhile.
    fn watch(&self, server: &mut Child) -> Result<Mark> {
        instrument(server.id(), true)?;
        let from = mark(server, 1)?;
        let end = Instant::now() + PATIENCE;
        let mut id = 1;
        let done = loop {
            ensure!(!self.stop.load(Ordering::Relaxed), "interrupted; nothing was written");
            ensure!(Instant::now() < end, "the server is too slow for {} requests", self.args.requests);
            thread::sleep(Duration::from_millis(50));
            id += 1;
            let done = mark(server, id)?.since(&from);
            if done.requests >= self.args.requests {
                break done;
            }
        };
        instrument(server.id(), false)?;
        Ok(done)
    }

    /// Starts a server under callgrind, which counts nothing yet, and a client that loads it as it is told; waits until
    /// that has warmed up. On ring it is a thread of the server's.
    fn start(&self, mode: Mode, load: &[&str]) -> Result<(Child, Option<Child>)> {
        if self.args.link == Link::Ring {
            let mut server = self.server(&["ring", "--json", "--linger"], mode, &[load, &LOAD].concat())?;
            warmed_up(&mut server)?;
            return Ok((server, None));
        }
        let memif = self.memif("server");
        let own = ["--mac", "02:00:00:00:00:01", "--dev", &memif, "--ip", "10.0.0.1/24"];
        let server = self.server(&["serve"], mode, &own)?;
        Ok((server, Some(self.client(load)?)))
    }

    /// Starts a server under callgrind.
    fn server(&self, command_words: &[&str], mode: Mode, more: &[&str]) -> Result<Child> {
        for left in [self.profile(), self.socket()] {
            if left.exists() {
                fs::remove_file(&left)?;
            }
        }
        let mut command = to_start(false);
        command.args(["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", "--fair-sched=try"]);
        command.arg("--separate-threads=yes");
        command.arg(format!("--callgrind-out-file={}", self.folder.join(PROFILE).display()));
        command.arg(std::env::current_exe()?).args(command_words).args(["--mode", &mode.to_string()]);
        command.args(["--pm", pmem::MEMORY, "--pm-size", "256MiB"]).args(more).arg("--").args(EAL);
        command.env("RUNTIME_DIRECTORY", self.folder);
        let mut server = Child::start("server", &mut command, self.folder)?;
        match server.event(PATIENCE)? {
            ServerEvent::Ready(_) => Ok(server),
            other => bail!("the server began with {other:?}"),
        }
    }

    /// Starts a client that loads as it is told, and waits until it has warmed up.
    fn client(&self, load: &[&str]) -> Result<Child> {
        let runtime = self.folder.join("client");
        fs::create_dir_all(&runtime)?;
        let mut command = to_start(false);
        command.arg(std::env::current_exe()?).args(["load", "--json"]);
        command.args(["--dev", &self.memif("client"), "--ip", "10.0.0.2/24", "--target", "10.0.0.1:8080"]);
        command.args(load).args(LOAD).arg("--").args(EAL);
        command.env("RUNTIME_DIRECTORY", runtime);
        let mut client = Child::start("client", &mut command, self.folder)?;
        warmed_up(&mut client)?;
        Ok(client)
    }

    /// Ends a server, and returns the profile that it has left.
    fn end(&self, mut server: Child) -> Result<String> {
        server.say(&ServerCommand::Stop.to_string())?;
        server.wait(PATIENCE)?;
        fs::read_to_string(self.profile()).context("callgrind has left no profile")
    }

    fn profile(&self) -> PathBuf {
        self.folder.join(format!("{PROFILE}-{SERVING_THREAD}"))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("memif")
    }

    fn memif(&self, role: &str) -> String {
        format!("net_memif0,role={role},socket={},socket-abstract=no", self.socket().display())
    }
}

impl Idle {
    fn count(&self, mode: Mode) -> Count {
        Count {
            mode,
            size: 0,
            connections: 0,
            room: EMPTY_POLL.to_owned(),
            instructions_per_request: self.rooms.values().sum::<u64>() as f64 / self.polls as f64,
        }
    }
}

/// Waits until a client measures.
fn warmed_up(client: &mut Child) -> Result<()> {
    match client.event(PATIENCE)? {
        LoadEvent::Measuring => Ok(()),
        other => bail!("the client began with {other:?}"),
    }
}

fn is_of_driver(callee: &Callee<'_>) -> bool {
    DRIVERS.iter().any(|driver| callee.object.contains(driver))
}

/// Asks a server how far it is.
fn mark(server: &mut Child, id: u64) -> Result<Mark> {
    server.say(&ServerCommand::Mark(id).to_string())?;
    match server.event(PATIENCE)? {
        ServerEvent::Mark(mark) => Ok(mark),
        other => bail!("the server answered a mark with {other:?}"),
    }
}

/// Has the callgrind that runs a process count, or count no more.
fn instrument(process: u32, on: bool) -> Result<()> {
    let output = Command::new("callgrind_control")
        .args(["-i", if on { "on" } else { "off" }, &process.to_string()])
        .output()
        .context(
            "cannot start callgrind_control; it comes with valgrind (on Debian: apt-get install valgrind)",
        )?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let is_done = output.status.success() && said.contains("OK");
    ensure!(is_done, "callgrind_control ended with {}: {}", output.status, said.trim());
    Ok(())
}

/// What a profile says.
struct Tally<'a> {
    rooms: Rooms,
    /// How often each function was called.
    calls: HashMap<Callee<'a>, u64>,
}

impl<'a> Tally<'a> {
    fn of(profile: &'a str) -> Result<Self> {
        let mut tally = Self { rooms: BTreeMap::new(), calls: HashMap::new() };
        callgrind::read(
            profile,
            |spot, own| *tally.rooms.entry(room::room_of(spot)).or_default() += own,
            |callee, count| *tally.calls.entry(callee).or_default() += count,
        )?;
        Ok(tally)
    }
}

/// Rooms by row, modes and sizes by column.
fn table(counts: &[Count], args: &InstructionsArgs) -> String {
    use std::fmt::Write as _;

    let (polls, requests): (Vec<&Count>, Vec<&Count>) =
        counts.iter().partition(|count| count.room == EMPTY_POLL);
    let mut columns: Vec<(Mode, u32)> = Vec::new();
    let mut rooms: Vec<&str> = Vec::new();
    for count in &requests {
        if !columns.contains(&(count.mode, count.size)) {
            columns.push((count.mode, count.size));
        }
        if !rooms.contains(&count.room.as_str()) {
            rooms.push(&count.room);
        }
    }
    let mut text = format!("instructions a request, {}, {} connections", args.link, args.connections);
    if !args.commit.is_empty() {
        text = text + ", " + &args.commit;
    }
    text = format!("{text}\n{:<14}", "");
    for (mode, size) in &columns {
        let _ = write!(text, "{:>18}", format!("{mode} {size} B"));
    }
    text.push('\n');
    for room in rooms {
        let _ = write!(text, "{room:<14}");
        for &column in &columns {
            let of_cell = |count: &&&Count| (count.mode, count.size) == column && count.room == room;
            let each = requests.iter().find(of_cell).map_or(0.0, |count| count.instructions_per_request);
            let _ = write!(text, "{each:>18.0}");
        }
        text.push('\n');
    }
    for poll in polls {
        let _ = writeln!(text, "an empty poll, {}: {:.0}", poll.mode, poll.instructions_per_request);
    }
    text
}

fn parse_link(text: &str) -> Result<Link, String> {
    match <Link as clap::ValueEnum>::from_str(text, false)? {
        Link::Veth => {
            Err("on veth much of the work is the kernel's, which is not counted; choose memif or ring"
                .to_owned())
        }
        link => Ok(link),
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = <Mode as clap::ValueEnum>::from_str(text, false)?;
    if mode.is_kernel() || mode == Mode::Limit {
        return Err(
            "choose of dpdk-copy, paste and paste-echo; the others run in the kernel or know no requests"
                .into(),
        );
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(size: u32, room: &str, instructions_per_request: f64) -> Count {
        Count { mode: Mode::Paste, size, connections: 50, room: room.to_owned(), instructions_per_request }
    }

    #[test]
    fn what_gets_dearer_by_more_than_a_twentieth_is_refused() {
        let ceilings = [count(64, ALL, 1000.0), count(1024, ALL, 2000.0)];
        assert!(hold(&[count(64, ALL, 1050.0)], &ceilings).is_ok());
        let error =
            hold(&[count(64, ALL, 1051.0), count(1024, ALL, 1.0)], &ceilings).unwrap_err().to_string();
        assert!(error.contains("paste, 64 bytes, all: 1051, and 1000 are allowed"), "{error}");
        assert!(!error.contains("1024"), "{error}");
    }

    #[test]
    fn costs_are_added_up_by_room_and_calls_by_function() {
        let profile = "events: Ir\nob=(1) pmbench\nfl=(1) /x/pmem/src/log/shard.rs\nfn=(1) pmem::append\n1 300\n\
                       cob=(2) /lib/librte_net_memif.so\ncfn=(2) 0x87\ncalls=3 1\n1 60\n1 4\nob=(2)\nfl=(2) ???\nfn=(2)\n1 60\n";
        let tally = Tally::of(profile).expect("a profile");
        assert_eq!(tally.rooms, BTreeMap::from([("driver", 60), ("pmem", 304)]));
        let poll = Callee { object: "/lib/librte_net_memif.so", function: "0x87" };
        assert_eq!(tally.calls, HashMap::from([(poll, 3)]));
    }
}
