//! Huge pages for what lies in DRAM: they are fewer to look up, and the tables of a core are all over its memory.
//!
//! Asking costs nothing, and the kernel may refuse: how much of a process's memory lies in huge pages is in
//! `/proc/self/smaps_rollup`.

/// The size of a transparent huge page on x86_64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks for huge pages for a table that is still to be filled.
pub(crate) fn prefer_huge_pages<T>(table: &[T]) {
    let bounds = table.as_ptr_range();
    let from = bounds.start.addr().next_multiple_of(HUGE_PAGE_BYTES);
    let to = bounds.end.addr() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if from >= to {
        return;
    }
    let start = bounds.start.cast::<libc::c_void>().cast_mut().with_addr(from);
    // SAFETY: the range lies inside the table; in which pages it lies changes none of its bytes.
    if unsafe { libc::madvise(start, to - from, libc::MADV_HUGEPAGE) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, bytes = to - from, "a table stays in small pages");
    }
}

/// Whether the kernel has huge pages to ask for, and whether it was asked for some at an address.
#[cfg(test)]
pub(crate) fn asked_for(address: usize) -> (bool, bool) {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
    let holds = |line: &str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some((number(from)?..number(to)?).contains(&address))
    };
    let mut mapping = maps.lines().skip_while(|line| !holds(line).unwrap_or(false));
    // proc(5): the last line of a mapping.
    let flags = mapping.find_map(|line| line.strip_prefix("VmFlags:")).expect("the address is mapped");
    let is_built_in = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    (is_built_in, flags.split(' ').any(|flag| flag == "hg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it gets them is the machine's affair: its memory may be in pieces.
    #[test]
    fn a_large_table_asks_for_huge_pages_and_keeps_what_is_in_it() {
        let table: Vec<u64> = (0..1 << 20).collect();
        let middle = table[1 << 19..].as_ptr().addr();
        let (is_built_in, before) = asked_for(middle);
        assert!(!before);
        prefer_huge_pages(&table);
        assert_eq!(asked_for(middle).1, is_built_in);
        assert!(table.iter().copied().eq(0..1 << 20));
    }

    #[test]
    fn a_table_that_fills_no_huge_page_is_left_alone() {
        prefer_huge_pages::<u64>(&[]);
        let table = vec![7_u8; HUGE_PAGE_BYTES - 1];
        prefer_huge_pages(&table);
        assert!(!asked_for(table[HUGE_PAGE_BYTES / 2..].as_ptr().addr()).1);
    }
}
