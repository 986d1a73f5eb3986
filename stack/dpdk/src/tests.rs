//! The transport over a ring that gives it what it sends: frames are put there as devices would deliver them.

use std::num::NonZeroU16;

use dpdk::{Checksum, Eal, Mbuf, MbufBatch, Pool, PoolConfig};
use pmem::{Arena, BufferId, Extent, Options, Region};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, TcpPacket};
use stack_net::net::{ConnId, Event, Net as _, OverEndpoint as _, Slot, Transport as _};
use stack_net::time::Instant;
use stack_tcp::testing::{Arrived, arena, extent_of};
use stack_tcp::{Config, Endpoint, FrameSink, SinkFull, TxChecksum, TxFrame};

use super::{DpdkConfig, DpdkCounters, DpdkTransport, Reach};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const TEXT_BYTES: usize = 1000;

/// How the device delivers a frame.
#[derive(Clone, Copy, Debug)]
enum Delivery {
    /// Headers in DRAM, payload in a named buffer; frames other than TCP's in one piece there.
    Apart,
    /// So many bytes in DRAM, the rest in a named buffer.
    After(usize),
    /// As above, and the rest in two.
    InThree(usize),
    /// In one piece, in a named buffer or in DRAM.
    Whole { named: bool },
}

struct Wire(Vec<Vec<u8>>);

impl FrameSink for Wire {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        let pieces = frame.payload.iter().map(|piece| piece.bytes());
        self.0.push(std::iter::once(frame.head).chain(pieces).collect::<Vec<_>>().concat());
        Ok(())
    }
}

/// A client, and a server behind the transport.
struct Rig {
    client: Endpoint,
    client_arena: Arena,
    server: DpdkTransport,
    headers: Pool,
    now: Instant,
    /// What is put behind the addresses of the client's frames.
    tag: Option<[u8; 4]>,
    /// Where the payload of the last frame in a named buffer begins.
    named: Option<(BufferId, usize)>,
}

impl Rig {
    fn new(eal: Eal, number: usize, vlan: Option<u16>) -> Self {
        let options = Options { size: Some(8 << 20), ..Options::default() };
        let region = Region::open("memory:", &options).unwrap();
        let info = region.info().clone();
        let seed = region.into_seeds().swap_remove(0);
        let id = eal.attach(&format!("net_ring{number}")).unwrap();
        let reach = Reach::new(eal, &info, &seed, &[id]).unwrap();
        let arena_of_server = seed.open().unwrap().arena().clone();
        let now = Instant::from_secs(1);
        let config = |host: usize| {
            let address = format!("10.0.0.{}/24", host + 1).parse().unwrap();
            let config = Config::with_secret(MACS[host], vec![address], [host as u8; 16]);
            // The client's frames are tagged on the way.
            Config { max_connections: 8, vlan: vlan.filter(|_| host == 1), ..config }
        };
        let rings = DpdkConfig {
            rx_descriptors: 64,
            tx_descriptors: 64,
            header_split: true,
            ..DpdkConfig::default()
        };
        let server = DpdkTransport::new(eal, id, config(1), rings, reach, arena_of_server, now).unwrap();
        let header_config = PoolConfig { mbufs: 63, cache: 0, ..PoolConfig::default() };
        let client_arena = arena(256);
        Self {
            client: Endpoint::new(config(0), client_arena.clone(), now).unwrap(),
            client_arena,
            server,
            headers: Pool::dram(eal, &format!("test{number}"), &header_config).unwrap(),
            now,
            tag: vlan.map(|vlan| [0x81, 0, 0xe0 | (vlan >> 8) as u8, vlan as u8]),
            named: None,
        }
    }

    fn connect(&mut self, delivery: Delivery, checksum: Checksum) -> [ConnId; 2] {
        let server = "10.0.0.2:80".parse().unwrap();
        self.client.connect(self.now, server, None).unwrap();
        self.exchange(delivery, checksum);
        [self.client.next_event(), self.server.next_event()].map(|event| match event {
            Some(Event::Opened { conn, .. }) => conn,
            event => panic!("{event:?}"),
        })
    }

    /// Carries frames both ways until there are none.
    fn exchange(&mut self, delivery: Delivery, checksum: Checksum) {
        loop {
            let mut wire = Wire(Vec::new());
            self.client.transmit(self.now, &mut wire);
            let quiet = wire.0.is_empty();
            for mut frame in wire.0 {
                frame.splice(12..12, self.tag.into_iter().flatten());
                self.deliver(&frame, delivery, checksum);
            }
            self.server.transmit(self.now).unwrap();
            let mut batch = MbufBatch::new();
            let count = self.server.rx.as_mut().unwrap().burst(&mut batch);
            for packet in &batch {
                let mut frame: Vec<u8> = packet.segments().flatten().copied().collect();
                if let Some([.., high, low]) = self.tag {
                    let tag: Vec<u8> = frame.drain(12..16).collect();
                    // Without a priority.
                    assert_eq!(tag, [0x81, 0, high & 0x0f, low]);
                }
                self.client.receive(self.now, &mut Arrived(frame, &self.client_arena));
            }
            if quiet && count == 0 {
                return;
            }
        }
    }

    fn deliver(&mut self, frame: &[u8], delivery: Delivery, checksum: Checksum) {
        let (head, rest) = match delivery {
            Delivery::Apart => frame.split_at(headers_end(frame)),
            Delivery::After(bytes) | Delivery::InThree(bytes) => frame.split_at(bytes.min(frame.len())),
            Delivery::Whole { named: true } => (&[][..], frame),
            Delivery::Whole { named: false } => (frame, &[][..]),
        };
        let mut packet = if head.is_empty() {
            self.named_packet(rest)
        } else {
            let mut packet = self.headers.alloc().unwrap();
            packet.append(head.len()).unwrap().copy_from_slice(head);
            let parts = if let Delivery::InThree(_) = delivery { 2 } else { 1 };
            for part in rest.chunks(rest.len().div_ceil(parts).max(1)) {
                packet.chain(self.named_packet(part)).unwrap();
            }
            packet
        };
        packet.set_checksums(Checksum::Unknown, checksum);
        self.server.sender.waiting.push(packet).unwrap();
        self.server.sender.flush();
        assert_eq!(self.server.receive(self.now).unwrap(), 1);
    }

    /// A segment in a named buffer, from its first byte on, as a device puts payload there.
    fn named_packet(&mut self, bytes: &[u8]) -> Mbuf {
        let mut packet = self.server.buffers.pool.as_ref().unwrap().alloc().unwrap();
        let front = packet.headroom().min(bytes.len());
        packet.append(bytes.len() - front).unwrap().copy_from_slice(&bytes[front..]);
        packet.prepend(front).unwrap().copy_from_slice(&bytes[..front]);
        let id = self.server.buffers.arena.id_at(packet.buffer_address()).unwrap();
        self.named = Some((id, packet.data_offset()));
        packet
    }

    /// Sends text to the server and returns the slot in which it is there, if it is, and what was counted.
    fn send(
        &mut self,
        [client, server]: [ConnId; 2],
        delivery: Delivery,
        checksum: Checksum,
    ) -> (Vec<u8>, Option<Slot>, DpdkCounters) {
        let before = self.server.counters();
        let text: Vec<u8> = (0..TEXT_BYTES).map(|at| (at % 251) as u8).collect();
        self.client.send(client, &text).unwrap();
        self.exchange(delivery, checksum);
        let after = self.server.counters();
        let counted = DpdkCounters {
            swapped: after.swapped - before.swapped,
            copied_frames: after.copied_frames - before.copied_frames,
            misplaced: after.misplaced - before.misplaced,
            ..DpdkCounters::default()
        };
        (text, self.server.recv(server), counted)
    }
}

/// A frame for the device to cut goes to it as it is, however long. Of what does not lie where the device can read it,
/// nothing goes.
fn frames_to_cut_are_sent_from_where_they_lie(rig: &mut Rig) {
    let checksum = TxChecksum::Tcp { ipv6: false, l2_bytes: 14, l3_bytes: 20, l4_bytes: 32 };
    let pieces = |arena: &Arena| -> Vec<Extent> { (0..16).map(|_| extent_of(arena, &[7; 1001])).collect() };
    let mut offer = |payload: &[Extent], segment_bytes| {
        let frame = TxFrame { head: &[0x45; 66], payload, checksum, segment_bytes };
        rig.server.sender.send(frame).unwrap();
        rig.server.sender.flush();
        let mut batch = MbufBatch::new();
        rig.server.rx.as_mut().unwrap().burst(&mut batch);
        let places = |packet: Mbuf| packet.segments().map(<[u8]>::as_ptr_range).skip(1).collect::<Vec<_>>();
        let sent: Vec<_> = batch.drain().map(places).collect();
        rig.server.sender.settle();
        (sent, rig.server.sender.too_long, rig.server.sender.copied_bytes)
    };
    let named = pieces(&rig.server.buffers.arena);
    let places: Vec<_> = named.iter().map(|piece| piece.bytes().as_ptr_range()).collect();
    assert_eq!(offer(&named, NonZeroU16::new(1448)), (vec![places], 0, 0));
    assert_eq!(offer(&named, None), (vec![], 1, 0));
    assert_eq!(offer(&pieces(&rig.client_arena), NonZeroU16::new(1448)), (vec![], 2, 0));
}

/// Where TCP's header ends; zero for other frames.
fn headers_end(frame: &[u8]) -> usize {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return 0;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    14 + usize::from(ip.header_len()) + usize::from(tcp.header_len())
}

// The one test of the library that needs the EAL, which starts once per process.
#[test]
fn frames_reach_the_stack_as_devices_deliver_them() {
    let eal = Eal::init(["--no-huge", "--no-shconf", "-m", "64"]).unwrap();
    frames_in_any_number_of_pieces_reach_the_stack_and_payload_that_lies_apart_stays_where_it_is(eal);
    frames_of_the_own_vlan_are_taken_without_a_copy_and_others_are_not(eal);
    a_priority_alone_is_taken_off(eal);
}

fn frames_of_the_own_vlan_are_taken_without_a_copy_and_others_are_not(eal: Eal) {
    let mut rig = Rig::new(eal, 1, Some(7));
    rig.server.endpoint_mut().listen("10.0.0.2:80".parse().unwrap(), 8).unwrap();
    let delivery = Delivery::Whole { named: true };
    let conns = rig.connect(delivery, Checksum::Unknown);
    let (text, slot, counted) = rig.send(conns, delivery, Checksum::Unknown);
    let slot = slot.unwrap();
    let (id, begins) = rig.named.unwrap();
    assert_eq!((slot.extent().buffer_id(), slot.extent().offset()), (id, begins + 70));
    assert_eq!(slot.bytes(), text);
    assert_eq!(counted, DpdkCounters { swapped: 1, ..DpdkCounters::default() });
    // Text in named buffers follows the tag from where it lies.
    let extent = extent_of(&rig.server.buffers.arena, &text);
    rig.server.send_extent(conns[1], extent).unwrap();
    rig.exchange(delivery, Checksum::Unknown);
    assert_eq!(rig.client.recv(conns[0]).unwrap().bytes(), text);
    assert_eq!(rig.server.counters().copied_bytes, 0);

    for (dropped, tag) in
        [None, Some([0x81, 0, 0, 8]), Some([0x81, 0, 0, 0]), Some([0x88, 0xa8, 0, 7])].into_iter().enumerate()
    {
        rig.tag = tag;
        rig.client.send(conns[0], &text).unwrap();
        let mut wire = Wire(Vec::new());
        rig.now += std::time::Duration::from_secs(5);
        rig.client.transmit(rig.now, &mut wire);
        let mut frame = wire.0.swap_remove(0);
        frame.splice(12..12, tag.into_iter().flatten());
        rig.deliver(&frame, delivery, Checksum::Unknown);
        assert_eq!(rig.server.endpoint().counters().drops.vlan, dropped as u64 + 1, "{tag:02x?}");
        assert!(rig.server.recv(conns[1]).is_none(), "{tag:02x?}");
    }
}

/// A device that takes no tags off leaves those that hold only a priority in the frame.
fn a_priority_alone_is_taken_off(eal: Eal) {
    let mut rig = Rig::new(eal, 2, None);
    rig.server.endpoint_mut().listen("10.0.0.2:80".parse().unwrap(), 8).unwrap();
    let delivery = Delivery::Whole { named: true };
    let conns = rig.connect(delivery, Checksum::Unknown);
    let text = [7; TEXT_BYTES];
    for tag in [[0x81, 0, 0xe0, 0], [0x81, 0, 0, 0]] {
        rig.client.send(conns[0], &text).unwrap();
        let mut wire = Wire(Vec::new());
        rig.client.transmit(rig.now, &mut wire);
        let mut frame = wire.0.swap_remove(0);
        frame.splice(12..12, tag);
        rig.deliver(&frame, delivery, Checksum::Unknown);
        assert_eq!(rig.server.recv(conns[1]).unwrap().bytes(), text);
        rig.exchange(delivery, Checksum::Unknown);
    }
    assert_eq!(rig.server.endpoint().counters().drops.vlan, 0);
}

fn frames_in_any_number_of_pieces_reach_the_stack_and_payload_that_lies_apart_stays_where_it_is(eal: Eal) {
    let mut rig = Rig::new(eal, 0, None);
    rig.server.endpoint_mut().listen("10.0.0.2:80".parse().unwrap(), 8).unwrap();
    let headers_free = rig.headers.available();
    let conns = rig.connect(Delivery::Apart, Checksum::Good);
    let (mbufs_free, buffers_free) =
        (rig.server.buffers.pool.as_ref().unwrap().available(), rig.server.buffers.arena.free_buffers());

    let (apart, whole) = (Delivery::Apart, Delivery::Whole { named: true });
    for (delivery, payload_at) in [(apart, 0), (whole, 66)] {
        let (text, slot, counted) = rig.send(conns, delivery, Checksum::Good);
        let slot = slot.unwrap();
        let (id, begins) = rig.named.unwrap();
        let extent = slot.extent();
        assert_eq!((extent.buffer_id(), extent.offset()), (id, begins + payload_at), "{delivery:?}");
        assert_eq!(slot.bytes(), text, "{delivery:?}");
        assert_eq!(counted, DpdkCounters { swapped: 1, ..DpdkCounters::default() }, "{delivery:?}");
    }

    for (delivery, checksum) in [
        (Delivery::Apart, Checksum::Unknown),
        (Delivery::After(20), Checksum::Good),
        (Delivery::After(54), Checksum::Good),
        (Delivery::After(100), Checksum::Good),
        (Delivery::After(100), Checksum::Unknown),
        (Delivery::InThree(66), Checksum::Good),
        (Delivery::Whole { named: false }, Checksum::Unknown),
    ] {
        let (text, slot, counted) = rig.send(conns, delivery, checksum);
        assert_eq!(slot.unwrap().bytes(), text, "{delivery:?}");
        assert_eq!(counted, DpdkCounters { copied_frames: 1, ..DpdkCounters::default() }, "{delivery:?}");
    }

    let before = rig.server.endpoint().counters().drops.checksum;
    let (_, slot, counted) = rig.send(conns, Delivery::Apart, Checksum::Bad);
    assert!(slot.is_none());
    assert_eq!(counted, DpdkCounters::default());
    assert_eq!(rig.server.endpoint().counters().drops.checksum, before + 1);

    rig.deliver(&vec![0; 2500], Delivery::InThree(1000), Checksum::Good);
    assert_eq!(rig.server.counters().misplaced, 1);

    frames_to_cut_are_sent_from_where_they_lie(&mut rig);

    assert_eq!(rig.headers.available(), headers_free);
    assert_eq!(
        (rig.server.buffers.pool.as_ref().unwrap().available(), rig.server.buffers.arena.free_buffers()),
        (mbufs_free, buffers_free)
    );
}
