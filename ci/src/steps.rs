//! Steps with a name, a time and a result.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

/// One line of a report while its step runs: a spinner on a terminal, silence elsewhere.
pub struct Step {
    name: String,
    started: Instant,
    spinner: ProgressBar,
    is_ended: bool,
    /// Whether standard output is for something else, so that it is told on standard error.
    is_aside: bool,
}

impl Step {
    /// Starts a step.
    pub fn start(name: &str) -> Self {
        Self::start_beside(name, false)
    }

    /// Starts a step beside JSON, if that is what is printed: of the step only standard error tells then.
    pub fn start_beside(name: &str, is_json: bool) -> Self {
        let spinner = ProgressBar::new_spinner()
            .with_style(
                ProgressStyle::with_template("{spinner} {prefix:<10} {wide_msg}").expect("a valid template"),
            )
            .with_prefix(name.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { name: name.to_owned(), started: Instant::now(), spinner, is_ended: false, is_aside: is_json }
    }

    /// What it is doing just now.
    pub fn progress(&self, message: &str) {
        self.spinner.set_message(message.to_owned());
    }

    /// Runs a command whose lines show what the step is doing; how it ended, and all that it wrote.
    pub fn follow(&self, command: &mut Command) -> Result<(ExitStatus, String)> {
        let mut output = String::new();
        let status = lines(command, |line| {
            self.progress(line.trim());
            output.push_str(line);
            output.push('\n');
        })?;
        Ok((status, output))
    }

    /// Prints a line above the running step.
    pub fn print(&self, line: &str) {
        self.spinner.suspend(|| self.say(line));
    }

    /// Ends the step with what came of it.
    pub fn end(mut self, result: &str) {
        self.report(result);
    }

    fn report(&mut self, result: &str) {
        self.is_ended = true;
        self.spinner.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&format!("{seconds:>7.1} s  {:<10} {result}", self.name));
    }

    fn say(&self, line: &str) {
        if self.is_aside { eprintln!("{line}") } else { println!("{line}") }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.is_ended {
            self.report("FAILED");
        }
    }
}

/// A command of cargo's, as the one that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The folder of the workspace's Cargo.toml.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ci/ lies in the workspace")
}

/// How programs are built.
#[derive(Clone, Copy)]
pub enum Profile {
    /// Sooner built: for trying things out.
    Quick,
    /// As fast as they get.
    Release,
}

/// Builds packages' programs of the same names, in the profile that is for trying things out, as a step.
pub fn programs<const N: usize>(packages: [&str; N]) -> Result<[PathBuf; N]> {
    programs_in(Profile::Quick, packages)
}

/// Builds packages' programs of the same names, as a step.
pub fn programs_in<const N: usize>(profile: Profile, packages: [&str; N]) -> Result<[PathBuf; N]> {
    let profile = match profile {
        Profile::Quick => "quick",
        Profile::Release => "release",
    };
    let step = Step::start("build");
    let mut command = cargo();
    command.args(["build", "--profile", profile]);
    for package in packages {
        command.args(["--package", package]);
    }
    let (status, output) = step.follow(&mut command)?;
    ensure!(status.success(), "{} cannot be built\n{output}", packages.join(" and "));
    step.end(&packages.join(" and "));
    Ok(packages.map(|name| lab::target_directory().join(profile).join(name)))
}

/// Runs a command and hands over each line it writes, whether to standard output or to standard error.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // The command holds the writing ends until it is replaced; the reader would wait for them for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(child.wait()?)
}

/// A fact for the record; empty where nobody knows it.
pub fn said_by(command: &mut Command) -> String {
    let output = command.current_dir(workspace()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
