//! What is done with each burst, mode by mode.

use anyhow::Result;
use dpdk::{Mbuf, Pool};

use crate::burst::Burst;
use crate::capture::Tap;
use crate::packet::{Template, answer, set_flow, swap_addresses};
use crate::stream::{Intake, Stream};

/// How many packets ahead the CPU is told to fetch.
const PREFETCH_DISTANCE: usize = 4;

/// A mode of forwarding.
pub trait Engine {
    /// Takes a stream one burst further.
    ///
    /// Each step has a batch of its own: the CPU then need not wait for the end of one burst to know that there is
    /// room for the next.
    ///
    /// # Errors
    /// The mode cannot go on.
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()>;
}

/// Sends what is received.
pub struct Io;

impl Engine for Io {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        if stream.receive(&mut burst, intake) > 0 {
            stream.send(&mut burst);
        }
        Ok(())
    }
}

/// Writes the sending port's and its peer's addresses.
pub struct Mac;

impl Engine for Mac {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        if stream.receive(&mut burst, intake) > 0 {
            let mut addresses = [0; 12];
            addresses[..6].copy_from_slice(&stream.route.peer);
            addresses[6..].copy_from_slice(&stream.route.mac);
            for_each_fetched(&mut burst, |packet| {
                if let Some(field) = packet.bytes_mut().first_chunk_mut() {
                    *field = addresses;
                }
            });
            stream.send(&mut burst);
        }
        Ok(())
    }
}

/// Exchanges source and destination.
pub struct Macswap;

impl Engine for Macswap {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        if stream.receive(&mut burst, intake) > 0 {
            for_each_fetched(&mut burst, |packet| swap_addresses(packet.bytes_mut()));
            stream.send(&mut burst);
        }
        Ok(())
    }
}

/// Counts.
pub struct Rxonly;

impl Engine for Rxonly {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        if stream.receive(&mut burst, intake) > 0 {
            stream.consume(&mut burst);
        }
        Ok(())
    }
}

/// Sends a template for each stream, and does not receive.
pub struct Txonly<'a> {
    /// Where mbufs come from.
    pub pool: &'a Pool,
    /// What to send, one for each port.
    pub templates: &'a [Template],
}

impl Engine for Txonly<'_> {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        self.templates[stream.route.tx_port].fill(self.pool, &mut burst, intake.limit);
        stream.send_made(&mut burst, intake);
        Ok(())
    }
}

/// Sends datagrams to many addresses in turn, and counts what it receives.
pub struct Flowgen<'a> {
    /// Where mbufs come from.
    pub pool: &'a Pool,
    /// What to send, one for each port.
    pub templates: &'a [Template],
    /// How many flows there are.
    pub flows: u32,
    /// The flow that is next.
    pub next: u32,
}

impl Engine for Flowgen<'_> {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        if stream.receive(&mut burst, intake) > 0 {
            stream.consume(&mut burst);
        }
        self.templates[stream.route.tx_port].fill(self.pool, &mut burst, intake.limit);
        for packet in burst.iter_mut() {
            set_flow(packet.bytes_mut(), self.next);
            self.next = if self.next + 1 < self.flows { self.next + 1 } else { 0 };
        }
        stream.send_made(&mut burst, intake);
        Ok(())
    }
}

/// Answers ARP and echo requests.
pub struct Icmpecho;

impl Engine for Icmpecho {
    #[inline]
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        let received = stream.receive(&mut burst, intake);
        if received > 0 {
            let mac = stream.route.mac;
            burst.retain(|packet| packet.segment_count() == 1 && answer(packet.bytes_mut(), mac));
            stream.counters.consumed.add(received - burst.len());
            stream.send(&mut burst);
        }
        Ok(())
    }
}

/// Visits the packets with their first bytes on the way from memory.
#[inline]
fn for_each_fetched(burst: &mut Burst, mut visit: impl FnMut(&mut Mbuf)) {
    let packets = burst.iter_mut().into_slice();
    packets.iter().take(PREFETCH_DISTANCE).for_each(Mbuf::prefetch);
    for at in 0..packets.len() {
        if let Some(ahead) = packets.get(at + PREFETCH_DISTANCE) {
            ahead.prefetch();
        }
        visit(&mut packets[at]);
    }
}
