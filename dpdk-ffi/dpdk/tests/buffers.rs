//! Buffers in a mapped file: where frames land, and that none is lost or given out twice.

mod support;

use std::collections::HashSet;
use std::num::NonZeroU16;

use dpdk::{
    Eal, ExternalPool, ExternalPoolConfig, IpVersion, MbufBatch, NotSwappedReason, Pool, PoolConfig,
    PoolError, Port, PortConfig, RxQueue, TxChecksums, TxQueue,
};
use support::{BUFFER_BYTES, isolated, numbered_frame, receive, send_all};

/// A port whose frames come back to it, with its receive queue over `pool`.
fn loopback(eal: Eal, pool: &Pool) -> (Port, RxQueue, TxQueue) {
    let id = eal.attach("net_ring0").expect("a ring");
    let (port, rx, tx) = support::start(id, pool);
    (port, rx, tx)
}

#[test]
fn swapped_buffers_hold_the_frames_and_none_is_lost() {
    isolated("swapped_buffers_hold_the_frames_and_none_is_lost", || swap_many(true));
}

#[test]
fn buffers_are_swapped_without_the_flag_where_drivers_do_not_need_it() {
    isolated("buffers_are_swapped_without_the_flag_where_drivers_do_not_need_it", || swap_many(false));
}

fn swap_many(has_flag: bool) {
    const MBUFS: usize = 511;
    const SPARES: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let eal = support::eal();
    let (pool, mut spares) = support::file_pool(eal, &folder.path().join("pm"), MBUFS, SPARES);
    if !has_flag {
        let ring = eal.attach("net_ring0").unwrap();
        let vhost =
            eal.attach(&format!("net_vhost0,iface={}", folder.path().join("vhost").display())).unwrap();
        assert!(!pool.go_without_flag(&[ring, vhost]).unwrap(), "nothing is known of vhost");
        assert!(pool.go_without_flag(&[ring]).unwrap());
    }
    let (_port, mut rx, mut tx) = loopback(eal, &pool);
    let mut batch = MbufBatch::new();
    let (mut sent, mut received) = (0_u64, 0_u64);
    while received < 60_000 {
        assert!(pool.alloc_bulk(&mut batch, 32), "mbufs were lost after {received} packets");
        for packet in &mut batch {
            let frame = numbered_frame(sent, 60 + (sent % 1400) as usize);
            packet.append(frame.len()).unwrap().copy_from_slice(&frame);
            sent += 1;
        }
        send_all(&mut tx, &mut batch);
        receive(&mut rx, &mut batch);
        for packet in &mut batch {
            let (offset, len) = (packet.data_offset(), packet.len());
            let address = packet.buffer_address();
            let spare = spares.remove(received as usize % spares.len());
            let buffer = pool.swap(packet, spare).unwrap();
            assert_eq!(buffer.as_ptr(), address);
            assert_eq!(buffer[offset..offset + len], numbered_frame(received, len));
            assert!(packet.is_empty() && packet.buffer_address() != address);
            spares.push(buffer);
            received += 1;
        }
        batch.clear();
    }
    assert_eq!((received, pool.available()), (sent, MBUFS));
    let mut places: HashSet<usize> = spares.iter().map(|buffer| buffer.as_ptr() as usize).collect();
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    places.extend(all.iter().map(|packet| packet.buffer_address() as usize));
    assert_eq!((all.len(), places.len()), (MBUFS, MBUFS + SPARES), "each buffer is in one place");
}

#[test]
fn a_pool_takes_buffers_that_lie_apart() {
    isolated("a_pool_takes_buffers_that_lie_apart", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (area, buffers) = support::file_buffers(eal, &folder.path().join("pm"), 200);
        let mut given = HashSet::new();
        let every_third: Vec<_> = buffers.into_iter().rev().step_by(3).collect();
        given.extend(every_third.iter().map(|buffer| buffer.as_ptr()));
        let config = ExternalPoolConfig { cache: 0, socket: None };
        let pool = ExternalPool::new(eal, "apart", area, every_third, &config).unwrap();
        let packets: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        let used: HashSet<_> = packets.iter().map(|packet| packet.buffer_address()).collect();
        assert_eq!(used, given);
    });
}

#[test]
fn unfit_swaps_are_refused_and_give_the_spare_back() {
    isolated("unfit_swaps_are_refused_and_give_the_spare_back", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (pool, mut spares) = support::file_pool(eal, &folder.path().join("pm"), 7, 2);
        let dram =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 7, cache: 0, ..PoolConfig::default() }).unwrap();
        let refusal = |packet: &mut dpdk::Mbuf, spare: &'static mut [u8]| {
            let address = spare.as_ptr();
            let before = packet.buffer_address();
            let refused = pool.swap(packet, spare).unwrap_err();
            assert_eq!((refused.spare.as_ptr(), packet.buffer_address()), (address, before));
            (refused.reason, refused.spare)
        };
        let spare = spares.pop().unwrap();
        let (reason, spare) = refusal(&mut dram.alloc().unwrap(), spare);
        assert_eq!(reason, NotSwappedReason::OtherPool);
        let mut packet = pool.alloc().unwrap();
        let elsewhere: &'static mut [u8] = vec![0; BUFFER_BYTES].leak();
        assert_eq!(refusal(&mut packet, elsewhere).0, NotSwappedReason::Spare);
        let (short, _) = spares.pop().unwrap().split_at_mut(BUFFER_BYTES - 64);
        assert_eq!(refusal(&mut packet, short).0, NotSwappedReason::Spare);
        assert!(pool.swap(&mut packet, spare).is_ok());
    });
}

#[test]
fn bad_pools_are_refused() {
    isolated("bad_pools_are_refused", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (area, mut buffers) = support::file_buffers(eal, &folder.path().join("pm"), 8);
        let config = ExternalPoolConfig { cache: 0, socket: None };
        let external = |buffers| ExternalPool::new(eal, "external", area, buffers, &config).unwrap_err();
        let outside: &'static mut [u8] = vec![0; BUFFER_BYTES].leak();
        let error = external(vec![buffers.pop().unwrap(), outside]);
        assert!(matches!(error, PoolError::Buffer { index: 1, .. }), "{error}");
        let (short, _) = buffers.pop().unwrap().split_at_mut(128);
        assert!(matches!(external(vec![short]), PoolError::Buffer { index: 0, .. }));
        assert!(matches!(external(Vec::new()), PoolError::Empty(_)));
        let dram = |name: &str, mbufs, cache| {
            Pool::dram(eal, name, &PoolConfig { mbufs, cache, ..PoolConfig::default() })
        };
        assert!(matches!(dram("", 7, 0), Err(PoolError::Name(_))));
        assert!(matches!(dram("cache", 64, 64), Err(PoolError::Cache { .. })));
        dram("twice", 7, 0).unwrap();
        let error = dram("twice", 7, 0).unwrap_err();
        assert!(error.to_string().contains("name of its own"), "{error}");
        let error = dram("huge", 10_000_000, 0).unwrap_err();
        assert!(error.to_string().contains("more memory"), "{error}");
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it is what is tested")]
fn an_area_is_registered_once_and_on_pages() {
    isolated("an_area_is_registered_once_and_on_pages", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (_area, buffers) = support::file_buffers(eal, &folder.path().join("pm"), 8);
        let base = buffers[0].as_ptr();
        let error = dpdk::ExternalArea::register(eal, base, 4096).unwrap_err();
        assert!(matches!(error, dpdk::AreaError::Repeated { .. }), "{error}");
        let error = dpdk::ExternalArea::register(eal, base.wrapping_add(64), 4096).unwrap_err();
        assert!(matches!(error, dpdk::AreaError::Unaligned { .. }), "{error}");
    });
}

#[test]
fn virtual_devices_take_an_area_for_dma() {
    isolated("virtual_devices_take_an_area_for_dma", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (area, _buffers) = support::file_buffers(eal, &folder.path().join("pm"), 8);
        for device in ["net_null0", "net_ring0", "net_memif0,role=server"] {
            let id = eal.attach(device).unwrap();
            assert!(area.map_dma(id).and_then(|()| area.unmap_dma(id)).is_ok(), "{device}");
        }
    });
}

#[test]
fn headers_grow_at_both_ends_and_no_further() {
    isolated("headers_grow_at_both_ends_and_no_further", || {
        let eal = support::eal();
        let pool =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 7, cache: 0, ..PoolConfig::default() }).unwrap();
        let mut packet = pool.alloc().unwrap();
        assert_eq!((packet.headroom(), packet.tailroom()), (Pool::HEADROOM, BUFFER_BYTES - Pool::HEADROOM));
        packet.append(4).unwrap().copy_from_slice(b"body");
        packet.prepend(5).unwrap().copy_from_slice(b"head ");
        assert_eq!(packet.bytes(), b"head body");
        assert!(packet.prepend(Pool::HEADROOM - 4).is_none() && packet.prepend(usize::MAX).is_none());
        assert!(packet.append(BUFFER_BYTES).is_none() && packet.append(usize::MAX).is_none());
        let room = packet.tailroom();
        assert_eq!(packet.append(room).unwrap().len(), room);
        assert_eq!((packet.tailroom(), packet.len()), (0, 9 + room));
    });
}

/// The ones' complement sum of RFC 1071 over 16-bit words.
fn sum(words: &[u16]) -> u16 {
    words.iter().fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(*word);
        sum + u16::from(carry)
    })
}

/// RFC 9293, section 3.1: the pseudo header is addresses, protocol, and length; devices add the rest.
#[test]
fn checksum_requests_write_what_devices_start_from() {
    isolated("checksum_requests_write_what_devices_start_from", || {
        let eal = support::eal();
        let pool =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 7, cache: 0, ..PoolConfig::default() }).unwrap();
        let written = |head: &[u8], request: TxChecksums| {
            let mut packet = pool.alloc().unwrap();
            let link = usize::from(request.link_len);
            let frame = [&[0xee; 14][..link], head, &[0x77; 25]].concat();
            packet.append(frame.len()).unwrap().copy_from_slice(&frame);
            packet.request_checksums(request).unwrap();
            let tcp = link + head.len();
            let checksum = u16::from_be_bytes(packet.bytes()[tcp + 16..tcp + 18].try_into().unwrap());
            let mut rest = packet.bytes().to_vec();
            rest[tcp + 16..tcp + 18].fill(0x77);
            (checksum, rest[link..tcp].to_vec(), rest == frame)
        };
        let v4 = b"\x45\0\0\x2d\0\x01\0\0\x40\x06\xde\xad\xc0\xa8\x01\x02\xc0\xa8\x01\xfe";
        let request = TxChecksums {
            version: IpVersion::V4,
            link_len: 14,
            ip_len: 20,
            tcp_len: 20,
            ipv4_header: false,
            tcp: true,
            segment_len: None,
        };
        let (checksum, _, otherwise_unchanged) = written(v4, request);
        assert_eq!(checksum, sum(&[0xc0a8, 0x0102, 0xc0a8, 0x01fe, 6, 25]));
        assert!(otherwise_unchanged);
        // A length is in no frame's sum that the device has still to cut.
        let cut = TxChecksums { tcp: false, segment_len: NonZeroU16::new(5), ..request };
        let (checksum, header, _) = written(v4, cut);
        assert_eq!(checksum, sum(&[0xc0a8, 0x0102, 0xc0a8, 0x01fe, 6]));
        assert_eq!((&header[..10], &header[10..12]), (&v4[..10], &[0, 0][..]));
        let (checksum, header, _) = written(v4, TxChecksums { ipv4_header: true, tcp: false, ..request });
        assert_eq!((checksum, &header[..10], &header[10..12]), (0x7777, &v4[..10], &[0, 0][..]));
        let v6 = b"\x60\0\0\0\0\x19\x06\x40\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\xff\xee";
        let (checksum, _, otherwise_unchanged) =
            written(v6, TxChecksums { version: IpVersion::V6, ip_len: 40, ..request });
        assert_eq!(checksum, sum(&[0xfe80, 1, 0xfe80, 0xffee, 6, 25]));
        assert!(otherwise_unchanged);
    });
}

#[test]
fn null_makes_frames_in_the_file_forever() {
    isolated("null_makes_frames_in_the_file_forever", || {
        let folder = tempfile::tempdir().unwrap();
        let eal = support::eal();
        let (pool, spares) = support::file_pool(eal, &folder.path().join("pm"), 127, 1);
        let mut spare = spares.into_iter().next();
        let id = eal.attach("net_null0,size=1000").unwrap();
        let (port, mut rx, mut tx) = support::start(id, &pool);
        let mut batch = MbufBatch::new();
        for _ in 0..1000 {
            receive(&mut rx, &mut batch);
            for packet in &mut batch {
                assert_eq!(packet.len(), 1000);
                spare = Some(pool.swap(packet, spare.take().unwrap()).unwrap());
            }
            send_all(&mut tx, &mut batch);
        }
        drop((port, rx, tx));
        assert_eq!(pool.available(), 127);
    });
}

/// The null device has a key and a table, though it receives nothing by them; memif has neither.
#[test]
fn a_device_says_by_which_hash_it_spreads_what_it_receives() {
    isolated("a_device_says_by_which_hash_it_spreads_what_it_receives", || {
        let eal = support::eal();
        let pool =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 4095, cache: 0, ..PoolConfig::default() }).unwrap();
        let start = |device: &str| {
            let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
            Port::start(eal.attach(device).unwrap(), &config, std::slice::from_ref(&pool)).unwrap()
        };
        let hash = start("net_null0").receive_hash().expect("it has one");
        assert_eq!((hash.key.len(), &hash.key[..4]), (40, &[0x6d, 0x5a, 0x56, 0xda][..]));
        assert!(hash.table.len() == 128 && hash.table.iter().all(|queue| *queue < 2), "{:?}", hash.table);
        assert!(hash.tcp_v4 && hash.tcp_v6);
        assert_eq!(start("net_memif0,role=server").receive_hash(), None);
    });
}

#[test]
fn what_a_full_device_does_not_take_stays_in_order() {
    isolated("what_a_full_device_does_not_take_stays_in_order", || {
        let eal = support::eal();
        let pool =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 4095, cache: 0, ..PoolConfig::default() }).unwrap();
        let (_port, mut rx, mut tx) = loopback(eal, &pool);
        let mut batch = MbufBatch::new();
        let (mut sent, mut made) = (0, 0_u64);
        loop {
            while batch.room() > 0 {
                let mut packet = pool.alloc().unwrap();
                packet.append(60).unwrap().copy_from_slice(&numbered_frame(made, 60));
                batch.push(packet).unwrap();
                made += 1;
            }
            let taken = tx.burst(&mut batch);
            sent += taken as u64;
            assert_eq!(batch.len() as u64, made - sent);
            if taken < MbufBatch::CAPACITY {
                break;
            }
        }
        let waiting: Vec<_> = batch.iter().map(|packet| packet.bytes().to_vec()).collect();
        let expected: Vec<_> = (sent..made).map(|number| numbered_frame(number, 60)).collect();
        assert_eq!(waiting, expected);
        let (mut received, mut next) = (MbufBatch::new(), 0);
        while next < made {
            receive(&mut rx, &mut received);
            for packet in received.drain() {
                assert_eq!(packet.bytes(), numbered_frame(next, 60));
                next += 1;
            }
            tx.burst(&mut batch);
        }
        assert_eq!((batch.len(), pool.available()), (0, 4095));
    });
}

#[test]
fn queues_and_packets_may_move_between_threads() {
    isolated("queues_and_packets_may_move_between_threads", || {
        let eal = support::eal();
        let pool =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 1023, cache: 64, ..PoolConfig::default() }).unwrap();
        let (port, mut rx, mut tx) = loopback(eal, &pool);
        let maker = pool.clone();
        let sender = std::thread::spawn(move || {
            let _lcore = eal.register_thread().unwrap();
            let mut batch = MbufBatch::new();
            for number in 0..50_000 {
                let mut packet = support::wait_for("a free mbuf", || maker.alloc());
                packet.append(60).unwrap().copy_from_slice(&numbered_frame(number, 60));
                batch.push(packet).unwrap();
                send_all(&mut tx, &mut batch);
            }
        });
        let receiver = std::thread::spawn(move || {
            let mut batch = MbufBatch::new();
            let mut next = 0;
            while next < 50_000 {
                receive(&mut rx, &mut batch);
                for packet in batch.drain() {
                    assert_eq!(packet.bytes(), numbered_frame(next, 60));
                    next += 1;
                }
            }
        });
        sender.join().unwrap();
        receiver.join().unwrap();
        let statistics = port.statistics().unwrap();
        assert_eq!((statistics.rx_packets, statistics.tx_packets), (50_000, 50_000));
        assert_eq!(pool.available(), 1023);
    });
}
