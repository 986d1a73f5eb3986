//! Received frames: in one segment, or headers and payload apart.

use dpdk::{
    Checksum, Eal, ExternalArea, ExternalPool, ExternalPoolConfig, Mbuf, MbufBatch, NotSwapped, WrittenSoon,
};
use pmem::{Arena, Buffer, Extent};
use stack_tcp::frame::ends_with_tcp_header;
use stack_tcp::{RxBurst, RxChecksum, RxFrame, Share};

use super::exchange::Stray;
use super::send::Sender;
use super::{DpdkCounters, DpdkError, Reach};

/// Lines fetched at a time. More of them make the core wait; with fewer, short bursts leave spares cold.
const WARMED_LINES: usize = 6;

/// Where frames arrive: the buffers of one shard.
#[derive(Debug)]
pub struct NamedBuffers {
    /// None for a core without a queue. See [`lend`](Self::lend).
    pub(super) pool: Option<ExternalPool>,
    pub(super) arena: Arena,
    pub(super) area: ExternalArea,
    /// Spares that are not in the cache yet, where this CPU will copy frames into them.
    pub(super) cold_spares: Option<Vec<WrittenSoon>>,
    /// Free buffers that the device does not see in one piece; out of circulation for good.
    pub(super) scattered: Vec<&'static mut [u8]>,
    /// Room to put a frame's pieces together that the stack does not take as they lie.
    pub(super) gathered: Box<[u8]>,
    /// What is said of checksums that the device has not looked at.
    pub(super) unverified: RxChecksum,
    pub(super) counters: DpdkCounters,
}

impl NamedBuffers {
    /// The buffers of `arena`, which is that of the shard in `reach`.
    pub fn new(arena: Arena, reach: Reach) -> Self {
        let area = reach.area();
        Self {
            pool: None,
            area,
            cold_spares: None,
            // At most one for each seam between pieces; and none at all with virtual addresses, which have no seams.
            scattered: Vec::with_capacity(area.contiguous_pieces()),
            gathered: vec![0; arena.buffer_bytes()].into(),
            arena,
            unverified: RxChecksum::Unknown,
            counters: DpdkCounters::default(),
        }
    }

    /// Lends `needed` free buffers to a pool for receive queues.
    ///
    /// # Errors
    /// [`DpdkError::Arena`] and [`DpdkError::Pool`].
    pub fn lend(
        &mut self,
        eal: Eal,
        name: &str,
        needed: usize,
        config: &ExternalPoolConfig,
    ) -> Result<&ExternalPool, DpdkError> {
        let Self { arena, area, scattered, .. } = self;
        let (free, buffers) = (arena.free_buffers(), arena.buffers());
        if free <= needed {
            return Err(DpdkError::Arena { needed, free, buffers });
        }
        let spares = std::iter::from_fn(|| arena.lend_one(|buffer| area.is_contiguous(buffer), scattered));
        let lent: Vec<_> = spares.take(needed).collect();
        if lent.len() < needed {
            return Err(DpdkError::Arena { needed, free: lent.len(), buffers });
        }
        Ok(self.pool.insert(ExternalPool::new(eal, name, *area, lent, config)?))
    }

    /// Takes a whole received frame, and tells whether it had to be copied; none if no buffer is free, or it is longer
    /// than one.
    pub fn take(&mut self, mbuf: &mut Mbuf) -> Option<(Extent, bool)> {
        let layout = match mbuf.segment_count() {
            1 => Layout::Whole,
            _ => Layout::Gathered(gather(mbuf, &mut self.gathered)?),
        };
        let (len, copied) = (mbuf.len(), self.counters.copied_frames);
        let (buffer, at) = Frame { mbuf, buffers: self, layout, origin: Origin::Device }.claim(0)?;
        let frame = buffer.into_extent(u16::try_from(at).ok()?, u16::try_from(len).ok()?)?;
        Some((frame, self.counters.copied_frames > copied))
    }

    /// Has memory fetch some lines of a spare, while the caller goes on with other work. The pool gives out first
    /// what it got last.
    #[inline]
    pub(super) fn warm_spares(&mut self) {
        if let Some(cold) = &mut self.cold_spares
            && let Some(spare) = cold.last_mut()
            && !spare.prefetch(WARMED_LINES)
        {
            cold.pop();
        }
    }
}

/// A burst in mbufs.
pub(super) struct Received<'a> {
    pub(super) mbufs: &'a mut MbufBatch,
    pub(super) buffers: &'a mut NamedBuffers,
    pub(super) sender: &'a mut Sender,
    pub(super) origin: Origin,
}

impl Received<'_> {
    /// How many other cores have looked for the frames' connections in vain.
    fn asked(&self) -> u16 {
        if let Origin::Core { asked } = self.origin { asked } else { 0 }
    }
}

impl RxBurst for Received<'_> {
    type Frame<'a>
        = Frame<'a>
    where
        Self: 'a;

    fn len(&self) -> usize {
        self.mbufs.len()
    }

    #[inline]
    fn head(&self, at: usize) -> &[u8] {
        self.mbufs[at].bytes()
    }

    fn untag(&mut self, at: usize) {
        self.mbufs[at].untag();
    }

    #[inline(always)]
    fn frame(&mut self, at: usize) -> Option<Frame<'_>> {
        self.buffers.warm_spares();
        let mbuf = &mut self.mbufs[at];
        let Some(layout) = Layout::of(mbuf, &mut self.buffers.gathered) else {
            self.buffers.counters.misplaced += 1;
            return None;
        };
        Some(Frame { mbuf, buffers: self.buffers, layout, origin: self.origin })
    }

    #[inline]
    fn is_last(&self, _: usize) -> bool {
        usize::from(self.asked()) + 1 >= self.sender.exchange.cores()
    }

    fn share(&mut self, at: usize, share: Share, whole: Option<&[u8]>) {
        let (cores, mbuf) = (self.sender.exchange.cores(), &self.mbufs[at]);
        match share {
            Share::Nothing => {}
            Share::News => {
                let others = (0..cores).filter(|core| *core != self.sender.core);
                for core in others {
                    let copy = self.sender.copy_of(mbuf);
                    let is_told = copy.is_some_and(|copy| self.sender.exchange.give_news(core, copy));
                    self.buffers.counters.crossing_lost += u64::from(!is_told);
                }
            }
            Share::Stray | Share::StrayWhole => {
                let next = (self.sender.core + 1) % cores;
                let copy = match whole {
                    Some(whole) => self.sender.copy_of_bytes(whole, mbuf.vlan()),
                    None => self.sender.copy_of(mbuf),
                };
                let asked = self.asked() + 1;
                let is_given =
                    copy.is_some_and(|mbuf| self.sender.exchange.give_stray(next, Stray { mbuf, asked }));
                self.buffers.counters.crossing_lost += u64::from(!is_given);
            }
        }
    }
}

/// A received frame; claiming its payload puts a spare buffer into its mbuf.
pub(super) struct Frame<'a> {
    mbuf: &'a mut Mbuf,
    buffers: &'a mut NamedBuffers,
    layout: Layout,
    origin: Origin,
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The core's own queue.
    Device,
    /// Another core. So many have looked for its connection in vain.
    Core { asked: u16 },
}

/// Where a frame's bytes are.
#[derive(Clone, Copy)]
enum Layout {
    /// All in the mbuf's only segment.
    Whole,
    /// Headers in the first segment, and all else in the second.
    Apart,
    /// So many bytes where pieces are put together.
    Gathered(usize),
}

impl Layout {
    /// Where the bytes of `mbuf` are; none if it is longer than any frame that was asked for.
    #[inline]
    fn of(mbuf: &Mbuf, gathered: &mut [u8]) -> Option<Self> {
        match mbuf.segment_count() {
            1 => Some(Self::Whole),
            2 if checksum_of(mbuf) == RxChecksum::Good && ends_with_tcp_header(mbuf.bytes()) => {
                Some(Self::Apart)
            }
            _ => gather(mbuf, gathered).map(Self::Gathered),
        }
    }
}

impl RxFrame for Frame<'_> {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self.layout {
            Layout::Whole | Layout::Apart => self.mbuf.bytes(),
            Layout::Gathered(len) => &self.buffers.gathered[..len],
        }
    }

    #[inline]
    fn apart(&self) -> &[u8] {
        match self.layout {
            Layout::Apart => self.mbuf.segments().nth(1).unwrap_or_default(),
            Layout::Whole | Layout::Gathered(_) => &[],
        }
    }

    #[inline]
    fn checksum(&self) -> RxChecksum {
        match checksum_of(self.mbuf) {
            RxChecksum::Unknown => self.buffers.unverified,
            known => known,
        }
    }

    #[inline]
    fn vlan(&self) -> Option<u16> {
        self.mbuf.vlan()
    }

    #[inline]
    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let claimed = self.claim_at(at);
        self.buffers.warm_spares();
        claimed
    }
}

impl Frame<'_> {
    #[inline]
    fn claim_at(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let NamedBuffers { pool, arena, area, cold_spares, scattered, counters, .. } = &mut *self.buffers;
        let Some(spare) =
            arena.lend_one(|buffer| area.is_one_piece() || area.is_contiguous(buffer), scattered)
        else {
            counters.no_spare += 1;
            return None;
        };
        let begins = self.mbuf.data_offset();
        if let Some(cold) = cold_spares.as_mut().filter(|cold| cold.len() < cold.capacity()) {
            // The next frame is likely as long as this one.
            let from = begins.min(spare.len());
            let to = (from + self.mbuf.len()).min(spare.len());
            cold.push(WrittenSoon::new(&spare[from..to]));
        }
        let pool = pool.as_ref().filter(|_| self.origin == Origin::Device);
        let swapped = match (self.layout, pool) {
            (Layout::Whole, Some(pool)) => pool.swap(self.mbuf, spare).map(|bytes| (bytes, begins + at)),
            (Layout::Apart, Some(pool)) => {
                let head = self.mbuf.bytes().len();
                pool.swap_second(self.mbuf, spare).map(|(bytes, begins)| (bytes, begins + at - head))
            }
            (Layout::Gathered(_), _) | (_, None) => return self.copy(spare, at),
        };
        match swapped {
            Ok((bytes, at)) => {
                counters.swapped += 1;
                Some((arena.take_back(bytes).ok()?, at))
            }
            Err(NotSwapped { spare, .. }) => self.copy(spare, at),
        }
    }

    /// The frame from its byte `at` on, in the piece where that lies.
    fn from(&self, at: usize) -> &[u8] {
        let (bytes, at) = match self.layout {
            Layout::Apart => (self.apart(), at - self.mbuf.bytes().len()),
            _ => (self.bytes(), at),
        };
        bytes.get(at..).unwrap_or_default()
    }

    /// Copies the frame's payload to where the device should have put it.
    fn copy(&mut self, spare: &'static mut [u8], at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.buffers.arena.take_back(spare).ok()?;
        let payload = self.from(at);
        let (len, arrived) = (payload.len(), buffer.arrive(0, payload));
        match self.origin {
            Origin::Device => self.buffers.counters.copied_frames += 1,
            Origin::Core { .. } => self.buffers.counters.crossed_bytes += len as u64,
        }
        arrived.then_some((buffer, 0))
    }
}

#[inline]
fn checksum_of(mbuf: &Mbuf) -> RxChecksum {
    match (mbuf.ip_checksum(), mbuf.transport_checksum()) {
        (Checksum::Bad, _) | (_, Checksum::Bad) => RxChecksum::Bad,
        (_, Checksum::Good) => RxChecksum::Good,
        _ => RxChecksum::Unknown,
    }
}

/// Puts the frame's segments together and returns its length; none if it does not fit.
fn gather(mbuf: &Mbuf, into: &mut [u8]) -> Option<usize> {
    let mut len = 0;
    for segment in mbuf.segments() {
        into.get_mut(len..len + segment.len())?.copy_from_slice(segment);
        len += segment.len();
    }
    Some(len)
}
