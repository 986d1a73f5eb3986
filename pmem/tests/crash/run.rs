//! Seeds, run by as many threads as there are CPUs.

use std::{
    cell::Cell,
    env, panic,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    format,
    history::{self, Seen},
};

/// What `cargo test` runs.
const SEEDS: u64 = 150;

/// Runs the history of a seed. A store that trips over one of its own assertions fails it, too.
pub fn one(seed: u64) -> Result<Seen, String> {
    let run = || match seed % 8 {
        0 => format::format(seed).map(|()| Seen::default()),
        4 => format::take_over(seed).map(|()| Seen::default()),
        // Many beginnings.
        1 | 5 => history::run(seed, 2),
        _ => history::run(seed, 12),
    };
    silence();
    IS_CAUGHT.set(true);
    let outcome = panic::catch_unwind(run);
    IS_CAUGHT.set(false);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("without a word")))
    })
}

/// Runs what the environment asks for.
pub fn seeds() {
    let number = |name: &str| -> Option<u64> {
        env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seeds = match number("CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CRASH_SEEDS").unwrap_or(SEEDS),
    };
    let reports = env::var_os("CRASH_REPORT").is_some();
    let (total, failed) = (Mutex::new(Seen::default()), Mutex::new(Vec::new()));
    each(seeds.clone(), |seed| {
        match one(seed) {
            Ok(seen) => total.lock().unwrap().add(seen),
            Err(error) => {
                println!("{}", if reports { format!("CRASH failed {seed} {error}") } else { error.clone() });
                failed.lock().unwrap().push((seed, error));
            }
        }
        if reports {
            println!("CRASH done {seed}");
        }
    });
    let Seen { power_cuts, kills, failures, damages, records } = total.into_inner().unwrap();
    let count = seeds.end - seeds.start;
    println!(
        "{count} histories, {power_cuts} power cuts, {kills} kills, {failures} failures of the medium, {damages} damaged \
         records, {records} records"
    );
    if reports {
        println!("CRASH seen {power_cuts} {kills} {failures} {damages} {records}");
    }
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    if let Some((seed, error)) = failed.first() {
        panic!("{} of {count} failed; CRASH_SEED={seed}: {error}", failed.len());
    }
    assert!(count < 100 || [power_cuts, kills, failures, damages, records].iter().all(|&seen| seen > 0));
}

/// Does something with each of some numbers, in order, but several at a time.
pub fn each(numbers: std::ops::Range<u64>, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(numbers.start);
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Has nothing printed of panics that are caught.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_CAUGHT.get() {
                usual(info);
            }
        }));
    });
}
