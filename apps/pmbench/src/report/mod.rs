//! `pmbench report`: results.json as a table, as report.md and as plots.

mod breakdown;
mod markdown;
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

/// The load that stands for all where one must: the targets' own, or else the first that was measured.
fn reference(results: &Results) -> Option<Load> {
    let loads = || results.cells.iter().map(|cell| cell.load).filter(|load| load.persist_delay_us == 0);
    loads().find(|load| (load.size, load.connections) == (1024, 50)).or_else(|| loads().next())
}

/// The servers in the order of the modes, those on veth first.
fn servers(results: &Results) -> Vec<stats::Server> {
    let all = results.cells.iter().map(|cell| stats::Server { link: cell.link, mode: cell.mode });
    let mut servers: Vec<_> = all.collect();
    servers.sort();
    servers.dedup();
    servers
}

/// A number with as many digits as say something, thousands apart.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    grouped(&format!("{value:.digits$}"))
}

/// A number without digits behind the point, thousands apart.
fn whole(value: f64) -> String {
    grouped(&format!("{value:.0}"))
}

fn grouped(text: &str) -> String {
    let (whole, fraction) =
        text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.map(|fraction| format!(".{fraction}")).unwrap_or_default();
    format!("{sign}{grouped}{fraction}")
}
