//! `cargo xtask test`: what must hold before anything is merged.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::setup::Packages;
use crate::steps::{Step, cargo, lines};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    /// Only the tests within crates: no lints, no documentation, no network namespaces.
    #[arg(long)]
    fast: bool,
    /// Everything but the virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// Only the tests of this package; may be repeated.
    #[arg(long, short, value_name = "NAME")]
    package: Vec<String>,
    /// Only the tests whose name contains this.
    filter: Option<String>,
}

impl Options {
    /// Only the tests of one package.
    pub fn of_package(packages: Packages, name: &str) -> Self {
        Self { packages, fast: false, no_vm: true, package: vec![name.to_owned()], filter: None }
    }
}

/// Runs all steps, and returns whether all of them passed. The last line is `N passed, M failed`.
pub fn run(options: &Options) -> Result<bool> {
    options.packages.provide()?;
    let narrowed = options.fast || options.filter.is_some() || !options.package.is_empty();
    let mut total = Tally::default();

    if !narrowed {
        total.step("format", cargo().args(["fmt", "--all", "--check"]))?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
        total.step("lint", cargo().args(clippy))?;
    }
    // The tests across crates start the server and examples, and cargo builds nothing of another package for them.
    let starts_others =
        !options.fast && (options.package.is_empty() || options.package.iter().any(|p| p == "integration"));
    let mut build = cargo();
    build.args(["build", "--package", "pmlog", "--bins", "--package", "stack", "--examples"]);
    if !starts_others || total.step("build", build.args(["--features", "stack/dpdk"]))? {
        total.tests(options)?;
    }
    if !narrowed {
        let doc = ["doc", "--workspace", "--no-deps", "--quiet"];
        total.step("document", cargo().args(doc).env("RUSTDOCFLAGS", "--deny warnings"))?;
    }

    if !narrowed {
        let mut instructions = xtask(options, &["bench", "instructions", "--quick"]);
        total.step("instructions", &mut instructions)?;
    }
    if !narrowed && !options.no_vm {
        total.machine(options)?;
    }

    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

/// Tests that passed and failed; a failed step without a failed test counts as one.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Runs a step that says nothing unless it fails.
    fn step(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        let step = Step::start(name);
        let (status, output) = step.follow(command)?;
        if status.success() {
            step.end("ok");
        } else {
            self.failed += 1;
            step.end("FAILED");
            println!("{output}");
        }
        Ok(status.success())
    }

    /// What `cargo xtask vm` runs where nothing else is said.
    fn machine(&mut self, options: &Options) -> Result<()> {
        let step = Step::start("vm");
        let mut command = xtask(options, &["vm"]);
        let mut output = String::new();
        let mut counts = None;
        let status = lines(&mut command, |line| {
            step.progress(line.trim());
            counts = passed_and_failed(line).or(counts);
            output.push_str(line);
            output.push('\n');
        })?;
        // Without a closing line it did not come to its scenarios, which is a failure of its own.
        let (passed, failed) = counts.unwrap_or((0, 1));
        self.passed += passed;
        self.failed += failed.max(u64::from(!status.success()));
        if status.success() && counts.is_some() {
            step.end(&format!("{passed} scenarios passed"));
        } else {
            step.end("FAILED");
            println!("{output}");
        }
        Ok(())
    }

    fn tests(&mut self, options: &Options) -> Result<()> {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]);
        if options.package.is_empty() {
            command.arg("--workspace");
            if options.fast {
                command.args(["--exclude", "integration", "--exclude", "lab"]);
            }
        }
        for package in &options.package {
            command.args(["--package", package]);
        }
        command.args(&options.filter);

        let step = Step::start("test");
        let mut report = Report::default();
        let status = lines(&mut command, |line| {
            step.progress(line.trim());
            if let Some(suite) = report.line(line) {
                show(&step, &suite);
            }
        })?;
        if let Some(suite) = report.end(status.success()) {
            show(&step, &suite);
        }
        self.passed += report.passed;
        self.failed += report.failed;
        if !status.success() && report.failed == 0 {
            self.failed += 1;
        }
        step.end(if status.success() { "ok" } else { "FAILED" });
        Ok(())
    }
}

/// Another task of this program. Not by this very file: building the tests may have put another in its place.
fn xtask(options: &Options, task: &[&str]) -> Command {
    let (name, more) = task.split_at(1);
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "xtask", "--"]).args(name);
    if options.packages.no_setup {
        command.arg("--no-setup");
    }
    command.args(more);
    command
}

/// The numbers of a closing line `N passed, M failed`.
fn passed_and_failed(line: &str) -> Option<(u64, u64)> {
    let (passed, failed) = line.trim().split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

/// Prints a suite's line, and what it wrote if it failed, with the names of its failed tests last.
fn show(step: &Step, suite: &Suite) {
    let ignored = if suite.ignored > 0 { format!(", {} ignored", suite.ignored) } else { String::new() };
    if suite.failed > 0 {
        step.print(&suite.output);
        let (name, passed, failed) = (&suite.name, suite.passed, suite.failed);
        step.print(&format!("  FAILED  {name}: {passed} passed, {failed} failed{ignored}"));
        for test in suite.failed_tests() {
            step.print(&format!("          {test}"));
        }
    } else if suite.passed > 0 || suite.ignored > 0 {
        step.print(&format!("      ok  {}: {} passed{ignored}", suite.name, suite.passed));
    }
}

/// One test binary, or one crate's examples in the documentation.
#[derive(Default, Debug, PartialEq, Eq)]
struct Suite {
    name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Everything it wrote.
    output: String,
    /// It wrote a result line.
    has_result: bool,
}

impl Suite {
    fn failed_tests(&self) -> impl Iterator<Item = &str> {
        let summary = self.output.rsplit_once("\nfailures:\n").map_or("", |(_, summary)| summary);
        summary.lines().map_while(|line| line.strip_prefix("    "))
    }
}

/// Reads what `cargo test --no-fail-fast` writes.
#[derive(Default)]
struct Report {
    passed: u64,
    failed: u64,
    suite: Option<Suite>,
}

impl Report {
    /// Takes in a line, and returns a suite that ended before it.
    fn line(&mut self, line: &str) -> Option<Suite> {
        let mut ended = None;
        if let Some(name) = suite_name(line) {
            ended = self.end(true);
            self.suite = Some(Suite { name, ..Suite::default() });
        }
        // What comes before the first suite is cargo building: an error there is shown as a suite is.
        let suite = self.suite.get_or_insert_with(|| Suite { name: "build".to_owned(), ..Suite::default() });
        suite.output.push_str(line);
        suite.output.push('\n');
        if let Some((passed, failed, ignored)) = result(line) {
            // A test that starts another test binary shows that one's result line, too: the last one counts.
            (suite.passed, suite.failed, suite.ignored) = (passed, failed, ignored);
            suite.has_result = true;
        } else if line.starts_with("error: test failed") || line.starts_with("error: doctest failed") {
            // It was cut off, by an abort or a signal, or has no such line at all.
            if !suite.has_result || suite.failed == 0 {
                suite.failed += 1;
                suite.has_result = true;
            }
        }
        ended
    }

    /// Takes in the end, and returns the last suite.
    fn end(&mut self, success: bool) -> Option<Suite> {
        let mut suite = self.suite.take()?;
        if suite.name == "build" && !success {
            suite.failed += 1;
        } else if suite.name != "build" && !suite.has_result {
            // A suite with a harness of its own: cargo has told that it failed, or it passed as one.
            suite.passed += 1;
        }
        self.passed += suite.passed;
        self.failed += suite.failed;
        Some(suite)
    }
}

/// `     Running tests/x.rs (target/debug/deps/x-0123)` and `   Doc-tests pmem`.
fn suite_name(line: &str) -> Option<String> {
    if let Some(running) = line.strip_prefix("     Running ") {
        let (source, binary) = running.rsplit_once(" (")?;
        let binary = Path::new(binary.strip_suffix(')')?).file_name()?.to_str()?;
        let name = binary.rsplit_once('-').map_or(binary, |(name, _hash)| name);
        let source = source.strip_prefix("unittests ").unwrap_or(source);
        return Some(format!("{name} ({source})"));
    }
    line.strip_prefix("   Doc-tests ").map(|name| format!("{name} (documentation)"))
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
fn result(line: &str) -> Option<(u64, u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count =
        |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse::<u64>().ok());
    Some((count("passed")?, count("failed")?, count("ignored")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> (Vec<Suite>, u64, u64) {
        let mut report = Report::default();
        let mut suites: Vec<Suite> = text.lines().filter_map(|line| report.line(line)).collect();
        suites.extend(report.end(success));
        (suites, report.passed, report.failed)
    }

    #[test]
    fn a_closing_line_is_read_and_no_other() {
        assert_eq!(passed_and_failed("4 passed, 1 failed"), Some((4, 1)));
        for other in ["4 passed", "PASS e1000e", "x passed, 1 failed", "4 passed, 1 failed, 2 ignored", ""] {
            assert_eq!(passed_and_failed(other), None, "{other}");
        }
    }

    #[test]
    fn counts_are_summed_over_suites() {
        let text = "   Compiling pmem v0.1.0\n     Running unittests src/lib.rs (target/debug/deps/pmem-01ab)\n\
                    \nrunning 4 tests\ntest a ... ok\n\
                    test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    \x20    Running tests/recovery.rs (target/debug/deps/recovery-01ab)\n\
                    \nfailures:\n\n---- cut stdout ----\nno\n\nfailures:\n    cut\n    flip\n\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n\
                    error: test failed, to rerun pass `-p pmem --test recovery`\n\
                    \x20  Doc-tests pmem\n\
                    test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let (suites, passed, failed) = read(text, false);
        let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(
            names,
            ["build", "pmem (src/lib.rs)", "recovery (tests/recovery.rs)", "pmem (documentation)"]
        );
        assert_eq!((passed, failed), (9, 2));
        assert_eq!(suites[1].ignored, 1);
        assert_eq!(suites[2].failed_tests().collect::<Vec<_>>(), ["cut", "flip"]);
        assert!(suites[1].output.contains("test a ... ok") && !suites[2].output.contains("test a"));
    }

    #[test]
    fn a_suite_that_was_cut_off_has_failed() {
        let text = "     Running tests/x.rs (target/debug/deps/x-01ab)\nrunning 2 tests\ntest a ... ok\n\
                    error: test failed, to rerun pass `-p pmem --test x`\n\
                    Caused by:\n  process didn't exit successfully (signal: 6, SIGABRT)\n";
        assert_eq!(read(text, false).2, 1);
    }

    #[test]
    fn a_suite_with_its_own_harness_counts_as_one() {
        let text = "     Running tests/x.rs (target/debug/deps/x-01ab)\nall fine\n";
        let (_, passed, failed) = read(text, true);
        assert_eq!((passed, failed), (1, 0));
    }

    #[test]
    fn a_failed_build_is_a_failure_and_is_shown() {
        let (suites, passed, failed) = read("error[E0308]: mismatched types\n", false);
        assert_eq!((passed, failed), (0, 1));
        assert!(suites[0].output.contains("E0308"));
    }
}
