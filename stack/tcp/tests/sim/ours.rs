//! A host of this stack's that talks, and holds the stack to its word: events, buffers and bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use pmem::{Buffer, Extent};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::net::{CloseReason, ConnId, Event, Net, SendError, Transport};
use stack::sim::{Host, Link, Path, Port, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectError};

use crate::talk::{Talk, Talker, addresses, arena, mac};
use crate::wire::{FIN, RST, SYN, Seg};

/// What an application does with the slots it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Reads them and lets them go.
    Take,
    /// Keeps the buffers.
    Keep,
    /// Lets them wait in the stack.
    Not,
}

pub struct Ours {
    pub net: SimTransport,
    pub conns: BTreeMap<ConnId, OurConn>,
    pub reading: Reading,
    /// Most bytes of one piece of what is said.
    pub piece_bytes: usize,
    /// Share of the pieces that are sent as copied bytes; the others are named buffers.
    pub copied_share: f64,
    accept: Box<dyn FnMut(SocketAddr) -> Talk>,
    ready: BTreeSet<ConnId>,
    rng: ChaCha8Rng,
    free_at_start: usize,
    _withheld: Vec<Buffer>,
}

#[derive(Debug)]
pub struct OurConn {
    pub talk: Talk,
    pub opened: bool,
    pub said: u64,
    pub heard: u64,
    pub heard_end: bool,
    pub peer_finished: bool,
    pub closed: Option<CloseReason>,
    finished: bool,
    kept: VecDeque<(u64, Extent)>,
}

impl OurConn {
    fn new(talk: Talk) -> Self {
        Self {
            talk,
            opened: false,
            said: 0,
            heard: 0,
            heard_end: false,
            peer_finished: false,
            closed: None,
            finished: false,
            kept: VecDeque::new(),
        }
    }
}

pub fn config(n: u8) -> Config {
    Config::with_secret(mac(n).0, addresses(n), [n; 16])
}

impl Ours {
    /// The host number `n`, which talks `talk` with everyone who connects.
    pub fn new(link: &Link, path: Path, n: u8, buffers: usize, config: Config) -> Self {
        Self::with_rings(link, path, buffers, config, SimConfig::default(), n.into())
    }

    pub fn with_rings(
        link: &Link,
        path: Path,
        buffers: usize,
        config: Config,
        rings: SimConfig,
        seed: u64,
    ) -> Self {
        let (arena, withheld) = arena(buffers);
        let net = SimTransport::new(link.port(path), config, rings, arena, Instant::ZERO)
            .expect("the configuration is right");
        net.port().set_filter(Monitor::default().watch());
        Self::over(net, seed, withheld)
    }

    /// A host of `cores` cores, each as if it were one; `core_of` says which of them gets a frame.
    pub fn cores(
        port: Port,
        buffers: usize,
        config: &Config,
        cores: usize,
        core_of: impl FnMut(&[u8]) -> usize + 'static,
    ) -> Vec<Self> {
        let (arenas, withheld): (Vec<_>, Vec<_>) = (0..cores).map(|_| arena(buffers)).unzip();
        let rings = SimConfig::default();
        let nets = SimTransport::cores(port, config, rings, arenas, core_of, Instant::ZERO)
            .expect("the configuration is right");
        nets[0].port().set_filter(Monitor::default().watch());
        let cores = nets.into_iter().zip(withheld).enumerate();
        cores.map(|(core, (net, withheld))| Self::over(net, core as u64, withheld)).collect()
    }

    fn over(net: SimTransport, seed: u64, withheld: Vec<Buffer>) -> Self {
        Self {
            free_at_start: net.arena().free_buffers(),
            net,
            conns: BTreeMap::new(),
            reading: Reading::Take,
            piece_bytes: 1_500,
            copied_share: 0.5,
            accept: Box::new(|peer| panic!("nobody is expected, and {peer} comes")),
            ready: BTreeSet::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            _withheld: withheld,
        }
    }

    /// Listens at `at`; `accept` says what to talk with a peer.
    pub fn listen(
        &mut self,
        at: SocketAddr,
        backlog: usize,
        accept: impl FnMut(SocketAddr) -> Talk + 'static,
    ) {
        self.net.endpoint_mut().listen(at, backlog).expect("the address is ours and free");
        self.accept = Box::new(accept);
    }

    pub fn connect(&mut self, now: Instant, remote: SocketAddr, talk: Talk) -> Result<ConnId, ConnectError> {
        self.connect_from(now, remote, None, talk)
    }

    pub fn connect_from(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        talk: Talk,
    ) -> Result<ConnId, ConnectError> {
        let conn = self.net.endpoint_mut().connect(now, remote, local)?;
        self.conns.insert(conn, OurConn::new(talk));
        Ok(conn)
    }

    /// Changes what happens with slots, and reads those that wait.
    pub fn set_reading(&mut self, reading: Reading) {
        self.reading = reading;
        self.ready.extend(self.conns.iter().filter(|(_, conn)| conn.closed.is_none()).map(|(&id, _)| id));
    }

    /// Lets go of the kept buffers, after a look at what is in them now.
    pub fn release_kept(&mut self) {
        for conn in self.conns.values_mut() {
            for (at, extent) in conn.kept.drain(..) {
                conn.talk.hears.check(at, extent.bytes());
            }
        }
    }

    /// Reads, once, every connection but one.
    pub fn read_all_but(&mut self, spared: ConnId) {
        let before = std::mem::replace(&mut self.reading, Reading::Take);
        let others = self.conns.iter().filter(|&(&id, conn)| id != spared && conn.closed.is_none());
        for id in others.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.work(id);
        }
        self.reading = before;
    }

    pub fn kept(&self) -> usize {
        self.conns.values().map(|conn| conn.kept.len()).sum()
    }

    /// The only connection there is or was.
    #[track_caller]
    pub fn only(&self) -> &OurConn {
        assert_eq!(self.conns.len(), 1, "one connection is expected");
        self.conns.values().next().expect("there is one")
    }

    /// Asserts that each buffer is in the ring or free again.
    #[track_caller]
    pub fn assert_nothing_leaked(&self) {
        assert_eq!(self.net.arena().free_buffers(), self.free_at_start, "buffers leaked");
    }

    fn note(&mut self, event: Event) {
        if let Event::Opened { conn, peer } = event {
            let state = self.conns.entry(conn).or_insert_with(|| OurConn::new((self.accept)(peer)));
            assert!(!state.opened, "{conn:?} opened twice");
            state.opened = true;
            self.ready.insert(conn);
            return;
        }
        let (Event::Readable { conn }
        | Event::Writable { conn }
        | Event::PeerFinished { conn }
        | Event::Closed { conn, .. }
        | Event::Opened { conn, .. }) = event
        else {
            panic!("{event:?}, and no port is bound")
        };
        let state = self.conns.get_mut(&conn).unwrap_or_else(|| panic!("{event:?} of no known connection"));
        assert_eq!(state.closed, None, "{event:?} after the last event");
        match event {
            Event::Closed { reason, .. } => {
                assert!(state.opened || reason != CloseReason::Finished, "finished without having opened");
                state.closed = Some(reason);
                // With nothing left to read the end may come before the application has looked.
                state.heard_end |= state.peer_finished && state.heard == state.talk.hears.bytes;
                self.ready.remove(&conn);
                return;
            }
            Event::PeerFinished { .. } => state.peer_finished = true,
            _ => {}
        }
        assert!(state.opened, "{event:?} before the connection opened");
        self.ready.insert(conn);
    }

    fn work(&mut self, id: ConnId) {
        let Self { net, conns, reading, rng, piece_bytes, copied_share, .. } = self;
        let conn = conns.get_mut(&id).expect("only known connections are ready");
        if *reading != Reading::Not {
            while let Some(slot) = net.recv(id) {
                conn.talk.hears.check(conn.heard, slot.bytes());
                assert!(!slot.bytes().is_empty(), "an empty slot");
                let at = conn.heard;
                conn.heard += slot.bytes().len() as u64;
                if *reading == Reading::Keep {
                    conn.kept.push_back((at, slot.keep()));
                }
            }
            if conn.peer_finished {
                assert_eq!(conn.heard, conn.talk.hears.bytes, "FIN came too early or too late");
                conn.heard_end = true;
            }
        }
        let says = conn.talk.says;
        let mut bytes = vec![0; *piece_bytes];
        while conn.said < says.bytes {
            let piece = rng.random_range(1..=*piece_bytes);
            let len = says.read(conn.said, &mut bytes[..piece]);
            let named = if rng.random_bool(*copied_share) { None } else { named(net, rng, &bytes[..len]) };
            let sent = match named {
                Some(extent) => net.send_extent(id, extent),
                None => net.send(id, &bytes[..len]),
            };
            match sent {
                Ok(()) => conn.said += len as u64,
                Err(SendError::Full) => return,
                Err(SendError::Closed) => panic!("{id:?} no longer sends at {} of {says:?}", conn.said),
            }
        }
        if !conn.finished {
            conn.finished = true;
            net.finish(id);
        }
    }
}

/// What each flow of the host has promised so far.
#[derive(Default)]
struct Monitor {
    flows: BTreeMap<(SocketAddr, SocketAddr), Promise>,
}

#[derive(Default)]
struct Promise {
    scale: u8,
    right_edge: Option<u32>,
    finished: bool,
}

impl Monitor {
    /// A filter that lets all frames through, and asserts that they are well-formed and that no window's
    /// right edge moves back (RFC 9293, section 3.8.6) by more than scaling rounds (RFC 7323, section 2.4).
    fn watch(mut self) -> impl FnMut(&mut Vec<u8>) -> bool {
        move |frame| {
            let Some((from, to, segment)) = Seg::parse(frame) else { return true };
            let flow = self.flows.entry((from.at, to.at)).or_default();
            if segment.has(SYN) {
                *flow = Promise { scale: segment.scale.unwrap_or(0), ..Promise::default() };
                return true;
            }
            flow.finished |= segment.has(FIN);
            let window = u32::from(segment.window.unwrap_or(0)) << flow.scale;
            // Who has finished may be in TIME-WAIT, where nothing more can come and a window says nothing.
            if segment.has(RST) || window == 0 && flow.finished {
                return true;
            }
            let edge = segment.ack.wrapping_add(window);
            let before = flow.right_edge.unwrap_or(edge);
            let ahead = edge.wrapping_sub(before) as i32;
            assert!(ahead > -(1 << flow.scale), "the window shrinks by {}: {segment:?}", -ahead);
            flow.right_edge = Some(if ahead > 0 { edge } else { before });
            true
        }
    }
}

/// A named buffer that holds `bytes` somewhere.
fn named(net: &SimTransport, rng: &mut ChaCha8Rng, bytes: &[u8]) -> Option<Extent> {
    let mut buffer = net.arena().take()?;
    let offset = rng.random_range(0..=net.arena().buffer_bytes() - bytes.len());
    assert!(buffer.arrive(offset, bytes), "a buffer just taken is not shared");
    buffer.into_extent(offset as u16, bytes.len() as u16)
}

impl Talker for Ours {
    fn done(&mut self) -> bool {
        self.conns.values().all(|conn| {
            conn.said == conn.talk.says.bytes && conn.heard_end && conn.closed == Some(CloseReason::Finished)
        })
    }

    fn report(&mut self) -> String {
        let open: Vec<_> =
            self.conns.values().filter(|conn| conn.closed != Some(CloseReason::Finished)).collect();
        let first = &open[..open.len().min(3)];
        let counters = self.net.endpoint().counters();
        format!("{} of {} open, as {first:?}; {counters:?}", open.len(), self.conns.len())
    }
}

impl Host for Ours {
    fn poll(&mut self, now: Instant) -> bool {
        let Ok(received) = self.net.receive(now);
        let mut acted = received > 0;
        while let Some(event) = self.net.next_event() {
            acted = true;
            self.note(event);
        }
        while let Some(conn) = self.ready.pop_first() {
            self.work(conn);
        }
        let Ok(sent) = self.net.transmit(now);
        acted | (sent > 0)
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.net.next_deadline()
    }
}
