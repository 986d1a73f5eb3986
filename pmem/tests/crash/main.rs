//! Crash tests over models of media: whatever was acknowledged is there after a power cut, nothing else appears, damage has a
//! name, and each safeguard in the store's code is shown to be needed by leaving it out.
//!
//! `cargo xtask crash` runs thousands of them. `CRASH_SEED=n` replays one, `CRASH_SEEDS=n` runs that many.

#[path = "../common/mod.rs"]
mod common;
mod exhaustive;
mod format;
mod history;
mod run;
mod safeguards;

#[test]
fn acknowledged_records_survive_and_no_others_appear() {
    run::seeds();
}
