//! Where the time goes in the servers that the targets speak of: one more run of each, after the rounds.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use super::matrix::Task;
use super::measure;
use super::testbed::Testbed;
use crate::progress::Progress;
use crate::report;
use crate::results::{Failure, Results};
use crate::run::cli::RunArgs;

/// Profiles each server and load that some target compares, if both sides of it were measured.
pub fn profile(args: &RunArgs, testbed: &Testbed, stop: &AtomicBool, results: &mut Results) -> Result<()> {
    let servers = report::to_be_profiled(&results.cells);
    let progress = Progress::start(servers.len());
    for (link, mode, load) in servers {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted; nothing was written");
        let what = format!("profile  {link} {mode} {load}");
        progress.begin(&what);
        match measure::profile(testbed, args, Task { link, mode, load, round: 0 }) {
            Ok(profiled) => {
                progress.end(&what, &format!("{:.0} requests/s", profiled.requests_per_s));
                results.run.profiles.push(profiled);
            }
            Err(error) => {
                let why = format!("{error:#}");
                progress.complain(&what, &why);
                results.run.failures.push(Failure { link, mode, load, during: "profile".to_owned(), why });
            }
        }
    }
    Ok(())
}
