//! A port whose other side is a thread of the same process: what a NIC's hardware does, another core does.

mod support;

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use dpdk::{Completions, Eal, MbufBatch, Pool, PoolConfig, Port, RingEnd, RingError, RxQueue, TxQueue};
use support::{Payload, contents, isolated, numbered_frame, payload_bytes, receive, send_all, wait_for};

const FRAMES: u64 = 20_000;

fn frame_len(number: u64) -> usize {
    60 + (number * 37 % 1400) as usize
}

/// A port over `pool` whose other side comes with it.
fn ring_port(eal: Eal, pool: &Pool) -> (RingEnd, Port, RxQueue, TxQueue) {
    let (id, end) = RingEnd::new(eal, "wire", 256).expect("a port of rings");
    let (port, rx, tx) = support::start(id, pool);
    (end, port, rx, tx)
}

/// Delivers numbered frames in buffers of the port's own pool, as a device does that was given them.
fn fill_and_deliver(end: &mut RingEnd, pool: &Pool) {
    let mut batch = MbufBatch::new();
    let mut next = 0;
    while next < FRAMES || !batch.is_empty() {
        let count = (FRAMES - next).min(32) as usize;
        if batch.is_empty() && pool.alloc_bulk(&mut batch, count) {
            for mbuf in &mut batch {
                let frame = numbered_frame(next, frame_len(next));
                mbuf.append(frame.len()).expect("a buffer's room").copy_from_slice(&frame);
                next += 1;
            }
        }
        if end.deliver(&mut batch) == 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn another_thread_fills_buffers_of_the_ports_pool_and_none_is_lost() {
    isolated("another_thread_fills_buffers_of_the_ports_pool_and_none_is_lost", || fill_from_thread(true));
}

#[test]
fn a_thread_without_an_lcore_fills_buffers_too() {
    isolated("a_thread_without_an_lcore_fills_buffers_too", || fill_from_thread(false));
}

fn fill_from_thread(has_lcore: bool) {
    const MBUFS: usize = 1023;
    const SPARES: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let eal = support::eal();
    // Both threads keep mbufs at hand.
    let (pool, mut spares) = support::file_pool_with(eal, &folder.path().join("pm"), MBUFS, SPARES, 64);
    let (mut end, port, mut rx, _tx) = ring_port(eal, &pool);
    let posted = port.pool(0).expect("the queue's pool").clone();
    assert!(port.pool(1).is_none());
    let device = std::thread::spawn(move || {
        let _lcore = has_lcore.then(|| eal.register_thread().unwrap());
        fill_and_deliver(&mut end, &posted);
        end
    });
    let mut batch = MbufBatch::new();
    let mut next = 0;
    while next < FRAMES {
        receive(&mut rx, &mut batch);
        for packet in &mut batch {
            let expected = numbered_frame(next, frame_len(next));
            assert_eq!(packet.bytes(), expected, "frame {next}");
            let (offset, address) = (packet.data_offset(), packet.buffer_address());
            let spare = spares.remove(next as usize % spares.len());
            let buffer = pool.swap(packet, spare).expect("the device filled a buffer of the pool");
            assert_eq!(buffer.as_ptr(), address);
            assert_eq!(buffer[offset..offset + expected.len()], expected);
            spares.push(buffer);
            next += 1;
        }
        batch.clear();
    }
    let end = device.join().unwrap();
    assert_eq!((end.undelivered(), pool.available()), (0, MBUFS));
    let mut places: HashSet<usize> = spares.iter().map(|buffer| buffer.as_ptr() as usize).collect();
    // In the device's thread's cache there may be some that no other thread can take.
    drop((port, rx));
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    places.extend(all.iter().map(|packet| packet.buffer_address() as usize));
    assert_eq!(places.len(), all.len() + SPARES, "each buffer is in one place");
    assert!(all.len() >= MBUFS - 2 * 64, "{} of {MBUFS}", all.len());
}

fn payload_len(number: u64) -> usize {
    1 + (number % 3000) as usize
}

#[test]
fn payload_that_another_thread_reads_comes_back_once() {
    isolated("payload_that_another_thread_reads_comes_back_once", || read_in_thread(true));
}

#[test]
fn payload_that_a_thread_without_an_lcore_reads_comes_back_once() {
    isolated("payload_that_a_thread_without_an_lcore_reads_comes_back_once", || read_in_thread(false));
}

fn read_in_thread(has_lcore: bool) {
    const MBUFS: u32 = 1023;
    let eal = support::eal();
    let config = PoolConfig { mbufs: MBUFS, cache: 64, ..PoolConfig::default() };
    let heads = Pool::dram(eal, "heads", &config).unwrap();
    let mut completions = Completions::new(eal, "tails", 512, None).unwrap();
    let (mut end, port, rx, mut tx) = ring_port(eal, &heads);
    let done = &AtomicBool::new(false);
    let alive = Rc::new(Cell::new(0));
    let mut returned = vec![0_u32; FRAMES as usize];
    std::thread::scope(|scope| {
        let device = scope.spawn(move || {
            let _lcore = has_lcore.then(|| eal.register_thread().unwrap());
            let mut batch = MbufBatch::new();
            let mut next = 0;
            while next < FRAMES && !done.load(Ordering::Relaxed) {
                if end.collect(&mut batch) == 0 {
                    std::thread::yield_now();
                }
                for packet in &batch {
                    let expected =
                        [numbered_frame(next, 54), payload_bytes(next, payload_len(next))].concat();
                    assert!(contents(packet) == expected, "frame {next}");
                    next += 1;
                }
                batch.clear();
            }
            next
        });
        let ends_with_the_port = StopOnDrop(done);
        let mut batch = MbufBatch::new();
        for number in 0..FRAMES {
            let mut packet = wait_for("a free mbuf", || {
                completions.drain(|payload: Payload| returned[payload.number as usize] += 1);
                heads.alloc().filter(|_| completions.room() > 0)
            });
            packet.append(54).unwrap().copy_from_slice(&numbered_frame(number, 54));
            completions.attach(&mut packet, Payload::new(number, payload_len(number), &alive)).unwrap();
            batch.push(packet).unwrap();
            if batch.len() == 32 || number + 1 == FRAMES {
                send_all(&mut tx, &mut batch);
            }
        }
        wait_for("all payload to come back", || {
            completions.drain(|payload| returned[payload.number as usize] += 1);
            (completions.outstanding() == 0).then_some(())
        });
        assert_eq!(device.join().unwrap(), FRAMES);
        drop(ends_with_the_port);
    });
    assert!(returned.iter().all(|times| *times == 1), "each payload comes back exactly once");
    assert_eq!((alive.get(), tx.rejected()), (0, 0));
    drop((port, rx, tx));
    assert_eq!(heads.available(), MBUFS as usize);
}

/// Ends the other thread too if this one fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_full_ring_takes_no_more_than_it_holds() {
    isolated("a_full_ring_takes_no_more_than_it_holds", || {
        let eal = support::eal();
        let config = PoolConfig { mbufs: 511, cache: 0, ..PoolConfig::default() };
        let pool = Pool::dram(eal, "dram", &config).unwrap();
        let (id, mut end) = RingEnd::new(eal, "small", 32).unwrap();
        let (port, mut rx, mut tx) = support::start(id, &pool);
        assert!(port.link().unwrap().up && port.info().driver == "net_ring");
        let mut batch = MbufBatch::new();
        assert!(pool.alloc_bulk(&mut batch, 64));
        assert_eq!((end.deliver(&mut batch), batch.len(), end.undelivered()), (31, 33, 31));
        assert_eq!(tx.burst(&mut batch), 31);
        batch.clear();
        assert_eq!((rx.burst(&mut batch), end.collect(&mut batch), end.undelivered()), (31, 31, 0));
        batch.clear();
        assert_eq!(pool.available(), 511);
    });
}

#[test]
fn bad_ring_ports_are_refused() {
    isolated("bad_ring_ports_are_refused", || {
        let eal = support::eal();
        for name in ["", "a name", "a-b", "0123456789abcdef", "a\0"] {
            assert!(matches!(RingEnd::new(eal, name, 64), Err(RingError::Name(_))), "{name:?}");
        }
        for frames in [0, 1, 63, 1 << 17] {
            assert!(matches!(RingEnd::new(eal, "wire", frames), Err(RingError::Length(_))), "{frames}");
        }
        let (first, _end) = RingEnd::new(eal, "wire", 64).unwrap();
        assert_eq!(first.name(), "net_ring_wire");
        let error = RingEnd::new(eal, "wire", 64).unwrap_err().to_string();
        assert!(error.contains("name of its own"), "{error}");
        assert!(RingEnd::new(eal, "other", 64).is_ok());
    });
}
