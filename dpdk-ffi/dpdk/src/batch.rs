//! A burst of mbufs.

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::mbuf::Mbuf;

/// A batch of the length that suits most devices.
pub type MbufBatch = Batch<64>;

/// Up to `N` mbufs, oldest first, without allocation.
#[derive(Debug, Default)]
pub struct Batch<const N: usize>(ArrayVec<Mbuf, N>);

impl<const N: usize> Batch<N> {
    /// How many mbufs there is room for.
    pub const CAPACITY: usize = N;

    /// An empty batch.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// How many mbufs there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many more fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.0.remaining_capacity()
    }

    /// Adds an mbuf at the end; a full batch gives it back.
    ///
    /// # Errors
    /// The mbuf, which did not fit.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        self.0.try_push(mbuf).map_err(|full| full.element())
    }

    /// Takes the last mbuf.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.0.pop()
    }

    /// Takes all mbufs, oldest first.
    #[inline]
    pub fn drain(&mut self) -> impl DoubleEndedIterator<Item = Mbuf> + ExactSizeIterator {
        self.0.drain(..)
    }

    /// The mbufs, oldest first.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Mbuf> {
        self.0.iter()
    }

    /// The mbufs, oldest first, to be changed.
    #[inline]
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Mbuf> {
        self.0.iter_mut()
    }

    /// Frees the mbufs for which `keep` is false; the others stay in order.
    pub fn retain(&mut self, keep: impl FnMut(&mut Mbuf) -> bool) {
        self.0.retain(keep);
    }

    /// Frees all mbufs in one call.
    #[inline]
    pub fn clear(&mut self) {
        let len = self.0.len();
        if len == 0 {
            return;
        }
        let all_plain = self.0.split_first().is_some_and(|(first, rest)| {
            first.is_plain() && rest.iter().all(|mbuf| mbuf.is_plain() && mbuf.pool() == first.pool())
        });
        let pool = self.0[0].pool();
        // SAFETY: the first `len` elements are owned mbufs in DPDK's pointer form; none is used after the call. Plain
        // ones are as their pool, which is that of all, expects them back.
        unsafe {
            self.0.set_len(0);
            if all_plain {
                sys::rte_mempool_put_bulk(pool, self.pointers().cast(), len as u32);
            } else {
                sys::rte_pktmbuf_free_bulk(self.pointers(), len as u32);
            }
        }
    }

    /// The mbufs as DPDK's array of pointers.
    #[inline]
    pub(crate) fn pointers(&mut self) -> *mut *mut sys::rte_mbuf {
        self.0.as_mut_ptr().cast()
    }

    /// The place behind the last mbuf.
    #[inline]
    pub(crate) fn spare_pointers(&mut self) -> *mut *mut sys::rte_mbuf {
        let len = self.0.len();
        // SAFETY: `len` is at most the capacity, so the result is inside or one behind the array.
        unsafe { self.pointers().add(len) }
    }

    /// Takes over mbufs that DPDK wrote to [`spare_pointers`](Self::spare_pointers).
    ///
    /// # Safety
    /// `len` is at most the capacity, and as many owned mbufs are there.
    #[inline]
    pub(crate) unsafe fn set_len(&mut self, len: usize) {
        // SAFETY: the elements up to the new length are initialised, says the caller.
        unsafe { self.0.set_len(len) }
    }

    /// Forgets the first mbufs, which are DPDK's now.
    ///
    /// # Safety
    /// `count` is at most [`len`](Self::len), and DPDK took ownership of as many.
    #[inline]
    pub(crate) unsafe fn forget_front(&mut self, count: usize) {
        let left = self.0.len() - count;
        if left == 0 {
            // SAFETY: the handles own nothing any more.
            return unsafe { self.0.set_len(0) };
        }
        let start = self.pointers();
        // SAFETY: source and target lie inside the array; the forgotten handles own nothing any more.
        unsafe {
            std::ptr::copy(start.add(count), start, left);
            self.0.set_len(left);
        }
    }

    /// Frees the oldest mbuf.
    pub(crate) fn drop_front(&mut self) {
        drop(self.0.pop_at(0));
    }
}

impl<const N: usize> std::ops::Index<usize> for Batch<N> {
    type Output = Mbuf;

    #[inline]
    fn index(&self, at: usize) -> &Mbuf {
        &self.0[at]
    }
}

impl<const N: usize> std::ops::IndexMut<usize> for Batch<N> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut Mbuf {
        &mut self.0[at]
    }
}

impl<'a, const N: usize> IntoIterator for &'a Batch<N> {
    type Item = &'a Mbuf;
    type IntoIter = std::slice::Iter<'a, Mbuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, const N: usize> IntoIterator for &'a mut Batch<N> {
    type Item = &'a mut Mbuf;
    type IntoIter = std::slice::IterMut<'a, Mbuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
