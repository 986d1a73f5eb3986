//! How much memory the program has, and in what pages.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The memory of this process that is in place, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In bytes, huge pages that were reserved for it included.
    pub resident_bytes: u64,
    /// How much of that lies in huge pages.
    pub huge_page_bytes: u64,
}

impl Memory {
    /// What there is now; none if the kernel does not tell (before Linux 4.14, or without procfs).
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/smaps_rollup").ok()?)
    }

    /// Reads what proc(5) calls smaps_rollup.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
        };
        let all = |names: &[&str]| names.iter().filter_map(|name| field(name)).sum::<u64>();
        // Reserved huge pages are not in Rss.
        let reserved = all(&["Shared_Hugetlb", "Private_Hugetlb"]);
        let transparent = all(&["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"]);
        Some(Self { resident_bytes: field("Rss")? + reserved, huge_page_bytes: transparent + reserved })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB in use, ", self.resident_bytes >> 20)?;
        match self.huge_page_bytes >> 20 {
            0 => f.write_str("none of it in huge pages; `pmtool doctor` says how to have some"),
            huge => write!(f, "{huge} MiB of it in huge pages"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "\
7fe8f0dff000-7fff1b5f9000 ---p 00000000 00:00 0                          [rollup]
Rss:              102400 kB
Pss:              102000 kB
AnonHugePages:     16384 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:    10240 kB
Private_Hugetlb:    4096 kB
";

    #[test]
    fn reserved_and_transparent_huge_pages_are_counted() {
        let memory = Memory::parse(ROLLUP).unwrap();
        assert_eq!((memory.resident_bytes >> 20, memory.huge_page_bytes >> 20), (114, 32));
        assert_eq!(memory.to_string(), "114 MiB in use, 32 MiB of it in huge pages");
        let without = Memory::parse("Rss: 20480 kB\nAnonHugePages: 0 kB").unwrap();
        assert!(without.to_string().starts_with("20 MiB in use, none of it in huge pages; `pmtool doctor`"));
        assert_eq!((Memory::parse("Pss: 7 kB"), Memory::parse("Rss: 7 PB")), (None, None));
    }

    #[test]
    fn this_process_uses_some() {
        assert!(Memory::now().expect("procfs").resident_bytes > 1 << 20);
    }
}
