//! What lies between two ports whose client and server are threads of one process: the hardware of two NICs and the
//! cable between them, worked by the client's thread.
//!
//! To the server's thread it is what a NIC is. Frames appear in buffers of its own receive pool, which it has not
//! touched since it gave them back; what it sends is read where it lies, headers in DRAM and payload in the store, and
//! given back after that. All copying is done by the client's core, as a device's DMA engine would do it: by way of a
//! CPU's caches, as DDIO has it, but of another core's and not of the last level.

use std::collections::VecDeque;

use anyhow::Result;
use dpdk::{Eal, Mbuf, MbufBatch, Pool, PortId, RingEnd, WrittenSoon};

/// Length of each port's queues, which is what a NIC has by default: buffers that are posted for frames to come, or
/// hold some that the port has not received yet.
const DESCRIPTORS: usize = 1024;
/// Buffers that are posted at a time.
const POSTED_AT_ONCE: usize = 32;
/// Lines of a buffer that are asked for before it is written: those of a full frame.
const LINES: usize = 24;

/// The ports of a server and of its client, neither started yet, and the ends of the cable that they share.
pub struct Cable {
    pub server: PortId,
    pub client: PortId,
    pub ends: Ends,
}

/// The far sides of two ports.
pub struct Ends {
    server: RingEnd,
    client: RingEnd,
}

impl Cable {
    /// Makes both ports.
    pub fn new(eal: Eal) -> Result<Self> {
        let (server, server_end) = RingEnd::new(eal, "server", DESCRIPTORS as u32)?;
        let (client, client_end) = RingEnd::new(eal, "client", DESCRIPTORS as u32)?;
        Ok(Self { server, client, ends: Ends { server: server_end, client: client_end } })
    }
}

/// The hardware of both ports, and the cable between them.
pub struct Wire {
    server: Side,
    client: Side,
    /// Frames on their way, as they were sent and as they arrive.
    sent: MbufBatch,
    filled: MbufBatch,
}

/// The hardware of one port.
struct Side {
    end: RingEnd,
    /// The port's receive pool.
    pool: Pool,
    /// Empty buffers of it, in the order in which they will be filled.
    posted: VecDeque<Mbuf>,
}

impl Wire {
    /// Joins two ports that are started, with the pools that their receive queues were given.
    pub fn new(ends: Ends, server_pool: Pool, client_pool: Pool) -> Self {
        let side = |end, pool| Side { end, pool, posted: VecDeque::with_capacity(DESCRIPTORS) };
        Self {
            server: side(ends.server, server_pool),
            client: side(ends.client, client_pool),
            sent: MbufBatch::new(),
            filled: MbufBatch::new(),
        }
    }

    /// Carries what the client has sent to the server.
    pub fn carry_to_server(&mut self) {
        let Self { server, client, sent, filled } = self;
        carry(client, server, sent, filled);
    }

    /// Carries what the server has sent to the client.
    pub fn carry_to_client(&mut self) {
        let Self { server, client, sent, filled } = self;
        carry(server, client, sent, filled);
    }
}

/// Carries all frames that one port has sent to the other. As with a NIC, a frame for which no buffer is posted is
/// lost.
fn carry(from: &mut Side, to: &mut Side, sent: &mut MbufBatch, filled: &mut MbufBatch) {
    while from.end.collect(sent) > 0 {
        let is_full = sent.room() == 0;
        to.post();
        for frame in &*sent {
            let Some(mbuf) = to.fill(frame) else { break };
            // As many fit as were sent.
            let _ = filled.push(mbuf);
        }
        // Payload goes back to its owner with the frames that were read.
        sent.clear();
        to.end.deliver(filled);
        // All are delivered: no more buffers are posted than there are places.
        filled.clear();
        if !is_full {
            break;
        }
    }
}

impl Side {
    /// Posts buffers for those that the port has received, as far as its pool has any.
    fn post(&mut self) {
        // A ring of so many places holds one frame less.
        let places = DESCRIPTORS - 1 - self.end.undelivered();
        let mut fresh = MbufBatch::new();
        while self.posted.len() + POSTED_AT_ONCE <= places && self.pool.alloc_bulk(&mut fresh, POSTED_AT_ONCE)
        {
            self.posted.extend(fresh.drain());
        }
    }

    /// Copies a frame into the next of the posted buffers; none if there is none, or the frame is longer.
    fn fill(&mut self, frame: &Mbuf) -> Option<Mbuf> {
        let mut mbuf = self.posted.pop_front()?;
        // The next frame is likely as long as this one.
        if let Some(next) = self.posted.front() {
            WrittenSoon::behind(next, frame.len()).prefetch(LINES);
        }
        mbuf.append_packet(frame)?;
        Some(mbuf)
    }
}

#[cfg(test)]
mod tests {
    use dpdk::{Completions, ExternalArea, ExternalPool, ExternalPoolConfig, PoolConfig, Port, PortConfig};
    use dpdk::{RxQueue, TxQueue};

    use super::*;

    const BUFFER_BYTES: usize = 2176;
    const MBUFS: usize = 255;

    /// A pool over memory of the test's own, which is never freed, and a spare buffer.
    fn external_pool(eal: Eal) -> (ExternalPool, &'static mut [u8]) {
        let len = ((MBUFS + 1) * BUFFER_BYTES).next_multiple_of(4096);
        let memory = vec![0_u8; len + 4096].leak();
        let start = memory.as_ptr().align_offset(4096);
        let memory = &mut memory[start..start + len];
        #[expect(clippy::disallowed_methods, reason = "memory of the test's own")]
        let area = ExternalArea::register(eal, memory.as_ptr(), len).expect("an area");
        let mut buffers: Vec<_> = memory.chunks_exact_mut(BUFFER_BYTES).take(MBUFS + 1).collect();
        let spare = buffers.pop().expect("there is one");
        let config = ExternalPoolConfig { cache: 0, socket: None };
        (ExternalPool::new(eal, "server", area, buffers, &config).expect("a pool"), spare)
    }

    fn start(id: PortId, pool: &Pool) -> (Port, RxQueue, TxQueue) {
        let config = PortConfig::default();
        let mut port = Port::start(id, &config, std::slice::from_ref(pool)).expect("a port that starts");
        let (rx, tx) = (port.rx_queue(0).expect("its queue"), port.tx_queue(0).expect("its queue"));
        (port, rx, tx)
    }

    fn body(number: usize) -> Vec<u8> {
        (0..1 + number * 37 % 1400).map(|at| (number ^ at) as u8).collect()
    }

    // The library's one test that needs the EAL, which starts once per process.
    #[test]
    fn frames_arrive_in_posted_buffers_of_the_receivers_pool() {
        let eal = Eal::init(["--no-huge", "--no-shconf", "-m", "64"]).expect("the EAL starts");
        let Cable { server, client, ends } = Cable::new(eal).expect("two ports");
        let config = PoolConfig { mbufs: 2047, cache: 0, ..PoolConfig::default() };
        let (of_server, mut spare) = external_pool(eal);
        let of_client = Pool::dram(eal, "client", &config).expect("a pool");
        let heads = Pool::dram(eal, "heads", &config).expect("a pool");
        let mut completions = Completions::<Vec<u8>>::new(eal, "tails", 2048, None).expect("places");
        let (_server_port, mut server_rx, mut server_tx) = start(server, &of_server);
        let (_client_port, mut client_rx, mut client_tx) = start(client, &of_client);
        let mut wire = Wire::new(ends, Pool::clone(&of_server), of_client.clone());
        let mut batch = MbufBatch::new();
        let send = |tx: &mut TxQueue, completions: &mut Completions<_>, numbers: std::ops::Range<usize>| {
            let mut batch = MbufBatch::new();
            for number in numbers {
                let mut frame = heads.alloc().expect("a free mbuf");
                frame.append(14).expect("room").fill(number as u8);
                assert!(completions.attach(&mut frame, body(number)).is_ok());
                batch.push(frame).expect("room");
            }
            tx.burst(&mut batch);
            assert!(batch.is_empty());
        };
        let is_frame = |frame: &[u8], number: usize| {
            let expected = [vec![number as u8; 14], body(number)].concat();
            frame == expected
        };

        // To the server. That a buffer can be swapped is the proof that it is of the pool's own.
        for round in 0..20 {
            send(&mut client_tx, &mut completions, 50 * round..50 * (round + 1));
            wire.carry_to_server();
            assert_eq!(server_rx.burst(&mut batch), 50, "round {round}");
            for (number, frame) in (50 * round..).zip(&mut batch) {
                assert!(frame.segment_count() == 1 && is_frame(frame.bytes(), number), "frame {number}");
                spare = of_server.swap(frame, spare).expect("a buffer of the server's pool");
            }
            batch.clear();
        }
        // And back.
        send(&mut server_tx, &mut completions, 0..64);
        wire.carry_to_client();
        assert_eq!(client_rx.burst(&mut batch), 64);
        assert!(batch.iter().enumerate().all(|(number, frame)| is_frame(frame.bytes(), number)));
        batch.clear();
        assert_eq!(completions.drain(drop), 20 * 50 + 64, "what was carried is given back");

        // A server that does not look: its pool has no more buffers than it has, and the rest is lost.
        for round in 0..10 {
            send(&mut client_tx, &mut completions, 40 * round..40 * (round + 1));
            wire.carry_to_server();
            assert_eq!(completions.drain(drop), 40, "lost ones are given back as well");
        }
        let mut next = 0;
        while server_rx.burst(&mut batch) > 0 {
            for frame in batch.drain() {
                assert!(is_frame(frame.bytes(), next), "frame {next}");
                next += 1;
            }
        }
        assert!((MBUFS - POSTED_AT_ONCE..=MBUFS).contains(&next), "{next} frames in {MBUFS} buffers");
        // Buffers that came back are posted again.
        send(&mut client_tx, &mut completions, 0..10);
        wire.carry_to_server();
        assert_eq!(server_rx.burst(&mut batch), 10);
    }
}
