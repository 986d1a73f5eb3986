//! Peers that mostly send what is expected, and sometimes anything near it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use smoltcp::wire::{Ipv4Packet, TcpPacket};
use stack_net::time::Instant;

use super::Sent;
use crate::flow::{FlowKey, mapped};
use crate::frame::{Flags, Local, Parsed, RxChecksum, parse};

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const NOP: u8 = 1;

/// One side of one connection at a time.
pub struct Peer {
    number: u8,
    ip: IpAddr,
    mac: [u8; 6],
    port: u16,
    state: State,
    iss: u32,
    /// The next number to send, and the last that was acknowledged.
    next: u32,
    acked: u32,
    /// The right edge of the host's window.
    edge: u32,
    shift: u8,
    /// The next number from the host.
    expected: u32,
    has_timestamps: bool,
    clock: u32,
    echo: u32,
    /// How often something is odd.
    oddness: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Closed,
    Opening,
    Open,
}

/// A segment's fields, to be changed before it is made a frame.
struct Draft {
    from: SocketAddr,
    to: SocketAddr,
    macs: [[u8; 6]; 2],
    tos: u8,
    fragment: u16,
    ttl: u8,
    ip_options: Vec<u8>,
    seq: u32,
    ack: u32,
    flags: u8,
    reserved: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

/// One of them.
fn pick<T: Copy>(rng: &mut ChaCha8Rng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

/// How far off numbers are that are off.
fn offset(rng: &mut ChaCha8Rng) -> u32 {
    match rng.random_range(0..5) {
        0 => 1,
        1 => rng.random_range(0..2_000),
        2 => rng.random_range(0..300_000),
        3 => rng.next_u32(),
        _ => 1 << 31,
    }
}

impl Peer {
    pub fn new(rng: &mut ChaCha8Rng, number: u8, oddness: f64) -> Self {
        let ip = match number {
            4 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9).into(),
            _ => Ipv4Addr::new(10, 0, 0, 10 + number / 2).into(),
        };
        let mut peer = Self {
            number,
            ip,
            mac: [2, 0, 0, 0, 1, number],
            port: 40_000 + 1_000 * u16::from(number),
            state: State::Closed,
            iss: 0,
            next: 0,
            acked: 0,
            edge: 0,
            shift: 0,
            expected: 0,
            has_timestamps: number != 1,
            clock: 0,
            echo: 0,
            oddness,
        };
        peer.restart(rng);
        peer
    }

    fn restart(&mut self, rng: &mut ChaCha8Rng) {
        self.state = State::Closed;
        self.port = self.port.wrapping_add(u16::from(rng.random_bool(0.8))).max(1024);
        // Some begin just before numbers wrap.
        self.iss = if rng.random() { rng.random() } else { u32::MAX - rng.random_range(0..20_000) };
        self.clock = if rng.random() { rng.random() } else { u32::MAX - rng.random_range(0..200_000) };
        (self.next, self.acked) = (self.iss, self.iss);
    }

    fn host(&self) -> SocketAddr {
        let ip = if self.ip.is_ipv4() { IpAddr::from(HOST) } else { IpAddr::from(HOST_V6) };
        SocketAddr::new(ip, 80)
    }

    /// Hears a frame that the host has sent.
    pub fn hear(&mut self, rng: &mut ChaCha8Rng, frame: &[u8]) {
        let prefix = if self.ip.is_ipv4() { 24 } else { 64 };
        let local =
            Local { mac: self.mac, addresses: vec![format!("{}/{prefix}", self.ip).parse().unwrap()] };
        let Parsed::Tcp(segment) = parse(frame, 0, &local, RxChecksum::Unknown) else { return };
        let is_own = segment.key == FlowKey::new(SocketAddr::new(self.ip, self.port), self.host());
        if !is_own || rng.random_bool(0.05) {
            return;
        }
        if segment.flags.contains(Flags::RST) {
            return self.restart(rng);
        }
        if let Some(timestamp) = segment.options.timestamp {
            self.echo = timestamp.value;
        }
        if segment.flags.contains(Flags::SYN | Flags::ACK) && self.state == State::Opening {
            self.state = State::Open;
            self.shift = segment.options.window_scale.unwrap_or(0);
            self.expected = segment.seq.0.wrapping_add(1);
            self.next = self.iss.wrapping_add(1);
        }
        let is_repeated = self.acked == segment.ack.0;
        if segment.flags.contains(Flags::ACK) {
            self.acked = segment.ack.0;
            // The host's own shift is in its SYN; what it offers there is too little anyway.
            self.edge = self.acked.wrapping_add(u32::from(segment.window) << self.shift);
        }
        if segment.seq.0 == self.expected {
            self.expected = self.expected.wrapping_add(segment.len());
        }
        // What was lost is sent again.
        let ahead = self.next.wrapping_sub(self.acked);
        if ahead > 1 << 31 || ahead > 0 && rng.random_bool(if is_repeated { 0.5 } else { self.oddness / 4.0 })
        {
            self.next = self.acked;
        }
    }

    /// The next frame, if there is one.
    pub fn next(&mut self, rng: &mut ChaCha8Rng, now: Instant) -> Option<Sent> {
        if rng.random_bool(self.oddness / 10.0) {
            // It has moved, and stays there.
            self.mac[4] ^= 1;
        }
        let mut draft = self.draft(rng, now);
        if self.state == State::Open {
            self.next = self.next.wrapping_add(draft.payload.len() as u32);
        } else {
            if self.state == State::Opening && rng.random_bool(0.7) {
                return None;
            }
            self.state = State::Opening;
            // Some ask for marks of congestion to be heeded.
            let asks = if rng.random() { 0xc0 } else { 0 };
            (draft.seq, draft.ack, draft.flags) = (self.iss, 0, SYN | asks);
            draft.payload.clear();
            let scale = [0, 2, 7][usize::from(self.number) % 3];
            draft.options.splice(0..0, [2, 4, 5, 0xb4, NOP, 3, 3, scale]);
            if self.number != 2 {
                // Selective acknowledgements.
                draft.options.splice(0..0, [4, 2, NOP, NOP]);
            }
        }
        let is_open = self.state == State::Open;
        if is_open && rng.random_bool(self.oddness / 50.0) {
            self.restart(rng);
        }
        if rng.random_bool(self.oddness) {
            return Some(draft.oddly(rng));
        }
        let checksum = pick(rng, &[RxChecksum::Good, RxChecksum::Unknown]);
        Some(Sent { bytes: draft.build(), split: None, checksum, vlan: None })
    }

    fn draft(&mut self, rng: &mut ChaCha8Rng, now: Instant) -> Draft {
        let len = pick(rng, &[0, 1, 10, 100, 255, 256, 300, 536, 1_000, 1_448]);
        let room = self.edge.wrapping_sub(self.next);
        let len = if room < 1 << 31 && !rng.random_bool(self.oddness / 4.0) { room.min(len) } else { len };
        let value = self.clock.wrapping_add(now.as_millis() as u32);
        let mut options = Vec::new();
        if self.has_timestamps {
            options.extend([NOP, NOP, 8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(self.echo.to_be_bytes());
        }
        Draft {
            from: SocketAddr::new(self.ip, self.port),
            to: self.host(),
            macs: [self.mac, HOST_MAC],
            // ECT(0), now and then marked.
            tos: if rng.random_bool(0.01) { 3 } else { pick(rng, &[0, 2]) },
            fragment: 0x4000,
            ttl: 64,
            ip_options: Vec::new(),
            seq: self.next,
            ack: self.expected,
            flags: ACK | if rng.random() { PSH } else { 0 } | if rng.random_bool(0.005) { 0x40 } else { 0 },
            reserved: 0,
            window: if rng.random_bool(self.oddness) { pick(rng, &[0x4000, 500, 0]) } else { 0xffff },
            options,
            payload: (0..len)
                .map(|at: u32| (self.next as u8).wrapping_mul(31).wrapping_add(at as u8))
                .collect(),
        }
    }
}

impl Draft {
    /// A frame that is not quite what is expected.
    fn oddly(mut self, rng: &mut ChaCha8Rng) -> Sent {
        self.change(rng);
        let mut bytes = self.build();
        let checksum = match rng.random_range(0..8) {
            0 => RxChecksum::Bad,
            1 => RxChecksum::UnknownOrPartial,
            2..5 => RxChecksum::Unknown,
            _ => RxChecksum::Good,
        };
        let (mut split, mut vlan) = (None, None);
        match rng.random_range(0..24) {
            // A bit that flips anywhere, or a byte in the headers.
            0 | 1 => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            2 | 3 => {
                let at = rng.random_range(0..bytes.len().min(66));
                bytes[at] = rng.random();
            }
            4 => bytes.truncate(rng.random_range(0..bytes.len())),
            5 => bytes.extend(std::iter::repeat_n(rng.random::<u8>(), rng.random_range(1..50))),
            6 => self.lie_of_the_length(rng, &mut bytes),
            7 => self.leave_the_sum_to_a_device(&mut bytes),
            8 => vlan = Some(pick(rng, &[0, 5, 4095])),
            9 => {
                let end = bytes.len() - self.payload.len();
                split = Some(pick(rng, &[end, end - 1, 54, 14]).min(bytes.len()));
            }
            10 => bytes[12..14].copy_from_slice(&pick(rng, &[[0x81, 0], [8, 6], [0x86, 0xdd]])),
            _ => {}
        }
        Sent { bytes, split, checksum, vlan }
    }

    fn change(&mut self, rng: &mut ChaCha8Rng) {
        let off = offset(rng);
        let back = off.wrapping_neg();
        let end = self.options.len();
        match rng.random_range(0..30) {
            0 => self.seq = self.seq.wrapping_add(off),
            1 => self.seq = self.seq.wrapping_add(back),
            2 => self.ack = self.ack.wrapping_add(off),
            3 => self.ack = self.ack.wrapping_add(back),
            4 => self.window = rng.random(),
            5 => self.payload.clear(),
            6 => self.flags |= pick(rng, &[FIN, RST, SYN, 0x20, 0x40, 0x80, FIN | SYN]),
            7 => self.flags |= FIN,
            8 => self.flags = pick(rng, &[0, PSH, RST, SYN, 0xff]),
            9 => self.options.clear(),
            10 | 11 if end >= 12 => {
                let at = end - pick(rng, &[8, 4]);
                let value = u32::from_be_bytes(self.options[at..at + 4].try_into().unwrap());
                let other = pick(rng, &[value.wrapping_add(back), value.wrapping_add(off), 0]);
                self.options[at..at + 4].copy_from_slice(&other.to_be_bytes());
            }
            12 if end >= 12 => self.options.rotate_left(2),
            13 => self.options.extend([NOP, NOP, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9]),
            14 => self.options = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2, NOP, NOP].into(),
            15 => {
                self.options = (0..4 * rng.random_range(0..10)).map(|_| rng.random_range(0..9)).collect();
            }
            16 => self.tos = rng.random(),
            17 => self.fragment = pick(rng, &[0, 0x8000, 0xc000, 0x2000, 0x0001, 0x4001]),
            18 => self.ttl = rng.random(),
            19 => self.ip_options = vec![NOP; pick(rng, &[4, 40])],
            20 => self.reserved = rng.random_range(0..16),
            21 => {
                let which = rng.random_range(0..2);
                self.macs[which] = pick(rng, &[[2, 0, 0, 0, 0, 7], [3, 0, 0, 0, 0, 1], HOST_MAC, [0xff; 6]]);
            }
            22 => self.to.set_port(pick(rng, &[0, 81])),
            23 if self.to.is_ipv4() => self.to.set_ip([10, 0, 0, pick(rng, &[3, 255])].into()),
            24 => std::mem::swap(&mut self.from, &mut self.to),
            _ => {}
        }
    }

    /// A length that is not true, under a checksum that is.
    fn lie_of_the_length(&self, rng: &mut ChaCha8Rng, bytes: &mut [u8]) {
        if self.from.is_ipv4() {
            let mut ip = Ipv4Packet::new_unchecked(&mut bytes[14..]);
            ip.set_total_len(pick(rng, &[0, 20, 39, 40, 52, 1_500, 65_535]));
            ip.fill_checksum();
        }
    }

    /// The checksum's field holds what a kernel writes there, for a device to go on from.
    fn leave_the_sum_to_a_device(&self, bytes: &mut [u8]) {
        if self.from.is_ipv4() && self.ip_options.is_empty() {
            let ends =
                bytes[26..34].as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
            let sum = ends.sum::<u32>() + 6 + (bytes.len() - 34) as u32;
            let sum = (sum >> 16) + (sum & 0xffff);
            bytes[50..52].copy_from_slice(&((sum >> 16) as u16 + sum as u16).to_be_bytes());
        }
    }

    fn build(&self) -> Vec<u8> {
        let Self { from, to, ip_options, .. } = self;
        let mut options = self.options.clone();
        options.truncate(40);
        options.resize(options.len().next_multiple_of(4), 0);
        let mut tcp = Vec::new();
        tcp.extend(from.port().to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([(5 + options.len() as u8 / 4) << 4 | self.reserved, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&options);
        tcp.extend(&self.payload);
        TcpPacket::new_unchecked(&mut tcp[..]).fill_checksum(&from.ip().into(), &to.ip().into());
        let mut frame = [self.macs[1], self.macs[0]].concat();
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + ip_options.len();
                frame.extend([8, 0, 0x40 | (header / 4) as u8, self.tos]);
                frame.extend(((header + tcp.len()) as u16).to_be_bytes());
                frame.extend([0, 7]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([self.ttl, 6, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(ip_options);
                Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
            }
            (from, to) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((tcp.len() as u16).to_be_bytes());
                frame.extend([6, self.ttl]);
                frame.extend(mapped(from).octets());
                frame.extend(mapped(to).octets());
            }
        }
        frame.extend(tcp);
        frame
    }
}
