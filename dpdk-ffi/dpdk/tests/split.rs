//! Frames in two segments: headers in DRAM, payload in a buffer of a mapped file.

mod support;

use dpdk::{
    Checksum, ExternalPool, Mbuf, MbufBatch, NoSplit, NotSwappedReason, Pool, PoolConfig, Port, PortConfig,
};
use support::{isolated, numbered_frame, receive, send_all};

const MBUFS: usize = 63;
const HEADER_BYTES: usize = 54;

fn dram(eal: dpdk::Eal) -> Pool {
    Pool::dram(eal, "headers", &PoolConfig { mbufs: MBUFS as u32, cache: 0, ..PoolConfig::default() })
        .unwrap()
}

/// A packet as a device that splits would hand it over.
fn split_frame(headers: &Pool, payload: &ExternalPool, frame: &[u8]) -> Mbuf {
    let (head, rest) = frame.split_at(HEADER_BYTES);
    let mut packet = headers.alloc().unwrap();
    packet.append(head.len()).unwrap().copy_from_slice(head);
    let mut tail = payload.alloc().unwrap();
    tail.append(rest.len()).unwrap().copy_from_slice(rest);
    packet.chain(tail).unwrap();
    packet
}

#[test]
fn the_second_segments_buffer_is_swapped_and_none_is_lost() {
    isolated("the_second_segments_buffer_is_swapped_and_none_is_lost", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let headers = dram(eal);
        let (pool, mut spares) = support::file_pool(eal, &folder.path().join("pm"), MBUFS, 5);
        let id = eal.attach("net_ring0").unwrap();
        let config = PortConfig { headers: Some(headers.clone()), ..PortConfig::default() };
        let mut port = Port::start(id, &config, std::slice::from_ref(&pool)).unwrap();
        assert_eq!(port.info().header_split, Err(NoSplit::NotOffered));
        let (mut rx, mut tx) = (port.rx_queue(0).unwrap(), port.tx_queue(0).unwrap());
        let mut batch = MbufBatch::new();
        for number in 0..1000_u64 {
            let frame = numbered_frame(number, 1000);
            let mut packet = split_frame(&headers, &pool, &frame);
            assert_eq!((packet.len(), packet.segment_count()), (1000, 2));
            packet.set_checksums(Checksum::Unknown, Checksum::Good);
            batch.push(packet).unwrap();
            send_all(&mut tx, &mut batch);
            receive(&mut rx, &mut batch);
            for packet in &mut batch {
                assert_eq!(
                    (packet.ip_checksum(), packet.transport_checksum()),
                    (Checksum::Unknown, Checksum::Good)
                );
                let payload = packet.segments().nth(1).unwrap().as_ptr();
                let spare = spares.remove(number as usize % spares.len());
                let (buffer, offset) = pool.swap_second(packet, spare).unwrap();
                assert_eq!(buffer[offset..].as_ptr(), payload);
                assert_eq!(buffer[offset..][..1000 - HEADER_BYTES], frame[HEADER_BYTES..]);
                assert_eq!((packet.bytes(), packet.len()), (&frame[..HEADER_BYTES], HEADER_BYTES));
                spares.push(buffer);
            }
            batch.clear();
        }
        assert_eq!((pool.available(), headers.available()), (MBUFS, MBUFS));
    });
}

#[test]
fn only_a_second_segment_of_the_pool_is_swapped() {
    isolated("only_a_second_segment_of_the_pool_is_swapped", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let headers = dram(eal);
        let (pool, mut spares) = support::file_pool(eal, &folder.path().join("pm"), MBUFS, 1);
        let mut spare = spares.pop().unwrap();
        let mut other_pool = headers.alloc().unwrap();
        other_pool.chain(headers.alloc().unwrap()).unwrap();
        let mut three = split_frame(&headers, &pool, &[0; 100]);
        three.chain(pool.alloc().unwrap()).unwrap();
        for (packet, reason) in [
            (&mut other_pool, NotSwappedReason::OtherPool),
            (&mut three, NotSwappedReason::Segments(3)),
            (&mut pool.alloc().unwrap(), NotSwappedReason::Segments(1)),
        ] {
            let before: Vec<_> = packet.segments().map(<[u8]>::as_ptr).collect();
            let refused = pool.swap_second(packet, spare).unwrap_err();
            assert_eq!(refused.reason, reason);
            assert_eq!(packet.segments().map(<[u8]>::as_ptr).collect::<Vec<_>>(), before);
            spare = refused.spare;
        }
        let mut two = split_frame(&headers, &pool, &[0; 100]);
        let refused = pool.swap(&mut two, spare).unwrap_err();
        assert_eq!(refused.reason, NotSwappedReason::Segments(2));
        assert!(pool.swap_second(&mut two, refused.spare).is_ok());
        drop((other_pool, three, two));
        assert_eq!((pool.available(), headers.available()), (MBUFS, MBUFS));
    });
}
