//! Pools of mbufs: in EAL's own memory, and over memory of one's own.

mod dense;

use std::ffi::{CString, c_void};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use dpdk_sys as sys;

use crate::area::ExternalArea;
use crate::batch::Batch;
use crate::device::{PortError, PortId};
use crate::eal::Eal;
use crate::mbuf::{Mbuf, references};
use crate::{errno_text, last_errno};

/// Longest name of a pool, in bytes.
const MAX_NAME_BYTES: usize = sys::RTE_MEMPOOL_NAMESIZE as usize - 1;

/// A pool of mbufs. Clones are the same pool; pools live until the process ends.
#[derive(Clone, Debug)]
pub struct Pool {
    pool: NonNull<sys::rte_mempool>,
    mbufs: u32,
    buffer_bytes: u16,
    pinned: bool,
    /// Its buffers are external, and some device takes from it whose driver may lose the flag that says so.
    loses_flags: &'static AtomicBool,
}

// SAFETY: DPDK's default pools are multi-producer and multi-consumer rings; they are never freed.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// How big a pool in EAL's memory is.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// How many mbufs. A power of two less one uses memory best.
    pub mbufs: u32,
    /// How many of them each lcore may keep at hand: at most 512, and at most two thirds of all.
    pub cache: u32,
    /// Length of each buffer in bytes, [`Pool::HEADROOM`] included.
    pub buffer_bytes: u16,
    /// NUMA socket of the memory; None for any.
    pub socket: Option<u32>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { mbufs: 8191, cache: 256, buffer_bytes: sys::RTE_MBUF_DEFAULT_BUF_SIZE as u16, socket: None }
    }
}

/// How an [`ExternalPool`] keeps its mbuf headers, which lie in EAL's memory.
#[derive(Clone, Debug)]
pub struct ExternalPoolConfig {
    /// How many mbufs each lcore may keep at hand: at most 512, and at most two thirds of all.
    pub cache: u32,
    /// NUMA socket of the headers; None for any.
    pub socket: Option<u32>,
}

impl Default for ExternalPoolConfig {
    fn default() -> Self {
        Self { cache: 256, socket: None }
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Not a name that DPDK takes.
    #[error("{0:?} is no name for a pool; use 1 to {MAX_NAME_BYTES} bytes without NUL")]
    Name(String),
    /// A pool needs mbufs.
    #[error("the pool {0} would be empty; give it at least one mbuf")]
    Empty(String),
    /// More at hand than there is.
    #[error(
        "the pool {name} of {mbufs} mbufs cannot have a cache of {cache}; at most 512 and two thirds of all"
    )]
    Cache {
        /// The pool's name.
        name: String,
        /// How many mbufs it was to have.
        mbufs: u32,
        /// The cache asked for.
        cache: u32,
    },
    /// DPDK could not make it.
    #[error("the pool {name} of {mbufs} mbufs was not made: {reason}. {remedy}")]
    Create {
        /// The pool's name.
        name: String,
        /// How many mbufs it was to have.
        mbufs: u32,
        /// DPDK's error code as text.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A buffer that the area or the others do not go with.
    #[error("buffer {index} ({address:#x}, {len} bytes) is not {expected}")]
    Buffer {
        /// Its place in the list.
        index: usize,
        /// Where it begins.
        address: usize,
        /// Its length in bytes.
        len: usize,
        /// What it should be.
        expected: &'static str,
    },
}

impl Pool {
    /// Bytes that received frames leave free at the start of a buffer.
    pub const HEADROOM: usize = sys::RTE_PKTMBUF_HEADROOM as usize;

    /// Makes a pool in EAL's memory.
    ///
    /// # Errors
    /// [`PoolError`]: the name is bad or taken, or memory is short.
    pub fn dram(_eal: Eal, name: &str, config: &PoolConfig) -> Result<Self, PoolError> {
        let PoolConfig { mbufs, cache, buffer_bytes, socket } = *config;
        let c_name = checked_name(name, mbufs, cache)?;
        let socket = socket_id(socket);
        let pool = if dense::is_better() {
            dense::create(&c_name, mbufs, cache, buffer_bytes, socket)
        } else {
            // SAFETY: the EAL runs, and the name is NUL-terminated; DPDK copies it.
            unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), mbufs, cache, 0, buffer_bytes, socket) }
        };
        Self::created(pool, name, mbufs, buffer_bytes, false)
    }

    fn created(
        pool: *mut sys::rte_mempool,
        name: &str,
        mbufs: u32,
        buffer_bytes: u16,
        pinned: bool,
    ) -> Result<Self, PoolError> {
        let code = last_errno();
        let pool = NonNull::new(pool).ok_or_else(|| PoolError::Create {
            name: name.to_owned(),
            mbufs,
            reason: errno_text(code),
            remedy: match code {
                libc::EEXIST => "Give each pool a name of its own",
                libc::ENOMEM => "Give EAL more memory (-m, or more hugepages), or make the pool smaller",
                _ => "Check that DPDK's mempool drivers are installed (apt-get install dpdk)",
            },
        })?;
        let loses_flags = Box::leak(Box::new(AtomicBool::new(false)));
        Ok(Self { pool, mbufs, buffer_bytes, pinned, loses_flags })
    }

    /// An empty mbuf, or None if all are out.
    #[inline]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is valid for good.
        let raw = NonNull::new(unsafe { sys::rte_pktmbuf_alloc(self.pool.as_ptr()) })?;
        // SAFETY: DPDK has just given it to us.
        let mut mbuf = unsafe { Mbuf::from_raw(raw) };
        self.mark(mbuf.header_mut());
        Some(mbuf)
    }

    /// Adds `count` empty mbufs to the batch in one call; false, and none, if they do not fit or are not there.
    pub fn alloc_bulk<const N: usize>(&self, batch: &mut Batch<N>, count: usize) -> bool {
        if count > batch.room() {
            return false;
        }
        // SAFETY: there is room for `count` pointers.
        if unsafe { sys::rte_pktmbuf_alloc_bulk(self.pool.as_ptr(), batch.spare_pointers(), count as u32) }
            != 0
        {
            return false;
        }
        // SAFETY: DPDK has just written `count` mbufs, which are ours.
        unsafe { batch.set_len(batch.len() + count) }
        batch.iter_mut().rev().take(count).for_each(|mbuf| self.mark(mbuf.header_mut()));
        true
    }

    /// Drivers that overwrite a packet's flags lose the one for external memory, and it stays lost when
    /// the mbuf comes out of the pool again.
    #[inline]
    fn mark(&self, header: &mut sys::rte_mbuf) {
        if self.loses_flags() {
            header.ol_flags |= sys::RTE_MBUF_F_EXTERNAL;
        }
    }

    /// How many mbufs are in the pool now. Counts all caches: for tests and statistics.
    pub fn available(&self) -> usize {
        // SAFETY: the pool is valid for good.
        unsafe { sys::rte_mempool_avail_count(self.pool.as_ptr()) as usize }
    }

    /// How many mbufs there are in all.
    pub fn mbufs(&self) -> usize {
        self.mbufs as usize
    }

    /// Length of each buffer in bytes, [`HEADROOM`](Self::HEADROOM) included.
    #[inline]
    pub fn buffer_bytes(&self) -> usize {
        usize::from(self.buffer_bytes)
    }

    /// Whether the buffers lie in external memory.
    pub fn is_external(&self) -> bool {
        self.pinned
    }

    /// Notes which driver takes mbufs from the pool.
    pub(crate) fn used_by(&self, driver: &str) {
        if self.pinned && !keeps_external_flag(driver) {
            self.loses_flags.store(true, Ordering::Relaxed);
        }
    }

    /// Whether packets from this pool may lack the flag for external memory.
    #[inline]
    pub(crate) fn loses_flags(&self) -> bool {
        self.loses_flags.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }
}

/// A pool whose buffers lie in memory of one's own and stay with their mbufs, until they are swapped.
#[derive(Clone, Debug)]
pub struct ExternalPool {
    pool: Pool,
    area: ExternalArea,
}

/// A buffer was not swapped; here is the spare again.
#[derive(Debug, thiserror::Error)]
#[error("the buffer was not swapped: {reason}")]
pub struct NotSwapped {
    /// Why not.
    pub reason: NotSwappedReason,
    /// The spare that was to take its place.
    pub spare: &'static mut [u8],
}

/// Why a buffer was not swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSwappedReason {
    /// The packet's mbuf comes from elsewhere.
    #[error("the packet is not from this pool; copy it")]
    OtherPool,
    /// Another number of segments.
    #[error("the packet has {0} segments; copy it")]
    Segments(u16),
    /// Somebody else holds the packet or its buffer too.
    #[error("the packet is shared; copy it")]
    Shared,
    /// The driver put the frame into memory of its own.
    #[error("the frame is not in the external area; copy it")]
    Elsewhere,
    /// Outside the area, not in one piece for devices, unaligned, or of another length.
    #[error("the spare does not fit; give one of the pool's length, on a cache line, in the pool's area")]
    Spare,
}

impl ExternalPool {
    /// Buffers begin on a multiple of this many bytes.
    pub const ALIGNMENT: usize = sys::RTE_CACHE_LINE_SIZE as usize;

    /// Makes a pool with one mbuf for each of `buffers`, which are all of one length and lie in `area`.
    /// If that fails the buffers are lost: nobody else may use them until the process ends.
    ///
    /// # Errors
    /// [`PoolError`]: the name is bad or taken, memory for the headers is short, or a buffer does not fit.
    pub fn new(
        _eal: Eal,
        name: &str,
        area: ExternalArea,
        buffers: Vec<&'static mut [u8]>,
        config: &ExternalPoolConfig,
    ) -> Result<Self, PoolError> {
        let mbufs = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let c_name = checked_name(name, mbufs, config.cache)?;
        let buffer_bytes = common_length(&buffers, area)?;
        let extents = [area.descriptor(buffer_bytes)];
        // SAFETY: the EAL runs, and the name is NUL-terminated. DPDK only computes addresses from the area's
        // description here; they are replaced before the pool is used.
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create_extbuf(
                c_name.as_ptr(),
                mbufs,
                config.cache,
                0,
                buffer_bytes,
                socket_id(config.socket),
                extents.as_ptr(),
                extents.len() as u32,
            )
        };
        let pool = Pool::created(pool, name, mbufs, buffer_bytes, true)?;
        let mut left = Placement { buffers: buffers.into_iter(), area };
        // SAFETY: the callback gets this very iterator, and each mbuf of the pool, while nobody else uses them.
        let visited = unsafe {
            sys::rte_mempool_obj_iter(pool.as_ptr(), Some(place_buffer), (&raw mut left).cast::<c_void>())
        };
        assert!(visited == mbufs && left.buffers.len() == 0, "DPDK visits each mbuf of a pool once");
        Ok(Self { pool, area })
    }

    /// Goes without the flag for external memory, if all of `ports` have drivers that are known to leave received
    /// mbufs as they are and to send packets without cloning them: null, ring, memif and af_packet. Returns whether
    /// it does. Packets must then go to none but these ports.
    ///
    /// The flag keeps DPDK from taking the memory before a buffer for the mbuf's own when it clones a packet. For its
    /// sake DPDK looks, whenever an mbuf is freed, at two more cache lines.
    ///
    /// # Errors
    /// [`PortError::Call`]: a device is gone.
    pub fn go_without_flag(&self, ports: &[PortId]) -> Result<bool, PortError> {
        for port in ports {
            if !keeps_external_flag(&port.info()?.driver) {
                return Ok(false);
            }
        }
        // SAFETY: the callback gets each mbuf of the pool, and changes nothing but the flag.
        unsafe { sys::rte_mempool_obj_iter(self.pool.as_ptr(), Some(clear_flag), std::ptr::null_mut()) };
        Ok(true)
    }

    /// Takes the received packet's buffer and puts `spare` in its place. The packet is empty afterwards.
    ///
    /// # Errors
    /// [`NotSwapped`] with the spare: the packet keeps its buffer, and must be copied instead.
    #[inline]
    pub fn swap(&self, packet: &mut Mbuf, spare: &'static mut [u8]) -> Result<&'static mut [u8], NotSwapped> {
        if packet.header().nb_segs != 1 {
            return Err(NotSwapped { reason: NotSwappedReason::Segments(packet.header().nb_segs), spare });
        }
        self.swap_segment(packet.header_mut(), spare)
    }

    /// Takes the buffer of the second of a received packet's two segments, as [`swap`](Self::swap) does that of a
    /// packet in one. With it comes where in the buffer that segment's bytes begin. The packet is left with the
    /// bytes of its first segment.
    ///
    /// # Errors
    /// As for [`swap`](Self::swap).
    pub fn swap_second(
        &self,
        packet: &mut Mbuf,
        spare: &'static mut [u8],
    ) -> Result<(&'static mut [u8], usize), NotSwapped> {
        let header = packet.header_mut();
        let first_is_shared = references(NonNull::from_mut(header)) != 1;
        // SAFETY: segments behind the first are owned by it, and nobody else has a handle on them.
        let (2, Some(second)) = (header.nb_segs, unsafe { header.next.as_mut() }) else {
            return Err(NotSwapped { reason: NotSwappedReason::Segments(header.nb_segs), spare });
        };
        if first_is_shared {
            return Err(NotSwapped { reason: NotSwappedReason::Shared, spare });
        }
        let (offset, len) = (usize::from(second.data_off), u32::from(second.data_len));
        let old = self.swap_segment(second, spare)?;
        header.pkt_len = header.pkt_len.saturating_sub(len);
        Ok((old, offset))
    }

    #[inline]
    fn swap_segment(
        &self,
        segment: &mut sys::rte_mbuf,
        spare: &'static mut [u8],
    ) -> Result<&'static mut [u8], NotSwapped> {
        let iova = match self.check_swap(segment, spare) {
            Ok(iova) => iova,
            Err(reason) => return Err(NotSwapped { reason, spare }),
        };
        let old = segment.buf_addr.cast::<u8>();
        set_buffer(segment, spare, iova);
        // SAFETY: a pool over external memory holds nothing but `&'static mut` buffers of this length, and
        // the segment held this one alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(old, self.pool.buffer_bytes()) })
    }

    /// The spare's I/O address, if it may take the place of the segment's buffer.
    #[inline]
    fn check_swap(&self, segment: &mut sys::rte_mbuf, spare: &[u8]) -> Result<u64, NotSwappedReason> {
        if segment.pool != self.pool.as_ptr() {
            Err(NotSwappedReason::OtherPool)
        } else if !is_unique(segment) {
            Err(NotSwappedReason::Shared)
        } else if !self.area.contains(segment.buf_addr as usize, self.pool.buffer_bytes()) {
            Err(NotSwappedReason::Elsewhere)
        } else {
            place_of(spare, self.pool.buffer_bytes(), self.area).ok_or(NotSwappedReason::Spare)
        }
    }
}

impl Deref for ExternalPool {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

/// Whether a driver of DPDK 22.11 leaves the flag for external memory as it is when it receives, and needs none when it
/// sends. Those do which only add flags to what they allocate, or pass packets on, and clone nothing.
fn keeps_external_flag(driver: &str) -> bool {
    matches!(driver, "net_null" | "net_ring" | "net_memif" | "net_af_packet")
}

/// Buffers on their way to a new pool's mbufs.
struct Placement {
    buffers: std::vec::IntoIter<&'static mut [u8]>,
    area: ExternalArea,
}

/// Gives the next buffer to an mbuf: DPDK's own placement is one after the other from the area's start, where
/// other buffers may be in use.
unsafe extern "C" fn place_buffer(
    _pool: *mut sys::rte_mempool,
    placement: *mut c_void,
    mbuf: *mut c_void,
    _index: u32,
) {
    // SAFETY: `ExternalPool::new` passes the placement, and waits for the last call.
    let placement = unsafe { &mut *placement.cast::<Placement>() };
    // SAFETY: DPDK passes the pool's mbufs, none of which is in use yet.
    let header = unsafe { &mut *mbuf.cast::<sys::rte_mbuf>() };
    let buffer = placement.buffers.next().expect("there is a buffer for each mbuf");
    let iova = place_of(buffer, buffer.len(), placement.area).expect("each buffer was found to fit");
    set_buffer(header, buffer, iova);
}

unsafe extern "C" fn clear_flag(
    _pool: *mut sys::rte_mempool,
    _argument: *mut c_void,
    mbuf: *mut c_void,
    _index: u32,
) {
    // SAFETY: DPDK passes the pool's mbufs.
    let header = unsafe { &mut *mbuf.cast::<sys::rte_mbuf>() };
    header.ol_flags &= !sys::RTE_MBUF_F_EXTERNAL;
}

#[inline]
fn set_buffer(header: &mut sys::rte_mbuf, buffer: &'static mut [u8], iova: u64) {
    header.buf_addr = buffer.as_mut_ptr().cast();
    header.data_len = 0;
    header.pkt_len = 0;
    // SAFETY: the mbuf is valid and nobody else's, and this is where devices find its new buffer.
    unsafe { sys::rte_mbuf_iova_set(header, iova) }
}

/// Whether neither the segment nor its buffer has another holder.
#[inline]
fn is_unique(segment: &mut sys::rte_mbuf) -> bool {
    // SAFETY: the segment is from a pool over external memory, whose mbufs have their shared information behind
    // them; that count too is written by atomic operations only.
    let clones = unsafe { AtomicU16::from_ptr(&raw mut (*segment.shinfo).refcnt) };
    references(NonNull::from_mut(segment)) == 1 && clones.load(Ordering::Acquire) == 1
}

fn common_length(buffers: &[&'static mut [u8]], area: ExternalArea) -> Result<u16, PoolError> {
    let len = buffers.first().map_or(0, |buffer| buffer.len());
    let buffer_bytes = u16::try_from(len).ok().filter(|_| len > Pool::HEADROOM);
    for (index, buffer) in buffers.iter().enumerate() {
        let expected = if buffer_bytes.is_none() {
            "longer than the headroom of 128 bytes and shorter than 64 KiB"
        } else if buffer.len() != len {
            "as long as the first"
        } else if place_of(buffer, len, area).is_none() {
            "inside the area in one piece for devices, and on a cache line"
        } else {
            continue;
        };
        return Err(PoolError::Buffer {
            index,
            address: buffer.as_ptr() as usize,
            len: buffer.len(),
            expected,
        });
    }
    Ok(buffer_bytes.unwrap_or(0))
}

/// Where devices find a buffer; none if it is not of this length, on a cache line, and in the area in one piece.
#[inline]
fn place_of(buffer: &[u8], len: usize, area: ExternalArea) -> Option<u64> {
    let address = buffer.as_ptr() as usize;
    let fits = buffer.len() == len && address.is_multiple_of(ExternalPool::ALIGNMENT);
    area.iova(address, len).filter(|_| fits)
}

fn checked_name(name: &str, mbufs: u32, cache: u32) -> Result<CString, PoolError> {
    let bad = || PoolError::Name(name.to_owned());
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(bad());
    }
    if mbufs == 0 {
        return Err(PoolError::Empty(name.to_owned()));
    }
    if cache > sys::RTE_MEMPOOL_CACHE_MAX_SIZE || u64::from(cache) * 3 > u64::from(mbufs) * 2 {
        return Err(PoolError::Cache { name: name.to_owned(), mbufs, cache });
    }
    CString::new(name).map_err(|_| bad())
}

fn socket_id(socket: Option<u32>) -> i32 {
    socket.and_then(|socket| i32::try_from(socket).ok()).unwrap_or(sys::SOCKET_ID_ANY)
}
