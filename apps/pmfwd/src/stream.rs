//! A stream: what one receive queue gets, another port's transmit queue sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dpdk::{RxQueue, TxQueue};

use crate::burst::Burst;
use crate::capture::Tap;

/// How a core takes bursts.
pub struct Intake<T> {
    /// Packets in a burst at most.
    pub limit: usize,
    /// Who else looks at them.
    pub tap: T,
}

/// A pair of queues, and what goes from the one to the other.
#[derive(Debug)]
pub struct Stream {
    /// Where it comes from.
    pub rx: RxQueue,
    /// Where it goes.
    pub tx: TxQueue,
    /// Which queues these are.
    pub route: Route,
    /// What has passed.
    pub counters: Arc<Counters>,
}

/// The queues of a stream, and the addresses at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Number of the receiving port.
    pub rx_port: usize,
    /// Number of the sending port.
    pub tx_port: usize,
    /// The queue at both ports.
    pub queue: u16,
    /// The sending port's address.
    pub mac: [u8; 6],
    /// The address of what is connected to the sending port.
    pub peer: [u8; 6],
}

/// What a stream has done. One thread counts, any may look.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Packets received.
    pub received: Counter,
    /// Packets that the sending device took.
    pub sent: Counter,
    /// Packets that it did not take.
    pub dropped: Counter,
    /// Packets that ended here: counted only, or not to be answered.
    pub consumed: Counter,
    /// Packets that are durable records.
    pub logged: Counter,
    /// Packets that did not go on since the store did not take them.
    pub not_logged: Counter,
    /// Payload bytes that were copied on their way into or out of the store.
    pub copied_bytes: Counter,
}

/// A number that one thread raises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only one thread does, so nothing is lost without a locked instruction.
    #[inline]
    pub fn add(&self, count: usize) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count as u64), Ordering::Relaxed);
    }

    /// What it has come to.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Back to zero; by the thread that adds, or while there is none.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Counters {
    /// All back to zero; while no thread counts.
    pub fn reset(&self) {
        let Self { received, sent, dropped, consumed, logged, not_logged, copied_bytes } = self;
        for counter in [received, sent, dropped, consumed, logged, not_logged, copied_bytes] {
            counter.reset();
        }
    }
}

impl Stream {
    /// Receives into an empty batch; returns how many packets it has.
    #[inline(always)]
    pub fn receive<T: Tap>(&mut self, burst: &mut Burst, intake: &mut Intake<T>) -> usize {
        let count = self.rx.burst_up_to(burst, intake.limit);
        if count > 0 {
            self.counters.received.add(count);
            intake.tap.see(burst);
        }
        count
    }

    /// Sends the packets. What the device does not take is dropped.
    #[inline(always)]
    pub fn send(&mut self, burst: &mut Burst) {
        let count = burst.len();
        let sent = self.tx.burst(burst);
        self.counters.sent.add(sent);
        if sent < count {
            self.counters.dropped.add(count - sent);
            burst.clear();
        }
    }

    /// Sends packets that were made here.
    #[inline]
    pub fn send_made<T: Tap>(&mut self, burst: &mut Burst, intake: &mut Intake<T>) {
        if !burst.is_empty() {
            intake.tap.see(burst);
            self.send(burst);
        }
    }

    /// Ends the packets' way here.
    #[inline]
    pub fn consume(&mut self, burst: &mut Burst) {
        self.counters.consumed.add(burst.len());
        burst.clear();
    }
}
