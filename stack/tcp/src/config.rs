//! What an endpoint is told at its start: who it is, and the limits on everything it holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::IpCidr;

use crate::address::{AddressError, check_gateway, check_own};
use crate::route::{Route, RouteError, check_routes};
pub use crate::tcp::congestion::choice::{CongestionControl, UnknownCongestionControl};
use crate::tcp::send_pool::SendLimits;

/// Bytes of an Ethernet header, without the tag of a VLAN.
pub const ETHERNET_HEADER_BYTES: usize = 14;

/// Bytes of the tag of a VLAN (IEEE 802.1Q), which stands behind the Ethernet addresses.
pub const VLAN_TAG_BYTES: usize = 4;

/// Most addresses that an endpoint answers to.
pub const MAX_ADDRESSES: usize = 8;

/// One core of those that serve a host's addresses together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreShare {
    /// Its number, from 0.
    pub index: u16,
    /// How many there are.
    pub count: u16,
}

impl CoreShare {
    /// A core that serves its host alone.
    pub const ALONE: Self = Self { index: 0, count: 1 };
}

/// Whether routers may mark packets as a sign of congestion, instead of dropping them (RFC 3168). Both sides of a connection
/// have to agree. With [BBR](CongestionControl::Bbr) none does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Never.
    Off,
    /// Where the peer asks for it.
    #[default]
    Answer,
    /// This side asks for it, too.
    Ask,
}

/// Settings of an [`Endpoint`](crate::Endpoint). All memory these limits allow is taken at the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The port's Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, either way.
    pub mtu: usize,
    /// Largest IPv6 packet, where the link takes less of them; a router that says how much takes its place (RFC 4861,
    /// section 4.6.4).
    pub mtu_v6: Option<usize>,
    /// The VLAN (IEEE 802.1Q) of all frames, 1 to 4094; none for frames without a tag, or with a priority alone. The
    /// transport takes [tags](crate::RxFrame::vlan) off and puts them on; what is of another VLAN is dropped.
    pub vlan: Option<u16>,
    /// Own addresses with the length of their subnets' prefixes; at most [`MAX_ADDRESSES`]. A host with IPv6 addresses has a
    /// link-local one beside them, if none of them is.
    pub addresses: Vec<IpCidr>,
    /// Next hop for IPv4 connections that this side opens to other subnets.
    pub gateway_v4: Option<Ipv4Addr>,
    /// Next hop for IPv6 connections that this side opens to other subnets. Without one, routers say so themselves (RFC
    /// 4861), and which subnets are on the link; with one, nobody else does.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Next hops for connections that this side opens to some networks. The most specific counts, whether it is one of
    /// these, an own network or a gateway.
    pub routes: Vec<Route>,
    /// The differentiated services codepoint of TCP's segments and UDP's datagrams, 0 to 63 (RFC 2474).
    pub dscp: u8,
    /// Most connections at a time, not counting half-open ones and those in TIME-WAIT. A SYN for which there is no
    /// place is not answered: the peer sends it again.
    pub max_connections: usize,
    /// Most connections in TIME-WAIT; the oldest makes room for a new one.
    pub max_time_wait: usize,
    /// Most half-open connections of all listeners together; beyond it SYN cookies answer.
    pub syn_queue: usize,
    /// Most bytes of a connection that may wait for the application, and to which its window may grow: four times what
    /// comes in a round trip. It begins with 256 KiB at most, and is never larger than what the arena's free buffers allow.
    pub rx_window_bytes: usize,
    /// Most buffers that the window of a connection may need, if each takes a whole segment, and those that it may hold
    /// with payload ahead of a hole among them.
    pub rx_buffers: usize,
    /// Copied bytes that a connection's send queue holds, whatever its path takes.
    pub tx_bytes: usize,
    /// Extents that a connection's send queue holds, whatever its path takes.
    pub tx_extents: usize,
    /// Most bytes of a connection's send queue where its path takes more: twice as much as may be in flight, of the half
    /// of what the queues share, in even parts.
    pub tx_window_bytes: usize,
    /// Copied bytes, in blocks of 256, that the send queues of all connections share. Each queue may have one block
    /// beside, whatever the others hold. While more than half is free, each takes what its own limits allow; from there
    /// on none that has some takes more than its even share of the half.
    pub tx_shared_bytes: usize,
    /// Extents that the send queues share in the same way.
    pub tx_shared_extents: usize,
    /// Most datagrams that wait for the application at one UDP port. Memory for them is taken when it is bound.
    pub udp_rx_datagrams: usize,
    /// Most datagrams that wait to be sent. Memory for them, the MTU for each, is taken when a UDP port is first bound.
    pub udp_tx_datagrams: usize,
    /// What decides how much a connection has in flight.
    pub congestion: CongestionControl,
    /// Whether marks of congestion by routers are heeded.
    pub ecn: Ecn,
    /// Whether connections whose congestion control has no rate of its own send at one, too: a little more than the
    /// congestion window in a round trip, instead of as much at once as acknowledgements allow.
    pub pacing: bool,
    /// How long a connection stays in TIME-WAIT (2 MSL, RFC 9293 section 3.4.2), unless a new one begins there (RFC
    /// 6191). A RST does not end it (RFC 1337); a peer that insists on a SYN need not wait all the same.
    pub time_wait: Duration,
    /// What connections do whose listener, or whoever opens them, does not say otherwise.
    pub connection: ConnectionOptions,
    /// How much longer than a round trip the retransmission timeout is at least.
    pub min_rto: Duration,
    /// Upper bound of the retransmission timeout (RFC 6298, rule 2.5: at least 60 s).
    pub max_rto: Duration,
    /// How long a SYN is sent again before the connection that it opens is given up (RFC 9293, section 3.8.3: R2, at
    /// least three minutes).
    pub syn_timeout: Duration,
    /// How long the acknowledgement of a single segment waits for company (RFC 9293, section 3.8.6.3).
    pub delayed_ack: Duration,
    /// Key of sequence numbers, timestamps, cookies and hashes; random, and different at every start.
    pub isn_secret: [u8; 16],
    /// Which core of the host this is. All cores have the same secret and addresses, and each has connections of
    /// its own; those that it opens are from ports that it does not share with the others.
    pub core: CoreShare,
    /// Whether the device fills in TCP checksums of sent frames.
    pub tx_checksum_offload: bool,
    /// Whether the device cuts frames of up to 64 KiB that hold several segments, each no longer than the MTU allows, and
    /// of up to 16 pieces behind their headers ([`TxFrame::segment_bytes`](crate::TxFrame::segment_bytes)). It then fills
    /// in checksums too.
    pub tx_segmentation: bool,
}

/// What connections of one listener may do otherwise than those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Probes on connections that have long been silent (RFC 9293, section 3.8.4); none by default.
    pub keepalive: Option<Keepalive>,
    /// How long what was sent may stay without an acknowledgement before the connection is given up: the user timeout of
    /// RFC 9293, section 3.9.1, which RFC 5482 would tell the peer, and R2 of section 3.8.3. A peer that answers and
    /// keeps its window closed may do so for ever (section 3.8.6.1), but only for this long once this side has finished.
    pub user_timeout: Duration,
    /// Whether less than a whole segment waits while something is in flight (Nagle; RFC 9293, section 3.7.4): for
    /// applications that send in small pieces, and not for those whose replies are whole.
    pub nagle: bool,
    /// Whether what arrives is acknowledged only when the application [says](crate::net::Net::acknowledge) that it is
    /// durable: what a plain sender no longer finds in its socket's queue has then survived. FIN is taken in when all
    /// before it is durable. Nothing is acknowledged that does not become so, and its sender sends it again and again:
    /// the application appends whatever comes, in the burst in which it comes.
    pub durable_ack: bool,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self { keepalive: None, user_timeout: Duration::from_secs(300), nagle: false, durable_ack: false }
    }
}

impl ConnectionOptions {
    /// Whether connections can be so.
    ///
    /// # Errors
    /// [`OptionError`].
    pub fn check(&self) -> Result<(), OptionError> {
        let keepalive = self.keepalive.map(|Keepalive { idle, interval, .. }| {
            [("keepalive.idle", idle), ("keepalive.interval", interval)]
        });
        let times = [("user_timeout", self.user_timeout)].into_iter().chain(keepalive.into_iter().flatten());
        for (name, time) in times {
            if !(OptionError::MIN..=OptionError::MAX).contains(&time) {
                return Err(OptionError::Time { name, time });
            }
        }
        if self.keepalive.is_some_and(|keepalive| keepalive.count == 0) {
            return Err(OptionError::NoProbe);
        }
        Ok(())
    }
}

/// Why connections cannot be so.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum OptionError {
    /// A time that is too short or too long.
    #[error("{name} is {time:?}, outside {:?}..={:?}", Self::MIN, Self::MAX)]
    Time {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        time: Duration,
    },
    /// Connections that would be given up without having been probed.
    #[error("keepalive.count is 0: a silent peer has to be probed at least once before it is given up")]
    NoProbe,
}

impl OptionError {
    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(7 * 24 * 3600);
}

/// When a connection that has long been silent is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Silence between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub count: u8,
}

/// Why an endpoint cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum ConfigError {
    /// Nothing to answer to.
    #[error("no address is configured; give at least one")]
    NoAddress,
    /// More addresses than an endpoint holds.
    #[error("{0} addresses are configured; at most {MAX_ADDRESSES} are possible")]
    TooManyAddresses(usize),
    /// An address that no host can have, or a gateway that cannot be reached.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A route that leads nowhere.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Connections that cannot be so.
    #[error(transparent)]
    Connection(#[from] OptionError),
    /// An Ethernet address that no port can have.
    #[error("{0:02x?} is not a unicast Ethernet address")]
    NotUnicastMac([u8; 6]),
    /// Out of the range of IP's minimum to what a buffer takes.
    #[error("an MTU of {mtu} is outside {min}..={max}, which the protocol and the arena's buffers allow")]
    Mtu {
        /// What was asked for.
        mtu: usize,
        /// The least that is possible.
        min: usize,
        /// The most that is possible.
        max: usize,
    },
    /// A device that leaves the checksums of what it cuts to the core, which never sees it.
    #[error(
        "a device that cuts frames fills in their checksums: set tx_checksum_offload with tx_segmentation"
    )]
    SegmentationAlone,
    /// A limit that is zero or too large.
    #[error("{name} is {value}, outside {min}..={max}")]
    Limit {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        value: usize,
        /// The least that is possible.
        min: usize,
        /// The most that is possible.
        max: usize,
    },
}

impl Config {
    /// Settings for a host, with defaults for all limits and a fresh random secret.
    ///
    /// # Errors
    /// The operating system's source of randomness failed.
    pub fn new(mac: [u8; 6], addresses: Vec<IpCidr>) -> Result<Self, getrandom::Error> {
        let mut isn_secret = [0; 16];
        getrandom::fill(&mut isn_secret)?;
        Ok(Self::with_secret(mac, addresses, isn_secret))
    }

    /// Settings for a host whose every choice follows from `isn_secret`, for runs that can be repeated.
    pub fn with_secret(mac: [u8; 6], addresses: Vec<IpCidr>, isn_secret: [u8; 16]) -> Self {
        Self {
            mac,
            mtu: 1500,
            mtu_v6: None,
            vlan: None,
            addresses,
            gateway_v4: None,
            gateway_v6: None,
            routes: Vec::new(),
            dscp: 0,
            max_connections: 4096,
            max_time_wait: 4096,
            syn_queue: 1024,
            rx_window_bytes: 16 << 20,
            rx_buffers: 1 << 14,
            tx_bytes: 4096,
            tx_extents: 128,
            tx_window_bytes: 16 << 20,
            tx_shared_bytes: 64 << 20,
            tx_shared_extents: 1 << 16,
            udp_rx_datagrams: 256,
            udp_tx_datagrams: 256,
            congestion: CongestionControl::default(),
            ecn: Ecn::default(),
            pacing: false,
            time_wait: Duration::from_secs(60),
            connection: ConnectionOptions::default(),
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(60),
            syn_timeout: Duration::from_secs(180),
            delayed_ack: Duration::from_millis(40),
            isn_secret,
            core: CoreShare::ALONE,
            tx_checksum_offload: false,
            tx_segmentation: false,
        }
    }

    /// Whether this side heeds marks of congestion where the peer asks for that; BBR's first version would pass them over.
    pub(crate) fn answers_marks(&self) -> bool {
        self.ecn != Ecn::Off && !self.congestion.models()
    }

    /// Whether it asks for that where it opens a connection.
    pub(crate) fn asks_for_marks(&self) -> bool {
        self.ecn == Ecn::Ask && self.answers_marks()
    }

    /// What the send queues of all connections may hold, in extents of buffers of this length.
    pub(crate) fn send_limits(&self, buffer_bytes: usize) -> SendLimits {
        SendLimits {
            queues: self.max_connections,
            queue_bytes: self.tx_bytes,
            queue_extents: self.tx_extents,
            window_bytes: self.tx_window_bytes,
            extent_bytes: buffer_bytes,
            shared_bytes: self.tx_shared_bytes,
            shared_extents: self.tx_shared_extents,
        }
    }

    /// The largest packet of an IP version.
    pub(crate) fn mtu_of(&self, is_v4: bool) -> usize {
        if is_v4 { self.mtu } else { self.mtu_v6.unwrap_or(self.mtu) }
    }

    /// Whether frames with the tag of that VLAN, or without one, are this host's.
    #[inline]
    pub(crate) fn is_of_vlan(&self, tag: Option<u16>) -> bool {
        tag.unwrap_or(0) == self.vlan.unwrap_or(0)
    }

    /// Whether a host with buffers of this length can be so.
    ///
    /// # Errors
    /// [`ConfigError`]: the first setting that cannot be.
    pub fn check(&self, buffer_bytes: usize) -> Result<(), ConfigError> {
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(ConfigError::NotUnicastMac(self.mac));
        }
        if self.addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(ConfigError::TooManyAddresses(self.addresses.len()));
        }
        self.addresses.iter().try_for_each(check_own)?;
        let gateways = [self.gateway_v4.map(IpAddr::V4), self.gateway_v6.map(IpAddr::V6)];
        gateways.into_iter().flatten().try_for_each(|gateway| check_gateway(gateway, &self.addresses))?;
        check_routes(&self.routes, &self.addresses)?;
        let tag = self.vlan.map_or(0, |_| VLAN_TAG_BYTES);
        let max_mtu = buffer_bytes.saturating_sub(ETHERNET_HEADER_BYTES + tag).min(9000);
        let min_mtu = match self.addresses.iter().any(|cidr| matches!(cidr, IpCidr::Ipv6(_))) {
            true => MIN_MTU_V6,
            false => MIN_MTU_V4,
        };
        if !(min_mtu..=max_mtu).contains(&self.mtu) {
            return Err(ConfigError::Mtu { mtu: self.mtu, min: min_mtu, max: max_mtu });
        }
        if let Some(mtu) = self.mtu_v6
            && !(MIN_MTU_V6..=self.mtu).contains(&mtu)
        {
            return Err(ConfigError::Mtu { mtu, min: MIN_MTU_V6, max: self.mtu });
        }
        self.connection.check()?;
        if self.tx_segmentation && !self.tx_checksum_offload {
            return Err(ConfigError::SegmentationAlone);
        }
        for (name, value, min, max) in [
            ("max_connections", self.max_connections, 1, 1 << 24),
            ("dscp", self.dscp.into(), 0, 63),
            ("vlan", self.vlan.unwrap_or(1).into(), 1, 4094),
            ("max_time_wait", self.max_time_wait, 1, 1 << 24),
            ("syn_queue", self.syn_queue, 1, 1 << 24),
            // RFC 7323, section 2.3: a scaled window ends below 2^30.
            ("rx_window_bytes", self.rx_window_bytes, MIN_MTU_V6, (1 << 30) - 1),
            ("rx_buffers", self.rx_buffers, 2, 1 << 16),
            ("tx_bytes", self.tx_bytes, 64, 1 << 24),
            ("tx_extents", self.tx_extents, 1, 1 << 16),
            ("tx_window_bytes", self.tx_window_bytes, 0, 1 << 28),
            ("tx_shared_bytes", self.tx_shared_bytes, 0, 1 << 32),
            ("tx_shared_extents", self.tx_shared_extents, 0, 1 << 24),
            ("udp_rx_datagrams", self.udp_rx_datagrams, 1, 1 << 16),
            ("udp_tx_datagrams", self.udp_tx_datagrams, 1, (1 << 16) - 1),
            ("core.count", self.core.count.into(), usize::from(self.core.index) + 1, u16::MAX.into()),
        ] {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::Limit { name, value, min, max });
            }
        }
        Ok(())
    }
}

/// The least MTU that IPv6 allows (RFC 8200, section 5).
pub const MIN_MTU_V6: usize = 1280;

/// The least MTU here without IPv6: what every IPv4 host takes (RFC 791, section 3.1).
pub const MIN_MTU_V4: usize = 576;

#[cfg(test)]
mod tests {
    use smoltcp::wire::IpAddress;

    use super::*;

    fn config() -> Config {
        let address = IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24);
        Config::with_secret([2, 0, 0, 0, 0, 1], vec![address], [7; 16])
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(config().check(2176), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.check(2176).unwrap_err()
        };
        assert_eq!(refused(|c| c.addresses.clear()), ConfigError::NoAddress);
        assert!(matches!(refused(|c| c.mtu = 9000), ConfigError::Mtu { max: 2162, .. }));
        assert!(matches!(
            refused(|c| c.mtu_v6 = Some(1501)),
            ConfigError::Mtu { mtu: 1501, min: 1280, max: 1500 }
        ));
        assert!(matches!(refused(|c| c.mtu = 575), ConfigError::Mtu { min: 576, .. }));
        assert!(matches!(
            refused(|c| {
                c.mtu = 1279;
                c.addresses.push(IpCidr::new(IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2), 64));
            }),
            ConfigError::Mtu { min: 1280, .. }
        ));
        let mut narrow = config();
        narrow.mtu = 576;
        assert_eq!(narrow.check(2176), Ok(()));
        assert!(matches!(refused(|c| c.mac[0] = 1), ConfigError::NotUnicastMac(_)));
        assert!(matches!(refused(|c| c.tx_extents = 0), ConfigError::Limit { name: "tx_extents", .. }));
        let time = Duration::ZERO;
        assert_eq!(
            refused(|c| c.connection.user_timeout = Duration::ZERO),
            ConfigError::Connection(OptionError::Time { name: "user_timeout", time })
        );
        assert_eq!(refused(|c| c.tx_segmentation = true), ConfigError::SegmentationAlone);
        let beyond = CoreShare { index: 2, count: 2 };
        let mut no_core = config();
        no_core.core = beyond;
        assert!(matches!(no_core.check(2176), Err(ConfigError::Limit { name: "core.count", min: 3, .. })));
        let multicast = IpCidr::new(IpAddress::v4(224, 0, 0, 1), 24);
        let mut bad = config();
        bad.addresses[0] = multicast;
        assert!(matches!(bad.check(2176), Err(ConfigError::Address(AddressError::NotHost(_)))));
        bad = config();
        bad.gateway_v4 = Some(Ipv4Addr::new(10, 0, 1, 1));
        assert!(matches!(bad.check(2176), Err(ConfigError::Address(AddressError::GatewayElsewhere(_)))));
        bad.addresses = vec![config().addresses[0]; 9];
        assert_eq!(bad.check(2176), Err(ConfigError::TooManyAddresses(9)));
    }
}
