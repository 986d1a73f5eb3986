//! Pools in plain memory whose mbufs lie close together.
//!
//! DPDK keeps each object of a pool inside one page, so that devices see it in one piece. Hugepages hold many; a page of
//! 4 KiB holds one mbuf with a buffer of the usual size, so that all headers fall on the same few sets of the cache, and
//! stores to one packet look to the CPU like loads from the next. With virtual addresses, pages that follow one
//! another do so for devices as well, and there is no need for such care.

use std::ffi::CStr;

use dpdk_sys as sys;

/// Whether this is the way: there are no hugepages, and devices use virtual addresses.
pub(super) fn is_better() -> bool {
    // SAFETY: only reads what EAL was started with.
    unsafe { sys::rte_eal_has_hugepages() == 0 && !crate::addresses::are_physical() }
}

/// Makes a pool as `rte_pktmbuf_pool_create` does, and populates it with one stretch of memory. NULL, with DPDK's errno
/// set, if it fails.
pub(super) fn create(
    name: &CStr,
    mbufs: u32,
    cache: u32,
    buffer_bytes: u16,
    socket: i32,
) -> *mut sys::rte_mempool {
    let sizes = sys::rte_pktmbuf_pool_private { mbuf_data_room_size: buffer_bytes, ..Default::default() };
    let element_bytes = size_of::<sys::rte_mbuf>() as u32 + u32::from(buffer_bytes);
    let private_bytes = size_of_val(&sizes) as u32;
    // SAFETY: the EAL runs, and the name is NUL-terminated.
    let pool = unsafe {
        sys::rte_mempool_create_empty(
            name.as_ptr(),
            mbufs,
            element_bytes,
            cache,
            private_bytes,
            socket,
            sys::RTE_MEMPOOL_F_NO_IOVA_CONTIG,
        )
    };
    if pool.is_null() {
        return pool;
    }
    // SAFETY: the pool is new and nobody else's; its private part has room for the sizes, and each of its objects for
    // an mbuf with its buffer, as that is what it was made with.
    let populated = unsafe {
        sys::rte_mempool_set_ops_byname(pool, sys::rte_mbuf_best_mempool_ops(), std::ptr::null_mut()) == 0
            && {
                sys::rte_pktmbuf_pool_init(pool, (&raw const sizes).cast_mut().cast());
                populate(pool, name, mbufs, socket)
            }
    };
    if populated {
        // SAFETY: the function is DPDK's own for this, and the objects are mbufs.
        unsafe { sys::rte_mempool_obj_iter(pool, Some(sys::rte_pktmbuf_init), std::ptr::null_mut()) };
        return pool;
    }
    // SAFETY: nobody has seen the pool. Its stretch of memory, if there is one, stays reserved: the name is lost.
    unsafe { sys::rte_mempool_free(pool) };
    std::ptr::null_mut()
}

/// Gives the pool memory for all its objects.
///
/// # Safety
/// The pool is valid, empty and nobody else's.
unsafe fn populate(pool: *mut sys::rte_mempool, name: &CStr, mbufs: u32, socket: i32) -> bool {
    let (mut min_chunk_bytes, mut align) = (0, 0);
    // SAFETY: the pool is valid, and both numbers are writable. 0 says that pages do not matter.
    let len = unsafe {
        sys::rte_mempool_op_calc_mem_size_default(pool, mbufs, 0, &mut min_chunk_bytes, &mut align)
    };
    let Ok(len) = usize::try_from(len) else { return false };
    // SAFETY: the name is NUL-terminated; a pool's is shorter than a memory zone's may be.
    let zone =
        unsafe { sys::rte_memzone_reserve_aligned(name.as_ptr(), len, socket, 0, align as u32).as_ref() };
    let Some(zone) = zone else { return false };
    // SAFETY: the zone is as long, and never freed, and devices see it where the CPU does.
    let objects = unsafe {
        let start = zone.__bindgen_anon_1.addr;
        sys::rte_mempool_populate_iova(pool, start.cast(), start as u64, len, None, std::ptr::null_mut())
    };
    objects == i32::try_from(mbufs).unwrap_or(i32::MAX)
}
