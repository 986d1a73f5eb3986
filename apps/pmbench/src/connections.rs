//! `pmbench connections`: what a request costs where there are many connections, and what an idle one holds.
//!
//! The server's TCP/IP runs on a simulated link in virtual time. Each connection has one request of 1 KiB on its way, up
//! to 32 in a burst, and they take turns in an order that no cache foresees. What clients and the link do is not
//! measured. Instructions are counted by valgrind's callgrind. Memory is pmlog's with its network's, as the kernel tells
//! of a process of its own whose connections have each asked for a record that is not there, against the same process
//! without them.

mod rig;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use crate::results::write_json;
use crate::spread::Spread;
use rig::{Held, Rig};

/// What a request may take with the most connections, as a multiple of what it takes with the fewest.
const MOST_RATIO: f64 = 1.3;
/// What an idle connection may hold, in bytes.
const MOST_BYTES: f64 = 1024.0;
/// Requests that callgrind counts.
const COUNTED: u64 = 20_000;

/// What to measure.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  Everything (5 minutes):
    pmbench connections --out connections
  Times only, for two numbers:
    pmbench connections --counts 1,1000 --skip-instructions --out connections
  As JSON, as results.json holds it:
    pmbench connections --json --out connections
Needs valgrind for the instructions, and no root. Times want a CPU that nothing else uses.")]
pub struct ConnectionsArgs {
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [1, 100, 10_000, 100_000],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub counts: Vec<u32>,
    /// Rounds of the times; in each, all numbers have their turn.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Requests for each number in a round, at least.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: u64,
    /// Count no instructions, and do without valgrind.
    #[arg(long)]
    pub skip_instructions: bool,
    /// Print results.json instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Where to write results.json.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// What was built, for the table's head.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub commit: String,
    /// Measure only this, once, for a process that waits for the number.
    #[arg(long, hide = true)]
    pub part: Option<Part>,
}

/// What a process of its own measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Requests, for callgrind to count their instructions.
    Counted,
    /// The memory of idle connections.
    Held,
}

/// What was found with one number of connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Connections.
    pub connections: u32,
    /// Nanoseconds for each request: the median of the rounds.
    pub ns_per_request: f64,
    /// The smallest and the largest of the rounds.
    pub ns_range: [f64; 2],
    /// Instructions for each request, unless they were skipped.
    pub instructions_per_request: Option<f64>,
    /// Memory that the kernel has given for each idle connection, in bytes, all tables and pools included.
    pub resident_bytes_per_connection: f64,
    /// Address space for each, what is not touched before it is used included.
    pub reserved_bytes_per_connection: f64,
}

/// All that was found, as results.json holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What was built.
    pub commit: String,
    /// By number of connections.
    pub rows: Vec<Row>,
    /// Nanoseconds for each request with the most connections by those with the fewest: the median of the rounds' own.
    pub ratio: f64,
}

/// Measures, and writes the results and a table of them.
///
/// # Errors
/// valgrind is missing, a segment was lost, or there is not enough memory.
pub fn run(args: &ConnectionsArgs, out: &mut impl Write) -> Result<()> {
    match args.part {
        Some(part) => measure_part(part, args, out),
        None => measure_all(args, out),
    }
}

fn measure_part(part: Part, args: &ConnectionsArgs, out: &mut impl Write) -> Result<()> {
    let &[connections] = &args.counts[..] else { bail!("--part takes one number of connections") };
    match part {
        Part::Counted => {
            let mut rig = Rig::answering(connections)?;
            writeln!(out, "{}", rig.counted(args.requests)?)?;
        }
        Part::Held => {
            let Held { resident_bytes, reserved_bytes } = rig::held(connections)?;
            writeln!(out, "{resident_bytes} {reserved_bytes}")?;
        }
    }
    Ok(())
}

fn measure_all(args: &ConnectionsArgs, out: &mut impl Write) -> Result<()> {
    let mut counts = args.counts.clone();
    counts.sort_unstable();
    counts.dedup();
    let parts = if args.skip_instructions { 1 } else { 2 };
    let progress = Progress::start(parts * counts.len() + args.rounds as usize);
    let mut held = Vec::new();
    let mut instructions = Vec::new();
    for &count in &counts {
        let what = format!("memory of {count}");
        progress.begin(&what);
        let bytes = held_by(count).with_context(|| what.clone())?;
        progress.end(&what, &format!("{} bytes", bytes.0));
        held.push(bytes);
        if args.skip_instructions {
            instructions.push(None);
            continue;
        }
        let what = format!("instructions with {count}");
        progress.begin(&what);
        let each = instructions_with(count).with_context(|| what.clone())?;
        progress.end(&what, &format!("{each:.0} a request"));
        instructions.push(Some(each));
    }
    let times = times(args, &counts, &progress)?;
    drop(progress);
    let (first, last) = (&times[0], &times[times.len() - 1]);
    let ratio = Spread::of_ratios(last, first).context("no round")?.median;
    let row = |(((&connections, ns), instructions_per_request), (resident, reserved))| -> Result<Row> {
        let spread = Spread::of(ns).context("no round")?;
        Ok(Row {
            connections,
            ns_per_request: spread.median,
            ns_range: spread.range(),
            instructions_per_request,
            resident_bytes_per_connection: resident as f64 / f64::from(connections),
            reserved_bytes_per_connection: reserved as f64 / f64::from(connections),
        })
    };
    let rows =
        counts.iter().zip(times.clone()).zip(instructions).zip(held).map(row).collect::<Result<_>>()?;
    let results = Results { commit: args.commit.clone(), rows, ratio };
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?,
        false => write!(out, "{}", table(&results))?,
    }
    write_json(&args.out, "results.json", &results)
}

/// Nanoseconds for each request, by number of connections and by round.
fn times(args: &ConnectionsArgs, counts: &[u32], progress: &Progress) -> Result<Vec<Vec<f64>>> {
    let mut rigs = counts.iter().map(|&count| Rig::answering(count)).collect::<Result<Vec<_>>>()?;
    // Each connection is used before the clock runs, as in a server that has been up for a while.
    for (rig, &count) in rigs.iter_mut().zip(counts) {
        rig.timed(args.requests.max(2 * u64::from(count)))?;
    }
    let mut times = vec![Vec::new(); counts.len()];
    for round in 1..=args.rounds {
        let what = format!("round {round}");
        progress.begin(&what);
        for (rig, times) in rigs.iter_mut().zip(&mut times) {
            // The others have had the caches meanwhile.
            rig.timed(args.requests / 4)?;
            times.push(rig.timed(args.requests)?);
        }
        let said: Vec<_> = times.iter().filter_map(|times| Some(format!("{:.0}", times.last()?))).collect();
        progress.end(&what, &format!("{} ns", said.join(", ")));
    }
    Ok(times)
}

/// A process of this program's own that measures one part.
fn part(program: &mut Command, part: &str, count: u32) -> Result<String> {
    program.args(["connections", "--part", part, "--counts", &count.to_string(), "--out", "."]);
    program.args(["--requests", &COUNTED.to_string()]);
    let output = program.output().with_context(|| {
        format!(
            "cannot start {}; valgrind is had by apt-get install valgrind",
            program.get_program().display()
        )
    })?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {}", output.status, complaint.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// What so many connections hold: resident bytes, and address space.
fn held_by(count: u32) -> Result<(u64, u64)> {
    let said = part(&mut Command::new(std::env::current_exe()?), "held", count)?;
    let mut numbers = said.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(resident)), Some(Ok(reserved))) => Ok((resident, reserved)),
        _ => bail!("it said {said:?}"),
    }
}

/// Instructions for each request with so many connections.
fn instructions_with(count: u32) -> Result<f64> {
    let folder = lab::scratch_directory("connections-")?;
    let file = folder.path().join("profile");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*rig::counted*"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(std::env::current_exe()?);
    let requests: u64 = part(&mut valgrind, "counted", count)?.trim().parse()?;
    let instructions = total(&file)?;
    ensure!(instructions > 0, "callgrind has counted nothing: this program has no symbols");
    Ok(instructions as f64 / requests as f64)
}

/// What callgrind has counted in all.
fn total(file: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(file).context("callgrind has left no profile")?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    let number = line.and_then(|line| line.split_whitespace().next()).context("the profile has no total")?;
    Ok(number.parse()?)
}

fn table(results: &Results) -> String {
    use std::fmt::Write as _;

    let mut text = String::from("requests of 1 KiB on the simulated link, one on its way on each connection");
    if !results.commit.is_empty() {
        text = text + ", " + &results.commit;
    }
    text += "\nconnections   ns a request        (rounds)  instructions  bytes an idle one   reserved\n";
    for row in &results.rows {
        let [low, high] = row.ns_range;
        let range = format!("({low:.0} to {high:.0})");
        let instructions =
            row.instructions_per_request.map_or_else(|| "skipped".to_owned(), |each| format!("{each:.0}"));
        let _ = writeln!(
            text,
            "{:>11}{:>15.0}{range:>16}{instructions:>14}{:>19.0}{:>11.0}",
            row.connections,
            row.ns_per_request,
            row.resident_bytes_per_connection,
            row.reserved_bytes_per_connection,
        );
    }
    if let [first, .., last] = &results.rows[..] {
        let _ = writeln!(
            text,
            "ns with {} by ns with {}: {:.2}, wanted: at most {MOST_RATIO}",
            last.connections, first.connections, results.ratio
        );
    }
    if let Some(last) = results.rows.last() {
        let _ = writeln!(
            text,
            "bytes an idle one of {}: {:.0}, wanted: at most {MOST_BYTES:.0}",
            last.connections, last.resident_bytes_per_connection
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_ratio_beside_what_is_wanted() {
        let row = |connections, ns_per_request, instructions_per_request| Row {
            connections,
            ns_per_request,
            ns_range: [ns_per_request - 5.0, ns_per_request + 10.0],
            instructions_per_request,
            resident_bytes_per_connection: 700.4,
            reserved_bytes_per_connection: 1500.0,
        };
        let rows = vec![row(1, 200.0, Some(1234.5)), row(100_000, 260.0, None)];
        let table = table(&Results { commit: "abc".to_owned(), rows, ratio: 1.301 });
        insta::assert_snapshot!(table);
    }
}
