//! Which multicast groups this host is in, as routers and switches between want to know: Multicast Listener
//! Discovery (RFC 9777; RFC 2710 for old routers). They are the solicited-node groups of its IPv6 addresses, by
//! which neighbors find it.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use arrayvec::ArrayVec;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv6Packet, checksum};
use stack_net::time::Instant;

use super::packet::Packet;
use super::queue::FrameQueue;
use crate::config::{ETHERNET_HEADER_BYTES, MAX_ADDRESSES};
use crate::frame::Local;

/// A change is reported so often, within so long of each other (RFC 9777, sections 9.1 and 9.11).
const ROBUSTNESS: u8 = 2;
const UNSOLICITED_INTERVAL: Duration = Duration::from_secs(1);

const QUERY: u8 = 130;
const REPORT_V1: u8 = 131;
const REPORT_V2: u8 = 143;
/// Types of records in reports (RFC 9777, section 5.2.12).
const IS_EXCLUDE: u8 = 2;
const CHANGE_TO_EXCLUDE: u8 = 4;

const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Behind the IPv6 header, and before the message: hop-by-hop options with a router alert (RFC 2711), and padding.
const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
const RECORD_BYTES: usize = 20;
const BEFORE_MESSAGE: usize = ETHERNET_HEADER_BYTES + 40 + ROUTER_ALERT.len();

/// A group for each address, and one for the link-local address beside them.
const MAX_GROUPS: usize = MAX_ADDRESSES + 1;

/// Bytes of the longest frame that carries a report.
pub(super) const MAX_REPORT_FRAME_BYTES: usize = BEFORE_MESSAGE + 8 + MAX_GROUPS * RECORD_BYTES;

#[derive(Debug)]
pub(super) struct Groups {
    groups: ArrayVec<Ipv6Addr, MAX_GROUPS>,
    /// A link-local address, or none (RFC 9777, section 5.2.13).
    source: Ipv6Addr,
    /// Whether it is still being found out that nobody else has that address.
    is_tentative: bool,
    /// Reports of the start that are still to be sent.
    unsolicited: u8,
    unsolicited_at: Instant,
    /// The report that answers a query.
    answer: Option<(Instant, Version)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Groups {
    pub(super) fn new(local: &Local) -> Self {
        let addresses = || {
            local.addresses.iter().filter_map(|cidr| match IpAddr::from(cidr.address()) {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => None,
            })
        };
        let mut groups = ArrayVec::<Ipv6Addr, MAX_GROUPS>::new();
        for group in addresses().map(|address| solicited_node(&address)) {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let source = addresses().find(Ipv6Addr::is_unicast_link_local).unwrap_or(Ipv6Addr::UNSPECIFIED);
        let (unsolicited, unsolicited_at) = (0, Instant::ZERO);
        Self { groups, source, is_tentative: false, unsolicited, unsolicited_at, answer: None }
    }

    pub(super) fn has(&self, group: &Ipv6Addr) -> bool {
        self.groups.contains(group)
    }

    /// The host has come to the link, and finds out whether it can have its addresses.
    pub(super) fn join(&mut self, now: Instant) {
        self.is_tentative = true;
        self.report_anew(now);
    }

    /// It can. Routers heed nothing from nobody, so that it is said again (RFC 3590, section 4).
    pub(super) fn claimed(&mut self, now: Instant) {
        self.is_tentative = false;
        if !self.source.is_unspecified() {
            self.report_anew(now);
        }
    }

    fn report_anew(&mut self, now: Instant) {
        if !self.groups.is_empty() {
            (self.unsolicited, self.unsolicited_at) = (ROBUSTNESS, now);
        }
    }

    /// Where this host's messages to routers are from.
    pub(super) fn source(&self) -> Ipv6Addr {
        if self.is_tentative { Ipv6Addr::UNSPECIFIED } else { self.source }
    }

    /// Takes in a query, of which `chance` says how long the answer waits; false if the packet is none to be answered.
    pub(super) fn query(&mut self, packet: &Packet<'_>, chance: u32, now: Instant) -> bool {
        let (IpAddr::V6(source), message) = (packet.source, packet.payload) else { return false };
        // RFC 9777, section 6.2.
        let is_from_router = packet.hop_limit == 1 && source.is_unicast_link_local() && packet.router_alert;
        let version = match message.len() {
            24 => Version::V1,
            28.. => Version::V2,
            _ => return false,
        };
        if !is_from_router || message[0] != QUERY || self.groups.is_empty() {
            return false;
        }
        let group = Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).unwrap_or_default());
        if !group.is_unspecified() && !self.has(&group) {
            return true;
        }
        let code = u16::from_be_bytes([message[4], message[5]]);
        let longest_ms = match version {
            Version::V1 => u64::from(code),
            Version::V2 => max_response_ms(code),
        };
        let delay = Duration::from_millis(u64::from(chance) * longest_ms / (1 << 32));
        let (at, version) = match self.answer {
            // An old router does not understand new reports.
            Some((at, before)) => (at.min(now + delay), if before == Version::V1 { before } else { version }),
            None => (now + delay, version),
        };
        self.answer = Some((at, version));
        true
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let unsolicited = (self.unsolicited > 0).then_some(self.unsolicited_at);
        unsolicited.into_iter().chain(self.answer.map(|(at, _)| at)).min()
    }

    /// Queues the reports that are due.
    pub(super) fn report(&mut self, queue: &mut FrameQueue, own_mac: [u8; 6], chance: u32, now: Instant) {
        if self.unsolicited > 0 && self.unsolicited_at <= now {
            self.unsolicited -= 1;
            let gap = UNSOLICITED_INTERVAL.as_micros() as u64 * u64::from(chance) / (1 << 32);
            self.unsolicited_at = now + Duration::from_micros(gap);
            self.report_all(queue, own_mac, CHANGE_TO_EXCLUDE);
        }
        if let Some((_, version)) = self.answer.take_if(|(at, _)| *at <= now) {
            match version {
                Version::V2 => self.report_all(queue, own_mac, IS_EXCLUDE),
                Version::V1 => {
                    for group in &self.groups {
                        self.send(queue, own_mac, *group, 24, |message| {
                            message[0] = REPORT_V1;
                            message[8..24].copy_from_slice(&group.octets());
                        });
                    }
                }
            }
        }
    }

    /// A report of the second version: all sources of each group are listened to, none is excluded.
    fn report_all(&self, queue: &mut FrameQueue, own_mac: [u8; 6], kind: u8) {
        let len = 8 + self.groups.len() * RECORD_BYTES;
        self.send(queue, own_mac, ALL_MLDV2_ROUTERS, len, |message| {
            message[0] = REPORT_V2;
            message[6..8].copy_from_slice(&(self.groups.len() as u16).to_be_bytes());
            for (record, group) in message[8..].chunks_mut(RECORD_BYTES).zip(&self.groups) {
                record[0] = kind;
                record[4..].copy_from_slice(&group.octets());
            }
        });
    }

    fn send(
        &self,
        queue: &mut FrameQueue,
        own_mac: [u8; 6],
        to: Ipv6Addr,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let source = self.source();
        queue.push(BEFORE_MESSAGE + len, |frame| {
            let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
            ethernet.set_src_addr(EthernetAddress(own_mac));
            ethernet.set_dst_addr(group_mac(&to));
            ethernet.set_ethertype(EthernetProtocol::Ipv6);
            let mut ip = Ipv6Packet::new_unchecked(ethernet.payload_mut());
            ip.set_version(6);
            ip.set_payload_len((ROUTER_ALERT.len() + len) as u16);
            ip.set_next_header(IpProtocol::HopByHop);
            ip.set_hop_limit(1);
            ip.set_src_addr(source);
            ip.set_dst_addr(to);
            frame[BEFORE_MESSAGE - ROUTER_ALERT.len()..BEFORE_MESSAGE].copy_from_slice(&ROUTER_ALERT);
            let message = &mut frame[BEFORE_MESSAGE..];
            write(message);
            let pseudo = checksum::pseudo_header_v6(&source, &to, IpProtocol::Icmpv6, len as u32);
            let sum = !checksum::combine(&[pseudo, checksum::data(message)]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        });
    }
}

/// The longest delay that a query allows (RFC 9777, section 5.1.3).
fn max_response_ms(code: u16) -> u64 {
    if code < 0x8000 {
        return code.into();
    }
    let (exponent, mantissa) = (code >> 12 & 7, code & 0xfff);
    u64::from(mantissa | 0x1000) << (exponent + 3)
}

/// The group in which an address's host is asked for (RFC 4291, section 2.7.1).
pub(super) fn solicited_node(address: &Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z])
}

/// The Ethernet address of an IPv6 group (RFC 2464, section 7).
pub(super) fn group_mac(group: &Ipv6Addr) -> EthernetAddress {
    let [.., w, x, y, z] = group.octets();
    EthernetAddress([0x33, 0x33, w, x, y, z])
}
