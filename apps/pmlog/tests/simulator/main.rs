//! The whole server in one simulation: its cores with their shards, clients that reconnect and try again, a network that
//! loses, breaks and mends, a medium that forgets, fails and rots, a store that is full, trims, kills and power cuts. All of it
//! in virtual time, and from one seed.
//!
//! What was acknowledged is there and equal, until somebody trims it. Nothing is there that nobody sent. What is damaged is said
//! to be so, and nothing else is. All that clients want is done in the end, and no buffer stays behind.
//!
//! `cargo xtask sim --store` runs many; `SIM_SEED=n` replays one, `SIM_SEEDS=n` runs that many.

mod client;
mod ledger;
mod world;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `cargo test` runs.
const SEEDS: u64 = 10;

#[test]
fn acknowledged_records_are_there_whatever_happens_to_network_medium_and_server() {
    let number = |name: &str| -> Option<u64> {
        env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let reports = env::var_os("SIM_REPORT").is_some();
    let mut total = world::Seen::default();
    let mut failed = Vec::new();
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| world::run(seed))) {
            Ok(seen) => total.add(seen),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                let why = text.unwrap_or_default().replace('\n', " ");
                println!("SIM failed {seed} {why}");
                failed.push((seed, why));
            }
        }
        if reports {
            println!("SIM done {seed}");
        }
    }
    println!("SIM stored {total}");
    assert!(
        failed.is_empty(),
        "{} failed; the first is SIM_SEED={}: {}",
        failed.len(),
        failed[0].0,
        failed[0].1
    );
    assert!(seeds.end - seeds.start < SEEDS || total.has_seen_all(), "{total}");
}
