//! Payload sent from where it lies: attached behind a header, and given back once no device reads it.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::marker::PhantomData;

use crossbeam_queue::ArrayQueue;
use dpdk_sys as sys;

use crate::addresses;
use crate::area::ExternalArea;
use crate::eal::Eal;
use crate::mbuf::Mbuf;
use crate::pool::{Pool, PoolConfig, PoolError};

/// Mbufs that lcores may hold back in their caches, on top of those in use.
const CACHED_MBUFS: u32 = 1024;
const CACHE: u32 = 64;
/// More segments than drivers take in one frame make no sense.
const MAX_ATTACHED: usize = 16;

/// A fixed number of places for payload that devices are reading, for one thread.
///
/// A place holds the payload's owner from [`attach`](Self::attach) until the last device has let go of the
/// frame, sent or not, and a [`drain`](Self::drain) after that: each owner comes back exactly once. Owners
/// still with a device when this is dropped are never dropped.
pub struct Completions<T: AsRef<[u8]> + 'static> {
    places: &'static [TxCompletion<T>],
    done: &'static ArrayQueue<u32>,
    free: Vec<u32>,
    tails: Pool,
    /// With physical addresses, where they are known.
    area: Option<ExternalArea>,
    are_physical: bool,
    _one_thread: PhantomData<*const ()>,
}

/// What one attachment needs for as long as a device may read it.
struct TxCompletion<T> {
    shared: UnsafeCell<sys::rte_mbuf_ext_shared_info>,
    owner: UnsafeCell<Option<T>>,
    index: u32,
    done: &'static ArrayQueue<u32>,
}

/// Why no completions can be kept.
#[derive(Debug, thiserror::Error)]
pub enum CompletionsError {
    /// The mbufs for the payload.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Payload was not attached; here is its owner again. The packet is as it was.
#[derive(thiserror::Error)]
#[error("the payload was not attached: {reason}")]
pub struct NotAttached<T> {
    /// Why not.
    pub reason: NotAttachedReason,
    /// The payload's owner.
    pub payload: T,
}

/// Why payload was not attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAttachedReason {
    /// All places are taken, or all mbufs in use.
    #[error("devices still read all payload that there are places for; drain, and try again")]
    Full,
    /// Nothing to attach.
    #[error("it is empty; send the header alone")]
    Empty,
    /// More pieces than a frame may have.
    #[error("the packet has {MAX_ATTACHED} pieces of payload already; send it")]
    Segments,
    /// Devices use physical addresses, and those of the payload are unknown or not in one piece.
    #[error("devices do not see it in one piece; copy it")]
    Scattered,
    /// More than a segment can hold.
    #[error("it is longer than 65535 bytes; cut it")]
    TooLong,
}

impl<T> std::fmt::Debug for NotAttached<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NotAttached").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T: AsRef<[u8]> + 'static> Completions<T> {
    /// Takes memory for `capacity` attachments at a time, for good; `name` is the name of the pool behind it.
    ///
    /// # Errors
    /// [`CompletionsError`]: the name is bad or taken, or memory is short.
    pub fn new(eal: Eal, name: &str, capacity: u32, socket: Option<u32>) -> Result<Self, CompletionsError> {
        let mbufs = capacity.saturating_add(CACHED_MBUFS);
        let tails = Pool::dram(eal, name, &PoolConfig { mbufs, cache: CACHE, buffer_bytes: 0, socket })?;
        // Devices may hold on to frames for ever, so what they refer to stays for ever.
        let done: &'static ArrayQueue<u32> = Box::leak(Box::new(ArrayQueue::new(capacity.max(1) as usize)));
        let places: Vec<TxCompletion<T>> =
            (0..capacity).map(|index| TxCompletion::new(index, done)).collect();
        Ok(Self {
            places: places.leak(),
            done,
            free: (0..capacity).rev().collect(),
            tails,
            area: None,
            are_physical: addresses::are_physical(),
            _one_thread: PhantomData,
        })
    }

    /// Says where payload lies. Without it, payload is refused where EAL runs with physical addresses.
    #[must_use]
    pub fn within(mut self, area: ExternalArea) -> Self {
        self.area = Some(area);
        self
    }

    /// Puts `payload` behind the packet as its last segment, without copying it. A real NIC must have been
    /// given the memory where it lies ([`ExternalArea::map_dma`](crate::ExternalArea::map_dma)).
    ///
    /// # Errors
    /// [`NotAttached`] with the payload.
    pub fn attach(&mut self, packet: &mut Mbuf, payload: T) -> Result<(), NotAttached<T>> {
        let refuse = |reason, payload| Err(NotAttached { reason, payload });
        if packet.segment_count() > MAX_ATTACHED {
            return refuse(NotAttachedReason::Segments, payload);
        }
        let Some(place) = self.free.last().map(|index| &self.places[*index as usize]) else {
            return refuse(NotAttachedReason::Full, payload);
        };
        let Some(tail) = self.tails.alloc() else { return refuse(NotAttachedReason::Full, payload) };
        // SAFETY: the place is free: no device and no callback refers to it.
        let owner = unsafe { &mut *place.owner.get() };
        // The owner is asked where it will stay, so that a payload inside it does not move.
        let payload: &T = owner.insert(payload);
        let bytes: &[u8] = payload.as_ref();
        let (address, len) = (bytes.as_ptr(), bytes.len());
        let iova = if self.are_physical {
            self.area.and_then(|area| area.iova(address as usize, len))
        } else {
            Some(address as u64)
        };
        let reason = match (u16::try_from(len), iova) {
            (Ok(0), _) => Some(NotAttachedReason::Empty),
            (Err(_), _) => Some(NotAttachedReason::TooLong),
            (Ok(_), None) => Some(NotAttachedReason::Scattered),
            (Ok(_), Some(_)) => None,
        };
        if let (Some(reason), Some(payload)) = (reason, owner.take_if(|_| reason.is_some())) {
            return refuse(reason, payload);
        }
        self.free.pop();
        let piece = Piece { address, iova: iova.unwrap_or_default(), len: len as u16 };
        // SAFETY: the bytes stay where they are until the callback has run, as their owner stays in its
        // place; the shared information likewise. The tail is ours, empty, and has no buffer of its own.
        unsafe { chain(packet, tail, piece, place) }
        Ok(())
    }

    /// Hands out the owners of payload that no device reads any more, and returns how many there were.
    pub fn drain(&mut self, mut completed: impl FnMut(T)) -> usize {
        let mut count = 0;
        while let Some(index) = self.done.pop() {
            // SAFETY: the callback for this place has run, and it runs once for each attachment.
            let owner = unsafe { (*self.places[index as usize].owner.get()).take() };
            self.free.push(index);
            count += 1;
            completed(owner.expect("a place holds its owner until it is drained"));
        }
        count
    }

    /// How many attachments there is room for.
    #[inline]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// How many attachments have not been drained.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

impl<T: AsRef<[u8]> + 'static> std::fmt::Debug for Completions<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (capacity, outstanding) = (self.places.len(), self.outstanding());
        formatter
            .debug_struct("Completions")
            .field("capacity", &capacity)
            .field("outstanding", &outstanding)
            .finish_non_exhaustive()
    }
}

impl<T: AsRef<[u8]> + 'static> Drop for Completions<T> {
    fn drop(&mut self) {
        self.drain(drop);
    }
}

impl<T> TxCompletion<T> {
    fn new(index: u32, done: &'static ArrayQueue<u32>) -> Self {
        Self { shared: UnsafeCell::default(), owner: UnsafeCell::new(None), index, done }
    }
}

/// Payload as a segment refers to it.
struct Piece {
    address: *const u8,
    iova: u64,
    len: u16,
}

/// Links `tail` behind `packet`, with `piece` as its data.
///
/// # Safety
/// The bytes and the place stay as they are until [`finished`] has run for the place. The tail is empty.
unsafe fn chain<T>(packet: &mut Mbuf, tail: Mbuf, piece: Piece, place: &'static TxCompletion<T>) {
    let Piece { address, iova, len } = piece;
    let tail = tail.into_raw();
    let shared = place.shared.get();
    // SAFETY: nobody else refers to the shared information, the tail, or any segment of the packet. DPDK
    // takes a pointer to mutable data but sending only reads.
    unsafe {
        (*shared).free_cb = Some(finished::<T>);
        (*shared).fcb_opaque = std::ptr::from_ref(place).cast_mut().cast();
        sys::rte_mbuf_ext_refcnt_set(shared, 1);
        sys::rte_pktmbuf_attach_extbuf(tail, address.cast_mut().cast(), iova, len, shared);
        (*tail).data_len = len;
        (*tail).pkt_len = u32::from(len);
        let mut last = packet.as_ptr();
        while !(*last).next.is_null() {
            last = (*last).next;
        }
        (*last).next = tail;
    }
    let header = packet.header_mut();
    header.nb_segs += 1;
    header.pkt_len += u32::from(len);
}

/// DPDK's callback when the last reference to attached payload goes, in whichever thread that happens.
unsafe extern "C" fn finished<T>(_address: *mut c_void, place: *mut c_void) {
    // SAFETY: `chain` passed this place, which lives for good; only its shareable fields are touched.
    let (done, index) = unsafe {
        let place = place.cast::<TxCompletion<T>>();
        ((*place).done, (*place).index)
    };
    let queued = done.push(index);
    debug_assert!(queued.is_ok(), "the queue has room for each place");
}
