//! `pmbench run`: every mode on every link under every load, side by side.
//!
//! A cell is a fresh server on one CPU and a fresh client on another. The modes take turns with each load, so that
//! what is compared lies close together in time, and all of it is done several times.

pub mod cli;
mod confirm;
mod core_time;
mod matrix;
mod measure;
mod profile;
mod testbed;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::Progress;
use crate::protocol::Ready;
use crate::report::{self, Font};
use crate::results::{Failure, ModeNotes, QUIET, Results, Run};
use crate::run::cli::RunArgs;
use crate::run::core_time::CoreTime;
use crate::run::matrix::Task;
use crate::run::measure::measure;
use crate::run::testbed::{Cores, Testbed};

/// Runs the comparison, writes its results and their report, and the table to `out`.
///
/// # Errors
/// The machine does not offer what is needed; or a mode failed, after all the others ran and the report was written.
pub fn run(args: &RunArgs, out: &mut impl Write) -> Result<()> {
    match &args.inside {
        None => start_inside(args),
        Some(directory) => run_inside(args, directory, out),
    }
}

/// Starts this program once more, in namespaces of its own.
fn start_inside(args: &RunArgs) -> Result<()> {
    ensure!(
        args.server_core != args.client_core,
        "server and client need a CPU each; give them different ones"
    );
    // Before the measuring, which is long.
    Font::load()?;
    let permitted = program::permitted_cpus()?;
    for core in [args.server_core, args.client_core] {
        ensure!(
            permitted.contains(&core),
            "CPU {core} cannot be used; a comparison needs two CPUs: choose them by --server-core and --client-core"
        );
    }
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let directory = lab::scratch_directory("compare-")?;
    let program = std::env::current_exe()?;
    let mut command = if args.unsteered {
        lab::inside(&program)?
    } else {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root may steer received packets to the server's CPU, as a fair comparison needs; run this as root, \
             or pass --unsteered"
        );
        lab::inside_as_root(&program)?
    };
    command.args(std::env::args_os().skip(1)).arg("--inside").arg(directory.path());
    let stop = program::stop_signal().context("signals cannot be handled")?;
    let mut child = command.spawn().context("cannot start the comparison in namespaces of its own")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop.load(Ordering::Relaxed) {
            // All that it started ends with it.
            child.kill()?;
            child.wait()?;
            bail!("interrupted; nothing was written");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        // What was wrong is said already; ending here leaves nothing to be dropped.
        drop(directory);
        std::process::exit(1);
    }
    Ok(())
}

fn run_inside(args: &RunArgs, directory: &Path, out: &mut impl Write) -> Result<()> {
    let stop = program::stop_signal().context("signals cannot be handled")?;
    // What this process does must not count as the server's.
    program::pin(args.client_core)?;
    let cores = Cores { server: args.server_core, client: args.client_core, steered: !args.unsteered };
    let testbed = Testbed::enter(directory, cores)?;
    let busy_before = busy_before(cores)?;
    if busy_before > QUIET {
        eprintln!(
            "warning: the CPUs are {:.0} % busy with something else; the figures will not be worth much",
            busy_before * 100.0
        );
    }
    let mut results = Results { run: Run { busy_before, ..about(args) }, ..Results::default() };
    measure_all(args, &testbed, &stop, &mut results)?;
    profile::profile(args, &testbed, &stop, &mut results)?;
    if !args.no_wrk {
        confirm::confirm(args, &testbed, &stop, &mut results)?;
    }
    results.write(&args.out)?;
    report::write(&results, &args.out, Font::load()?, out)?;
    match results.run.failures.as_slice() {
        [] => Ok(()),
        failures => bail!("{} cells failed; the first says: {}", failures.len(), failures[0].why),
    }
}

fn measure_all(args: &RunArgs, testbed: &Testbed, stop: &AtomicBool, results: &mut Results) -> Result<()> {
    let tasks = matrix::tasks(args);
    ensure!(!tasks.is_empty(), "no mode runs on the links that were chosen; the kernel's modes need veth");
    let progress = Progress::start(tasks.len());
    for task in tasks {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted; nothing was written");
        let Task { link, mode, load, round } = task;
        let what = format!("round {round}  {link} {mode} {load}");
        progress.begin(&what);
        match measure(testbed, args, task) {
            Ok(measured) => {
                let rate = measured.cell.requests_per_s.map(|rate| format!("{rate:.0} requests/s"));
                progress.end(&what, rate.as_deref().unwrap_or("skipped"));
                if let Some(ready) = measured.ready {
                    note(&mut results.run.modes, ready);
                }
                results.cells.push(measured.cell);
                results.run.details.push(measured.detail);
            }
            Err(error) => {
                let why = format!("{error:#}");
                progress.complain(&what, &why);
                let during = format!("round {round}");
                results.run.failures.push(Failure { link, mode, load, during, why });
            }
        }
    }
    Ok(())
}

/// Keeps what a mode says of itself, once.
fn note(modes: &mut Vec<ModeNotes>, ready: Ready) {
    let Ready { mode, domain, notes, .. } = ready;
    match modes.iter_mut().find(|known| known.mode == mode) {
        None => modes.push(ModeNotes { mode, domain, notes }),
        Some(known) => {
            for note in notes {
                if !known.notes.contains(&note) {
                    known.notes.push(note);
                }
            }
        }
    }
}

/// What part of the two CPUs, the busier one, is taken by something else.
fn busy_before(cores: Cores) -> Result<f64> {
    let read = || [cores.server, cores.client].map(CoreTime::read);
    let before = read();
    std::thread::sleep(Duration::from_millis(500));
    let mut busiest: f64 = 0.0;
    for (now, then) in read().into_iter().zip(before) {
        let used = now?.since(&then?);
        busiest = busiest.max(used.busy_ns() as f64 / used.elapsed_ns as f64);
    }
    Ok(busiest.min(1.0))
}

/// The circumstances.
fn about(args: &RunArgs) -> Run {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Run {
        date: date(),
        cpu: model.map_or(std::env::consts::ARCH, |(_, model)| model).to_owned(),
        // This process is tied to one of them by now.
        cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        is_virtual: cpuinfo.split_whitespace().any(|word| word == "hypervisor"),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        commit: args.commit.clone(),
        server_core: args.server_core,
        client_core: args.client_core,
        seconds: args.seconds,
        rounds: args.rounds.get(),
        steered: !args.unsteered,
        store_bytes: args.pm_size.as_u64(),
        ..Run::default()
    }
}

/// The day in UTC, as date(1) says it; empty where it does not.
fn date() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
