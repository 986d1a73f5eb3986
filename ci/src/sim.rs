//! `cargo xtask sim`: conversations over simulated links in any weather, thousands of them.

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
A seed draws who talks with whom (two of our stacks, or ours and smoltcp's), how much, and what the link does: loss, bursts \
of it, reordering, duplication, corruption, jitter, small queues and windows, paths that narrow, slow down or break, and \
hosts that die. What arrives must be what was sent, connections must end, and no buffer may be left behind. \
Exit codes: 0 all passed, 1 some failed, 2 wrong usage.";

/// The test that runs them, which lies in stack/tcp/tests/sim/weather.rs.
const TEST: &str = "weather::streams_are_whole_and_connections_end_in_any_weather";

#[derive(Args)]
pub struct Options {
    /// How many conversations, with the seeds from 0 on.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
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
    failed: Vec<Failure>,
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
}

/// Builds and runs them. Returns whether all passed.
pub fn run(options: &Options) -> Result<bool> {
    let step = Step::start_beside("build", options.json);
    let (built, output) = step.follow(test().arg("--no-run"))?;
    ensure!(built.success(), "the tests of stack-tcp cannot be built\n{output}");
    step.end("the simulation");

    let mut command = test();
    command.args(["--quiet", TEST, "--", "--exact", "--nocapture"]);
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
fn test() -> Command {
    let mut command = cargo();
    command.args(["test", "--profile", "sim", "--package", "stack-tcp", "--test", "sim"]);
    command
}

fn converse(mut command: Command, options: &Options) -> Result<bool> {
    command.env("SIM_SEEDS", options.seeds.to_string()).env("SIM_REPORT", "1");
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {eta} left: {wide_msg}")?;
    let bar = ProgressBar::new(options.seeds).with_style(style);
    let mut summary =
        Summary { seeds: options.seeds, frames: 0, retransmits: 0, timeouts: 0, failed: Vec::new() };
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
        let Summary { seeds, frames, retransmits, timeouts, failed } = &summary;
        println!(
            "{seeds} conversations, {frames} frames, {retransmits} retransmissions, {timeouts} timeouts"
        );
        println!("{} passed, {} failed", seeds - failed.len() as u64, failed.len());
        if let Some(first) = failed.first() {
            println!("`cargo xtask sim --seed {} --trace` shows the first of them", first.seed);
        }
    }
    Ok(summary.failed.is_empty())
}

/// `SIM done 7`, `SIM failed 7 REASON`, `SIM seen FRAMES RETRANSMITS TIMEOUTS`.
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
        for other in ["running 1 test", "SIM", "SIM done", "SIM done x", "SIM seen 1 2", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
