//! `cargo xtask sim`: conversations over simulated links in any weather, thousands of them; and the whole log server.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::steps::{Step, cargo, lines};

pub const EXAMPLES: &str = "\
Examples:
  cargo xtask sim                          10,000 conversations: some minutes
  cargo xtask sim --seeds 500              what CI runs, which has no optimization
  cargo xtask sim --seed 41                one of them again
  cargo xtask sim --seed 41 --trace        with each segment
  cargo xtask sim --store                  the log server with its clients, its network and its medium: 300 of them
  cargo xtask sim --store --seed 41        one of them again
A seed draws who talks with whom (two of our stacks, or ours and smoltcp's), how much, and what the link does: loss, bursts \
of it, reordering, duplication, corruption, jitter, small queues and windows, paths that narrow, slow down or break, and \
hosts that die. What arrives must be what was sent, connections must end, and no buffer may be left behind. With --store it \
draws the medium, cores and clients, and power cuts, kills, failed writes, damage and broken links: what was acknowledged must be \
there, nothing may be there that nobody sent, and all must be done in the end. \
Exit codes: 0 all passed, 1 some failed, 2 wrong usage.";

/// The package and the test that runs them, which lies in stack/tcp/tests/sim/weather.rs.
const WEATHER: [&str; 3] =
    ["stack-tcp", "sim", "weather::streams_are_whole_and_connections_end_in_any_weather"];
const WEATHERS: u64 = 10_000;
/// The same of the log server, in apps/pmlog/tests/simulator/.
const STORE: [&str; 3] =
    ["pmlog", "simulator", "acknowledged_records_are_there_whatever_happens_to_network_medium_and_server"];
const STORES: u64 = 300;

#[derive(Args)]
pub struct Options {
    /// How many, with the seeds from 0 on: 10,000 conversations, or 300 servers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Simulate the log server with all that is around it.
    #[arg(long, conflicts_with = "trace")]
    store: bool,
    /// Only the conversation of this seed.
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "json"])]
    seed: Option<u64>,
    /// Print each segment that its hosts send.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    seeds: u64,
    frames: u64,
    retransmits: u64,
    timeouts: u64,
    /// Of log servers: what they have seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<Stored>,
    failed: Vec<Failure>,
}

/// What log servers have seen.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Stored {
    /// Records that were acknowledged and not trimmed.
    records: u64,
    reads: u64,
    /// Appends that were refused, of a full store or a failed one, and tried again.
    refused: u64,
    power_cuts: u64,
    kills: u64,
    failures: u64,
    damaged: u64,
    broken_links: u64,
}

/// A conversation that was not as it must be.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Failure {
    seed: u64,
    why: String,
}

/// What the test writes on a line of its own.
#[derive(PartialEq, Eq, Debug)]
enum Line {
    Done(u64),
    Failed(Failure),
    Seen { frames: u64, retransmits: u64, timeouts: u64 },
    Stored(Stored),
}

/// Builds and runs them. Returns whether all passed.
pub fn run(options: &Options) -> Result<bool> {
    let step = Step::start_beside("build", options.json);
    let [package, suite, name] = if options.store { STORE } else { WEATHER };
    let (built, output) = step.follow(test(package, suite).arg("--no-run"))?;
    ensure!(built.success(), "the tests of {package} cannot be built\n{output}");
    step.end("the simulation");

    let mut command = test(package, suite);
    command.args(["--quiet", name, "--", "--exact", "--nocapture"]);
    if let Some(seed) = options.seed {
        command.env("SIM_SEED", seed.to_string());
        if options.trace {
            command.env("SIM_TRACE", "1");
        }
        return Ok(command.status().context("cannot start cargo")?.success());
    }
    converse(command, options)
}

/// The tests, optimized but with all checks.
fn test(package: &str, suite: &str) -> Command {
    let mut command = cargo();
    command.args(["test", "--profile", "sim", "--package", package, "--test", suite]);
    command
}

fn converse(mut command: Command, options: &Options) -> Result<bool> {
    let seeds = options.seeds.unwrap_or(if options.store { STORES } else { WEATHERS });
    command.env("SIM_SEEDS", seeds.to_string()).env("SIM_REPORT", "1");
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {eta} left: {wide_msg}")?;
    let bar = ProgressBar::new(seeds).with_style(style);
    let mut summary =
        Summary { seeds, frames: 0, retransmits: 0, timeouts: 0, stored: None, failed: Vec::new() };
    let mut rest = String::new();
    let mut has_ended = false;
    let status = lines(&mut command, |line| match read(line) {
        Some(Line::Done(seed)) => bar.set_position(seed),
        Some(Line::Failed(failure)) => {
            if !options.json {
                bar.suspend(|| println!("seed {}: {}", failure.seed, failure.why));
            }
            summary.failed.push(failure);
            bar.set_message(format!("{} failed", summary.failed.len()));
        }
        Some(Line::Seen { frames, retransmits, timeouts }) => {
            (summary.frames, summary.retransmits, summary.timeouts) = (frames, retransmits, timeouts);
            has_ended = true;
        }
        Some(Line::Stored(stored)) => {
            summary.stored = Some(stored);
            has_ended = true;
        }
        None => {
            rest.push_str(line);
            rest.push('\n');
        }
    })?;
    bar.finish_and_clear();
    ensure!(has_ended, "the simulation did not come to its end ({status})\n{rest}");
    ensure!(status.success() || !summary.failed.is_empty(), "the simulation ended with {status}\n{rest}");
    summary.failed.sort_by_key(|failure| failure.seed);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        let Summary { seeds, frames, retransmits, timeouts, stored, failed } = &summary;
        match stored {
            None => println!(
                "{seeds} conversations, {frames} frames, {retransmits} retransmissions, {timeouts} timeouts"
            ),
            Some(Stored { records, reads, power_cuts, kills, failures, damaged, .. }) => println!(
                "{seeds} servers, {records} records, {reads} reads, {power_cuts} power cuts, {kills} kills, {failures} failed \
                 writes, {damaged} damaged records"
            ),
        }
        println!("{} passed, {} failed", seeds - failed.len() as u64, failed.len());
        if let Some(first) = failed.first() {
            let how = if options.store { ("--store ", "") } else { ("", " --trace") };
            println!("`cargo xtask sim {}--seed {}{}` shows the first of them", how.0, first.seed, how.1);
        }
    }
    Ok(summary.failed.is_empty())
}

/// `SIM done 7`, `SIM failed 7 REASON`, `SIM seen FRAMES RETRANSMITS TIMEOUTS`, `SIM stored` and what [`Stored`] has.
fn read(line: &str) -> Option<Line> {
    let (kind, rest) = line.strip_prefix("SIM ")?.split_once(' ')?;
    let mut words = rest.split(' ');
    let mut number = || words.next()?.parse().ok();
    match kind {
        "done" => Some(Line::Done(number()?)),
        "failed" => {
            let (seed, why) = rest.split_once(' ')?;
            Some(Line::Failed(Failure { seed: seed.parse().ok()?, why: why.to_owned() }))
        }
        "seen" => Some(Line::Seen { frames: number()?, retransmits: number()?, timeouts: number()? }),
        "stored" => Some(Line::Stored(Stored {
            records: number()?,
            reads: number()?,
            refused: number()?,
            power_cuts: number()?,
            kills: number()?,
            failures: number()?,
            damaged: number()?,
            broken_links: number()?,
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_lines_are_read_and_no_others() {
        assert_eq!(read("SIM done 12"), Some(Line::Done(12)));
        let failure = Failure { seed: 3, why: "not over by 900 s".to_owned() };
        assert_eq!(read("SIM failed 3 not over by 900 s"), Some(Line::Failed(failure)));
        assert_eq!(read("SIM seen 5 6 7"), Some(Line::Seen { frames: 5, retransmits: 6, timeouts: 7 }));
        let stored = Stored {
            records: 1,
            reads: 2,
            refused: 3,
            power_cuts: 4,
            kills: 5,
            failures: 6,
            damaged: 7,
            broken_links: 8,
        };
        assert_eq!(read("SIM stored 1 2 3 4 5 6 7 8"), Some(Line::Stored(stored)));
        for other in ["running 1 test", "SIM stored 1", "SIM", "SIM done", "SIM done x", "SIM seen 1 2", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
