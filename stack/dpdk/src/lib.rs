//! The stack on a DPDK port: frames arrive in named buffers, and named buffers are sent from where they lie.
//!
//! # Several cores
//! Each core runs a stack of its own, with the same addresses, over the arena of its own shard ([`PortShare`]).
//!
//! Where the device spreads connections over as many queues as there are cores, each core has a pair of queues, and
//! a connection is served by the core whose queue its SYN came to. A segment that comes to another core later, as the
//! kernel's fanout may have it, goes from core to core until its connection is found. One that no core has a connection for,
//! as a [directory](stack_tcp::FlowDirectory) of all flows tells, is refused by the core that it came to.
//!
//! Where there are fewer queues, the cores that have one deal frames out to all by a keyed hash of addresses and
//! ports, and send for those that have none. Such a frame stays in the buffer where it arrived until its core has
//! looked at it; payload that this core retains is copied into its own arena, once, and counted. The log of a shard
//! names only buffers of its own.
//!
//! Other protocols are answered by the core to which they come. What others may learn from it (neighbours, ICMP
//! errors about connections) they get as copies. All queues between cores are bounded; what does not fit is lost and
//! counted.

#![forbid(unsafe_code)]

mod config;
mod exchange;
mod open;
mod reach;
mod receive;
mod send;
mod share;
#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use dpdk::{Eal, Mbuf, MbufBatch, Port, PortId, QueuePlan, RxQueue, SleepError, Sleeper};
use pmem::Arena;
use stack_net::doze::Waker;
use stack_net::net::{Event, OverEndpoint, Transport};
use stack_net::profile::{Laps, NoLaps, Stage};
use stack_net::time::Instant;
use stack_tcp::config::ETHERNET_HEADER_BYTES;
use stack_tcp::{Config, Endpoint, Steering};

use exchange::{NEWS, STRAYS, Stray};
use receive::{Origin, Received};
use send::Sender;

pub use config::{DpdkConfig, DpdkCounters, DpdkError};
pub use open::{AddressTaken, ServeError};
pub use reach::{Reach, ReachError};
pub use receive::NamedBuffers;
pub use send::named_frame;
pub use share::PortShare;

/// Looks at an empty receive queue in one turn, where there is nothing else to look at but the clock and the timers,
/// whose ticks are a thousand times longer: a look that finds something comes the sooner.
const LOOKS: usize = 8;

/// The connections of one core, over a pair of a port's queues, or over those of another core.
#[derive(Debug)]
pub struct DpdkTransport {
    endpoint: Endpoint,
    core: usize,
    /// None where other cores have all the queues there are.
    rx: Option<RxQueue>,
    received: MbufBatch,
    /// Of what was received, this core's own frames.
    own: MbufBatch,
    /// How frames are dealt out, where the device does not.
    steering: Option<Steering>,
    buffers: NamedBuffers,
    sender: Sender,
    /// Where the core sleeps, if it was asked to sleep until it is woken.
    sleeper: Option<Sleeper>,
    plan: QueuePlan,
    port: Arc<Port>,
}

impl DpdkTransport {
    /// Starts the port `id` for one core, with one queue each way over the buffers of `arena`, of which the port has
    /// the `reach`. The host's addresses and limits are those of `config`. For several
    /// cores see [`PortShare`].
    ///
    /// # Errors
    /// [`DpdkError`]; nothing was sent. The arena's buffers that were meant for the port are lost to this process.
    pub fn new(
        eal: Eal,
        id: PortId,
        config: Config,
        rings: DpdkConfig,
        reach: Reach,
        arena: Arena,
        now: Instant,
    ) -> Result<Self, DpdkError> {
        PortShare::at(eal, id, NonZeroU16::MIN, rings)?.swap_remove(0).take(config, reach, arena, now)
    }

    /// The port. Cores share it.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Which of the cores at the port this is, from 0.
    pub fn core(&self) -> usize {
        self.core
    }

    /// How many cores are at the port.
    pub fn cores(&self) -> usize {
        self.sender.exchange.cores()
    }

    /// The largest IP packet that is sent, in bytes.
    pub fn mtu(&self) -> usize {
        self.sender.max_frame_bytes - ETHERNET_HEADER_BYTES
    }

    /// How the port's queues are laid out.
    pub fn plan(&self) -> QueuePlan {
        self.plan
    }

    /// What went through the port, or to and from other cores.
    pub fn counters(&self) -> DpdkCounters {
        DpdkCounters {
            sent: self.sender.sent,
            too_long: self.sender.too_long,
            copied_bytes: self.sender.copied_bytes,
            ..self.buffers.counters
        }
    }

    /// Takes in a burst from the device.
    #[inline]
    fn receive_burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> usize {
        let Some(rx) = &mut self.rx else { return 0 };
        let has_more_to_see = self.sender.exchange.cores() > 1 || !self.sender.is_quiet();
        rx.burst_within(&mut self.received, MbufBatch::CAPACITY, if has_more_to_see { 1 } else { LOOKS });
        if self.received.is_empty() {
            laps.lap(Stage::Rx);
            return 0;
        }
        self.take_burst(now, laps)
    }

    /// Takes in what the device has given, with what was there already when the core was about to sleep.
    fn take_burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> usize {
        let count = self.received.len();
        self.buffers.counters.received += count as u64;
        if self.sender.tag.is_some() {
            // Where the device has not. What has none then is not of this VLAN.
            self.received.iter_mut().for_each(Mbuf::untag);
        }
        if let Some(steering) = &self.steering {
            let exchange = &self.sender.exchange;
            for mbuf in self.received.drain() {
                let head = mbuf.bytes();
                match steering.core_of_frame(head, mbuf.len() - head.len()) {
                    Some(core) if usize::from(core) != self.core => {
                        let is_given = exchange.give_segment(core.into(), mbuf);
                        self.buffers.counters.crossing_lost += u64::from(!is_given);
                    }
                    // There is room for as many as came.
                    _ => drop(self.own.push(mbuf)),
                }
            }
            std::mem::swap(&mut self.received, &mut self.own);
        }
        laps.lap(Stage::Rx);
        self.take_received(now, Origin::Device, laps);
        count
    }

    /// Takes in what other cores have for this one.
    fn receive_from_cores<L: Laps>(&mut self, now: Instant, laps: &mut L) -> usize {
        let exchange = self.sender.exchange.clone();
        exchange.take_segments(self.core, &mut self.received);
        let mut count = self.received.len();
        self.buffers.counters.crossed += count as u64;
        laps.lap(Stage::Rx);
        self.take_received(now, Origin::Core { asked: 0 }, laps);
        for _ in 0..STRAYS {
            let Some(Stray { mbuf, asked }) = exchange.take_stray(self.core) else { break };
            count += 1;
            self.buffers.counters.crossed += 1;
            // There is room: the batch is empty.
            let _ = self.received.push(mbuf);
            self.take_received(now, Origin::Core { asked }, laps);
        }
        for _ in 0..NEWS {
            let Some(mbuf) = exchange.take_news(self.core) else { break };
            count += 1;
            self.endpoint.learn(now, mbuf.bytes());
        }
        count
    }

    /// Gives the stack the frames that were received.
    fn take_received<L: Laps>(&mut self, now: Instant, origin: Origin, laps: &mut L) {
        let Self { endpoint, received, buffers, sender, .. } = self;
        let mut burst = Received { mbufs: received, buffers, sender, origin };
        endpoint.receive_burst(now, &mut burst, laps);
        received.clear();
        laps.lap(Stage::Rx);
    }

    /// Sends what waits and what is due; returns the number of frames.
    fn transmit_burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> usize {
        let before = self.sender.departed;
        self.sender.settle();
        self.sender.flush();
        laps.lap(Stage::Tx);
        self.endpoint.transmit(now, &mut self.sender);
        laps.lap(Stage::Emit);
        self.sender.flush();
        let sent = (self.sender.departed - before) as usize + self.sender.flush_others();
        if sent == 0 {
            self.sender.reclaim();
        }
        laps.lap(Stage::Tx);
        sent
    }
}

impl OverEndpoint for DpdkTransport {
    type Endpoint = Endpoint;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Transport for DpdkTransport {
    type Error = SleepError;

    fn receive(&mut self, now: Instant) -> Result<usize, SleepError> {
        self.receive_in_laps(now, &mut NoLaps)
    }

    #[inline]
    fn receive_in_laps<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<usize, SleepError> {
        let count = self.receive_burst(now, laps);
        if self.sender.exchange.cores() == 1 {
            return Ok(count);
        }
        Ok(count + self.receive_from_cores(now, laps))
    }

    #[inline]
    fn next_event(&mut self) -> Option<Event> {
        self.buffers.warm_spares();
        self.endpoint.next_event()
    }

    fn transmit(&mut self, now: Instant) -> Result<usize, SleepError> {
        self.transmit_in_laps(now, &mut NoLaps)
    }

    #[inline]
    fn transmit_in_laps<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<usize, SleepError> {
        // Most turns of an idle core end here.
        if self.sender.is_quiet() && self.endpoint.is_quiet_at(now) {
            laps.lap(Stage::Tx);
            return Ok(0);
        }
        Ok(self.transmit_burst(now, laps))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.endpoint.next_deadline()
    }

    /// Also until another core has something for this one. Without [`DpdkConfig::rx_interrupts`] nothing ends it early.
    fn wait(&mut self, limit: Duration) -> Result<(), SleepError> {
        let Some(sleeper) = &mut self.sleeper else {
            std::thread::sleep(limit);
            return Ok(());
        };
        // No interrupt tells when the device takes frames again.
        let has_left_over = !self.received.is_empty() || self.sender.has_waiting();
        let exchange = &self.sender.exchange;
        if has_left_over || !exchange.may_sleep(self.core) {
            return Ok(());
        }
        let slept = match &mut self.rx {
            Some(rx) => rx.sleep(sleeper, &mut self.received, limit).map(drop),
            None => sleeper.sleep(limit),
        };
        exchange.is_awake(self.core);
        slept
    }

    /// None without [`DpdkConfig::rx_interrupts`].
    fn waker(&mut self) -> Result<Option<Waker>, SleepError> {
        let bell = self.sleeper.as_ref().map(Sleeper::bell);
        Ok(bell.map(|bell| Waker::new(move || bell.ring())))
    }
}
