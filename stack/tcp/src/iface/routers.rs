//! What routers say of themselves and of the link (RFC 4861, sections 4.2 and 6.3; RFC 4191 for their preference): by which
//! of them other networks are reached, which networks need none, and how long packets may be. No address is made of it.
//!
//! It serves connections that this host opens, where nobody has said which gateway they have. Whoever is on the link can say
//! such things: what was given counts more, and all of it is bounded.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use arrayvec::ArrayVec;
use smoltcp::wire::{IPV6_LINK_LOCAL_ALL_ROUTERS, IpAddress, IpCidr, Ipv6Cidr};
use stack_net::time::Instant;

use super::discovery;
use super::packet::Packet;
use super::queue::FrameQueue;
use crate::config::MIN_MTU_V6;
use crate::route::network_of;

/// Routers and networks that are remembered; further ones are not, unless they are preferred.
const MAX_ROUTERS: usize = 4;
const MAX_PREFIXES: usize = 16;

/// How often routers are asked to say where they are, in which time, and how soon (RFC 4861, section 10).
const SOLICITATIONS: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

pub(super) const ADVERTISEMENT: u8 = 134;

const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;

/// The flag of a network whose hosts are reached without a router.
const ON_LINK: u8 = 0x80;

/// What a router has said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advertisement<'a> {
    pub router: Ipv6Addr,
    /// Its Ethernet address, if it says that.
    pub mac: Option<[u8; 6]>,
    preference: i8,
    lifetime: Duration,
    options: &'a [u8],
}

#[derive(Debug)]
pub(crate) struct Routers {
    /// Whether routers are listened to where nobody was told which to take.
    takes_routers: bool,
    routers: ArrayVec<Router, MAX_ROUTERS>,
    prefixes: ArrayVec<Prefix, MAX_PREFIXES>,
    /// Questions that are still to be sent.
    solicitations: u8,
    solicit_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    ip: Ipv6Addr,
    preference: i8,
    until: Instant,
    /// It has not answered.
    is_lost: bool,
}

/// A network whose hosts are neighbors.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    network: IpCidr,
    /// None: for ever.
    until: Option<Instant>,
}

/// Reads an advertisement; its checksum has been found right.
pub(super) fn parse<'a>(packet: &Packet<'a>) -> Option<Advertisement<'a>> {
    let IpAddr::V6(router) = packet.source else { return None };
    let message = packet.payload;
    // RFC 4861, section 6.1.2.
    let is_right = packet.hop_limit == 255
        && router.is_unicast_link_local()
        && message.len() >= 16
        && message[..2] == [ADVERTISEMENT, 0];
    if !is_right {
        return None;
    }
    let options = &message[16..];
    let mut left = options;
    let mut mac = None;
    while !left.is_empty() {
        let (option, rest) = first_option(left)?;
        if option[0] == SOURCE_LINK_LAYER_ADDRESS {
            mac = Some(<[u8; 6]>::try_from(&option[2..8]).ok()?).filter(|mac| mac[0] & 1 == 0);
        }
        left = rest;
    }
    let preference = match message[5] >> 3 & 3 {
        0b01 => 1,
        0b11 => -1,
        _ => 0,
    };
    let lifetime = Duration::from_secs(u16::from_be_bytes([message[6], message[7]]).into());
    Some(Advertisement { router, mac, preference, lifetime, options })
}

/// An option with its type and length, and what follows it; none if it has no length, or not so much.
fn first_option(options: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = 8 * usize::from(*options.get(1)?);
    if len == 0 { None } else { options.split_at_checked(len) }
}

impl Advertisement<'_> {
    fn options(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.options;
        std::iter::from_fn(move || {
            let (option, rest) = first_option(left)?;
            left = rest;
            Some(option)
        })
    }

    /// The longest packet that the link takes, if that is no more than `most`.
    pub(crate) fn mtu(&self, most: usize) -> Option<usize> {
        let told = self.options().filter(|option| option[0] == MTU).filter_map(|option| number(option, 4));
        told.map(|mtu| mtu as usize).filter(|mtu| (MIN_MTU_V6..=most).contains(mtu)).last()
    }
}

fn number(option: &[u8], at: usize) -> Option<u32> {
    option.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

impl Routers {
    pub(super) fn new(takes_routers: bool) -> Self {
        let (solicitations, solicit_at) = (0, Instant::ZERO);
        let (routers, prefixes) = (ArrayVec::new(), ArrayVec::new());
        Self { takes_routers, routers, prefixes, solicitations, solicit_at }
    }

    /// The host has come to the link: routers are asked for, after a time that `chance` decides.
    pub(super) fn begin(&mut self, chance: u32, now: Instant) {
        if self.takes_routers {
            self.solicitations = SOLICITATIONS;
            let delay_us = LONGEST_DELAY.as_micros() as u64 * u64::from(chance) / (1 << 32);
            self.solicit_at = now + Duration::from_micros(delay_us);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.solicitations > 0).then_some(self.solicit_at)
    }

    /// Asks for routers if it is time.
    pub(super) fn solicit(
        &mut self,
        queue: &mut FrameQueue,
        own_mac: [u8; 6],
        source: Ipv6Addr,
        now: Instant,
    ) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.solicitations -= 1;
            self.solicit_at = now + SOLICITATION_INTERVAL;
            discovery::ask_for_routers(queue, own_mac, source, IPV6_LINK_LOCAL_ALL_ROUTERS);
        }
    }

    /// Takes in what a router says.
    pub(crate) fn take(&mut self, said: &Advertisement<'_>, now: Instant) {
        if !self.takes_routers {
            return;
        }
        self.routers.retain(|router| router.until > now && router.ip != said.router);
        self.prefixes.retain(|prefix| prefix.until.is_none_or(|until| until > now));
        if said.lifetime > Duration::ZERO {
            // Whoever answers need not be asked again.
            self.solicitations = 0;
            let until = now + said.lifetime;
            let router = Router { ip: said.router, preference: said.preference, until, is_lost: false };
            let place = self.routers.partition_point(|other| other.preference >= router.preference);
            if place < MAX_ROUTERS {
                self.routers.truncate(MAX_ROUTERS - 1);
                self.routers.insert(place, router);
            }
        }
        for option in said.options().filter(|option| option[0] == PREFIX_INFORMATION && option.len() == 32) {
            self.take_prefix(option, now);
        }
    }

    /// RFC 4861, section 6.3.4: a network of which is said that its hosts are neighbors, or no longer. That they are not is
    /// said by nobody.
    fn take_prefix(&mut self, option: &[u8], now: Instant) {
        let [_, _, prefix_len @ 0..=128, flags, ..] = *option else { return };
        let Some(valid_s) = number(option, 4) else { return };
        let address = Ipv6Addr::from(<[u8; 16]>::try_from(&option[16..]).unwrap_or_default());
        let is_network = !address.is_unicast_link_local() && !address.is_multicast();
        if flags & ON_LINK == 0 || !is_network || prefix_len == 0 {
            return;
        }
        let network = network_of(Ipv6Cidr::new(address, prefix_len).into());
        self.prefixes.retain(|prefix| prefix.network != network);
        let until = (valid_s != u32::MAX).then(|| now + Duration::from_secs(valid_s.into()));
        if valid_s > 0 && !self.prefixes.is_full() {
            self.prefixes.push(Prefix { network, until });
        }
    }

    /// The host that gets a packet for `remote` first, as routers have it: itself, or the first of them that answers.
    pub(crate) fn next_hop(&self, remote: IpAddr, now: Instant) -> Option<IpAddr> {
        if remote.is_ipv4() {
            return None;
        }
        let address = IpAddress::from(remote);
        let is_near = |prefix: &Prefix| {
            prefix.until.is_none_or(|until| until > now) && prefix.network.contains_addr(&address)
        };
        if self.prefixes.iter().any(is_near) {
            return Some(remote);
        }
        self.default(now)
    }

    /// The router for all other networks.
    pub(crate) fn default(&self, now: Instant) -> Option<IpAddr> {
        let router = self.routers.iter().find(|router| router.until > now && !router.is_lost);
        router.map(|router| router.ip.into())
    }

    /// A router does not answer: the next one has its turn (RFC 4861, section 6.3.6). False if it is none of them.
    pub(crate) fn lost(&mut self, ip: IpAddr) -> bool {
        let lost = self.routers.iter_mut().find(|router| IpAddr::from(router.ip) == ip);
        lost.map(|router| router.is_lost = true).is_some()
    }

    /// Where none answers, all have another chance.
    pub(crate) fn try_again(&mut self) {
        if self.routers.iter().all(|router| router.is_lost) {
            self.routers.iter_mut().for_each(|router| router.is_lost = false);
        }
    }
}
