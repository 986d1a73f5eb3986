//! A port's queues: each belongs to one thread at a time, and works in whole bursts.

use std::sync::Arc;

use dpdk_sys as sys;

use crate::batch::Batch;
use crate::pool::Pool;
use crate::running::Running;

/// A queue of received packets.
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<Running>,
    /// The port's number.
    id: u16,
    index: u16,
    pool: Pool,
}

/// A queue of packets to be sent.
#[derive(Debug)]
pub struct TxQueue {
    _port: Arc<Running>,
    /// The port's number.
    id: u16,
    index: u16,
    /// The driver has checksums to prepare.
    prepare: bool,
    /// The driver takes one segment only.
    linearize: bool,
    rejected: u64,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<Running>, index: u16, pool: Pool) -> Self {
        Self { id: port.id().0, port, index, pool }
    }

    pub(crate) fn port(&self) -> &Arc<Running> {
        &self.port
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Adds as many received packets to the batch as there are and as fit; returns how many.
    #[inline]
    pub fn burst<const N: usize>(&mut self, batch: &mut Batch<N>) -> usize {
        self.burst_up_to(batch, N)
    }

    /// As [`burst`](Self::burst), at most `limit`.
    #[inline(always)]
    pub fn burst_up_to<const N: usize>(&mut self, batch: &mut Batch<N>, limit: usize) -> usize {
        self.burst_within(batch, limit, 1)
    }

    /// As [`burst_up_to`](Self::burst_up_to), but looks `looks` times at most, until there is something.
    #[inline(always)]
    pub fn burst_within<const N: usize>(
        &mut self,
        batch: &mut Batch<N>,
        limit: usize,
        looks: usize,
    ) -> usize {
        const { assert!(N <= u16::MAX as usize, "DPDK counts the packets of a burst in 16 bits") };
        let before = batch.len();
        let room = (N - before).min(limit) as u16;
        // SAFETY: the port runs for as long as this queue lives, this is the queue's only handle, and there is
        // room for as many pointers.
        let count = usize::from(unsafe {
            fast_path::receive(self.id, self.index, batch.spare_pointers(), room, looks)
        });
        if count == 0 {
            return 0;
        }
        // SAFETY: DPDK wrote `count` packets behind those that there were, which are ours now.
        unsafe { batch.set_len(before + count) }
        if self.pool.loses_flags() {
            self.mark_external(batch, count);
        }
        count
    }

    /// Some drivers lose the flag for external memory on receive. Without it, DPDK would take the memory
    /// before the buffer for the mbuf's own, and write a reference count there.
    fn mark_external<const N: usize>(&self, batch: &mut Batch<N>, count: usize) {
        for packet in batch.iter_mut().rev().take(count) {
            let chained = packet.segment_count() > 1;
            let mut segment = packet.as_ptr();
            // SAFETY: the packet and its segments are ours alone.
            while let Some(header) = unsafe { segment.as_mut() } {
                // A software device may hand over packets of other pools.
                if header.pool == self.pool.as_ptr() {
                    header.ol_flags |= sys::RTE_MBUF_F_EXTERNAL;
                }
                // The link lies in the mbuf's second cache line, which a single segment does not need.
                segment = if chained { header.next } else { std::ptr::null_mut() };
            }
        }
    }
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Running>, index: u16, prepare: bool, linearize: bool) -> Self {
        Self { id: port.id().0, _port: port, index, prepare, linearize, rejected: 0 }
    }

    /// Hands packets to the device, oldest first, and returns how many it took; the rest stays in the batch.
    ///
    /// Where the device takes one segment only, attached payload is copied behind its header first. A packet
    /// that the device can never send is freed and counted as [`rejected`](Self::rejected).
    #[inline(always)]
    pub fn burst<const N: usize>(&mut self, batch: &mut Batch<N>) -> usize {
        if self.linearize {
            self.make_linear(batch);
        }
        let (id, queue, waiting) = (self.id, self.index, batch.len() as u16);
        let ready = if self.prepare {
            // SAFETY: the port runs for as long as this queue lives, this is the queue's only handle, and the
            // batch holds as many packets.
            unsafe { sys::rte_eth_tx_prepare(id, queue, batch.pointers(), waiting) }
        } else {
            waiting
        };
        // SAFETY: as above.
        let sent = unsafe { fast_path::send(id, queue, batch.pointers(), ready) };
        // SAFETY: the device owns the first `sent` packets now.
        unsafe { batch.forget_front(usize::from(sent)) }
        if sent == ready && ready < waiting {
            batch.drop_front();
            self.rejected += 1;
        }
        usize::from(sent)
    }

    /// Copies the packets' later segments behind their first ones.
    fn make_linear<const N: usize>(&mut self, batch: &mut Batch<N>) {
        let before = batch.len();
        batch.retain(|packet| {
            // SAFETY: the packet is valid and ours alone.
            packet.segment_count() == 1 || unsafe { sys::rte_pktmbuf_linearize(packet.as_ptr()) } == 0
        });
        self.rejected += (before - batch.len()) as u64;
    }

    /// How many packets were freed because the device can never send them.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Has the driver free packets that were sent already, so that their payload comes back; returns how many.
    /// None if the driver cannot: it then frees them in later bursts.
    pub fn reclaim(&mut self) -> Option<usize> {
        // SAFETY: the port runs for as long as this queue lives, and this is the queue's only handle.
        let freed = unsafe { sys::rte_eth_tx_done_cleanup(self.id, self.index, 0) };
        usize::try_from(freed).ok()
    }
}

/// `rte_eth_rx_burst` and `rte_eth_tx_burst`, which are inline functions in C: a burst of 32 packets between two
/// rings takes less than 30 ns, of which a call through a wrapper would be a good part.
mod fast_path {
    use std::sync::atomic::{AtomicPtr, Ordering};

    use dpdk_sys as sys;

    /// # Safety
    /// The port runs, has this receive queue, which nobody else uses, and `packets` has room for `count`.
    #[inline]
    pub(super) unsafe fn receive(
        port: u16,
        queue: u16,
        packets: *mut *mut sys::rte_mbuf,
        count: u16,
        looks: usize,
    ) -> u16 {
        // SAFETY: DPDK fills the port's entry in before the port runs, with arrays of an element for each queue.
        unsafe {
            let operations = (&raw const sys::rte_eth_fp_ops[usize::from(port)]).as_ref_unchecked();
            let data = *operations.rxq.data.add(usize::from(queue));
            let Some(burst) = operations.rx_pkt_burst else { return 0 };
            let mut received = 0;
            for _ in 0..looks {
                received = burst(data, packets, count);
                if received > 0 {
                    break;
                }
            }
            let callbacks = callbacks(operations.rxq.clbk, queue);
            if callbacks.is_null() {
                received
            } else {
                sys::rte_eth_call_rx_callbacks(port, queue, packets, received, count, callbacks.cast())
            }
        }
    }

    /// # Safety
    /// The port runs, has this transmit queue, which nobody else uses, and `packets` holds `count` owned ones. The
    /// first of them, as many as are returned, are the device's afterwards.
    #[inline]
    pub(super) unsafe fn send(port: u16, queue: u16, packets: *mut *mut sys::rte_mbuf, count: u16) -> u16 {
        // SAFETY: as for `receive`.
        unsafe {
            let operations = (&raw const sys::rte_eth_fp_ops[usize::from(port)]).as_ref_unchecked();
            let data = *operations.txq.data.add(usize::from(queue));
            let callbacks = callbacks(operations.txq.clbk, queue);
            let count = if callbacks.is_null() {
                count
            } else {
                sys::rte_eth_call_tx_callbacks(port, queue, packets, count, callbacks.cast())
            };
            match operations.tx_pkt_burst {
                Some(burst) => burst(data, packets, count),
                None => 0,
            }
        }
    }

    /// What DPDK's other libraries, such as its packet capture, have hooked into a queue.
    ///
    /// # Safety
    /// The array has an element for the queue.
    #[inline]
    unsafe fn callbacks(array: *mut *mut std::ffi::c_void, queue: u16) -> *mut std::ffi::c_void {
        // SAFETY: says the caller. DPDK writes the element atomically.
        unsafe { AtomicPtr::from_ptr(array.add(usize::from(queue))) }.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Eal, ExternalArea, ExternalPool, ExternalPoolConfig, MbufBatch, PoolConfig, Port, PortConfig,
    };

    /// Page-aligned memory for `count` buffers of 2176 bytes, never freed.
    fn buffers(eal: Eal, count: usize) -> (ExternalArea, Vec<&'static mut [u8]>) {
        let len = (count * 2176).next_multiple_of(4096);
        let memory = vec![0_u8; len + 4096].leak();
        let start = memory.as_ptr().align_offset(4096);
        let memory = &mut memory[start..start + len];
        #[expect(clippy::disallowed_methods, reason = "memory of the test's own")]
        let area = ExternalArea::register(eal, memory.as_ptr(), len).unwrap();
        (area, memory.chunks_exact_mut(2176).take(count).collect())
    }

    // The library's one test that needs the EAL, which starts once per process.
    #[test]
    fn the_flag_for_external_memory_comes_back_on_receive() {
        let eal = Eal::init(["--no-huge", "--no-shconf", "-m", "64"]).unwrap();
        let (area, buffers) = buffers(eal, 63);
        let config = ExternalPoolConfig { cache: 0, socket: None };
        let external = ExternalPool::new(eal, "external", area, buffers, &config).unwrap();
        let dram =
            Pool::dram(eal, "dram", &PoolConfig { mbufs: 63, cache: 0, ..PoolConfig::default() }).unwrap();
        let id = eal.attach("net_ring0").unwrap();
        let mut port = Port::start(id, &PortConfig::default(), std::slice::from_ref(&external)).unwrap();
        let (mut rx, mut tx) = (port.rx_queue(0).unwrap(), port.tx_queue(0).unwrap());
        // Rings keep the flag; as if the pool were another device's too, whose driver does not.
        external.used_by("net_e1000_em");
        let mut batch = MbufBatch::new();
        for pool in [&*external, &dram, &*external] {
            let mut packet = pool.alloc().unwrap();
            packet.append(60).unwrap();
            packet.header_mut().ol_flags &= !sys::RTE_MBUF_F_EXTERNAL;
            batch.push(packet).unwrap();
        }
        assert_eq!((tx.burst(&mut batch), rx.burst(&mut batch)), (3, 3));
        let flagged: Vec<bool> =
            batch.iter().map(|packet| packet.header().ol_flags & sys::RTE_MBUF_F_EXTERNAL != 0).collect();
        assert_eq!(flagged, [true, false, true]);
        batch.clear();
        assert_eq!((external.available(), dram.available()), (63, 63));
    }
}
