//! `cargo xtask bench micro`: criterion's measurements, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::steps::{Step, cargo, lines, said_by};

/// What a run found, as target/bench/micro/results.json holds it.
#[derive(Serialize)]
struct Results {
    cpu: String,
    cores: usize,
    kernel: String,
    commit: String,
    rustc: String,
    benchmarks: Vec<Measurement>,
}

/// One benchmark: the time of one operation, with the 95 % confidence interval of its median.
#[derive(Serialize)]
struct Measurement {
    name: String,
    median_ns: f64,
    low_ns: f64,
    high_ns: f64,
    bytes: Option<u64>,
}

pub fn run(filter: Option<&str>) -> Result<()> {
    let folder = lab::target_directory().join("bench/micro");
    let raw = folder.join("criterion");
    // What an earlier run left must not look like a result of this one.
    if raw.exists() {
        fs::remove_dir_all(&raw)?;
    }
    fs::create_dir_all(&raw)?;

    let step = Step::start("bench");
    let mut output = String::new();
    let mut command = cargo();
    command.args(["bench", "--package", "pmem", "--package", "stack-tcp", "--bench", "micro", "--"]);
    command.arg("--noplot").args(filter).env("CRITERION_HOME", &raw);
    let status = lines(&mut command, |line| {
        step.progress(line.trim());
        output.push_str(line);
        output.push('\n');
    })?;
    if !status.success() {
        bail!("`cargo bench` ended with {status}\n{output}");
    }
    let mut benchmarks = Vec::new();
    collect(&raw, &mut benchmarks)?;
    ensure!(!benchmarks.is_empty(), "no benchmark has that name");
    // In the order in which they ran: 64 B before 1 KiB.
    benchmarks.sort_by_key(|benchmark| output.find(&benchmark.name));
    step.end(&format!("{} benchmarks", benchmarks.len()));

    print!("{}", table(&benchmarks));
    let results = Results {
        cpu: cpu(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        commit: said_by(Command::new("git").args(["describe", "--always", "--dirty"])),
        rustc: said_by(Command::new("rustc").arg("--version")),
        benchmarks,
    };
    let file = folder.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&results)? + "\n")?;
    println!("written to {}", file.display());
    Ok(())
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.to_owned())
}

/// What criterion writes beside its estimates.
#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
enum Throughput {
    Bytes(u64),
    Elements(u64),
    #[serde(untagged)]
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// Finds each `new/benchmark.json` with its `estimates.json`.
fn collect(folder: &Path, found: &mut Vec<Measurement>) -> Result<()> {
    if folder.ends_with("new") {
        found.push(measurement(folder)?);
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        }
    }
    Ok(())
}

fn measurement(folder: &Path) -> Result<Measurement> {
    fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("not as criterion writes it: {}", file.display()))
    }
    let benchmark: Benchmark = read(&folder.join("benchmark.json"))?;
    let estimates: Estimates = read(&folder.join("estimates.json"))?;
    let (operations, bytes) = match benchmark.throughput {
        Some(Throughput::Elements(elements)) => (elements.max(1), None),
        Some(Throughput::Bytes(bytes)) => (1, Some(bytes)),
        Some(Throughput::Other(_)) | None => (1, None),
    };
    let each = |ns: f64| ns / operations as f64;
    let interval = &estimates.median.confidence_interval;
    Ok(Measurement {
        name: benchmark.full_id,
        median_ns: each(estimates.median.point_estimate),
        low_ns: each(interval.lower_bound),
        high_ns: each(interval.upper_bound),
        bytes,
    })
}

fn table(benchmarks: &[Measurement]) -> String {
    let width = benchmarks.iter().map(|one| one.name.len()).max().unwrap_or(0).max("benchmark".len());
    let mut table = format!("{:<width$}  {:>12}  {:>25}\n", "benchmark", "ns", "95 % confidence");
    for one in benchmarks {
        let interval = format!("{:.1} .. {:.1}", one.low_ns, one.high_ns);
        writeln!(table, "{:<width$}  {:>12.1}  {interval:>25}", one.name, one.median_ns)
            .expect("writing to a string does not fail");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_per_element() {
        let folder = lab::scratch_directory("bench-").unwrap();
        let new = folder.path().join("segment/new");
        fs::create_dir_all(&new).unwrap();
        let benchmark = r#"{"group_id":"segment","full_id":"segment/100","throughput":{"Elements":100}}"#;
        let estimates = r#"{"mean":{},"median":{"confidence_interval":{"confidence_level":0.95,
            "lower_bound":20000.0,"upper_bound":24000.0},"point_estimate":22000.0,"standard_error":1.0}}"#;
        fs::write(new.join("benchmark.json"), benchmark).unwrap();
        fs::write(new.join("estimates.json"), estimates).unwrap();
        let mut found = Vec::new();
        collect(folder.path(), &mut found).unwrap();
        assert_eq!(found.len(), 1);
        let table = table(&found);
        assert!(table.contains("segment/100") && table.contains("220.0") && table.contains("200.0 .. 240.0"));
    }
}
