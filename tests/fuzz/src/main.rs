//! libFuzzer around one target, whose name is in `FUZZ_TARGET`. `cargo xtask fuzz` builds and runs it.

#![no_main]
#![allow(unsafe_code, reason = "libFuzzer calls a function by its name")]

use std::process::exit;
use std::sync::OnceLock;

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let Some(target) = fuzz::TARGETS.iter().find(|target| target.name == name) else {
            eprintln!("fuzz: FUZZ_TARGET is {name:?}, and no target has that name");
            exit(2);
        };
        let _ = RUN.set(target.run);
    },
    |bytes: &[u8]| if let Some(run) = RUN.get() { run(bytes) }
);
