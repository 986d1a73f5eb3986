//! The Linux kernel as the peer, in a network namespace of the test's own.

mod support;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dpdk::{
    Checksum, Completions, Eal, ExternalPool, IpVersion, Mbuf, MbufBatch, Offloads, Pool, PoolConfig, Port,
    PortConfig, PortError, RxQueue, Sleeper, TxChecksums, TxQueue,
};
use support::{in_namespace, run, send_all, wait_for};

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OUR_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const KERNEL_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// A device with the kernel behind it, receiving into a mapped file.
struct Wire {
    _folder: tempfile::TempDir,
    file: PathBuf,
    eal: Eal,
    pool: ExternalPool,
    spares: Vec<&'static mut [u8]>,
    port: Port,
    rx: RxQueue,
    tx: TxQueue,
    batch: MbufBatch,
}

impl Wire {
    fn new(device: &str) -> Self {
        Self::with(device, PortConfig { promiscuous: true, ..PortConfig::default() })
    }

    fn with(device: &str, config: PortConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pm");
        let eal = support::eal();
        let (pool, spares) = support::file_pool(eal, &file, 2047, 64);
        let id = eal.attach(device).unwrap();
        let mut port = Port::start(id, &config, std::slice::from_ref(&pool)).unwrap();
        let (rx, tx) = (port.rx_queue(0).unwrap(), port.tx_queue(0).unwrap());
        Self { _folder: folder, file, eal, pool, spares, port, rx, tx, batch: MbufBatch::new() }
    }

    /// The first received frame that `wanted` accepts, in its buffer, and where it lies there.
    fn receive(&mut self, what: &str, wanted: impl Fn(&Mbuf) -> bool) -> (&'static mut [u8], usize, usize) {
        wait_for(what, || {
            self.rx.burst(&mut self.batch);
            let packet = self.batch.drain().find(|packet| wanted(packet));
            packet.map(|mut packet| {
                let (offset, len) = (packet.data_offset(), packet.len());
                let spare = self.spares.pop().expect("a spare");
                (self.pool.swap(&mut packet, spare).unwrap(), offset, len)
            })
        })
    }

    fn send(&mut self, packet: Mbuf) {
        self.batch.clear();
        self.batch.push(packet).unwrap();
        send_all(&mut self.tx, &mut self.batch);
    }
}

fn small_pool(eal: Eal) -> Pool {
    Pool::dram(eal, "headers", &PoolConfig { mbufs: 255, cache: 0, ..PoolConfig::default() }).unwrap()
}

/// Gives the kernel its address on `interface`.
fn configure_kernel(interface: &str) {
    run("ip", &format!("addr add {KERNEL_IP}/24 dev {interface}"));
    run("ip", &format!("link set {interface} up"));
}

fn mac_of(interface: &str) -> [u8; 6] {
    let text = String::from_utf8(run("ip", &format!("-o link show {interface}")).stdout).unwrap();
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// RFC 826: who has `target`?
fn is_arp_request(frame: &[u8], target: Ipv4Addr) -> bool {
    frame.len() >= 42
        && frame[12..22] == *b"\x08\x06\0\x01\x08\0\x06\x04\0\x01"
        && frame[38..42] == target.octets()
}

/// Link header and ARP reply (RFC 826) to the sender of `request`.
fn arp_reply(request: &[u8]) -> ([u8; 14], [u8; 28]) {
    let mut link = [0; 14];
    link[..6].copy_from_slice(&request[6..12]);
    link[6..12].copy_from_slice(&OUR_MAC);
    link[12..].copy_from_slice(b"\x08\x06");
    let mut arp = [0; 28];
    arp[..8].copy_from_slice(b"\0\x01\x08\0\x06\x04\0\x02");
    arp[8..14].copy_from_slice(&OUR_MAC);
    arp[14..18].copy_from_slice(&OUR_IP.octets());
    arp[18..28].copy_from_slice(&request[22..32]);
    (link, arp)
}

/// The kernel asks, learns our address from a reply whose body was attached, and sends a datagram that
/// lands in the file.
fn exchange_with_kernel(wire: &mut Wire) {
    let headers =
        Pool::dram(wire.eal, "headers", &PoolConfig { mbufs: 255, cache: 0, ..PoolConfig::default() })
            .unwrap();
    let mut completions = Completions::new(wire.eal, "tails", 8, None).unwrap();
    let socket = UdpSocket::bind((KERNEL_IP, 0)).unwrap();
    let datagram: Vec<u8> = (0..1400_u32).map(|place| (place * 7 + 3) as u8).collect();
    socket.send_to(&datagram, (OUR_IP, 9)).unwrap();
    let (frame, offset, len) =
        wire.receive("an ARP request", |packet| is_arp_request(packet.bytes(), OUR_IP));
    let (link, arp) = arp_reply(&frame[offset..offset + len]);
    let mut reply = headers.alloc().unwrap();
    reply.append(link.len()).unwrap().copy_from_slice(&link);
    completions.attach(&mut reply, arp).unwrap();
    wire.send(reply);
    let (frame, offset, len) =
        wire.receive("the datagram", |packet| packet.bytes().get(12..14) == Some(b"\x08\0"));
    assert_eq!(frame[offset + 14 + 20 + 8..offset + len], datagram);
    let file = fs::read(&wire.file).unwrap();
    assert!(file.windows(datagram.len()).any(|window| window == datagram), "the payload lies in the file");
    wait_for("the attached body to come back", || {
        wire.tx.reclaim();
        (completions.drain(|body| assert_eq!(body, arp)) > 0).then_some(())
    });
    let statistics = wire.port.statistics().unwrap();
    assert!(statistics.rx_packets >= 2 && statistics.tx_packets == 1, "{statistics:?}");
    let counters = wire.port.extended_statistics().unwrap();
    let sent = counters.iter().find(|counter| counter.name == "tx_good_packets").unwrap();
    assert_eq!(sent.value, 1);
    wire.port.reset_statistics().unwrap();
    assert_eq!(wire.port.statistics().unwrap().tx_packets, 0);
}

#[test]
fn af_packet_on_veth_fills_the_file() {
    in_namespace("af_packet_on_veth_fills_the_file", || {
        run("ip", "link add ours type veth peer name kernels");
        run("ip", "link set ours up");
        configure_kernel("kernels");
        exchange_with_kernel(&mut Wire::new("net_af_packet0,iface=ours"));
    });
}

#[test]
fn tap_fills_the_file() {
    in_namespace("tap_fills_the_file", || {
        let mut wire = Wire::new("net_tap0,iface=tap0");
        configure_kernel("tap0");
        exchange_with_kernel(&mut wire);
    });
}

/// The kernel answers a SYN to a closed port with RST, but only if both checksums are right.
fn fills_in_checksums(payload_lens: &[usize]) {
    let mut wire = Wire::new("net_tap0,iface=tap0");
    configure_kernel("tap0");
    run("ip", &format!("neigh replace {OUR_IP} lladdr 02:00:00:00:00:02 dev tap0"));
    assert!(wire.port.offloads().contains(Offloads::TX_IPV4_CHECKSUM));
    // TAP sums TCP too, but goes wrong behind an odd piece: a port must not offer that.
    assert!(!wire.port.offloads().contains(Offloads::TX_TCP_CHECKSUM));
    let headers = small_pool(wire.eal);
    let mut completions = Completions::new(wire.eal, "tails", 8, None).unwrap();
    let frame = syn(mac_of("tap0"), payload_lens.iter().sum());
    let mut packet = headers.alloc().unwrap();
    packet.append(frame.len()).unwrap().copy_from_slice(&frame);
    for len in payload_lens {
        let bytes: Vec<u8> = (0..*len).map(|place| (place * 31 + 5) as u8).collect();
        completions.attach(&mut packet, bytes).unwrap();
    }
    let too_long = TxChecksums {
        version: IpVersion::V4,
        link_len: 14,
        ip_len: 20,
        tcp_len: 24,
        ipv4_header: true,
        tcp: true,
        segment_len: None,
    };
    packet.request_checksums(too_long).unwrap_err();
    assert_eq!(packet.bytes(), frame, "a refused request changes nothing");
    packet.request_checksums(TxChecksums { tcp_len: 20, ..too_long }).unwrap();
    wire.send(packet);
    let is_reset = |packet: &Mbuf| {
        let frame = packet.bytes();
        frame.len() >= 54 && frame[23] == 6 && frame[34..38] == *b"\0\x51\x03\xe8" && frame[47] & 4 != 0
    };
    let good = |packet: &Mbuf| {
        is_reset(packet)
            && packet.ip_checksum() == Checksum::Good
            && packet.transport_checksum() == Checksum::Good
    };
    wire.receive("a reset", good);
}

#[test]
fn tap_fills_in_the_checksums_that_were_asked_for() {
    in_namespace("tap_fills_in_the_checksums_that_were_asked_for", || fills_in_checksums(&[]));
}

#[test]
fn tap_fills_in_checksums_over_attached_payload() {
    in_namespace("tap_fills_in_checksums_over_attached_payload", || fills_in_checksums(&[500, 333]));
}

/// TAP cuts in software; what it is asked for is what a card is asked for. The kernel answers each segment to a closed port
/// with RST, but only if both its checksums are right.
#[test]
fn tap_cuts_a_frame_into_the_segments_that_were_asked_for() {
    in_namespace("tap_cuts_a_frame_into_the_segments_that_were_asked_for", || {
        let mut wire = Wire::new("net_tap0,iface=tap0");
        configure_kernel("tap0");
        run("ip", &format!("neigh replace {OUR_IP} lladdr 02:00:00:00:00:02 dev tap0"));
        // It cuts less than there is to cut, and sums odd pieces wrong: a port must not offer that.
        assert!(!wire.port.offloads().contains(Offloads::TX_TCP_SEGMENTATION));
        let headers = small_pool(wire.eal);
        let mut completions = Completions::new(wire.eal, "tails", 8, None).unwrap();
        let mut frame = syn(mac_of("tap0"), 3_500);
        frame[42..46].copy_from_slice(b"\0\0\0\x09");
        frame[47] = 0x10;
        let mut packet = headers.alloc().unwrap();
        packet.append(frame.len()).unwrap().copy_from_slice(&frame);
        for (piece, len) in [600, 1_400, 1_500].into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + piece * 7) as u8).collect();
            completions.attach(&mut packet, bytes).unwrap();
        }
        let request = TxChecksums {
            version: IpVersion::V4,
            link_len: 14,
            ip_len: 20,
            tcp_len: 20,
            ipv4_header: false,
            tcp: false,
            segment_len: NonZeroU16::new(1_000),
        };
        packet.request_checksums(request).unwrap();
        wire.send(packet);
        // RFC 9293, section 3.10.7.1: the reset's number is what was acknowledged.
        let is_reset = |packet: &Mbuf| {
            let frame = packet.bytes();
            frame.len() >= 54
                && frame[23] == 6
                && frame[34..42] == *b"\0\x51\x03\xe8\0\0\0\x09"
                && frame[47] == 4
        };
        let mut resets = 0;
        wait_for("a reset for each of four segments", || {
            wire.rx.burst(&mut wire.batch);
            resets += wire.batch.drain().filter(is_reset).count();
            (resets == 4).then_some(())
        });
        wait_for("its payload back", || (completions.drain(drop) + completions.room() >= 8).then_some(()));
    });
}

/// From port 1000 to port 81, with garbage where the checksums belong.
fn syn(kernel_mac: [u8; 6], payload_len: usize) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[..6].copy_from_slice(&kernel_mac);
    frame[6..12].copy_from_slice(&OUR_MAC);
    frame[12..14].copy_from_slice(b"\x08\0");
    frame[14..24].copy_from_slice(b"\x45\0\0\x28\0\x01\0\0\x40\x06");
    frame[16..18].copy_from_slice(&(40 + payload_len as u16).to_be_bytes());
    frame[24..26].copy_from_slice(b"\xde\xad");
    frame[26..30].copy_from_slice(&OUR_IP.octets());
    frame[30..34].copy_from_slice(&KERNEL_IP.octets());
    frame[34..38].copy_from_slice(b"\x03\xe8\0\x51");
    frame[38..46].copy_from_slice(b"\0\0\0\x07\0\0\0\0");
    frame[46..54].copy_from_slice(b"\x50\x02\xff\xff\xbe\xef\0\0");
    frame
}

/// Longer than any test waits: a sleep that nothing ends is one that fails.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Sleeps until frames are there, as often as that takes.
fn sleep_until_received(wire: &mut Wire, sleeper: &mut Sleeper) {
    let begun = Instant::now();
    while wire.batch.is_empty() {
        if wire.rx.sleep(sleeper, &mut wire.batch, TOO_LONG).unwrap() == 0 {
            wire.rx.burst(&mut wire.batch);
        }
        assert!(begun.elapsed() < TOO_LONG, "the frame woke nobody");
    }
}

#[test]
fn tap_wakes_who_sleeps() {
    in_namespace("tap_wakes_who_sleeps", || {
        let config = PortConfig { promiscuous: true, rx_interrupts: true, ..PortConfig::default() };
        let mut wire = Wire::with("net_tap0,iface=tap0", config);
        run("sysctl", "-qw net.ipv6.conf.tap0.disable_ipv6=1");
        configure_kernel("tap0");
        let mut sleeper = Sleeper::new().unwrap();
        let socket = UdpSocket::bind((KERNEL_IP, 0)).unwrap();
        let is_request = |wire: &Wire| wire.batch.iter().any(|packet| is_arp_request(packet.bytes(), OUR_IP));
        for _ in 0..20 {
            // The kernel asks who has the address, from another thread, and while this one sleeps or is about to.
            std::thread::scope(|scope| {
                scope.spawn(|| socket.send_to(b"?", (OUR_IP, 9)).unwrap());
                // What the interface says of its own accord when it is new may come before.
                while !is_request(&wire) {
                    wire.batch.clear();
                    sleep_until_received(&mut wire, &mut sleeper);
                }
            });
            wire.batch.clear();
            run("ip", "neigh flush dev tap0");
            // It asks again where nobody answers; and what was there before is no reason to sleep.
            wait_for("silence", || (wire.rx.burst(&mut wire.batch) == 0).then_some(()));
            wire.batch.clear();
        }
    });
}

#[test]
fn a_bell_ends_a_sleep_or_keeps_it_from_beginning() {
    in_namespace("a_bell_ends_a_sleep_or_keeps_it_from_beginning", || {
        let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
        let mut wire = Wire::with("net_tap0,iface=tap0", config);
        let mut sleeper = Sleeper::new().unwrap();
        let bell = sleeper.bell();
        let begun = Instant::now();
        for _ in 0..20 {
            std::thread::scope(|scope| {
                scope.spawn(|| bell.ring());
                wire.rx.sleep(&mut sleeper, &mut wire.batch, TOO_LONG).unwrap();
            });
            // A frame may have come before the ring, which then keeps this from lasting.
            bell.ring();
            sleeper.sleep(TOO_LONG).unwrap();
        }
        assert!(begun.elapsed() < TOO_LONG, "the bell woke nobody");
        // A bell that was heard is silent.
        let begun = Instant::now();
        sleeper.sleep(Duration::from_millis(50)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(50));
    });
}

#[test]
fn devices_without_interrupts_are_refused() {
    in_namespace("devices_without_interrupts_are_refused", || {
        run("ip", "link add ours type veth peer name kernels");
        run("ip", "link set ours up");
        let folder = tempfile::tempdir().unwrap();
        let memif = format!("net_memif0,role=server,socket-abstract=no,socket={}/m", folder.path().display());
        let eal = support::eal();
        let pool = small_pool(eal);
        for device in ["net_af_packet0,iface=ours", &memif, "net_null0", "net_ring0"] {
            let id = eal.attach(device).unwrap();
            let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
            let error = Port::start(id, &config, std::slice::from_ref(&pool)).unwrap_err();
            assert!(matches!(&error, PortError::NoRxInterrupts { .. }), "{device}: {error}");
        }
    });
}
