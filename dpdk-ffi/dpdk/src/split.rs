//! Headers and payload apart: whether a device can, and how it is told to.
//!
//! Two segments are asked for: the headers, behind the usual headroom of a buffer in DRAM, and what follows, from
//! the first byte of a buffer of the queue's own pool. The payload needs no offset, so that a device which knows
//! none, or only coarse ones, will do.

use std::fmt;

use dpdk_sys as sys;

use crate::device::PortId;

/// Segments of a frame: headers and payload.
const SEGMENTS: u16 = 2;

/// Ethernet, IPv4, and TCP with timestamps (RFC 7323): what segments with data between hosts of today begin with.
const HEADERS_BYTES: u16 = 66;

/// The protocols of TCP over IPv4, as DPDK names a place to split at. Devices split TCP over IPv6 with it or not.
const TCP_HEADERS: u32 = sys::RTE_PTYPE_L2_ETHER | sys::RTE_PTYPE_L3_IPV4 | sys::RTE_PTYPE_L4_TCP;

/// What a device says of splitting received frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitCapabilities {
    /// Whether it splits at all.
    pub offered: bool,
    /// Most segments of a frame.
    pub max_segments: u16,
    /// Whether the segments may come from several pools.
    pub several_pools: bool,
    /// The protocols whose headers it finds the end of, as sets of DPDK's packet types; none if it splits after a
    /// number of bytes.
    pub protocols: Vec<u32>,
    /// Whether it verifies TCP's checksum.
    pub tcp_checksum: bool,
}

/// Where frames are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitPoint {
    /// Behind TCP's header.
    TcpHeader,
    /// After so many bytes.
    Bytes(u16),
}

/// Why headers and payload stay together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSplit {
    /// The device has no such thing.
    #[error("the device does not split received frames")]
    NotOffered,
    /// Too few segments.
    #[error("the device splits a frame into at most {0} segments, and headers and payload are 2")]
    Segments(u16),
    /// Headers would lie in the payload's pool.
    #[error("the device takes all segments from one pool, and headers belong in another than payload")]
    OnePool,
    /// The payload would have to be read to be verified.
    #[error("the device does not verify TCP's checksum, so that the payload would be read anyway")]
    Checksum,
    /// It finds the end of other headers only.
    #[error("the device does not find the end of TCP's header over IPv4, only that of other protocols")]
    Protocols,
}

impl fmt::Display for SplitPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpHeader => write!(f, "behind TCP's header"),
            Self::Bytes(bytes) => write!(f, "after {bytes} bytes"),
        }
    }
}

impl SplitCapabilities {
    /// Where a device that can do this splits frames.
    ///
    /// # Errors
    /// [`NoSplit`]: it cannot put headers and payload apart, or it would be of no use.
    pub fn split_point(&self) -> Result<SplitPoint, NoSplit> {
        if !self.offered {
            Err(NoSplit::NotOffered)
        } else if self.max_segments < SEGMENTS {
            Err(NoSplit::Segments(self.max_segments))
        } else if !self.several_pools {
            Err(NoSplit::OnePool)
        } else if !self.tcp_checksum {
            Err(NoSplit::Checksum)
        } else if self.protocols.is_empty() {
            Ok(SplitPoint::Bytes(HEADERS_BYTES))
        } else if self.protocols.contains(&TCP_HEADERS) {
            Ok(SplitPoint::TcpHeader)
        } else {
            Err(NoSplit::Protocols)
        }
    }

    pub(crate) fn of(id: PortId, raw: &sys::rte_eth_dev_info, tcp_checksum: bool) -> Self {
        let offered = raw.rx_offload_capa & u64::from(sys::RTE_ETH_RX_OFFLOAD_BUFFER_SPLIT) != 0;
        Self {
            offered,
            max_segments: raw.rx_seg_capa.max_nseg,
            several_pools: raw.rx_seg_capa.multi_pools() != 0,
            protocols: if offered { protocols(id) } else { Vec::new() },
            tcp_checksum,
        }
    }
}

/// The protocols that the driver lists.
fn protocols(id: PortId) -> Vec<u32> {
    // SAFETY: DPDK checks the number, and counts without writing if there is no room.
    let count = unsafe { sys::rte_eth_buffer_split_get_supported_hdr_ptypes(id.0, std::ptr::null_mut(), 0) };
    // Drivers that split at a number of bytes have no list, which is an error to DPDK.
    let mut protocols = vec![0; usize::try_from(count).unwrap_or(0)];
    if !protocols.is_empty() {
        // SAFETY: there is room for as many as were counted.
        let count = unsafe {
            sys::rte_eth_buffer_split_get_supported_hdr_ptypes(id.0, protocols.as_mut_ptr(), count)
        };
        protocols.truncate(usize::try_from(count).unwrap_or(0));
    }
    protocols
}

/// The receive offloads that splitting asks for, of those that a device has. Some drivers fill several buffers with
/// a frame only where scattering is on too.
pub(crate) fn offload_flags(offered: u64) -> u64 {
    let wanted = sys::RTE_ETH_RX_OFFLOAD_BUFFER_SPLIT | sys::RTE_ETH_RX_OFFLOAD_SCATTER;
    offered & u64::from(wanted)
}

/// DPDK's description of the segments, whose pools are valid.
pub(crate) fn segments(
    point: SplitPoint,
    headers: *mut sys::rte_mempool,
    payload: *mut sys::rte_mempool,
) -> [sys::rte_eth_rxseg; SEGMENTS as usize] {
    let (length, proto_hdr) = match point {
        SplitPoint::TcpHeader => (0, TCP_HEADERS),
        SplitPoint::Bytes(bytes) => (bytes, 0),
    };
    let head = sys::rte_eth_rxseg_split { mp: headers, length, offset: 0, proto_hdr };
    // A length of zero: as much as a buffer holds.
    let rest = sys::rte_eth_rxseg_split { mp: payload, length: 0, offset: 0, proto_hdr: 0 };
    [sys::rte_eth_rxseg { split: head }, sys::rte_eth_rxseg { split: rest }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> SplitCapabilities {
        SplitCapabilities {
            offered: true,
            max_segments: 2,
            several_pools: true,
            protocols: Vec::new(),
            tcp_checksum: true,
        }
    }

    #[test]
    fn a_device_that_can_splits_behind_tcp_or_after_its_usual_headers() {
        assert_eq!(able().split_point(), Ok(SplitPoint::Bytes(66)));
        assert_eq!(SplitCapabilities { max_segments: 8, ..able() }.split_point(), Ok(SplitPoint::Bytes(66)));
        let protocols = vec![sys::RTE_PTYPE_L2_ETHER, TCP_HEADERS];
        assert_eq!(SplitCapabilities { protocols, ..able() }.split_point(), Ok(SplitPoint::TcpHeader));
    }

    #[test]
    fn a_device_that_cannot_is_left_alone_with_a_reason() {
        let udp = sys::RTE_PTYPE_L2_ETHER | sys::RTE_PTYPE_L3_IPV4;
        for (capabilities, reason) in [
            (SplitCapabilities { offered: false, ..able() }, NoSplit::NotOffered),
            (SplitCapabilities { max_segments: 0, ..able() }, NoSplit::Segments(0)),
            (SplitCapabilities { max_segments: 1, ..able() }, NoSplit::Segments(1)),
            (SplitCapabilities { several_pools: false, ..able() }, NoSplit::OnePool),
            (SplitCapabilities { tcp_checksum: false, ..able() }, NoSplit::Checksum),
            (SplitCapabilities { protocols: vec![udp], ..able() }, NoSplit::Protocols),
        ] {
            assert_eq!(capabilities.split_point(), Err(reason), "{capabilities:?}");
            assert!(reason.to_string().starts_with("the device "));
        }
    }

    #[test]
    fn only_offloads_that_there_are_get_switched_on() {
        let (split, scatter): (u64, u64) =
            (sys::RTE_ETH_RX_OFFLOAD_BUFFER_SPLIT.into(), sys::RTE_ETH_RX_OFFLOAD_SCATTER.into());
        assert_eq!(offload_flags(split), split);
        assert_eq!(offload_flags(u64::MAX), split | scatter);
    }
}
