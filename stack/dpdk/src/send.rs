//! Frames on their way out: headers in DRAM, and behind them payload where it lies.

use std::sync::Arc;

use dpdk::{Completions, ExternalArea, IpVersion, Mbuf, MbufBatch, Pool, TxChecksums, TxQueue};
use pmem::Extent;
use stack_tcp::config::VLAN_TAG_BYTES;
use stack_tcp::{FrameSink, SinkFull, TxChecksum, TxFrame};

use super::exchange::Exchange;

/// Extents behind one header; a frame of more pieces is sent with all of them copied into one segment, and so is
/// one with a piece that the device does not see as one.
const MAX_SEGMENTS: usize = 8;

/// Extents behind the header of a frame that the device cuts.
pub(super) const MAX_SEGMENTS_TO_CUT: usize = 16;

/// Mbufs taken at a time for frames to come.
pub(super) const BLANKS: usize = 32;

/// Bytes of the two addresses that an Ethernet header begins with.
const ADDRESSES_BYTES: usize = 12;

/// The tag of a VLAN as it stands in a frame (IEEE 802.1Q).
pub(super) type VlanTag = [u8; VLAN_TAG_BYTES];

/// The tag that puts frames into a VLAN, without a priority.
pub(super) fn tag_of(vlan: u16) -> VlanTag {
    let [high, low] = vlan.to_be_bytes();
    [0x81, 0, high, low]
}

/// How a core's frames leave.
pub(super) enum Exit {
    /// By a transmit queue of its own, which may be that of other cores too.
    Queue { tx: TxQueue, of_others: Option<Box<MbufBatch>> },
    /// By another core.
    Core(usize),
}

/// Where frames leave.
pub(super) struct Sender {
    pub(super) core: usize,
    pub(super) exit: Exit,
    pub(super) exchange: Arc<Exchange>,
    pub(super) heads: Pool,
    /// Mbufs of it for frames to come: taken one by one they cost more.
    pub(super) blanks: Box<MbufBatch>,
    pub(super) waiting: MbufBatch,
    pub(super) completions: Completions<Extent>,
    pub(super) area: ExternalArea,
    /// What goes behind the Ethernet addresses of each frame, where all are of one VLAN.
    pub(super) tag: Option<VlanTag>,
    /// The longest frame that the link takes, without a tag.
    pub(super) max_frame_bytes: usize,
    /// Frames that were longer.
    pub(super) too_long: u64,
    /// Frames handed to the device.
    pub(super) sent: u64,
    /// Frames of this core's own that have left it.
    pub(super) departed: u64,
    pub(super) copied_bytes: u64,
}

impl Sender {
    /// Hands what waits to the device, or to the core that has one, as far as it takes it.
    pub(super) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match &mut self.exit {
            Exit::Queue { tx, .. } => {
                let count = tx.burst(&mut self.waiting) as u64;
                self.sent += count;
                self.departed += count;
            }
            Exit::Core(core) => {
                let mut left = MbufBatch::new();
                for mbuf in self.waiting.drain() {
                    let refused = match left.is_empty() {
                        true => self.exchange.give_departure(*core, mbuf).err(),
                        false => Some(mbuf),
                    };
                    match refused {
                        None => self.departed += 1,
                        // As many fit as came out.
                        Some(mbuf) => drop(left.push(mbuf)),
                    }
                }
                self.waiting = left;
            }
        }
    }

    /// Sends what other cores have given to this one; returns the number of frames.
    pub(super) fn flush_others(&mut self) -> usize {
        let Exit::Queue { tx, of_others: Some(batch) } = &mut self.exit else { return 0 };
        let mut count = 0;
        loop {
            self.exchange.take_departures(self.core, batch);
            let waiting = batch.len();
            if waiting == 0 {
                break;
            }
            let sent = tx.burst(batch);
            count += sent;
            // A burst for each core that may have filled the queue is enough for one turn.
            if sent < waiting || count >= self.exchange.cores() * MbufBatch::CAPACITY {
                break;
            }
        }
        self.sent += count as u64;
        count
    }

    /// Whether frames wait for the device to take them, this core's or another's.
    pub(super) fn has_waiting(&self) -> bool {
        let of_others = match &self.exit {
            Exit::Queue { of_others, .. } => of_others.as_ref().is_some_and(|batch| !batch.is_empty()),
            Exit::Core(_) => false,
        };
        of_others || !self.waiting.is_empty()
    }

    /// Whether nothing waits here, no payload is with the device, and no other core sends by way of this one.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.exit, Exit::Queue { of_others: None, .. })
            && self.waiting.is_empty()
            && self.completions.outstanding() == 0
    }

    /// Lets payload go that the device no longer reads.
    pub(super) fn settle(&mut self) {
        if self.completions.outstanding() > 0 {
            self.completions.drain(drop);
        }
    }

    /// Has the device say which payload it no longer reads: one that is idle would hold on to the last frames.
    pub(super) fn reclaim(&mut self) {
        let own = self.completions.outstanding() > 0;
        match &mut self.exit {
            Exit::Queue { tx, of_others } => {
                if own || of_others.is_some() && self.exchange.is_payload_waited_for() {
                    tx.reclaim();
                }
            }
            Exit::Core(_) => self.exchange.wait_for_payload(self.core, own),
        }
        if own {
            self.settle();
        }
    }

    /// A copy of a received frame in DRAM, for another core; none if it does not fit an mbuf, or none is free.
    pub(super) fn copy_of(&self, frame: &Mbuf) -> Option<Mbuf> {
        let mut copy = self.heads.alloc()?;
        copy.append_packet(frame)?;
        copy.set_checksums(frame.ip_checksum(), frame.transport_checksum());
        copy.set_vlan(frame.vlan());
        Some(copy)
    }

    /// A frame of that VLAN in DRAM, for another core; none if it does not fit an mbuf, or none is free.
    pub(super) fn copy_of_bytes(&self, frame: &[u8], vlan: Option<u16>) -> Option<Mbuf> {
        let mut copy = self.heads.alloc()?;
        copy.append(frame.len())?.copy_from_slice(frame);
        copy.set_vlan(vlan);
        Some(copy)
    }

    #[inline]
    fn make_room(&mut self, pieces: usize) -> Result<(), SinkFull> {
        if !self.has_room(pieces) {
            self.flush();
            self.settle();
            if !self.has_room(pieces) {
                return Err(SinkFull);
            }
        }
        Ok(())
    }

    /// An empty mbuf; none if all are out.
    #[inline(always)]
    fn blank(&mut self) -> Option<Mbuf> {
        if self.blanks.is_empty() {
            self.take_blanks();
        }
        self.blanks.pop()
    }

    #[cold]
    fn take_blanks(&mut self) {
        if !self.heads.alloc_bulk(&mut self.blanks, BLANKS)
            && let Some(mbuf) = self.heads.alloc()
        {
            // There is room: there are none.
            let _ = self.blanks.push(mbuf);
        }
    }

    #[inline]
    fn has_room(&self, pieces: usize) -> bool {
        self.waiting.room() > 0 && self.completions.room() >= pieces
    }
}

impl FrameSink for Sender {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        let (max_segments, is_sendable) = match frame.segment_bytes {
            None => (MAX_SEGMENTS, frame.len() <= self.max_frame_bytes),
            // Nothing to copy it into. What is lost of it is sent again segment by segment.
            Some(_) => (
                MAX_SEGMENTS_TO_CUT,
                frame.payload.iter().all(|piece| self.area.is_contiguous(piece.bytes())),
            ),
        };
        if !is_sendable {
            // It would be refused as often as it is offered.
            self.too_long += 1;
            return Ok(());
        }
        self.make_room(frame.payload.len())?;
        let Self { heads, completions, area, tag, .. } = self;
        let head = (frame.head, *tag);
        let (mut mbuf, copied) =
            frame_of(heads, completions, area, head, frame.payload, max_segments).ok_or(SinkFull)?;
        self.copied_bytes += copied as u64;
        if let TxChecksum::Tcp { ipv6, l2_bytes, l3_bytes, l4_bytes } = frame.checksum {
            let request = TxChecksums {
                version: if ipv6 { IpVersion::V6 } else { IpVersion::V4 },
                link_len: (l2_bytes + self.tag.map_or(0, |tag| tag.len())) as u8,
                ip_len: l3_bytes as u16,
                tcp_len: l4_bytes as u8,
                ipv4_header: false,
                tcp: true,
                segment_len: frame.segment_bytes,
            };
            mbuf.request_checksums(request).map_err(|_| SinkFull)?;
        }
        self.waiting.push(mbuf).map_err(|_| SinkFull)
    }

    #[inline(always)]
    fn place(&mut self, len: usize) -> Option<&mut [u8]> {
        let at = self.waiting.len();
        if self.tag.is_some() || len > self.max_frame_bytes || self.waiting.room() == 0 {
            return None;
        }
        let mut blank = self.blank()?;
        blank.append(len)?;
        self.waiting.push(blank).ok()?;
        Some(self.waiting[at].bytes_mut())
    }
}

/// A frame of a header in DRAM, and behind it payload where it lies in `area`; and how many bytes of payload had to be
/// copied instead. None if there is no mbuf for it, or what is copied does not fit one.
#[inline]
pub fn named_frame<P: AsRef<[Extent]> + IntoIterator<Item: Into<Extent>>>(
    heads: &Pool,
    completions: &mut Completions<Extent>,
    area: &ExternalArea,
    head: &[u8],
    payload: P,
) -> Option<(Mbuf, usize)> {
    frame_of(heads, completions, area, (head, None), payload, MAX_SEGMENTS)
}

/// As [`named_frame`], with a tag, and of at most so many pieces that are not copied.
fn frame_of<P: AsRef<[Extent]> + IntoIterator<Item: Into<Extent>>>(
    heads: &Pool,
    completions: &mut Completions<Extent>,
    area: &ExternalArea,
    (head, tag): (&[u8], Option<VlanTag>),
    payload: P,
    max_segments: usize,
) -> Option<(Mbuf, usize)> {
    let mut mbuf = heads.alloc()?;
    match tag {
        None => mbuf.append(head.len())?.copy_from_slice(head),
        Some(tag) => {
            let (addresses, rest) = head.split_at_checked(ADDRESSES_BYTES)?;
            mbuf.append(addresses.len())?.copy_from_slice(addresses);
            mbuf.append(tag.len())?.copy_from_slice(&tag);
            mbuf.append(rest.len())?.copy_from_slice(rest);
        }
    }
    let pieces = payload.as_ref();
    if pieces.is_empty() {
        return Some((mbuf, 0));
    }
    let is_scattered = |piece: &Extent| !area.is_contiguous(piece.bytes());
    if pieces.len() > max_segments.min(completions.room()) || pieces.iter().any(is_scattered) {
        for piece in pieces {
            mbuf.append(piece.len())?.copy_from_slice(piece.bytes());
        }
        return Some((mbuf, pieces.iter().map(Extent::len).sum()));
    }
    for piece in payload {
        completions.attach(&mut mbuf, piece.into()).ok()?;
    }
    Some((mbuf, 0))
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("waiting", &self.waiting.len())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
