//! What takes bytes from strangers, each as a function of such bytes: whatever they are, nothing panics, nothing is lost,
//! and what is sent is well-formed.
//!
//! `cargo xtask fuzz` looks for bytes that break this, led by which code they reach; the test `replay` runs what is in
//! `corpus/`, a folder for each target.

mod datagrams;
mod frames;
mod keys;
mod medium;
mod requests;

/// Something that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name, which is that of its folder in the corpus.
    pub name: &'static str,
    /// Runs it on some bytes.
    ///
    /// # Panics
    /// The bytes have broken something.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: frames::run },
    Target { name: "options", run: frames::run_options },
    Target { name: "datagrams", run: datagrams::run },
    Target { name: "http", run: requests::run },
    Target { name: "kv", run: keys::run },
    Target { name: "medium", run: medium::run },
];
