//! What a device is and can do, and what is known of its driver.

use dpdk_sys as sys;

use super::error::PortError;
use super::id::{PortId, text};
use crate::interface::Interface;
use crate::split::{NoSplit, SplitCapabilities, SplitPoint};
use crate::spread::{self, SpreadCapabilities};

bitflags::bitflags! {
    /// What a device does for its host.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Verifies the IPv4 header's checksum on receive.
        const RX_IPV4_CHECKSUM = 1;
        /// Verifies TCP's checksum on receive.
        const RX_TCP_CHECKSUM = 1 << 1;
        /// Fills in the IPv4 header's checksum.
        const TX_IPV4_CHECKSUM = 1 << 2;
        /// Fills in TCP's checksum.
        const TX_TCP_CHECKSUM = 1 << 3;
        /// Sends frames of several segments.
        const TX_SEGMENTS = 1 << 4;
        /// Takes VLAN tags off received frames, and tells [which](crate::Mbuf::vlan).
        const RX_VLAN_STRIP = 1 << 5;
        /// Cuts frames of several TCP segments into frames of one (TSO).
        const TX_TCP_SEGMENTATION = 1 << 6;
    }
}

/// Our flag, DPDK's flag, and whether it is one for receiving.
pub(crate) const OFFLOADS: [(Offloads, u32, bool); 7] = [
    (Offloads::RX_IPV4_CHECKSUM, sys::RTE_ETH_RX_OFFLOAD_IPV4_CKSUM, true),
    (Offloads::RX_TCP_CHECKSUM, sys::RTE_ETH_RX_OFFLOAD_TCP_CKSUM, true),
    (Offloads::TX_IPV4_CHECKSUM, sys::RTE_ETH_TX_OFFLOAD_IPV4_CKSUM, false),
    (Offloads::TX_TCP_CHECKSUM, sys::RTE_ETH_TX_OFFLOAD_TCP_CKSUM, false),
    (Offloads::TX_SEGMENTS, sys::RTE_ETH_TX_OFFLOAD_MULTI_SEGS, false),
    (Offloads::RX_VLAN_STRIP, sys::RTE_ETH_RX_OFFLOAD_VLAN_STRIP, true),
    (Offloads::TX_TCP_SEGMENTATION, sys::RTE_ETH_TX_OFFLOAD_TCP_TSO, false),
];

/// What a device is and can do.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The port's name: a PCI address, or the virtual device's name.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// The station address.
    pub mac: [u8; 6],
    /// NUMA socket of the device; None if it has none.
    pub socket: Option<u32>,
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// How many buffers the driver holds for each receive descriptor.
    pub buffers_per_descriptor: usize,
    /// Whether the core that receives copies frames into the buffers, for want of hardware that would.
    pub copies_by_cpu: bool,
    /// Whether hardware writes frames to memory by itself: a device on a bus, and not one that DPDK's drivers make.
    pub does_dma: bool,
    /// Whether frames may come straight from a kernel, which then leaves their checksums and their cutting to a device
    /// that is not there.
    pub sees_partial_checksums: bool,
    /// The kernel's interface behind the port, if there is one.
    pub interface: Option<Interface>,
    /// Smallest and largest MTU in bytes.
    pub mtu_range: (u16, u16),
    /// Most segments in a sent frame; None if the driver sets no limit.
    pub max_tx_segments: Option<u16>,
    /// What it can do and does right, wanted or not.
    pub offloads: Offloads,
    /// Where it can split received frames into headers and payload; or why it cannot.
    pub header_split: Result<SplitPoint, NoSplit>,
    /// What it has for spreading received frames over queues.
    pub spread: SpreadCapabilities,
}

impl PortInfo {
    /// The Ethernet address of a host at this port: the station address, but for net_tap, whose kernel's interface at
    /// the other end has that one. There it differs in a bit that keeps the address unicast, and as local as it was.
    pub fn host_mac(&self) -> [u8; 6] {
        let [first, rest @ ..] = self.mac;
        let first = if self.driver == "net_tap" { first ^ 4 } else { first };
        let [b, c, d, e, f] = rest;
        [first, b, c, d, e, f]
    }
}

impl PortId {
    /// What the device is and can do.
    ///
    /// # Errors
    /// [`PortError::Call`]: the device is gone.
    pub fn info(self) -> Result<PortInfo, PortError> {
        let raw = self.device_info()?;
        let mut mac = sys::rte_ether_addr::default();
        // SAFETY: the structure is writable; DPDK checks the number.
        PortError::check(self, "tell its address", unsafe { sys::rte_eth_macaddr_get(self.0, &mut mac) })?;
        // SAFETY: DPDK returned the device of this port.
        let socket = unsafe { sys::rte_dev_numa_node(raw.device) };
        let offered = |flag, receive| {
            let capabilities = if receive { raw.rx_offload_capa } else { raw.tx_offload_capa };
            capabilities & u64::from(flag) != 0
        };
        let offloads: Offloads = OFFLOADS
            .iter()
            .filter(|(_, flag, receive)| offered(*flag, *receive))
            .map(|(ours, ..)| *ours)
            .collect();
        let driver = text(raw.driver_name);
        let offloads = offloads - mistaken_offloads(&driver);
        Ok(PortInfo {
            name: self.name(),
            buffers_per_descriptor: buffers_per_descriptor(&driver),
            copies_by_cpu: copies_by_cpu(&driver),
            does_dma: bus_name(raw.device) != "vdev",
            sees_partial_checksums: sees_partial_checksums(&driver),
            interface: Interface::of(raw.if_index),
            offloads,
            header_split: SplitCapabilities::of(self, &raw, offloads.contains(Offloads::RX_TCP_CHECKSUM))
                .split_point(),
            spread: SpreadCapabilities {
                max_rx_queues: raw.max_rx_queues,
                max_tx_queues: raw.max_tx_queues,
                hashes: raw.flow_type_rss_offloads,
                unasked: spread::unasked(&driver, raw.max_rx_queues, raw.flow_type_rss_offloads),
            },
            mac: mac.addr_bytes,
            socket: u32::try_from(socket).ok(),
            max_rx_queues: raw.max_rx_queues,
            max_tx_queues: raw.max_tx_queues,
            mtu_range: (raw.min_mtu, max_mtu(&driver, &raw)),
            driver,
            max_tx_segments: Some(raw.tx_desc_lim.nb_seg_max).filter(|max| !matches!(*max, 0 | u16::MAX)),
        })
    }

    /// The device behind the port.
    pub(crate) fn device(self) -> Result<*mut sys::rte_device, PortError> {
        Ok(self.device_info()?.device)
    }

    pub(crate) fn device_info(self) -> Result<sys::rte_eth_dev_info, PortError> {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: the structure is writable; DPDK checks the number.
        PortError::check(self, "describe itself", unsafe { sys::rte_eth_dev_info_get(self.0, &mut info) })?;
        Ok(info)
    }
}

/// Offloads that a driver of DPDK 22.11 offers and gets wrong.
///
/// TAP sums each segment as if it began at an even offset, so payload behind an odd piece has a wrong sum. It sums the
/// frames that it has cut in the same way, cuts none of IPv6, and counts the Ethernet header as part of the MTU: it keeps
/// frames that it is to cut into such of the whole MTU, and never sends them.
fn mistaken_offloads(driver: &str) -> Offloads {
    match driver {
        "net_tap" => Offloads::TX_TCP_CHECKSUM | Offloads::TX_TCP_SEGMENTATION,
        _ => Offloads::empty(),
    }
}

/// The largest MTU: as the driver says, and as far as the longest frame that it receives allows.
///
/// The limit that af_packet names is none: what its ring's frames hold counts.
fn max_mtu(driver: &str, raw: &sys::rte_eth_dev_info) -> u16 {
    // What stands around a packet, which DPDK works out in the same way.
    let around = match raw.max_rx_pktlen.checked_sub(raw.max_mtu.into()) {
        Some(around) if raw.max_mtu != u16::MAX && around > 0 => around,
        _ => sys::RTE_ETHER_HDR_LEN + sys::RTE_ETHER_CRC_LEN,
    };
    match driver {
        "net_af_packet" => raw.max_mtu,
        _ => raw.max_mtu.min(u16::try_from(raw.max_rx_pktlen.saturating_sub(around)).unwrap_or(u16::MAX)),
    }
}

/// Buffers that a driver posts for each receive descriptor.
///
/// vmxnet3 keeps a second ring for what does not fit into a first buffer, and fills it as well; a pool that has
/// none left then receives nothing at all.
fn buffers_per_descriptor(driver: &str) -> usize {
    match driver {
        "net_vmxnet3" => 2,
        _ => 1,
    }
}

/// Drivers whose receive burst copies frames into the buffers itself, where hardware would use DMA.
fn copies_by_cpu(driver: &str) -> bool {
    matches!(driver, "net_memif" | "net_af_packet" | "net_tap" | "net_pcap" | "net_vhost")
}

/// Drivers that see what a kernel on the same machine sends, before a card would have summed and cut it.
fn sees_partial_checksums(driver: &str) -> bool {
    matches!(driver, "net_af_packet" | "net_tap" | "net_pcap")
}

/// The bus that a device is on; empty if it is on none.
pub(crate) fn bus_name(device: *const sys::rte_device) -> String {
    // SAFETY: DPDK returned the device of a port, and buses stay for good.
    let bus = unsafe { sys::rte_dev_bus(device) };
    if bus.is_null() {
        return String::new();
    }
    // SAFETY: it is a bus, and its name a NUL-terminated string.
    text(unsafe { sys::rte_bus_name(bus) })
}
