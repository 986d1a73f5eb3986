//! `cargo xtask interop`: Linux as the other end, over paths that lose, delay and reorder.

mod cell;
mod measure;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lab::Lab;

use crate::inside;
use crate::setup::Packages;
use crate::steps::programs;
use crate::test;
use cell::{Cell, Congestion};
use measure::{Bench, Side};
use report::{Row, Sharing};

pub const EXAMPLES: &str = "\
Examples:
  cargo xtask interop                                  the tests with Linux and its clients
  cargo xtask interop --loss --quick                   each kind of fault at 10 ms, once: 5 minutes
  cargo xtask interop --loss                           all cells, 3 seeds: 50 minutes
  cargo xtask interop --loss --cell '10ms 1% upload'   the cells that have these words; may be repeated
  cargo xtask interop --loss --cell fairness           flows of Linux' and of ours through one bottleneck only
A cell is pmlog on our stack beside pmlog on Linux' TCP (--transport kernel), each over the same link with Linux as the \
client, which posts or gets records of 12 MiB for some seconds. Written to target/interop. Leave the machine alone \
meanwhile. Exit codes: 0 all cells ran, 1 some did not, or with --strict some miss their target; 2 wrong usage.";

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    /// Compare our TCP with Linux' over links that lose, delay and reorder.
    #[arg(long)]
    loss: bool,
    #[command(flatten)]
    matrix: Matrix,
}

/// What is measured, and how often.
#[derive(Args, Clone)]
struct Matrix {
    /// One seed of 2 s a cell, and a round trip of 10 ms only.
    #[arg(long, requires = "loss")]
    quick: bool,
    /// Runs of each cell, each with chance of its own; the median counts.
    #[arg(long, value_name = "N", requires = "loss", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: Option<u64>,
    /// How long a run lasts.
    #[arg(long, value_name = "S", requires = "loss", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Only cells whose name has these words: 1ms, 10ms, 100ms; 0%, 0.1%, 1%, 5%, with x1 or x4 for how many are lost at a time, or late1%; upload, download; cubic, bbr;
    /// or fairness. May be repeated.
    #[arg(long, value_name = "WORDS", requires = "loss")]
    cell: Vec<String>,
    /// The bottleneck's rate.
    #[arg(long, value_name = "MBIT/S", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
    /// Fail, too, where a target is missed.
    #[arg(long, requires = "loss")]
    strict: bool,
    /// Print what target/interop/loss.json holds, in place of the table.
    #[arg(long, requires = "loss")]
    json: bool,
}

impl Matrix {
    fn cells(&self) -> Vec<Cell> {
        let round_trips: &[u64] = if self.quick { &[10] } else { &[1, 10, 100] };
        let mut cells = Cell::all(round_trips);
        cells.retain(|cell| self.cell.is_empty() || self.cell.iter().any(|filter| cell.matches(filter)));
        cells
    }

    fn has_fairness(&self) -> bool {
        self.cell.is_empty() || self.cell.iter().any(|filter| filter == "fairness")
    }

    fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(if self.quick { 2 } else { 4 }))
    }

    /// As the command line that says so.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--rate={}", self.rate), "--loss".to_owned()];
        arguments.extend(self.seeds.map(|seeds| format!("--seeds={seeds}")));
        arguments.extend(self.seconds.map(|seconds| format!("--seconds={seconds}")));
        arguments.extend(self.cell.iter().map(|cell| format!("--cell={cell}")));
        for (flag, is_set) in [("--quick", self.quick), ("--strict", self.strict), ("--json", self.json)] {
            arguments.extend(is_set.then(|| flag.to_owned()));
        }
        arguments
    }
}

/// Runs the tests with Linux, or the comparison in namespaces. Returns whether all is well.
pub fn run(options: &Options) -> Result<bool> {
    if !options.loss {
        return test::run(&test::Options::of_package(options.packages.clone(), "integration"));
    }
    let matrix = &options.matrix;
    ensure!(
        !matrix.cells().is_empty() || matrix.has_fairness(),
        "no cell has the words {:?}; `cargo xtask interop --help` lists them",
        matrix.cell
    );
    options.packages.provide()?;
    let [pmlog] = programs(["pmlog"])?;
    let scratch = lab::scratch_directory("interop-")?;
    let results = lab::target_directory().join("interop");
    std::fs::create_dir_all(&results)?;
    let executable = std::env::current_exe()?;
    // Only root may choose a congestion control that the host does not allow to all.
    let is_root = rustix::process::geteuid().is_root();
    let mut command = if is_root { lab::inside_as_root(&executable)? } else { lab::inside(&executable)? };
    command.arg("interop-inside").arg("--pmlog").arg(&pmlog).arg("--scratch").arg(scratch.path());
    command.arg("--results").arg(&results).args(matrix.arguments());
    let ended = inside::run(&mut command)?;
    let status = ended.with_context(|| format!("interrupted; {} has what was done", results.display()))?;
    Ok(status.success())
}

#[derive(Args)]
pub struct Inside {
    #[arg(long)]
    pmlog: PathBuf,
    #[arg(long)]
    scratch: PathBuf,
    #[arg(long)]
    results: PathBuf,
    #[arg(long)]
    loss: bool,
    #[command(flatten)]
    matrix: Matrix,
}

/// The comparison itself, as root of its own namespaces. Returns whether all is well.
pub fn run_inside(options: &Inside) -> Result<bool> {
    inside::end_on_signals()?;
    let Inside { pmlog, scratch, results, matrix, .. } = options;
    let lab = Lab::enter(scratch)?;
    let bench = Bench::new(&lab, pmlog, matrix.rate * 1_000_000, matrix.duration())?;
    let cells = matrix.cells();
    let sharings = if matrix.has_fairness() { &[Congestion::Cubic, Congestion::Bbr][..] } else { &[] };
    let progress =
        Progress::new(cells.len() as u64 * matrix.seeds() * 2 + sharings.len() as u64, matrix.json);
    progress.say(&format!(
        "{} Mbit/s, a queue of one bandwidth-delay product; {} seeds of {} s; kernel {}",
        matrix.rate,
        matrix.seeds(),
        matrix.duration().as_secs(),
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()
    ));
    if !bench.has_bbr {
        progress.say("this pmlog has no BBR: in cells with BBR, it sends by CUBIC");
    }
    if !bench.precedes {
        progress.say("no real-time priority is to be had (CAP_SYS_NICE): what else runs on this machine shows in the figures");
    }
    progress.say(&report::head());
    let mut outcome = Outcome::default();
    for cell in &cells {
        match compare(&bench, cell, matrix.seeds(), &progress) {
            Ok(row) => {
                progress.say(&report::line(cell, &row));
                outcome.rows.push(row);
                write(&results.join("loss.json"), &outcome.rows)?;
            }
            Err(error) => {
                outcome.failed += 1;
                progress.fail(&format!("{cell}: FAILED: {error:#}"));
            }
        }
    }
    for &congestion in sharings {
        progress.next(&format!("fairness {}", congestion.name()));
        match bench.share(congestion, Duration::from_millis(10), 1) {
            Ok((linux, ours)) => {
                let sharing = Sharing::new(congestion.name(), bench.ours_cc(congestion), linux, ours);
                progress.say(&report::sharing_line(&sharing));
                outcome.sharings.push(sharing);
                write(&results.join("fairness.json"), &outcome.sharings)?;
            }
            Err(error) => {
                outcome.failed += 1;
                progress.fail(&format!("fairness {}: FAILED: {error:#}", congestion.name()));
            }
        }
    }
    progress.end();
    if matrix.json {
        println!("{}", serde_json::to_string_pretty(&outcome.rows)?);
    }
    for verdict in report::verdicts(&outcome.rows, &outcome.sharings) {
        progress.say(&verdict);
    }
    progress.say(&format!("{} cells could not be run; written to {}", outcome.failed, results.display()));
    Ok(outcome.failed == 0 && !(matrix.strict && outcome.misses()))
}

#[derive(Default)]
struct Outcome {
    rows: Vec<Row>,
    sharings: Vec<Sharing>,
    failed: usize,
}

impl Outcome {
    fn misses(&self) -> bool {
        self.rows.iter().any(|row| !row.is_met) || self.sharings.iter().any(|sharing| !sharing.is_fair)
    }
}

/// Runs a cell with each seed on both sides, one right after the other.
fn compare(bench: &Bench<'_>, cell: &Cell, seeds: u64, progress: &Progress) -> Result<Row> {
    let mut mbit = Vec::new();
    let measure = |side, seed| {
        progress.next(&format!("{cell}, seed {seed}, {side:?}"));
        bench.run(cell, side, seed).with_context(|| format!("seed {seed}, {side:?}"))
    };
    for seed in 1..=seeds {
        mbit.push((measure(Side::Linux, seed)?, measure(Side::Ours, seed)?));
    }
    Ok(Row::new(cell, bench.ours_cc(cell.congestion), mbit))
}

fn write(file: &Path, value: &impl serde::Serialize) -> Result<()> {
    std::fs::write(file, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}

/// A bar on a terminal, below the table.
struct Progress {
    bar: ProgressBar,
    is_json: bool,
}

impl Progress {
    fn new(runs: u64, is_json: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {eta} left: {wide_msg}");
        Self { bar: ProgressBar::new(runs).with_style(style.expect("a valid template")), is_json }
    }

    fn next(&self, what: &str) {
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
    }

    /// A line of the table.
    fn say(&self, line: &str) {
        if !self.is_json {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    fn fail(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
