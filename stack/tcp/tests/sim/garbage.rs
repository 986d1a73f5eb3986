//! Frames that no honest host sends: nothing panics, nothing is lost, and the answers stay few.

use std::time::Duration;

use proptest::prelude::*;
use smoltcp::wire::{
    ArpOperation, EthernetFrame, EthernetProtocol, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket,
};
use stack::net::Event;

use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{
    ACK, CWR, ECE, FIN, PSH, RST, SYN, Seg, arp, echo_request, icmpv4_error, icmpv6_error, neighbor_solicit,
    seg,
};

/// What is done to a good frame before it is sent.
#[derive(Clone, Debug)]
enum Damage {
    Set { at: usize, byte: u8 },
    Cut { len: usize },
    Pad { bytes: Vec<u8> },
    Repair,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (0..120usize, any::<u8>()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        1 => (0..120usize).prop_map(|len| Damage::Cut { len }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Damage::Pad { bytes }),
        // Most damage is found by the checksums; repaired ones let it through to what lies behind.
        3 => Just(Damage::Repair),
    ]
}

fn apply(damage: &[Damage], frame: &mut Vec<u8>) {
    for damage in damage {
        match damage {
            Damage::Set { at, byte } => {
                if let Some(place) = frame.get_mut(*at) {
                    *place = *byte;
                }
            }
            Damage::Cut { len } => frame.truncate(*len),
            Damage::Pad { bytes } => frame.extend_from_slice(bytes),
            Damage::Repair => repair(frame),
        }
    }
}

/// Makes the checksums of IPv4 and TCP right, where there is enough of the headers to do so.
fn repair(frame: &mut [u8]) {
    let Ok(mut ethernet) = EthernetFrame::new_checked(frame) else { return };
    let ethertype = ethernet.ethertype();
    let (source, destination, segment): (IpAddress, IpAddress, &mut [u8]) = match ethertype {
        EthernetProtocol::Ipv4 => {
            let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else { return };
            ip.fill_checksum();
            let ends = (ip.src_addr().into(), ip.dst_addr().into());
            let header = usize::from(ip.header_len());
            let total = usize::from(ip.total_len());
            (ends.0, ends.1, &mut ethernet.payload_mut()[header..total])
        }
        EthernetProtocol::Ipv6 => {
            let Ok(ip) = Ipv6Packet::new_checked(ethernet.payload_mut()) else { return };
            let ends = (ip.src_addr().into(), ip.dst_addr().into());
            let total = ip.total_len();
            (ends.0, ends.1, &mut ethernet.payload_mut()[40..total])
        }
        _ => return,
    };
    if let Ok(mut tcp) = TcpPacket::new_checked(segment) {
        tcp.fill_checksum(&source, &destination);
    }
}

fn segment() -> impl Strategy<Value = Seg> {
    let flags = prop::sample::select(vec![
        SYN,
        ACK,
        ACK | PSH,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN | ACK,
        SYN | FIN,
        SYN | RST | FIN | ACK,
        0,
        FIN,
        SYN | ECE | CWR,
        ACK | ECE,
        ACK | CWR,
    ]);
    let near = || prop_oneof![4 => 0u32..3_000, 1 => any::<u32>()];
    let payload = prop_oneof![2 => Just(0usize), 1 => 1..1_400usize];
    (
        flags,
        near(),
        near(),
        (any::<u16>(), prop::option::of(0u8..4)),
        payload,
        any::<Option<u16>>(),
        any::<Option<u8>>(),
        any::<Option<(u32, u32)>>(),
        (any::<Option<bool>>(), prop::collection::vec((near(), near()), 0..=2)),
    )
        .prop_map(
            |(flags, seq, ack, (window, ecn), len, mss, scale, timestamps, (sack_permitted, sack))| Seg {
                flags,
                seq,
                ack,
                window: Some(window),
                mss,
                scale,
                timestamps,
                sack_permitted,
                sack: Some(sack),
                ecn,
                payload: vec![b'g'; len],
            },
        )
}

/// The good frames that are damaged: segments for the open connection, the listener or a closed port, and the
/// messages of the protocols beside TCP.
#[derive(Clone, Debug)]
enum Good {
    Segment { segment: Seg, remote_port: u16, local_port: u16 },
    Neighbour,
    Ping,
    Icmp { kind: u8, code: u8, rest: u32, quoted: Seg },
    Noise(Vec<u8>),
}

fn good() -> impl Strategy<Value = Good> {
    let ports = prop::sample::select(vec![(40_000, 80), (40_000, 80), (40_001, 80), (40_000, 81)]);
    prop_oneof![
        6 => (segment(), ports).prop_map(|(segment, (remote_port, local_port))| Good::Segment {
            segment,
            remote_port,
            local_port
        }),
        1 => Just(Good::Neighbour),
        1 => Just(Good::Ping),
        1 => (0..=5u8, 0..=15u8, any::<u32>(), segment())
            .prop_map(|(kind, code, rest, quoted)| Good::Icmp { kind, code, rest, quoted }),
        1 => prop::collection::vec(any::<u8>(), 0..1_600).prop_map(Good::Noise),
    ]
}

fn frame(s: &Script, good: &Good) -> Vec<u8> {
    let v4 = s.remote.at.is_ipv4();
    match good {
        Good::Segment { segment, remote_port, local_port } => {
            let (mut from, mut to) = (s.remote, s.local);
            from.at.set_port(*remote_port);
            to.at.set_port(*local_port);
            let seq = segment.seq.wrapping_add(s.remote_iss);
            let ack = segment.ack.wrapping_add(s.stack_iss);
            Seg { seq, ack, ..segment.clone() }.frame(from, to)
        }
        Good::Neighbour if v4 => arp(ArpOperation::Request, s.remote, s.local.mac, s.local.at.ip()),
        Good::Neighbour => neighbor_solicit(s.remote, s.local.at.ip()),
        Good::Ping => echo_request(s.remote, s.local, b"ping"),
        Good::Icmp { kind, code, rest, quoted } => {
            let seq = quoted.seq.wrapping_add(s.stack_iss);
            let sent = Seg { seq, ..quoted.clone() }.frame(s.local, s.remote);
            let quoted = &sent[14..sent.len().min(100)];
            let error = if v4 { icmpv4_error } else { icmpv6_error };
            error(s.remote, s.local, *kind, *code, *rest, quoted)
        }
        Good::Noise(bytes) => bytes.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_frames_do_no_harm(
        version in prop::sample::select(BOTH_VERSIONS.to_vec()),
        frames in prop::collection::vec((good(), prop::collection::vec(damage(), 0..4)), 1..60),
    ) {
        let mut s = Script::listening(version);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).window(60_000));
        s.write(conn, &[7; 3_000]).expect("there is room");
        while s.next().is_some() {}
        let mut answers = 0;
        for (good, damage) in &frames {
            let mut frame = frame(&s, good);
            apply(damage, &mut frame);
            s.inject(frame);
            answers += answers_of(&mut s);
        }
        prop_assert!(answers <= 3 * frames.len() + 10, "{answers} answers to {} frames", frames.len());
        // The host is as it was: it talks to newcomers, and has all its buffers once the rest is over.
        let mut open = vec![conn];
        while let Some(event) = s.event() {
            if let Event::Opened { conn, .. } = event {
                open.push(conn);
            }
        }
        for conn in open {
            s.abort(conn);
        }
        s.advance(Duration::from_secs(400));
        while s.next().is_some() || s.next_other().is_some() || s.event().is_some() {}
        s.remote.at.set_port(50_000);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.assert_alive(conn, 1, 1);
        s.abort(conn);
        s.assert_nothing_leaked();
    }
}

fn answers_of(s: &mut Script) -> usize {
    let segments = std::iter::from_fn(|| s.next()).count();
    segments + std::iter::from_fn(|| s.next_other()).count()
}

/// Options that are cut off, of length zero, or longer than the header.
#[test]
fn malformed_options_are_survived() {
    for options in [
        &[2u8, 4, 5][..],
        &[2, 0, 1, 1],
        &[2, 1, 1, 1],
        &[3, 200, 1, 1],
        &[8, 10, 0, 0],
        &[1; 40],
        &[5, 255, 0, 0],
        &[0, 9, 9, 9],
        &[254, 2, 254, 2],
    ] {
        let mut s = Script::listening(Version::V4);
        let mut padded = options.to_vec();
        padded.resize(padded.len().next_multiple_of(4), 1);
        let mut frame = Seg { payload: padded.clone(), ..seg(SYN, 0, 0) }.frame(s.remote, s.local);
        let (from, to) = (s.remote.at.ip().into(), s.local.at.ip().into());
        let mut tcp = TcpPacket::new_unchecked(&mut frame[34..]);
        tcp.set_header_len(20 + padded.len() as u8);
        tcp.fill_checksum(&from, &to);
        s.inject(frame);
        while s.next().is_some() {}
        s.remote.at.set_port(50_000);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.assert_alive(conn, 1, 1);
    }
}
