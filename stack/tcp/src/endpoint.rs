//! A host's TCP/IP without I/O: frames and the time come in, frames and events go out.

mod burst;
mod calls;
mod datagrams;
mod doubt;
mod error;
mod input;
mod output;
mod passive;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use pmem::Arena;
use stack_net::time::Instant;

use crate::address::link_local_beside;
use crate::config::{Config, ConfigError, ConnectionOptions};
use crate::counters::Counters;
use crate::directory::FlowDirectory;
use crate::flow::{FlowKey, FlowState, FlowTable};
use crate::frame::{Flags, Local};
use crate::iface::Iface;
use crate::limit::{HostLimits, Rate, RateLimit};
use crate::listen::Listeners;
use crate::neighbor::{Hearsay, MAX_NEIGHBORS, Neighbors, VALID, VALID_IN_DOUBT};
use crate::net::{CloseReason, ConnId};
use crate::path_mtu::Paths;
use crate::reassembly::{Reassembly, Whole};
use crate::route::Routes;
use crate::spread::DeviceSpread;
use crate::steer::Steering;
use crate::tcp::congestion::Controls;
use crate::tcp::connection::{Connection, Context, Outcome, Profile, State, lies_in_its_lines};
use crate::tcp::early::EarlyPool;
use crate::tcp::isn::Secret;
use crate::tcp::options::Options;
use crate::tcp::pieces::PiecePool;
use crate::tcp::send_pool::SendPool;
use crate::tcp::seq::Seq;
use crate::time_wait::{TimeWait, TimeWaits};
use crate::timer::{NEVER, TimerWheel};
use crate::turns::Turns;
use crate::udp::{MAX_UDP_PORTS, Outbox, UdpPorts};
use crate::window::WindowPool;

use segments::Draft;

pub use error::{AddressConflict, BindError, ConnectError, ListenError};

/// Different options that connections may have.
const MAX_PROFILES: usize = 1 << u8::BITS;

/// Segments without a connection that may wait for the device.
const MAX_REPLIES: usize = 512;

/// Probes for each own address, and the time between them. RFC 5227 waits longer, for links whose switches
/// have only just come up.
const ADDRESS_PROBES: u8 = 3;
const ADDRESS_PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Announcements of each own address, and the time between them (RFC 5227, section 1.1).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_secs(2);

/// How often an address is defended against another host that has it (RFC 5227, section 2.4), and how often the
/// application is told.
const DEFENCES: Rate = Rate { interval: Duration::from_secs(10), burst: 1 };
const CONFLICT_REPORTS: Rate = Rate { interval: Duration::from_secs(60), burst: 1 };

/// The first of the ports that connections get which do not name one (RFC 6335, section 6).
const FIRST_DYNAMIC_PORT: u16 = 49152;

/// Counters that the search for such a port goes by (RFC 6056, section 3.3.4).
const PORT_COUNTERS: usize = 16;

/// The connections of one core.
///
/// What a frame, a timer or a call makes due is noted in lists, so that no call ever walks over connections
/// that have nothing to do.
#[derive(Debug)]
pub struct Endpoint {
    now: Instant,
    flows: FlowTable,
    places: Box<[ConnectionEntry]>,
    /// Connections that may have something to send, and the outbox of datagrams, as the number behind theirs.
    output: Turns,
    /// Connections with events that the application has not been told, and UDP ports, as the numbers behind theirs.
    telling: Turns,
    timers: TimerWheel,
    cx: Context,
    local: Local,
    routes: Routes,
    secret: Secret,
    steering: Steering,
    /// How the device spreads frames over cores, if it does and says so.
    spread: Option<DeviceSpread>,
    /// Free places.
    free: Vec<u32>,
    /// Connections whose window waits for free buffers.
    starved: VecDeque<u32>,
    /// The pool's level when it last changed, and how many of the starved have not been looked at since.
    level: (usize, usize),
    starved_unseen: usize,
    /// Connections that have nothing to send since the others' queues left no room for it.
    refused: VecDeque<u32>,
    replies: VecDeque<Reply>,
    listeners: Listeners,
    time_waits: TimeWaits,
    last_cookie: Option<Instant>,
    neighbors: Neighbors,
    /// Neighbors that may have moved.
    doubts: Neighbors,
    hearsay: Hearsay,
    claim: Claim,
    conflict: Option<AddressConflict>,
    /// One that the application has not been told.
    untold_conflict: Option<AddressConflict>,
    conflict_reports: RateLimit,
    /// For each own address.
    defences: Vec<RateLimit>,
    /// Connections in SYN-SENT whose next hop is being asked for.
    unresolved: Vec<u32>,
    /// Connections whose next hop is being asked for since it may have moved.
    doubted: Vec<u32>,
    udp: UdpPorts,
    /// Datagrams that wait to be sent; none before a port is bound.
    outbox: Option<Box<Outbox>>,
    outbox_in_output: bool,
    iface: Iface,
    /// Paths that take less than the link.
    paths: Paths,
    reassembly: Reassembly,
    /// What was last put together, if another core is to get it.
    whole: Option<Whole>,
    arena: Arena,
    resets: HostLimits,
    half_open_challenges: HostLimits,
    /// How many ports have been tried, of remote ends that share a place.
    ports_tried: [u32; PORT_COUNTERS],
    draft: Draft,
}

/// An entry of the connection table.
#[derive(Debug)]
#[repr(C, align(64))]
struct ConnectionEntry {
    generation: u32,
    used: bool,
    in_output: bool,
    in_telling: bool,
    in_starved: bool,
    in_refused: bool,
    in_doubted: bool,
    /// The listener whose backlog counts the connection until its opening is told.
    listener: Option<u16>,
    connection: Connection,
    /// When its timer is set to fire; never, if it is not set.
    wakes_at: Instant,
}

const _: () = assert!(lies_in_its_lines(std::mem::offset_of!(ConnectionEntry, connection)));
const _: () = assert!(size_of::<ConnectionEntry>() == 7 * 64);

impl ConnectionEntry {
    /// Whether the connection of that name lives here.
    #[inline]
    fn is_of(&self, conn: ConnId) -> bool {
        self.used && self.generation == conn.generation
    }

    /// Notes in the lists what the connection may have to do, which is that of this number.
    #[inline(always)]
    fn settle(&mut self, index: u32, output: &mut Turns, telling: &mut Turns) {
        if !self.in_output {
            self.in_output = true;
            output.push_back(index);
        }
        if !self.in_telling && !self.connection.events.is_empty() {
            self.in_telling = true;
            telling.push_back(index);
        }
    }
}

/// A segment that belongs to no connection in the table.
#[derive(Clone, Copy, Debug)]
struct Reply {
    key: FlowKey,
    mac: [u8; 6],
    seq: Seq,
    ack: Seq,
    flags: Flags,
    window: u16,
    options: Options,
}

/// How far the own addresses have been asked for and announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Nothing more is to be sent.
    Rests,
    /// So many probes are to be sent, and then the announcements.
    Probing(u8),
    /// So many announcements are to be sent.
    Announcing(u8),
}

/// What a timer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerOf {
    Connection(u32),
    HalfOpen(u32),
    TimeWait(u32),
    Neighbor(u32),
    Doubt(u32),
    Claim,
    /// Reports of groups, and fragments that do not come.
    Iface,
}

impl Endpoint {
    /// An endpoint whose received payload lies in `arena`.
    ///
    /// # Errors
    /// [`ConfigError`]: the settings contradict themselves or the arena.
    pub fn new(mut config: Config, arena: Arena, now: Instant) -> Result<Self, ConfigError> {
        config.check(arena.buffer_bytes())?;
        // The larger windows can be, the coarser are their units; what does not end with a segment takes one more buffer.
        config.rx_window_bytes = config.rx_window_bytes.min(arena.buffers().saturating_mul(config.mtu));
        let early = EarlyPool::new(config.max_connections, arena.buffers());
        let places = (0..config.max_connections).map(|_| ConnectionEntry {
            connection: Connection::new(&config, &early, now),
            generation: 0,
            used: false,
            listener: None,
            wakes_at: NEVER,
            in_output: false,
            in_telling: false,
            in_starved: false,
            in_refused: false,
            in_doubted: false,
        });
        let flows = config.max_connections + config.syn_queue + config.max_time_wait;
        let pool = WindowPool::new(arena.clone());
        let beside = link_local_beside(&config.mac, &config.addresses);
        let addresses = config.addresses.iter().copied().chain(beside).collect();
        let local = Local { mac: config.mac, addresses };
        Ok(Self {
            now,
            flows: FlowTable::new(flows, &config.isn_secret),
            places: places.collect(),
            output: Turns::new(config.max_connections + 1),
            telling: Turns::new(config.max_connections + MAX_UDP_PORTS),
            timers: TimerWheel::new(flows + 2 * MAX_NEIGHBORS + 2, now),
            level: pool.level(),
            starved_unseen: 0,
            udp: UdpPorts::new(config.udp_rx_datagrams),
            outbox: None,
            outbox_in_output: false,
            iface: Iface::new(&config, &local),
            paths: Paths::new(&config.isn_secret.map(|byte| byte ^ 0xa5)),
            reassembly: Reassembly::new(),
            whole: None,
            defences: vec![RateLimit::new(); local.addresses.len()],
            local,
            routes: Routes::new(&config),
            secret: Secret::new(&config.isn_secret),
            steering: Steering::new(&config.isn_secret, config.core.count),
            spread: None,
            free: (0..config.max_connections as u32).rev().collect(),
            starved: VecDeque::with_capacity(config.max_connections),
            refused: VecDeque::with_capacity(config.max_connections),
            replies: VecDeque::with_capacity(MAX_REPLIES),
            listeners: Listeners::new(config.syn_queue),
            time_waits: TimeWaits::new(config.max_time_wait),
            last_cookie: None,
            neighbors: Neighbors::new(VALID),
            doubts: Neighbors::new(VALID_IN_DOUBT),
            hearsay: Hearsay::new(),
            claim: Claim::Rests,
            conflict: None,
            untold_conflict: None,
            conflict_reports: RateLimit::new(),
            unresolved: Vec::with_capacity(config.max_connections),
            doubted: Vec::with_capacity(config.max_connections),
            // Other keys than for sequence numbers.
            resets: HostLimits::new(&config.isn_secret.map(|byte| byte ^ 0x3c)),
            half_open_challenges: HostLimits::new(&config.isn_secret.map(|byte| byte ^ 0x96)),
            ports_tried: [0; PORT_COUNTERS],
            draft: Draft::new(config.mtu),
            cx: Context {
                options: vec![config.connection],
                counters: Counters::default(),
                pool,
                pieces: PiecePool::new(arena.buffers()),
                sending: SendPool::new(&config.send_limits(arena.buffer_bytes())),
                controls: Controls::new(config.congestion, config.pacing, config.max_connections),
                config,
            },
            arena,
        })
    }

    /// Tells the other cores of a host which flows this one has, and goes by what they tell: all have the same directory,
    /// from before the first frame on. Without one, each segment that belongs to no flow goes from core to core.
    pub fn share_flows(&mut self, directory: FlowDirectory) {
        self.flows.share(directory);
    }

    /// Goes by how the device spreads frames over cores: connections that this core opens are from ports whose segments the
    /// device gives to it. Without that, segments come to other cores, which pass them on.
    pub fn spread_by(&mut self, spread: DeviceSpread) {
        self.spread = Some(spread);
    }

    /// Asks the link whether another host has one of the own addresses: a few times, in the next 300 ms. If one
    /// answers, [`address_conflict`](Self::address_conflict) says so; if none does, the addresses are announced, so
    /// that neighbors forget who had them before. Of several cores one does this for all.
    pub fn claim_addresses(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.claim = Claim::Probing(ADDRESS_PROBES);
        self.set_timer(TimerOf::Claim, now);
        self.iface.join_groups(now);
        self.attend_iface();
    }

    /// The first sign that another host has one of the own addresses. Anyone on the link can give it: it is a
    /// reason not to start, and none to stop.
    pub fn address_conflict(&self) -> Option<AddressConflict> {
        self.conflict
    }

    /// A sign that another host has one of the own addresses, for the application to tell; at most one a minute.
    /// All are [counted](Counters::address_conflicts).
    pub fn take_conflict(&mut self) -> Option<AddressConflict> {
        self.untold_conflict.take()
    }

    /// When [`transmit`](Self::transmit) next has something to do though nothing arrives, or the application has: a timer
    /// may have ended a connection in the last one.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.telling.is_empty() { self.next_transmit() } else { Some(self.now) }
    }

    /// When [`transmit`](Self::transmit) next has something to do though nothing arrives, for who leaves events where they
    /// are.
    pub(crate) fn next_transmit(&self) -> Option<Instant> {
        let may_send = !self.refused.is_empty() && self.cx.sending.has_room();
        if self.has_waiting() || may_send || self.starved_unseen > 0 {
            return Some(self.now);
        }
        self.timers.next_deadline()
    }

    /// Whether frames, answers or connections wait for their turn to be sent.
    #[inline]
    fn has_waiting(&self) -> bool {
        self.output.len() | self.replies.len() | self.iface.waiting() != 0
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.cx.counters
    }

    /// Connections in the table, opening and closing ones included.
    pub fn connections(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes a free place for a flow.
    fn occupy(
        &mut self,
        index: u32,
        key: FlowKey,
        listener: Option<u16>,
        profile: Profile,
    ) -> &mut ConnectionEntry {
        self.flows.insert(key, FlowState::Connection(index));
        let place = &mut self.places[index as usize];
        place.used = true;
        place.listener = listener;
        place.connection.go_by(profile, &self.cx.options[usize::from(profile.0)]);
        place
    }

    /// Where these options stand among those of all connections; none if too many differ.
    fn profile(&mut self, options: &ConnectionOptions) -> Option<Profile> {
        let place = self.cx.options.iter().position(|known| known == options);
        let profile = u8::try_from(place.unwrap_or(self.cx.options.len())).ok().map(Profile)?;
        if place.is_none() {
            self.cx.options.push(*options);
        }
        Some(profile)
    }

    /// Frees a place whose last event is told.
    fn vacate(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        place.used = false;
        place.generation = place.generation.wrapping_add(1);
        place.wakes_at = NEVER;
        self.timers.cancel(index);
        self.free.push(index);
    }

    /// Calls `work` with a connection and what connections share.
    fn with<R>(&mut self, index: u32, work: impl FnOnce(&mut Connection, &mut Context) -> R) -> R {
        work(&mut self.places[index as usize].connection, &mut self.cx)
    }

    /// Notes in the lists what a connection may have to do.
    #[inline]
    fn settle(&mut self, index: u32) {
        self.places[index as usize].settle(index, &mut self.output, &mut self.telling);
    }

    /// Draws the consequences of what a segment, a timer or a call did.
    fn conclude(&mut self, index: u32, outcome: Outcome) {
        match outcome {
            Outcome::Goes => {}
            Outcome::Reset(seq) => {
                let connection = &self.places[index as usize].connection;
                if let Some(mac) = connection.mac {
                    let (key, flags) = (connection.key, Flags::RST);
                    self.reply(Reply::bare(key, mac, seq, Seq(0), flags));
                }
            }
            Outcome::TimeWait => self.enter_time_wait(index),
            Outcome::Closed(reason) => {
                let connection = &self.places[index as usize].connection;
                // One that is only drained has given its place in the table up already.
                if connection.state != State::Drained {
                    self.flows.remove(&connection.key);
                }
                self.end(index, reason);
            }
        }
        self.settle(index);
    }

    /// Ends a connection that is no longer in the flow table.
    fn end(&mut self, index: u32, reason: CloseReason) {
        let now = self.now;
        self.with(index, |connection, cx| {
            let waiting = connection.recv.ready_bytes() > 0 && connection.state != State::Drained;
            if reason == CloseReason::Finished && waiting {
                connection.drain(cx, now);
            } else {
                connection.release(reason, cx);
            }
        });
    }

    fn enter_time_wait(&mut self, index: u32) {
        let connection = &self.places[index as usize].connection;
        let (snd_nxt, rcv_nxt, clock) = connection.last_numbers();
        let owes_ack = connection.owes_ack();
        let until = self.now + self.cx.config.time_wait;
        let entry = TimeWait {
            key: connection.key,
            mac: connection.mac.unwrap_or_default(),
            snd_nxt,
            rcv_nxt,
            clock,
            until,
            answers: RateLimit::new(),
            challenged: None,
            disowned: None,
        };
        let (place, evicted) = self.time_waits.insert(entry);
        if let Some(evicted) = evicted {
            self.flows.remove(&evicted.key);
        }
        self.flows.insert(entry.key, FlowState::TimeWait(place));
        self.set_timer(TimerOf::TimeWait(place), until);
        if owes_ack {
            self.acknowledge_time_wait(place);
        }
        self.end(index, CloseReason::Finished);
    }

    /// Queues a segment that belongs to no connection; dropped if too many wait.
    fn reply(&mut self, reply: Reply) {
        if self.replies.len() == MAX_REPLIES {
            self.cx.counters.drops.limited += 1;
            return;
        }
        if reply.flags.contains(Flags::RST) {
            self.cx.counters.resets_out += 1;
        }
        self.replies.push_back(reply);
    }

    fn set_timer(&mut self, timer: TimerOf, at: Instant) {
        let index = self.timer_index(timer);
        self.timers.set(index, at);
    }

    fn timer_index(&self, timer: TimerOf) -> u32 {
        let half_open = self.cx.config.max_connections as u32;
        let time_wait = half_open + self.cx.config.syn_queue as u32;
        let neighbor = time_wait + self.cx.config.max_time_wait as u32;
        match timer {
            TimerOf::Connection(index) => index,
            TimerOf::HalfOpen(place) => half_open + place,
            TimerOf::TimeWait(place) => time_wait + place,
            TimerOf::Neighbor(entry) => neighbor + entry,
            TimerOf::Doubt(entry) => neighbor + MAX_NEIGHBORS as u32 + entry,
            TimerOf::Claim => neighbor + 2 * MAX_NEIGHBORS as u32,
            TimerOf::Iface => neighbor + 2 * MAX_NEIGHBORS as u32 + 1,
        }
    }

    fn timer_of(&self, index: u32) -> TimerOf {
        let half_open = self.cx.config.max_connections as u32;
        let time_wait = half_open + self.cx.config.syn_queue as u32;
        let neighbor = time_wait + self.cx.config.max_time_wait as u32;
        if index < half_open {
            TimerOf::Connection(index)
        } else if index < time_wait {
            TimerOf::HalfOpen(index - half_open)
        } else if index < neighbor {
            TimerOf::TimeWait(index - time_wait)
        } else if index < neighbor + MAX_NEIGHBORS as u32 {
            TimerOf::Neighbor(index - neighbor)
        } else if index < neighbor + 2 * MAX_NEIGHBORS as u32 {
            TimerOf::Doubt(index - neighbor - MAX_NEIGHBORS as u32)
        } else if index == neighbor + 2 * MAX_NEIGHBORS as u32 {
            TimerOf::Claim
        } else {
            TimerOf::Iface
        }
    }
}

impl Reply {
    /// A segment without window and options.
    fn bare(key: FlowKey, mac: [u8; 6], seq: Seq, ack: Seq, flags: Flags) -> Self {
        Self { key, mac, seq, ack, flags, window: 0, options: Options::default() }
    }
}
