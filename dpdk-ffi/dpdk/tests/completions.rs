//! Attached payload: sent from where it lies, and its owner back exactly once.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use dpdk::{
    Completions, Eal, Mbuf, MbufBatch, NotAttachedReason, Offloads, Pool, PoolConfig, Port, PortConfig,
};
use support::{Payload, contents, isolated, receive, send_all};

fn headers(eal: Eal) -> Pool {
    Pool::dram(eal, "headers", &PoolConfig { mbufs: 1023, cache: 0, ..PoolConfig::default() }).unwrap()
}

fn header(pool: &Pool, number: u64) -> Mbuf {
    let mut packet = pool.alloc().unwrap();
    let frame = support::numbered_frame(number, 54);
    packet.append(frame.len()).unwrap().copy_from_slice(&frame);
    packet
}

#[test]
fn payload_comes_back_once_and_only_when_the_receiver_is_done() {
    isolated("payload_comes_back_once_and_only_when_the_receiver_is_done", || {
        const CAPACITY: u32 = 64;
        let eal = support::eal();
        let pool = headers(eal);
        let mut completions = Completions::new(eal, "tails", CAPACITY, None).unwrap();
        let id = eal.attach("net_ring0").unwrap();
        let (_port, mut rx, mut tx) = support::start(id, &pool);
        let alive = Rc::new(Cell::new(0));
        let mut batch = MbufBatch::new();
        let mut returned = vec![0_u32; 20_000];
        for (round, numbers) in (0..returned.len() as u64).collect::<Vec<_>>().chunks(32).enumerate() {
            for &number in numbers {
                let mut packet = header(&pool, number);
                let payload = Payload::new(number, 1 + (number % 3000) as usize, &alive);
                completions.attach(&mut packet, payload).unwrap();
                assert_eq!(packet.segment_count(), 2);
                batch.push(packet).unwrap();
            }
            send_all(&mut tx, &mut batch);
            assert_eq!(completions.drain(|_| ()), 0, "the receiver has not read round {round}");
            receive(&mut rx, &mut batch);
            for (packet, &number) in batch.iter().zip(numbers) {
                let mut expected = support::numbered_frame(number, 54);
                expected.extend(Payload::new(number, 1 + (number % 3000) as usize, &alive).as_ref());
                assert!(contents(packet) == expected, "packet {number}");
            }
            assert_eq!((batch.len(), alive.get()), (numbers.len(), numbers.len()));
            batch.clear();
            let count = completions.drain(|payload| returned[payload.number as usize] += 1);
            assert_eq!((count, alive.get(), completions.outstanding()), (numbers.len(), 0, 0));
        }
        assert!(returned.iter().all(|times| *times == 1));
        assert_eq!(pool.available(), pool.mbufs());
    });
}

#[test]
fn payload_that_is_not_attached_stays_with_its_owner() {
    isolated("payload_that_is_not_attached_stays_with_its_owner", || {
        let eal = support::eal();
        let pool = headers(eal);
        let mut completions = Completions::new(eal, "tails", 2, None).unwrap();
        let mut packet = header(&pool, 0);
        let refusal = |packet: &mut Mbuf, completions: &mut Completions<Vec<u8>>, payload: Vec<u8>| {
            let before = contents(packet);
            let refused = completions.attach(packet, payload.clone()).unwrap_err();
            assert!(refused.payload == payload && contents(packet) == before);
            refused.reason
        };
        assert_eq!(refusal(&mut packet, &mut completions, Vec::new()), NotAttachedReason::Empty);
        assert_eq!(refusal(&mut packet, &mut completions, vec![1; 65536]), NotAttachedReason::TooLong);
        completions.attach(&mut packet, b"one".to_vec()).unwrap();
        completions.attach(&mut packet, vec![2; 65535]).unwrap();
        assert_eq!(refusal(&mut packet, &mut completions, b"three".to_vec()), NotAttachedReason::Full);
        assert_eq!((packet.len(), packet.segment_count()), (54 + 3 + 65535, 3));
        drop(packet);
        let mut lengths = Vec::new();
        completions.drain(|payload| lengths.push(payload.len()));
        lengths.sort_unstable();
        assert_eq!(
            (lengths, completions.room()),
            (vec![3, 65535], 2),
            "a packet that is never sent counts too"
        );
    });
}

#[test]
fn payload_inside_its_owner_is_sent_from_where_it_stays() {
    isolated("payload_inside_its_owner_is_sent_from_where_it_stays", || {
        let eal = support::eal();
        let pool = headers(eal);
        let mut completions = Completions::<[u8; 16]>::new(eal, "tails", 8, None).unwrap();
        let packets: Vec<_> = (0..8)
            .map(|number| {
                let mut packet = header(&pool, number);
                completions.attach(&mut packet, [number as u8; 16]).unwrap();
                packet
            })
            .collect();
        for (number, packet) in packets.iter().enumerate() {
            assert_eq!(contents(packet)[54..], [number as u8; 16]);
        }
    });
}

#[test]
fn owners_still_with_a_device_outlive_the_completions() {
    isolated("owners_still_with_a_device_outlive_the_completions", || {
        let eal = support::eal();
        let pool = headers(eal);
        let alive = Rc::new(Cell::new(0));
        let mut completions = Completions::new(eal, "tails", 2, None).unwrap();
        let mut packets = [header(&pool, 0), header(&pool, 1)];
        for (number, packet) in (0..).zip(&mut packets) {
            completions.attach(packet, Payload::new(number, 100, &alive)).unwrap();
        }
        let [sent, kept] = packets;
        drop(sent);
        drop(completions);
        assert_eq!(alive.get(), 1, "one was done, the other is still read");
        assert_eq!(contents(&kept)[54..], Payload::new(1, 100, &alive).bytes);
        drop(kept);
    });
}

#[test]
fn null_returns_each_payload_after_sending() {
    isolated("null_returns_each_payload_after_sending", || {
        let eal = support::eal();
        let pool = headers(eal);
        let alive = Rc::new(Cell::new(0));
        let mut completions = Completions::new(eal, "tails", 32, None).unwrap();
        let id = eal.attach("net_null0").unwrap();
        let mut port = Port::start(id, &PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
        let mut tx = port.tx_queue(0).unwrap();
        let mut batch = MbufBatch::new();
        let mut returned = vec![0_u32; 3200];
        for numbers in (0..returned.len() as u64).collect::<Vec<_>>().chunks(32) {
            for &number in numbers {
                let mut packet = header(&pool, number);
                completions.attach(&mut packet, Payload::new(number, 1000, &alive)).unwrap();
                batch.push(packet).unwrap();
            }
            send_all(&mut tx, &mut batch);
            completions.drain(|payload| returned[payload.number as usize] += 1);
        }
        assert!(returned.iter().all(|times| *times == 1));
        assert_eq!((alive.get(), tx.rejected()), (0, 0));
    });
}

/// The packets of a capture file as libpcap writes it: 24 bytes of header, then 16 before each packet.
fn captured(file: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    let mut rest = &file[24..];
    while let Some((record, behind)) = rest.split_at_checked(16) {
        let len = u32::from_ne_bytes(record[8..12].try_into().unwrap()) as usize;
        packets.push(&behind[..len]);
        rest = &behind[len..];
    }
    packets
}

#[test]
fn devices_for_one_segment_get_one_or_none() {
    isolated("devices_for_one_segment_get_one_or_none", || {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sent.pcap");
        let eal = support::eal();
        let pool = headers(eal);
        let mut completions = Completions::new(eal, "tails", 32, None).unwrap();
        let id = eal.attach(&format!("net_pcap0,tx_pcap={}", file.display())).unwrap();
        let mut port = Port::start(id, &PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
        assert!(!port.offloads().contains(Offloads::TX_SEGMENTS));
        let mut tx = port.tx_queue(0).unwrap();
        let mut batch = MbufBatch::new();
        let payload = |number: u64| if number == 1 { vec![1; 10_000] } else { vec![number as u8; 900] };
        for number in 0..4 {
            let mut packet = header(&pool, number);
            completions.attach(&mut packet, payload(number)).unwrap();
            batch.push(packet).unwrap();
        }
        send_all(&mut tx, &mut batch);
        assert_eq!(
            (tx.rejected(), completions.drain(|_| ())),
            (1, 4),
            "what does not fit one buffer is given up"
        );
        drop((port, tx));
        let bytes = std::fs::read(&file).unwrap();
        let sent = [0, 2, 3].map(|number| [support::numbered_frame(number, 54), payload(number)].concat());
        assert!(captured(&bytes) == sent);
        assert_eq!(pool.available(), pool.mbufs());
    });
}
