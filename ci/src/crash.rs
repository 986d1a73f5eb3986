//! `cargo xtask crash`: a store's histories over models of media that lose what a power cut may lose, thousands of them.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::steps::{Step, cargo, lines};

pub const EXAMPLES: &str = "\
Examples:
  cargo xtask crash                        10,000 histories, and all of up to 4 operations
  cargo xtask crash --seeds 100000         some minutes on two CPUs
  cargo xtask crash --seed 41              one of them again
  cargo xtask crash --depth 6              all histories of up to 6 operations, in all states that a power cut may leave
  cargo xtask crash --mutations            leaves out each flush, fence and check once: each must be missed
A seed draws the medium (lines, pages, a disk's sectors), how many shards there are, what is done with them, and how each life \
ends: by a power cut, a kill or a failed write. What was acknowledged must be there, nothing else may appear, and what is \
damaged must be named. Exit codes: 0 all passed, 1 some failed, 2 wrong usage.";

/// The tests that run them, which lie in pmem/tests/crash/.
const HISTORIES: &str = "acknowledged_records_survive_and_no_others_appear";
const EXHAUSTIVE: &str = "exhaustive::all_short_histories_leave_what_was_acknowledged_in_all_states";
const SAFEGUARDS: &str = "safeguards::each_safeguard_is_needed";

#[derive(Args)]
pub struct Options {
    /// How many histories, with the seeds from 0 on.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Only the history of this seed.
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "depth", "json"])]
    seed: Option<u64>,
    /// Operations of the longest histories of which all are played.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=8))]
    depth: u32,
    /// Leave out each safeguard in the store's code once, and say which history misses it.
    #[arg(long, conflicts_with_all = ["seeds", "seed", "depth"])]
    mutations: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct Summary {
    seeds: u64,
    power_cuts: u64,
    kills: u64,
    /// Writes that the medium refused.
    failures: u64,
    damaged_records: u64,
    records: u64,
    depth: u32,
    /// Histories of up to so many operations, and states of their last one.
    short_histories: u64,
    states: u64,
    failed: Vec<Failure>,
}

/// A history that was not as it must be.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Failure {
    /// None of a short one, which says itself what it is.
    seed: Option<u64>,
    why: String,
}

/// What came of leaving out a safeguard.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Mutation {
    safeguard: String,
    /// The first history that misses it.
    seed: Option<u64>,
    why: String,
}

/// What the tests write on lines of their own.
#[derive(PartialEq, Eq, Debug)]
enum Line {
    Done,
    Failed(Failure),
    Seen([u64; 5]),
    Exhausted { histories: u64, states: u64 },
    Mutation(Mutation),
}

/// Builds and runs them. Returns whether all passed.
pub fn run(options: &Options) -> Result<bool> {
    let step = Step::start_beside("build", options.json);
    let (built, output) = step.follow(test().arg("--no-run"))?;
    ensure!(built.success(), "the tests of pmem cannot be built\n{output}");
    step.end("histories of a store");
    match options.seed {
        _ if options.mutations => mutate(options),
        Some(seed) => {
            let status = named(HISTORIES).env("CRASH_SEED", seed.to_string()).status();
            Ok(status.context("cannot start cargo")?.success())
        }
        None => play(options),
    }
}

/// The tests, optimized but with all checks.
fn test() -> Command {
    let mut command = cargo();
    command.args(["test", "--profile", "sim", "--package", "pmem", "--test", "crash"]);
    command
}

fn named(name: &str) -> Command {
    let mut command = test();
    command.args(["--quiet", name, "--", "--exact", "--nocapture"]);
    command
}

fn bar(len: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {eta} left: {wide_msg}")?;
    Ok(ProgressBar::new(len).with_style(style))
}

fn play(options: &Options) -> Result<bool> {
    let mut summary = Summary { seeds: options.seeds, depth: options.depth, ..Summary::default() };
    let bar = bar(options.seeds)?;
    let mut histories = named(HISTORIES);
    histories.env("CRASH_SEEDS", options.seeds.to_string()).env("CRASH_REPORT", "1");
    let has_ended = follow(&mut histories, |line| match line {
        Line::Done => bar.inc(1),
        Line::Failed(failure) => fail(&mut summary, failure, &bar, options.json),
        Line::Seen([power_cuts, kills, failures, damaged_records, records]) => {
            let Summary { failed, seeds, depth, .. } = std::mem::take(&mut summary);
            summary = Summary {
                seeds,
                power_cuts,
                kills,
                failures,
                damaged_records,
                records,
                depth,
                failed,
                ..Summary::default()
            };
        }
        Line::Exhausted { .. } | Line::Mutation(_) => {}
    })?;
    bar.finish_and_clear();
    ensure!(has_ended || !summary.failed.is_empty(), "the histories did not come to their end");
    let step = Step::start_beside("short", options.json);
    let mut exhaustive = named(EXHAUSTIVE);
    exhaustive.env("CRASH_DEPTH", options.depth.to_string());
    follow(&mut exhaustive, |line| match line {
        Line::Failed(failure) => {
            let failure = Failure { seed: None, ..failure };
            fail(&mut summary, failure, &bar, options.json);
        }
        Line::Exhausted { histories, states } => {
            (summary.short_histories, summary.states) = (histories, states);
        }
        Line::Done | Line::Seen(_) | Line::Mutation(_) => {}
    })?;
    ensure!(summary.states > 0, "the short histories did not come to their end");
    step.end(&format!("all histories of up to {} operations", options.depth));
    if options.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(summary.failed.is_empty());
    }
    let Summary { seeds, power_cuts, kills, failures, damaged_records, records, .. } = summary;
    println!(
        "{seeds} histories: {power_cuts} power cuts, {kills} kills, {failures} failed writes, {damaged_records} damaged \
         records, {records} records"
    );
    println!("{} short histories, {} states", summary.short_histories, summary.states);
    let count = seeds + summary.short_histories;
    let failed = summary.failed.len() as u64;
    println!("{} passed, {failed} failed", count - failed);
    if let Some(seed) = summary.failed.iter().find_map(|failure| failure.seed) {
        println!("`cargo xtask crash --seed {seed}` runs the first of them again");
    }
    Ok(summary.failed.is_empty())
}

fn fail(summary: &mut Summary, failure: Failure, bar: &ProgressBar, is_json: bool) {
    if !is_json {
        bar.suspend(|| match failure.seed {
            Some(seed) => println!("seed {seed}: {}", failure.why),
            None => println!("{}", failure.why),
        });
    }
    summary.failed.push(failure);
    bar.set_message(format!("{} failed", summary.failed.len()));
}

fn mutate(options: &Options) -> Result<bool> {
    let mut mutations = Vec::new();
    let has_ended = follow(&mut named(SAFEGUARDS), |line| {
        if let Line::Mutation(mutation) = line {
            if !options.json {
                match mutation.seed {
                    Some(seed) => {
                        println!("{:<24} missed by seed {seed}: {}", mutation.safeguard, mutation.why)
                    }
                    None => println!("{:<24} NOT MISSED: {}", mutation.safeguard, mutation.why),
                }
            }
            mutations.push(mutation);
        }
    })?;
    let missed = mutations.iter().filter(|mutation| mutation.seed.is_some()).count();
    ensure!(has_ended || missed < mutations.len(), "the histories did not come to their end");
    if options.json {
        println!("{}", serde_json::to_string_pretty(&mutations)?);
    } else {
        println!(
            "{missed} of {} flushes, fences and checks are missed when they are left out",
            mutations.len()
        );
    }
    Ok(missed == mutations.len())
}

/// Runs a test and gives what it reports; whether it passed.
fn follow(command: &mut Command, mut each: impl FnMut(Line)) -> Result<bool> {
    let mut rest = String::new();
    let mut has_reported = false;
    let status = lines(command, |line| match read(line) {
        Some(line) => {
            has_reported = true;
            each(line);
        }
        None => {
            rest.push_str(line);
            rest.push('\n');
        }
    })?;
    ensure!(has_reported, "nothing was run ({status})\n{rest}");
    Ok(status.success())
}

/// `CRASH done 7`, `CRASH failed 7 WHY`, `CRASH seen CUTS KILLS FAILURES DAMAGES RECORDS`, `CRASH exhausted DEPTH HISTORIES
/// STATES`, `CRASH red NAME SEED WHY`, `CRASH green NAME WHY`.
fn read(line: &str) -> Option<Line> {
    let (kind, rest) = line.strip_prefix("CRASH ")?.split_once(' ')?;
    let numbers: Option<Vec<u64>> = rest.split(' ').map(|word| word.parse().ok()).collect();
    match kind {
        "done" => numbers.map(|_| Line::Done),
        "failed" => {
            let (seed, why) = rest.split_once(' ')?;
            Some(Line::Failed(Failure { seed: Some(seed.parse().ok()?), why: why.to_owned() }))
        }
        "seen" => Some(Line::Seen(numbers?.try_into().ok()?)),
        "exhausted" => match numbers?[..] {
            [_, histories, states] => Some(Line::Exhausted { histories, states }),
            _ => None,
        },
        "red" => {
            let (name, rest) = rest.split_once(' ')?;
            let (seed, why) = rest.split_once(' ')?;
            let seed = Some(seed.parse().ok()?);
            Some(Line::Mutation(Mutation { safeguard: name.to_owned(), seed, why: why.to_owned() }))
        }
        "green" => {
            let (name, why) = rest.split_once(' ')?;
            Some(Line::Mutation(Mutation { safeguard: name.to_owned(), seed: None, why: why.to_owned() }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_lines_are_read_and_no_others() {
        assert_eq!(read("CRASH done 12"), Some(Line::Done));
        let failure = Failure { seed: Some(3), why: "a record is gone".to_owned() };
        assert_eq!(read("CRASH failed 3 a record is gone"), Some(Line::Failed(failure)));
        assert_eq!(read("CRASH seen 1 2 3 4 5"), Some(Line::Seen([1, 2, 3, 4, 5])));
        assert_eq!(read("CRASH exhausted 4 5 6"), Some(Line::Exhausted { histories: 5, states: 6 }));
        let mutation = |seed, why: &str| {
            Some(Line::Mutation(Mutation { safeguard: "A".to_owned(), seed, why: why.to_owned() }))
        };
        assert_eq!(read("CRASH red A 7 it is gone"), mutation(Some(7), "it is gone"));
        assert_eq!(read("CRASH green A nobody notices"), mutation(None, "nobody notices"));
        for other in ["running 1 test", "CRASH", "CRASH done", "CRASH done x", "CRASH seen 1 2", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
