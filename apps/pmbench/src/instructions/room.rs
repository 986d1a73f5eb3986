//! Whose code an instruction is.

use super::callgrind::Spot;

/// Folders and crates of sources, and the room that they belong to; the first that a path has in it counts.
const SOURCES: [(&str, &str); 30] = [
    ("stack/tcp/src/frame", "frame parse"),
    ("stack/tcp/src/fast", "frame parse"),
    ("stack/tcp/src/flow", "flow lookup"),
    ("siphasher-", "flow lookup"),
    ("stack/tcp/src/checksum", "TCP checksum"),
    ("pmem/src/sum", "TCP checksum"),
    ("stack/tcp/src/emit", "frame emit"),
    ("stack/tcp/src/tcp/options", "TCP options"),
    ("stack/tcp/src/tcp/", "TCP state"),
    ("stack/tcp/src/window", "TCP state"),
    ("stack/tcp/src/timer", "timers"),
    ("stack/tcp/src/", "endpoint"),
    ("smoltcp-", "smoltcp"),
    ("stack/dpdk/src/", "transport"),
    ("stack/kernel/src/", "transport"),
    ("stack/net/src/", "loop"),
    ("stack/src/", "loop"),
    ("pmem/src/sum", "TCP checksum"),
    ("pmem/src/format/crc", "CRC-32C"),
    ("crc-fast-", "CRC-32C"),
    ("crc32c-", "CRC-32C"),
    ("pmem/src/", "pmem"),
    ("dpdk-ffi/", "mbufs"),
    ("httparse-", "HTTP"),
    ("apps/pmlog/src/http", "HTTP"),
    ("apps/pmlog/src/service", "service"),
    ("apps/pmlog/src/", "loop"),
    ("apps/pmbench/src/serve/copy", "service"),
    ("apps/pmbench/src/", "loop"),
    ("apps/program/src/", "loop"),
];

/// Functions by the start of their names, for lines of the standard library that are inlined in them, and for programs
/// that were built without lines of source.
const FUNCTIONS: [(&str, &str); 24] = [
    ("stack_tcp::frame", "frame parse"),
    ("stack_tcp::fast", "frame parse"),
    ("stack_tcp::flow", "flow lookup"),
    ("siphasher", "flow lookup"),
    ("core::hash", "flow lookup"),
    ("stack_tcp::checksum", "TCP checksum"),
    ("pmem::sum", "TCP checksum"),
    ("stack_tcp::emit", "frame emit"),
    ("stack_tcp::tcp", "TCP state"),
    ("stack_tcp::window", "TCP state"),
    ("stack_tcp::timer", "timers"),
    ("stack_tcp", "endpoint"),
    ("smoltcp", "smoltcp"),
    ("stack_dpdk", "transport"),
    ("stack_net", "loop"),
    ("crc_fast", "CRC-32C"),
    ("pmem::sum", "TCP checksum"),
    ("pmem::format::crc", "CRC-32C"),
    ("pmem", "pmem"),
    ("dpdk", "mbufs"),
    ("httparse", "HTTP"),
    ("pmlog::http", "HTTP"),
    ("pmlog", "service"),
    ("pmbench", "loop"),
];

/// The room of a spot.
pub fn room_of(spot: Spot<'_>) -> &'static str {
    if spot.object.contains("/librte_") {
        return "driver";
    }
    if ["memcpy", "memmove", "memset", "memcmp", "bcmp"].iter().any(|copy| spot.function.contains(copy)) {
        return "memcpy";
    }
    if let Some((_, room)) = SOURCES.iter().find(|(source, _)| spot.file.contains(source)) {
        return room;
    }
    // DPDK's own functions that are inlined by way of the bindings' C file.
    if spot.file.contains("rte_") {
        return "mbufs";
    }
    // A method of a trait is named `<type as trait>::method`.
    let function = spot.function.trim_start_matches('<');
    FUNCTIONS.iter().find(|(start, _)| function.starts_with(start)).map_or("other", |(_, room)| room)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_belongs_to_its_source_and_the_standard_librarys_to_its_function() {
        let spot = |object, function, file| Spot { object, function, file };
        for (spot, room) in [
            (spot("/usr/lib/librte_net_memif.so.23", "eth_memif_rx", "memif.c"), "driver"),
            (spot("libc.so.6", "__memcpy_avx_unaligned_erms", "memmove.S"), "memcpy"),
            (spot("pmbench", "stack_tcp::endpoint::x", "/x/stack/tcp/src/tcp/rx.rs"), "TCP state"),
            (spot("pmbench", "stack_tcp::endpoint::x", "/rustc/library/core/src/option.rs"), "endpoint"),
            (
                spot("pmbench", "<pmem::log::shard::Shard>::commit", "/rustc/library/core/src/option.rs"),
                "pmem",
            ),
            (spot("pmbench", "pmem::log::shard::Shard::commit", "/x/crc-fast-1.10.0/src/lib.rs"), "CRC-32C"),
            (spot("pmbench", "pmem::sum::avx2", "/rustc/library/core_arch/src/x86/avx2.rs"), "TCP checksum"),
            (spot("pmbench", "stack_tcp::emit::x", "/x/pmem/src/sum.rs"), "TCP checksum"),
            (spot("ld.so", "strlen", ""), "other"),
        ] {
            assert_eq!(room_of(spot), room, "{spot:?}");
        }
    }

    #[test]
    fn every_source_of_this_tree_that_is_named_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let is_own = |source: &&str| {
            ["apps/", "dpdk-ffi/", "pmem/", "stack/"].iter().any(|folder| source.starts_with(folder))
        };
        for source in SOURCES.iter().map(|(source, _)| *source).filter(is_own) {
            let is_there = root.join(source).is_dir() || root.join(format!("{source}.rs")).is_file();
            assert!(is_there, "{source}");
        }
    }
}
