//! Conversations in any weather: two of our hosts, or ours and smoltcp's, over links that do their worst and change
//! while they speak. What arrives is what was sent, connections end, and no buffer stays behind.
//!
//! `cargo xtask sim` runs thousands of them; a seed says all about a run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::net::CloseReason;
use stack::sim::{Clock, Host, Link, Path, Port, SimConfig};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectionOptions, Ecn, Keepalive};

use crate::ours::{Ours, config};
use crate::talk::{Talk, Talker, Version, ip, mac};
use crate::theirs::Theirs;
use crate::wire::{self, Seg, Side};

/// The longest that any of these conversations may take.
const LIMIT: Duration = Duration::from_secs(1_800);
/// How long the host that is left needs at most to find out that the other has died, and to forget it.
const MOURNING: Duration = Duration::from_secs(700);
const SERVER: u8 = 1;
const CLIENT: u8 = 2;
const ROUTER: u8 = 9;

/// Everything about one run, drawn from its seed.
#[derive(Debug)]
struct Weather {
    version: Version,
    pair: Pair,
    there: Path,
    back: Path,
    says_bytes: u64,
    hears_bytes: u64,
    window_bytes: usize,
    ring_bytes: usize,
    piece_bytes: usize,
    rings: SimConfig,
    /// Whether our devices cut frames into segments.
    cuts: bool,
    nagle: bool,
    /// What changes, and when.
    turns: VecDeque<(Instant, Turn)>,
}

/// Who serves whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    OursAndOurs,
    OursServes,
    TheirsServes,
}

/// A change in the middle of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Frames of ours that are longer than that are lost from now on, and a router says so.
    Narrows(usize),
    /// So much is added to the latency each way: what was sent looks lost, and is not.
    Slows(Duration),
    /// Nothing arrives.
    Breaks,
    /// The paths are again as they were.
    Mends,
    /// A host is gone without a word; of two that are not both ours, smoltcp's.
    Dies,
}

impl Weather {
    fn draw(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mtu = rng.random_range(1_280..=1_500);
        let latency = Duration::from_micros(rng.random_range(10..20_000));
        let path = |rng: &mut ChaCha8Rng| {
            let mut share = |max: f64| if rng.random_bool(0.5) { rng.random_range(0.0..max) } else { 0.0 };
            let mut path = Path {
                loss: share(0.08),
                loss_burst: 1,
                duplication: share(0.1),
                reordering: share(0.3),
                corruption: share(0.05),
                reordering_delay: Duration::from_micros(rng.random_range(0..30_000)),
                latency,
                bits_per_second: [1_000_000, 10_000_000, 1_000_000_000][rng.random_range(0..3)],
                queue_frames: [8, 50, 1_000][rng.random_range(0..3)],
                marks_behind_frames: [2, 20, usize::MAX][rng.random_range(0..3)],
                mtu,
            };
            match rng.random_range(0..6) {
                // Fewer losses, and longer ones.
                0 | 1 => (path.loss, path.loss_burst) = (path.loss / 4.0, rng.random_range(2..=8)),
                // Jitter: no frame takes as long as another.
                2 => path.reordering = 1.0,
                _ => {}
            }
            path
        };
        let mut bytes = || if rng.random_bool(0.1) { 0 } else { rng.random_range(1..100_000) };
        let (says_bytes, hears_bytes) = (bytes(), bytes());
        let version = [Version::V4, Version::V6][rng.random_range(0..2)];
        Self {
            version,
            pair: [Pair::OursAndOurs, Pair::OursServes, Pair::TheirsServes][rng.random_range(0..3)],
            there: path(&mut rng),
            back: path(&mut rng),
            says_bytes,
            hears_bytes,
            window_bytes: [1_500, 4_000, 65_535, 262_144][rng.random_range(0..4)],
            ring_bytes: [1_500, 4_000, 65_535, 200_000][rng.random_range(0..4)],
            piece_bytes: [10, 300, 2_048][rng.random_range(0..3)],
            rings: SimConfig {
                rx_ring: rng.random_range(1..64),
                rx_burst: rng.random_range(1..64),
                tx_burst: rng.random_range(1..64),
                rx_checksum: rng.random_bool(0.5),
            },
            cuts: rng.random_bool(0.5),
            nagle: rng.random_bool(0.2),
            turns: Self::draw_turns(&mut rng, version, mtu),
        }
    }

    fn draw_turns(rng: &mut ChaCha8Rng, version: Version, mtu: usize) -> VecDeque<(Instant, Turn)> {
        let mut turns = VecDeque::new();
        let at = |rng: &mut ChaCha8Rng| Instant::ZERO + Duration::from_millis(rng.random_range(0..2_000));
        let lasts = |rng: &mut ChaCha8Rng| Duration::from_millis(rng.random_range(10..5_000));
        match rng.random_range(0..8) {
            0 => {
                let least = if version == Version::V4 { 600 } else { 1_280 };
                turns.push_back((at(rng), Turn::Narrows(rng.random_range(least..=mtu))));
            }
            1 | 2 => {
                let begins = at(rng);
                turns.push_back((begins, Turn::Slows(Duration::from_millis(rng.random_range(20..1_000)))));
                turns.push_back((begins + lasts(rng), Turn::Mends));
            }
            3 => {
                let begins = at(rng);
                turns.push_back((begins, Turn::Breaks));
                turns.push_back((begins + lasts(rng), Turn::Mends));
            }
            4 => turns.push_back((at(rng), Turn::Dies)),
            _ => {}
        }
        turns
    }

    fn ours(&self, link: &Link, path: Path, n: u8) -> Ours {
        let config = Config {
            mtu: path.mtu,
            rx_window_bytes: self.window_bytes,
            tx_checksum_offload: self.cuts,
            tx_segmentation: self.cuts,
            ecn: Ecn::Ask,
            // In such weather a handshake may take long.
            syn_timeout: Duration::from_secs(600),
            connection: ConnectionOptions {
                keepalive: Some(Keepalive {
                    idle: Duration::from_secs(60),
                    interval: Duration::from_secs(10),
                    // More than a few bursts of losses swallow.
                    count: 25,
                }),
                nagle: self.nagle,
                ..ConnectionOptions::default()
            },
            ..config(n)
        };
        let mut ours = Ours::with_rings(link, path, 600, config, self.rings, n.into());
        ours.piece_bytes = self.piece_bytes;
        ours
    }

    fn theirs(&self, link: &Link, path: Path, n: u8) -> Theirs {
        Theirs::new(link, path, n, self.ring_bytes)
    }
}

/// One of the two hosts.
enum Speaker {
    Ours(Box<Ours>),
    Theirs(Box<Theirs>),
}

impl Speaker {
    fn talker(&mut self) -> &mut dyn Talker {
        match self {
            Self::Ours(ours) => ours.as_mut(),
            Self::Theirs(theirs) => theirs.as_mut(),
        }
    }

    fn host(&mut self) -> &mut dyn Host {
        match self {
            Self::Ours(ours) => ours.as_mut(),
            Self::Theirs(theirs) => theirs.as_mut(),
        }
    }

    fn ours(&self) -> Option<&Ours> {
        match self {
            Self::Ours(ours) => Some(ours),
            Self::Theirs(_) => None,
        }
    }

    fn port(&self) -> &Port {
        match self {
            Self::Ours(ours) => ours.net.port(),
            Self::Theirs(theirs) => theirs.peer.port(),
        }
    }
}

/// What there was to see in a run.
#[derive(Default)]
struct Seen {
    frames: AtomicU64,
    retransmits: AtomicU64,
    timeouts: AtomicU64,
}

struct Run {
    weather: Weather,
    link: Link,
    clock: Clock,
    server: Speaker,
    client: Speaker,
    router: Port,
    /// When the server or, where that is ours and the client is not, the client died.
    died: Option<Instant>,
}

impl Run {
    fn new(seed: u64, trace: Option<Box<dyn Write>>) -> Self {
        let weather = Weather::draw(seed);
        let link = Link::new(seed);
        if let Some(trace) = trace {
            link.capture(trace);
        }
        let clock = Clock::new(&link, Instant::ZERO);
        let conversation = Talk::new(1, weather.says_bytes, weather.hears_bytes);
        let (version, there, back) = (weather.version, weather.there, weather.back);
        let server = if weather.pair == Pair::TheirsServes {
            let mut server = weather.theirs(&link, there, SERVER);
            server.listen(80, conversation);
            Speaker::Theirs(Box::new(server))
        } else {
            let mut server = weather.ours(&link, there, SERVER);
            server.listen((ip(version, SERVER), 80).into(), 16, move |_| conversation);
            Speaker::Ours(Box::new(server))
        };
        let remote = (ip(version, SERVER), 80).into();
        let client = if weather.pair == Pair::OursServes {
            let mut client = weather.theirs(&link, back, CLIENT);
            client.connect(remote, 40_000, conversation.other());
            Speaker::Theirs(Box::new(client))
        } else {
            let mut client = weather.ours(&link, back, CLIENT);
            client.connect(clock.now(), remote, conversation.other()).expect("there is room");
            Speaker::Ours(Box::new(client))
        };
        let router = link.port(Path::default());
        Self { weather, link, clock, server, client, router, died: None }
    }

    /// Runs to the end.
    fn run(mut self) -> Seen {
        let end = Instant::ZERO + LIMIT;
        while !self.is_over() {
            while let Some((_, turn)) = self.weather.turns.pop_front_if(|&mut (at, _)| at <= self.clock.now())
            {
                self.turn(turn);
            }
            let next_turn = self.weather.turns.front().map(|&(at, _)| at);
            let limit = self.died.map_or(end, |died| died + MOURNING);
            let until = next_turn.map_or(limit, |at| at.min(limit));
            let (server_lives, client_lives) = self.living();
            let Self { clock, server, client, .. } = &mut self;
            let goes_on = match (server_lives, client_lives) {
                (true, true) => clock.step(&mut [server.host(), client.host()], until),
                (true, false) => clock.step(&mut [server.host()], until),
                (false, _) => clock.step(&mut [client.host()], until),
            };
            self.answer_oversized();
            if !goes_on && self.clock.now() >= limit {
                assert!(self.is_over(), "not over by {limit}: {}", self.report());
            }
        }
        self.look_back()
    }

    fn turn(&mut self, turn: Turn) {
        let (there, back) = (self.weather.there, self.weather.back);
        for (speaker, path) in [(&self.server, there), (&self.client, back)] {
            let changed = match turn {
                Turn::Narrows(mtu) if speaker.ours().is_some() => Path { mtu, ..path },
                Turn::Slows(by) => Path { latency: path.latency + by, ..path },
                Turn::Breaks | Turn::Dies => Path { loss: 1.0, ..path },
                Turn::Narrows(_) | Turn::Mends => path,
            };
            speaker.port().set_path(changed);
        }
        if turn == Turn::Dies {
            self.died = Some(self.clock.now());
        }
    }

    /// Whether the server, and whether the client has not died.
    fn living(&self) -> (bool, bool) {
        match (self.died, self.weather.pair) {
            (None, _) => (true, true),
            (Some(_), Pair::OursServes) => (true, false),
            (Some(_), _) => (false, true),
        }
    }

    /// Our hosts among the living.
    fn living_ours(&self) -> impl Iterator<Item = &Ours> {
        let (server_lives, client_lives) = self.living();
        let living = [(server_lives, &self.server), (client_lives, &self.client)];
        living.into_iter().filter(|&(lives, _)| lives).filter_map(|(_, speaker)| speaker.ours())
    }

    /// What a router says to the sender of a frame that is too long (RFC 1191, RFC 4443).
    fn answer_oversized(&mut self) {
        for (number, speaker) in [(SERVER, &self.server), (CLIENT, &self.client)] {
            let port = speaker.port();
            while let Some(frame) = port.take_oversized() {
                let side = |n: u8| Side { mac: mac(n), at: (ip(self.weather.version, n), 0).into() };
                let mtu = port.path().mtu as u32;
                let quoted = &frame[14..];
                let answer = match self.weather.version {
                    Version::V4 => wire::icmpv4_error(side(ROUTER), side(number), 3, 4, mtu, &quoted[..28]),
                    Version::V6 => {
                        let quoted = &quoted[..quoted.len().min(1_232)];
                        wire::icmpv6_error(side(ROUTER), side(number), 2, 0, mtu, quoted)
                    }
                };
                self.router.send(self.clock.now(), answer);
            }
        }
    }

    fn is_over(&mut self) -> bool {
        let Some(died) = self.died else {
            return self.gave_up() || self.server.talker().done() && self.client.talker().done();
        };
        let is_over = self.clock.now() >= died + MOURNING;
        let closed = self.living_ours().all(|ours| ours.conns.values().all(|conn| conn.closed.is_some()));
        assert!(closed || !is_over, "the dead are not forgotten: {}", self.report());
        is_over
    }

    /// Whether our client did not come to the server at all, and has said so: no neighbor answered in time.
    fn gave_up(&self) -> bool {
        let mut conns = self.client.ours().into_iter().flat_map(|client| client.conns.values());
        conns.any(|conn| !conn.opened && conn.closed == Some(CloseReason::Unreachable))
    }

    fn report(&mut self) -> String {
        let (server, client) = (self.server.talker().report(), self.client.talker().report());
        format!("{}\nserver: {server}\nclient: {client}\n{:?}", self.clock.now(), self.link.counters())
    }

    fn look_back(self) -> Seen {
        let seen = Seen { frames: self.link.counters().sent.into(), ..Seen::default() };
        for ours in self.living_ours() {
            ours.assert_nothing_leaked();
            let counters = ours.net.endpoint().counters();
            seen.retransmits.fetch_add(counters.retransmits, Ordering::Relaxed);
            seen.timeouts.fetch_add(counters.timeouts, Ordering::Relaxed);
        }
        seen
    }
}

/// What a run's link captures, which outlives the run.
#[derive(Clone, Default)]
struct Trace(Rc<RefCell<Vec<u8>>>);

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Trace {
    /// A line for each TCP segment that a host sent, and for what else is not TCP.
    fn print(&self) {
        let pcap = self.0.borrow();
        // A header of 24 bytes, and one of 16 before each frame: seconds, microseconds, length.
        let mut rest = &pcap[pcap.len().min(24)..];
        while rest.len() >= 16 {
            let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            let (seconds, micros, len) = (number(0), number(4), number(8) as usize);
            let frame = &rest[16..16 + len];
            match Seg::parse(frame) {
                Some((from, to, seg)) => {
                    let (len, seg) = (seg.payload.len(), Seg { payload: vec![], ..seg });
                    println!("{seconds}.{micros:06} {} > {}: {len} bytes, {seg:?}", from.at, to.at);
                }
                None => {
                    println!("{seconds}.{micros:06} {len} bytes that are no whole TCP: {:02x?}", &frame[..14])
                }
            }
            rest = &rest[16 + len..];
        }
    }
}

/// A number that the environment may set.
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Runs a seed; says why it failed, if it did.
fn outcome(seed: u64, total: &Seen) -> Result<(), String> {
    let run = AssertUnwindSafe(|| Run::new(seed, None).run());
    let seen = catch_unwind(run).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
    })?;
    for (total, seen) in [
        (&total.frames, seen.frames),
        (&total.retransmits, seen.retransmits),
        (&total.timeouts, seen.timeouts),
    ] {
        total.fetch_add(seen.into_inner(), Ordering::Relaxed);
    }
    Ok(())
}

/// With 500 seeds, with as many as `SIM_SEEDS` says, or with `SIM_SEED` alone, of which `SIM_TRACE` prints all segments.
/// With `SIM_REPORT` set there is a line for each hundredth of it done, and one for each failure.
#[test]
fn streams_are_whole_and_connections_end_in_any_weather() {
    if let Some(seed) = variable("SIM_SEED") {
        let trace = Trace::default();
        let capture = std::env::var_os("SIM_TRACE").map(|_| Box::new(trace.clone()) as Box<dyn Write>);
        println!("seed {seed}: {:#?}", Weather::draw(seed));
        let outcome = catch_unwind(AssertUnwindSafe(|| Run::new(seed, capture).run()));
        trace.print();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        return;
    }
    let seeds = variable("SIM_SEEDS").unwrap_or(500);
    let reports = std::env::var_os("SIM_REPORT").is_some();
    let (next, total, failures) = (AtomicU64::new(0), Seen::default(), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Err(why) = outcome(seed, &total) {
                        if reports {
                            println!("SIM failed {seed} {}", why.replace('\n', " | "));
                        }
                        failures.lock().expect("nobody panics with it").push((seed, why));
                    }
                    if reports && seed % seeds.div_ceil(100) == 0 {
                        println!("SIM done {seed}");
                    }
                }
            });
        }
    });
    if reports {
        let [frames, retransmits, timeouts] =
            [total.frames, total.retransmits, total.timeouts].map(AtomicU64::into_inner);
        println!("SIM seen {frames} {retransmits} {timeouts}");
    }
    let failures = failures.into_inner().expect("nobody panics with it");
    let first = failures.iter().min();
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds failed; SIM_SEED={} runs this one alone: {}",
        failures.len(),
        first.map_or(0, |&(seed, _)| seed),
        first.map_or("", |(_, why)| why)
    );
}
