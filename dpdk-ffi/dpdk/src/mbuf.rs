//! One packet.

use std::num::NonZeroU16;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use dpdk_sys as sys;

/// A packet in one or more segments: an owned handle that frees it when dropped.
#[repr(transparent)]
#[derive(Debug)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: the handle is the packet's only owner, and pools may be given mbufs from any thread.
unsafe impl Send for Mbuf {}

/// What a device says about a received checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nobody looked: verify it in software.
    Unknown,
    /// The data is intact. The field itself may hold something else, as on packets that never left the host.
    Good,
    /// Wrong.
    Bad,
}

/// Which Internet protocol a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200, without extension headers before TCP.
    V6,
}

/// The checksums that the device is to fill in, of one frame or of those that it cuts one into, and where the headers lie. Ask only for what
/// [`Port::offloads`](crate::Port::offloads) shows.
#[derive(Clone, Copy, Debug)]
pub struct TxChecksums {
    /// Which IP header follows the link header.
    pub version: IpVersion,
    /// Length of the link header in bytes, at most 127.
    pub link_len: u8,
    /// Length of the IP header in bytes, at most 511.
    pub ip_len: u16,
    /// Length of the TCP header in bytes.
    pub tcp_len: u8,
    /// Fill in the IPv4 header's checksum.
    pub ipv4_header: bool,
    /// Fill in TCP's checksum.
    pub tcp: bool,
    /// Cut the frame into such with so many bytes of payload, the last with what is left; none to send it as it is.
    /// That takes the checksums of both headers.
    pub segment_len: Option<NonZeroU16>,
}

/// The request does not fit the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "headers of {link_len} + {ip_len} + {tcp_len} bytes do not fit the first segment of {segment_len} bytes; \
     give the lengths as they are in the frame"
)]
pub struct ChecksumError {
    /// Length of the link header in bytes.
    pub link_len: u8,
    /// Length of the IP header in bytes.
    pub ip_len: u16,
    /// Length of the TCP header in bytes.
    pub tcp_len: u8,
    /// Length of the first segment in bytes.
    pub segment_len: usize,
}

/// The flags of a segment whose buffer is another mbuf's, or external memory.
const NOT_OWN_BUFFER: u64 = sys::RTE_MBUF_F_INDIRECT | sys::RTE_MBUF_F_EXTERNAL;

/// Bytes of the tag of a VLAN, which stands behind the two Ethernet addresses.
const TAG_BYTES: usize = 4;

/// Where the checksum lies in an IPv4 header (RFC 791, section 3.1).
const IPV4_CHECKSUM_OFFSET: usize = 10;
/// Where the checksum lies in a TCP header (RFC 9293, section 3.1).
const TCP_CHECKSUM_OFFSET: usize = 16;

impl Mbuf {
    /// Takes over a packet from DPDK.
    ///
    /// # Safety
    /// The packet is valid and owned by the caller, who gives it up.
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mbuf {
        self.0.as_ptr()
    }

    /// Gives the packet up to DPDK.
    #[inline]
    pub(crate) fn into_raw(self) -> *mut sys::rte_mbuf {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    #[inline]
    pub(crate) fn header(&self) -> &sys::rte_mbuf {
        // SAFETY: the handle owns a valid mbuf. The reference count, which others may write, is not read
        // through this reference.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    pub(crate) fn header_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: as for `header`, and the handle is the only owner.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn pool(&self) -> *mut sys::rte_mempool {
        self.header().pool
    }

    /// Whether it can go back to its pool as it is: one segment with a buffer of its own, which nobody else holds. So are
    /// nearly all that were received, and freeing them takes no more than that; `rte_pktmbuf_prefree_seg` does all else.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        let header = self.header();
        let is_alone = header.nb_segs == 1 && header.next.is_null();
        is_alone && header.ol_flags & NOT_OWN_BUFFER == 0 && references(self.0) == 1
    }

    /// Length of the packet in bytes, over all segments.
    #[inline]
    pub fn len(&self) -> usize {
        self.header().pkt_len as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many segments it has, at least 1.
    #[inline]
    pub fn segment_count(&self) -> usize {
        usize::from(self.header().nb_segs)
    }

    /// The bytes of the first segment: the whole packet, unless there are more segments.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let header = self.header();
        // SAFETY: the data lies within the buffer, which this packet holds alone.
        unsafe { std::slice::from_raw_parts(data(header), usize::from(header.data_len)) }
    }

    /// The bytes of the first segment, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let header = self.header();
        // SAFETY: as for `bytes`. Only a later segment can be an attached, shared one.
        unsafe { std::slice::from_raw_parts_mut(data(header), usize::from(header.data_len)) }
    }

    /// The bytes of all segments, in order.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::successors(Some(self.header()), |segment| {
            // SAFETY: segments behind the first are owned by it, and live as long.
            unsafe { segment.next.as_ref() }
        })
        // SAFETY: as for `bytes`; attached memory does not change while a device may read it.
        .map(|segment| unsafe { std::slice::from_raw_parts(data(segment), usize::from(segment.data_len)) })
    }

    /// Where the first segment's buffer begins: with an external pool, the address that it was given.
    #[inline]
    pub fn buffer_address(&self) -> *const u8 {
        self.header().buf_addr.cast_const().cast()
    }

    /// Where in the buffer the data begins, in bytes.
    #[inline]
    pub fn data_offset(&self) -> usize {
        usize::from(self.header().data_off)
    }

    /// Free bytes before the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.data_offset()
    }

    /// Free bytes behind the first segment's data.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let header = self.header();
        usize::from(header.buf_len)
            .saturating_sub(usize::from(header.data_off) + usize::from(header.data_len))
    }

    /// Has the CPU fetch the first bytes of the packet, which are soon to be looked at.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing, and the instruction is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(data(self.header()).cast_const().cast());
        }
    }

    /// Grows a packet of one segment by `count` bytes at its end and returns them, with whatever they held.
    /// None if the buffer has no room, or there are more segments.
    #[inline(always)]
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        if self.segment_count() != 1 || count > self.tailroom() {
            return None;
        }
        let header = self.header_mut();
        let old = usize::from(header.data_len);
        header.data_len += count as u16;
        header.pkt_len += count as u32;
        Some(&mut self.bytes_mut()[old..])
    }

    /// Copies all of another packet, whatever its segments, behind the end of this one, which has one segment. None, and
    /// nothing is copied, where [`append`](Self::append) gives none.
    #[inline]
    pub fn append_packet(&mut self, packet: &Mbuf) -> Option<()> {
        let mut into = self.append(packet.len())?;
        for segment in packet.segments() {
            let (part, rest) = into.split_at_mut_checked(segment.len())?;
            part.copy_from_slice(segment);
            into = rest;
        }
        Some(())
    }

    /// Grows the packet by `count` bytes at its front and returns them, with whatever they held.
    /// None if the buffer has no room.
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.headroom() {
            return None;
        }
        let header = self.header_mut();
        header.data_len = header.data_len.checked_add(count as u16)?;
        header.data_off -= count as u16;
        header.pkt_len += count as u32;
        Some(&mut self.bytes_mut()[..count])
    }

    /// Adds the segments of `tail` behind those of this packet, without copying.
    ///
    /// # Errors
    /// `tail`: together they would have too many segments or bytes for a packet.
    pub fn chain(&mut self, tail: Mbuf) -> Result<(), Mbuf> {
        let segments = self.header().nb_segs.checked_add(tail.header().nb_segs);
        let (Some(segments), Some(len)) =
            (segments, self.header().pkt_len.checked_add(tail.header().pkt_len))
        else {
            return Err(tail);
        };
        let mut last = self.as_ptr();
        // SAFETY: the segments of a packet are valid and its alone; the link is read before the next is followed.
        while let Some(next) = NonNull::new(unsafe { (*last).next }) {
            last = next.as_ptr();
        }
        // SAFETY: as above; the tail is given up to this packet.
        unsafe { (*last).next = tail.into_raw() };
        let header = self.header_mut();
        header.nb_segs = segments;
        header.pkt_len = len;
        Ok(())
    }

    /// Says of the checksums what a device would, on a frame that this host's software made.
    pub fn set_checksums(&mut self, ip: Checksum, transport: Checksum) {
        let ip = match ip {
            Checksum::Unknown => sys::RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN,
            Checksum::Good => sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD,
            Checksum::Bad => sys::RTE_MBUF_F_RX_IP_CKSUM_BAD,
        };
        let transport = match transport {
            Checksum::Unknown => sys::RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN,
            Checksum::Good => sys::RTE_MBUF_F_RX_L4_CKSUM_GOOD,
            Checksum::Bad => sys::RTE_MBUF_F_RX_L4_CKSUM_BAD,
        };
        let both = sys::RTE_MBUF_F_RX_IP_CKSUM_MASK | sys::RTE_MBUF_F_RX_L4_CKSUM_MASK;
        let header = self.header_mut();
        header.ol_flags = header.ol_flags & !u64::from(both) | u64::from(ip | transport);
    }

    /// The VLAN of which the device saw a tag, on the frame or taken off it; of two tags, one that names a VLAN. 0 is a
    /// priority without a VLAN.
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        const VLAN: u16 = 0xfff;
        const QINQ: u64 = sys::RTE_MBUF_F_RX_QINQ as u64;
        let header = self.header();
        match header.ol_flags & (sys::RTE_MBUF_F_RX_VLAN as u64 | QINQ) {
            0 => None,
            flags if flags & QINQ == 0 => Some(header.vlan_tci & VLAN),
            _ => Some((header.vlan_tci & VLAN).max(header.vlan_tci_outer & VLAN)),
        }
    }

    /// Takes the tag of a VLAN off a received frame that has one in it (IEEE 802.1Q): [`vlan`](Self::vlan) tells of it from
    /// then on. Nothing happens to other frames, and to those that the device has taken a tag off already.
    pub fn untag(&mut self) {
        const STRIPPED: u32 = sys::RTE_MBUF_F_RX_VLAN_STRIPPED;
        if self.header().ol_flags & u64::from(STRIPPED | sys::RTE_MBUF_F_RX_QINQ_STRIPPED) != 0 {
            return;
        }
        let Some((addresses, [0x81, 0, high, low])) = self
            .bytes()
            .split_first_chunk::<12>()
            .and_then(|(addresses, rest)| Some((*addresses, *rest.first_chunk::<TAG_BYTES>()?)))
        else {
            return;
        };
        self.bytes_mut()[TAG_BYTES..TAG_BYTES + 12].copy_from_slice(&addresses);
        let header = self.header_mut();
        header.data_off += TAG_BYTES as u16;
        header.data_len -= TAG_BYTES as u16;
        header.pkt_len -= TAG_BYTES as u32;
        header.vlan_tci = u16::from_be_bytes([high, low]);
        header.ol_flags |= u64::from(sys::RTE_MBUF_F_RX_VLAN | STRIPPED);
    }

    /// Says of a frame that this host's software made of which VLAN it was, as a device would.
    pub fn set_vlan(&mut self, vlan: Option<u16>) {
        const VLAN: u64 = (sys::RTE_MBUF_F_RX_VLAN | sys::RTE_MBUF_F_RX_VLAN_STRIPPED) as u64;
        let header = self.header_mut();
        header.vlan_tci = vlan.unwrap_or(0);
        header.ol_flags = header.ol_flags & !VLAN | if vlan.is_some() { VLAN } else { 0 };
    }

    /// What the device says about the IPv4 header's checksum.
    #[inline]
    pub fn ip_checksum(&self) -> Checksum {
        match self.header().ol_flags & u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_MASK) {
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN) => Checksum::Unknown,
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_BAD) => Checksum::Bad,
            _ => Checksum::Good,
        }
    }

    /// What the device says about the checksum of TCP or UDP.
    #[inline]
    pub fn transport_checksum(&self) -> Checksum {
        match self.header().ol_flags & u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_MASK) {
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN) => Checksum::Unknown,
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_BAD) => Checksum::Bad,
            _ => Checksum::Good,
        }
    }

    /// Asks the device to fill in checksums, and to cut the frame if it holds several segments. Writes what it needs to
    /// start from: zero into the IPv4 header's field, the pseudo header's sum into TCP's.
    ///
    /// # Errors
    /// [`ChecksumError`]: nothing was changed.
    pub fn request_checksums(&mut self, request: TxChecksums) -> Result<(), ChecksumError> {
        let TxChecksums { version, link_len, ip_len, tcp_len, ipv4_header, tcp, segment_len: cut } = request;
        let (ip, transport) = (usize::from(link_len), usize::from(link_len) + usize::from(ip_len));
        let segment_len = self.bytes().len();
        let (min_ip_len, version_flag) = match version {
            IpVersion::V4 => (20, sys::RTE_MBUF_F_TX_IPV4),
            IpVersion::V6 => (40, sys::RTE_MBUF_F_TX_IPV6),
        };
        let has_tcp = tcp || cut.is_some();
        let fits = link_len <= 127 && (min_ip_len..=511).contains(&ip_len) && (!has_tcp || tcp_len >= 20);
        if !fits || transport + usize::from(tcp_len) > segment_len {
            return Err(ChecksumError { link_len, ip_len, tcp_len, segment_len });
        }
        let mut flags = version_flag;
        let (ipv4_header, tcp) = (ipv4_header || cut.is_some(), tcp || cut.is_some());
        if cut.is_some() {
            // Without the length in the pseudo header's sum, which is another in each frame.
            flags |= sys::RTE_MBUF_F_TX_TCP_SEG;
        }
        let bytes = self.bytes_mut();
        if ipv4_header && version == IpVersion::V4 {
            flags |= sys::RTE_MBUF_F_TX_IP_CKSUM;
            bytes[ip + IPV4_CHECKSUM_OFFSET..][..2].fill(0);
        }
        if tcp {
            flags |= sys::RTE_MBUF_F_TX_TCP_CKSUM;
            let header = bytes[ip..].as_ptr();
            // SAFETY: at least the fixed part of the IP header lies in the segment; DPDK's header types are
            // packed or read byte-wise on this architecture, so alignment does not matter.
            let pseudo_header = unsafe {
                match version {
                    IpVersion::V4 => sys::rte_ipv4_phdr_cksum(header.cast(), flags),
                    IpVersion::V6 => sys::rte_ipv6_phdr_cksum(header.cast(), flags),
                }
            };
            bytes[transport + TCP_CHECKSUM_OFFSET..][..2].copy_from_slice(&pseudo_header.to_ne_bytes());
        }
        let segment_len = u64::from(cut.map_or(0, NonZeroU16::get));
        let header = self.header_mut();
        header.ol_flags |= flags;
        header.__bindgen_anon_3.tx_offload =
            u64::from(link_len) | u64::from(ip_len) << 7 | u64::from(tcp_len) << 16 | segment_len << 24;
        Ok(())
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: the handle owns the packet; pools live until the process ends.
        unsafe { sys::rte_pktmbuf_free(self.as_ptr()) }
    }
}

/// How many hold a segment. The count may change in other threads, so it is read atomically.
#[inline]
pub(crate) fn references(segment: NonNull<sys::rte_mbuf>) -> u16 {
    // SAFETY: callers have the segment in hand, so it is valid, and its count is written by atomic operations only.
    unsafe { AtomicU16::from_ptr(&raw mut (*segment.as_ptr()).refcnt) }.load(Ordering::Acquire)
}

#[inline]
fn data(segment: &sys::rte_mbuf) -> *mut u8 {
    // SAFETY: the data begins inside the segment's buffer, or at its end.
    unsafe { segment.buf_addr.cast::<u8>().add(usize::from(segment.data_off)) }
}
