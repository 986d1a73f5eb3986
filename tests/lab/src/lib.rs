//! A laboratory on one machine: network namespaces, virtual wires, and real clients against a real `pmlog`.
//!
//! Nothing here needs root, a network card, persistent memory or hugepages. A test runs alone in its own
//! user, network, mount and process namespaces ([`isolated`]), so that tests run side by side, and what a
//! test starts dies with it. The Linux kernel holds one end of a [`wire`], the DPDK port of a
//! [`Pmlog`] the other.

mod command;
mod frames;
mod http;
mod link;
mod namespace;
mod pmlog;
mod precedence;
mod scratch;
mod trunk;
pub mod wire;

pub use command::{Curl, output_within, run, run_for};
pub use frames::Frames;
pub use http::{Connection, Reply};
pub use link::{Link, Path, PathCounters};
pub use namespace::{Lab, inside, inside_as_root, isolated};
pub use pmlog::{Pmlog, PmlogOptions, built, cpu_time, pmlog_binary};
pub use precedence::precede;
pub use scratch::{scratch_directory, target_directory};
pub use trunk::Trunk;

/// `len` bytes that no compressor and no off-by-one survives: the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    use rand::{Rng, SeedableRng};
    let mut bytes = vec![0; len];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
