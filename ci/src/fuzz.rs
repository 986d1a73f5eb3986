//! `cargo xtask fuzz`: libFuzzer on what takes bytes from strangers, built by the stable compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::setup::{self, Packages, Verbosity};
use crate::steps::{Step, cargo, lines, workspace};

/// All targets of tests/fuzz.
const TARGETS: [&str; 6] = ["frames", "options", "datagrams", "http", "kv", "medium"];

/// libFuzzer comes as source.
const COMPILER: [(&str, &str); 1] = [("g++", "libFuzzer, which is built with the fuzzer")];
/// What the compiler is told, so that libFuzzer sees which code was reached and what was compared. All of it is stable.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that those flags are not for build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Longest input. What can be said in more can be said in less.
const MAX_BYTES: u32 = 4096;
/// An input that takes longer than this has found a loop.
const MOST_SECONDS: u32 = 10;

#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask fuzz --seconds 60                     ten seconds for each target, after the build
  cargo xtask fuzz --target http --seconds 3600     one of them for an hour
  cargo xtask fuzz --target frames --replay FILE    what was found, once more
  cargo xtask fuzz --keep                           takes into tests/fuzz/corpus what reaches more than what is there
Finds are left in target/fuzz/found, and what has reached new code in target/fuzz/corpus, from where the next run goes on.
`cargo test --package fuzz` runs the corpus, without libFuzzer. Exit code 1: something was found.")]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    /// Time for all targets together, the build apart.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only these targets.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = TARGETS)]
    target: Vec<String>,
    /// Run one target on this file alone, and show where it fails.
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    replay: Option<PathBuf>,
    /// Begin with this seed; another each time if not given.
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Fuzz nothing: take what was found worth keeping into the corpus.
    #[arg(long)]
    keep: bool,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
}

/// What came of a target.
#[derive(Serialize)]
struct Outcome {
    target: String,
    /// Inputs that were tried.
    runs: u64,
    /// Places in the code that were reached.
    coverage: u64,
    /// Inputs that are kept since each reaches something that no other does.
    corpus: u64,
    /// The input that broke something.
    found: Option<PathBuf>,
}

/// Runs the targets; whether nothing was found.
pub fn run(options: &Options) -> Result<bool> {
    options.packages.provide()?;
    setup::provide(&COMPILER, Verbosity::WhenInstalling)?;
    let chosen =
        if options.target.is_empty() { TARGETS.map(str::to_owned).to_vec() } else { options.target.clone() };
    if let Some(file) = &options.replay {
        let [target] = &chosen[..] else { bail!("--replay needs --target: one of {}", TARGETS.join(", ")) };
        return replay(&build(options.json)?, target, file);
    }
    let program = build(options.json)?;
    if options.keep {
        return chosen.iter().try_for_each(|target| keep(&program, target)).map(|()| true);
    }
    let seconds = (options.seconds / chosen.len() as u32).max(1);
    let outcomes: Vec<_> =
        chosen.iter().map(|target| fuzz(&program, target, seconds, options)).collect::<Result<_>>()?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        println!("{:<10}{:>12}{:>10}{:>8}  found", "target", "runs", "coverage", "corpus");
        for Outcome { target, runs, coverage, corpus, found } in &outcomes {
            let found = found.as_ref().map_or("nothing".to_owned(), |file| file.display().to_string());
            println!("{target:<10}{runs:>12}{coverage:>10}{corpus:>8}  {found}");
        }
    }
    let finds = outcomes.iter().filter_map(|outcome| Some((&outcome.target, outcome.found.as_ref()?)));
    for (target, file) in finds {
        eprintln!("again: cargo xtask fuzz --target {target} --replay {}", file.display());
    }
    Ok(outcomes.iter().all(|outcome| outcome.found.is_none()))
}

/// Where all that is not kept in the tree lies.
fn folder(name: &str) -> Result<PathBuf> {
    let folder = lab::target_directory().join("fuzz").join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn corpus_of(target: &str) -> PathBuf {
    workspace().join("tests/fuzz/corpus").join(target)
}

/// Builds the fuzzer, with checks of arithmetic and assertions on.
fn build(is_json: bool) -> Result<PathBuf> {
    let step = Step::start_beside("build", is_json);
    let built = folder("build")?;
    let mut command = cargo();
    command.args([
        "build",
        "--package",
        "fuzz",
        "--bin",
        "fuzz",
        "--features",
        "coverage",
        "--profile",
        "quick",
    ]);
    command.args(["--target", PLATFORM, "--target-dir"]).arg(&built).env("RUSTFLAGS", COVERAGE);
    for check in ["DEBUG_ASSERTIONS", "OVERFLOW_CHECKS"] {
        command.env(format!("CARGO_PROFILE_QUICK_{check}"), "true");
    }
    let (status, output) = step.follow(&mut command)?;
    ensure!(status.success(), "the fuzzer cannot be built\n{output}");
    step.end("the targets, told by the compiler where they have been");
    Ok(built.join(PLATFORM).join("quick/fuzz"))
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command.env("FUZZ_TARGET", target).env("RUST_BACKTRACE", "1");
    command.args([format!("-max_len={MAX_BYTES}"), format!("-timeout={MOST_SECONDS}")]);
    command
}

fn fuzz(program: &Path, target: &str, seconds: u32, options: &Options) -> Result<Outcome> {
    let step = Step::start_beside(target, options.json);
    let mut outcome = Outcome { target: target.to_owned(), runs: 0, coverage: 0, corpus: 0, found: None };
    let mut command = fuzzer(program, target);
    command.args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()]);
    command.arg(format!("-artifact_prefix={}/{target}-", folder("found")?.display()));
    command.args(options.seed.map(|seed| format!("-seed={seed}")));
    // What is new goes to the first of the folders.
    command.arg(folder("corpus")?.join(target)).arg(corpus_of(target));
    fs::create_dir_all(folder("corpus")?.join(target))?;
    let mut output = String::new();
    let status = lines(&mut command, |line| {
        if line.starts_with('#') {
            step.progress(line.trim());
        }
        outcome.read(line);
        output.push_str(line);
        output.push('\n');
    })?;
    match &outcome.found {
        Some(file) => {
            step.print(&output);
            step.end(&format!("broken by {}", file.display()));
        }
        None => {
            ensure!(status.success(), "the fuzzer of {target} ended with {status}\n{output}");
            step.end(&format!("{} runs, {} places reached", outcome.runs, outcome.coverage));
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes in what libFuzzer says: `#4096 pulse cov: 817 ft: 2210 corp: 92/3Kb ...`, and what it has written.
    fn read(&mut self, line: &str) {
        if let Some(status) = line.strip_prefix('#') {
            let mut words = status.split_whitespace();
            self.runs = words.next().and_then(|number| number.parse().ok()).unwrap_or(self.runs);
            while let Some(word) = words.next() {
                let number = |word: Option<&str>| word?.split('/').next()?.parse().ok();
                match word {
                    "cov:" => self.coverage = number(words.next()).unwrap_or(self.coverage),
                    "corp:" => self.corpus = number(words.next()).unwrap_or(self.corpus),
                    _ => {}
                }
            }
        } else if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = runs.trim().parse().unwrap_or(self.runs);
        } else if let Some((_, file)) = line.split_once("Test unit written to ") {
            self.found = Some(PathBuf::from(file.trim()));
        }
    }
}

/// Runs a target on one file.
fn replay(program: &Path, target: &str, file: &Path) -> Result<bool> {
    ensure!(file.is_file(), "{} is no file", file.display());
    let status = fuzzer(program, target).arg(file).status().context("the fuzzer cannot be started")?;
    Ok(status.success())
}

/// Takes into the tree's corpus what reaches more than the files there do.
fn keep(program: &Path, target: &str) -> Result<()> {
    let step = Step::start(target);
    let kept = corpus_of(target);
    let count = |folder: &Path| fs::read_dir(folder).map(Iterator::count);
    let before = count(&kept)?;
    let mut command = fuzzer(program, target);
    command.arg("-merge=1").arg(&kept).arg(folder("corpus")?.join(target));
    let (status, output) = step.follow(&mut command)?;
    ensure!(status.success(), "the corpus of {target} cannot be merged\n{output}");
    step.end(&format!("{before} files, now {}", count(&kept)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_says_is_read() {
        let mut outcome = Outcome { target: "http".into(), runs: 0, coverage: 0, corpus: 0, found: None };
        outcome.read("#4096\tpulse  cov: 817 ft: 2210 corp: 92/3210b lim: 43 exec/s: 2048 rss: 46Mb");
        assert_eq!((outcome.runs, outcome.coverage, outcome.corpus), (4096, 817, 92));
        outcome.read("stat::number_of_executed_units: 5000");
        outcome.read("artifact_prefix='found/http-'; Test unit written to found/http-crash-01");
        assert_eq!((outcome.runs, outcome.found), (5000, Some(PathBuf::from("found/http-crash-01"))));
    }

    #[test]
    fn each_target_has_a_folder_in_the_corpus() {
        for target in TARGETS {
            assert!(corpus_of(target).is_dir(), "{target}");
        }
        let folders = fs::read_dir(workspace().join("tests/fuzz/corpus")).unwrap().count();
        assert_eq!(folders, TARGETS.len());
    }
}
