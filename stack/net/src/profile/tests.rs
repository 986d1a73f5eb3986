use pmem::Spent;

use super::{Laps as _, Profile, Profiler, Stage};
use crate::step::Step;

fn busy(received: usize) -> Step {
    Step { received, ..Step::default() }
}

/// Waits until the clock has gone on.
fn work(profiler: &Profiler) {
    let begun = std::time::Instant::now();
    while begun.elapsed().as_nanos() < 20_000 {
        std::hint::spin_loop();
    }
    assert!(profiler.watch.clock.raw() > profiler.watch.last);
}

#[test]
fn time_goes_to_the_stage_that_it_was_spent_in_and_persisting_comes_out_of_the_application() {
    let mut profiler = Profiler::start();
    profiler.begin(Spent { flush_ns: 100, fence_ns: 50, readings: 4 }, 7);
    work(&profiler);
    profiler.watch().lap(Stage::App);
    profiler.watch().lap(Stage::Tx);
    profiler.end(&busy(3), Spent { flush_ns: 1100, fence_ns: 350, readings: 8 }, 9);
    let summary = profiler.profile().summary();
    let total = |stage: Stage| summary.stages[stage as usize].times.total_ns;
    assert!(total(Stage::App) >= 20_000 - 1300, "{summary}");
    assert_eq!((total(Stage::Flush), total(Stage::Fence)), (1000, 300), "{summary}");
    assert_eq!((total(Stage::Rx), total(Stage::Parse), total(Stage::Tcp)), (0, 0, 0), "{summary}");
    let all: u64 = Stage::ALL.map(total).iter().sum();
    assert_eq!((summary.bursts.count, summary.bursts.total_ns), (1, all), "{summary}");
    let watched = profiler.watch.ns(profiler.watch.ticks.iter().sum());
    assert!(all.abs_diff(watched) <= Stage::ALL.len() as u64, "{watched} ns became {all}");
    assert_eq!((summary.requests.count, summary.requests.total_ns), (2, all), "{summary}");
    assert_eq!((summary.frames, summary.empty_polls.count), (3, 0), "{summary}");
    assert_eq!(profiler.profile().readings, 3 + 4);
}

#[test]
fn empty_polls_are_counted_apart() {
    let mut profiler = Profiler::start();
    for _ in 0..3 {
        profiler.begin(Spent::default(), 0);
        profiler.watch().lap(Stage::Rx);
        profiler.watch().lap(Stage::Tx);
        profiler.end(&Step::default(), Spent::default(), 0);
    }
    let summary = profiler.profile().summary();
    assert_eq!((summary.empty_polls.count, summary.bursts.count, summary.requests.count), (3, 0, 0));
    assert!(summary.stages.iter().all(|stage| stage.times.count == 0 && stage.per_request_ns.is_none()));
}

#[test]
fn the_profiles_of_several_cores_become_one() {
    let mut one = Profile { reading_ps: 1000, readings: 10, ..Profile::default() };
    let mut other = Profile { reading_ps: 3000, readings: 10, ..Profile::default() };
    one.record(&[10, 0, 0, 30, 0, 0, 0, 0], 1, 1);
    other.record(&[20, 5, 0, 0, 0, 0, 0, 7], 2, 4);
    other.record(&[40, 0, 0, 0, 0, 0, 0, 0], 2, 0);
    one.merge(&other);
    let summary = one.summary();
    let rx = &summary.stages[Stage::Rx as usize];
    assert_eq!((rx.times.count, rx.times.total_ns, rx.times.max_ns), (3, 70, 40));
    assert_eq!(rx.per_request_ns, Some(14.0));
    assert_eq!((summary.bursts.count, summary.bursts.total_ns), (3, 112));
    assert_eq!((summary.requests.count, summary.requests.total_ns, summary.requests.p50_ns), (5, 72, 8));
    assert_eq!((summary.frames, summary.readings_ns), (5, 40));
    let table = summary.to_string();
    assert!(table.contains("5 requests") && table.lines().count() == 13, "{table}");
}
