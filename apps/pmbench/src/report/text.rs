//! The table for the terminal.

use std::fmt::Write as _;

use super::numbers::number;
use super::stats::{Figure, reference, servers, spread, stream_loads};
use super::targets::{TARGETS, Verdict};
use crate::results::Results;

/// Columns of a table: what stands above, and a cell's figure.
pub const COLUMNS: [(&str, Figure); 9] = [
    ("requests/s", |cell| cell.requests_per_s),
    ("p50 us", |cell| cell.p50_us),
    ("p99 us", |cell| cell.p99_us),
    ("p99.9 us", |cell| cell.p999_us),
    ("CPU ns", |cell| cell.server_cpu_ns_per_request),
    ("copied B", |cell| cell.copied_bytes_per_request),
    ("lines", |cell| cell.flushed_lines_per_request),
    ("fences", |cell| cell.fences_per_request),
    ("PM B/B", |cell| cell.pm_bytes_per_payload_byte),
];

/// The reference load as a table of medians, and the targets.
pub fn table(results: &Results) -> String {
    let mut table = String::new();
    let Some(load) = reference(results) else { return table };
    line(
        &mut table,
        format_args!("{load}; medians of {} round(s), all but the rate per request", results.run.rounds),
    );
    let titles = COLUMNS.iter().map(|(title, _)| format!("{title:>11}")).collect::<String>();
    line(&mut table, format_args!("{:<24}{titles}", "link  mode"));
    for server in servers(results) {
        let name = format!("{:<5} {}", server.link.to_string(), server.mode);
        let of_server = || {
            let of = |cell: &&crate::results::Cell| (cell.link, cell.mode) == (server.link, server.mode);
            results.cells.iter().filter(of)
        };
        if let Some(reason) = of_server().find_map(|cell| cell.skipped.as_deref()) {
            line(&mut table, format_args!("{name:<24}  skipped: {reason}"));
            continue;
        }
        let figures = COLUMNS.iter().map(|(_, figure)| {
            let median = spread(&results.cells, server, load, *figure).map(|spread| number(spread.median));
            format!("{:>11}", median.unwrap_or_else(|| "-".to_owned()))
        });
        line(&mut table, format_args!("{name:<24}{}", figures.collect::<String>()));
    }
    streams(&mut table, results);
    for failure in &results.run.failures {
        line(
            &mut table,
            format_args!(
                "FAILED  {} {} {} {}: {}",
                failure.link, failure.mode, failure.load, failure.during, failure.why
            ),
        );
    }
    line(&mut table, format_args!("\ntargets"));
    for target in &TARGETS {
        let measured = target.measured(&results.cells);
        let verdict = match target.verdict(measured) {
            Verdict::Met => "met",
            Verdict::Missed => "MISSED",
            Verdict::NotMeasured => continue,
        };
        let link = target.link().map(|link| format!("{link}: ")).unwrap_or_default();
        line(
            &mut table,
            format_args!(
                "{verdict:<7} {:>7} (wanted {:>6})  {link}{}, {}, {}",
                measured.map(|spread| number(spread.median)).unwrap_or_default(),
                target.wanted().to_string(),
                target.compared(),
                target.figure(),
                target.load(),
            ),
        );
    }
    table
}

/// What servers make of large records over one connection.
fn streams(table: &mut String, results: &Results) {
    for load in stream_loads(results) {
        line(table, format_args!("\n{load}: Gbit per CPU second, Gbit/s"));
        for server in servers(results) {
            let median =
                |figure| spread(&results.cells, server, load, figure).map(|spread| number(spread.median));
            let figures = median(|cell| cell.gbit_per_cpu_s).zip(median(|cell| cell.gbit_per_s));
            let Some((per_cpu, rate)) = figures else { continue };
            let name = format!("{:<5} {}", server.link.to_string(), server.mode);
            line(table, format_args!("{name:<24}{per_cpu:>11}{rate:>11}"));
        }
    }
}

fn line(table: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(table, "{line}").expect("writing to a string does not fail");
}
