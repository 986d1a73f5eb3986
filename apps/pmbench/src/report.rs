//! `pmbench report`: results.json as a table, as report.md and as plots.

mod breakdown;
mod markdown;
mod numbers;
mod plots;
mod stats;
mod targets;
#[cfg(test)]
mod tests;
mod text;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::protocol::Mode;
use crate::results::{Cell, Link, Load, Results};
pub use plots::Font;
pub use targets::REFERENCE;

/// Which results to report on.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  Once more, after results.json was changed or this program was:
    pmbench report compare")]
pub struct ReportArgs {
    /// The folder that `pmbench run` wrote.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Writes report.md and the plots anew, and the table to `out`.
///
/// # Errors
/// The folder holds no results, or cannot be written; there is no font for the plots.
pub fn report(args: &ReportArgs, out: &mut impl Write) -> Result<()> {
    let font = Font::load()?;
    write(&Results::read(&args.folder)?, &args.folder, font, out)
}

/// Writes report.md and the plots into `folder`, and the table to `out`.
///
/// # Errors
/// What the file system says.
pub fn write(results: &Results, folder: &Path, font: Font, out: &mut impl Write) -> Result<()> {
    let plots = plots::draw(results, folder, font)?;
    let file = folder.join("report.md");
    fs::write(&file, markdown::report(results, &plots))
        .with_context(|| format!("cannot write {}", file.display()))?;
    out.write_all(text::table(results).as_bytes())?;
    Ok(out.flush()?)
}

/// The servers whose stages a report wants to know, each with its load: of all targets for which both sides were
/// measured, the sides that have stages.
pub fn to_be_profiled(cells: &[Cell]) -> Vec<(Link, Mode, Load)> {
    let mut wanted = Vec::new();
    for target in targets::TARGETS.iter().filter(|target| target.measured(cells).is_some()) {
        let (one, other) = target.servers();
        for server in [one, other].into_iter().filter(|server| !server.mode.is_kernel()) {
            let task = (server.link, server.mode, target.load());
            if !wanted.contains(&task) {
                wanted.push(task);
            }
        }
    }
    wanted
}

/// Whether some target compares this server under this load.
pub fn is_compared(link: Link, mode: Mode, load: Load) -> bool {
    targets::TARGETS.iter().any(|target| {
        let (one, other) = target.servers();
        target.load() == load && [one, other].iter().any(|server| (server.link, server.mode) == (link, mode))
    })
}
