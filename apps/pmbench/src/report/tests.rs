//! A small comparison, and what is shown of it.

use stack::profile::Stage;

use super::stats::reference;
use super::{Font, markdown, text, write};
use crate::protocol::Mode;
use crate::results::{
    Cell, Confirmation, CoreShares, Detail, Failure, Kind, Link, Load, ModeNotes, Profiled, Results, Run,
    StageShare,
};

const LOAD: Load = Load::requests(1024, 50);

fn cell(link: Link, mode: Mode, load: Load, round: u32, rate: f64) -> Cell {
    let durable = mode != Mode::PasteEcho;
    Cell {
        requests_per_s: Some(rate),
        p50_us: Some(1e6 / rate),
        p99_us: Some(4e6 / rate),
        p999_us: Some(9e6 / rate),
        server_cpu_ns_per_request: Some(8e8 / rate),
        copied_bytes_per_request: Some(if mode == Mode::StatusQuo { 1024.0 } else { 0.0 }),
        flushed_lines_per_request: Some(if durable { 18.0 } else { 0.0 }),
        fences_per_request: Some(if mode == Mode::StatusQuo { 1.0 } else { 0.03 }),
        pm_bytes_per_payload_byte: durable.then_some(2.1875),
        skipped: None,
        ..Cell::skipped(link, mode, load, round, String::new())
    }
}

/// A profile whose stages take so many nanoseconds, and what lies between bursts 30.
fn profiled(link: Link, mode: Mode, ns: [f64; 8]) -> Profiled {
    let share = |(&stage, ns_per_request): (&Stage, f64)| StageShare { stage, ns_per_request };
    let cpu_ns = ns.iter().sum::<f64>() + 30.0;
    Profiled {
        link,
        mode,
        load: LOAD,
        requests_per_s: 9e8 / cpu_ns,
        p50_us: cpu_ns / 20.0,
        server_cpu_ns_per_request: cpu_ns,
        stages: Stage::ALL.iter().zip(ns).map(share).collect(),
        measuring_ns_per_request: 40.0,
    }
}

/// Five modes in two rounds, the second half as fast; one that was skipped, and one that failed.
fn results() -> Results {
    let one = Load { connections: 1, ..LOAD };
    let mut cells = Vec::new();
    for (round, speed) in [(1, 1.0), (2, 0.5)] {
        cells.push(cell(Link::Veth, Mode::StatusQuo, LOAD, round, 50_000.0 * speed));
        cells.push(cell(Link::Veth, Mode::Paste, LOAD, round, 150_000.0 * speed));
        cells.push(cell(Link::Memif, Mode::Paste, LOAD, round, 400_000.0 * speed));
        cells.push(cell(Link::Memif, Mode::PasteEcho, LOAD, round, 500_000.0 * speed));
        // A target that is met in the first round only.
        cells.push(cell(Link::Memif, Mode::DpdkCopy, LOAD, round, 320_000.0 * (1.25 * speed).min(1.0)));
        cells.push(cell(Link::Ring, Mode::DpdkCopy, LOAD, round, 250_000.0 * speed));
        cells.push(cell(Link::Ring, Mode::Paste, LOAD, round, 700_000.0 * speed));
        cells.push(cell(Link::Veth, Mode::StatusQuo, one, round, 10_000.0 * speed));
        cells.push(cell(Link::Veth, Mode::Paste, one, round, 20_000.0 * speed));
        for (mode, rate) in [(Mode::DpdkCopy, 1_000.0), (Mode::Paste, 2_500.0)] {
            let up = cell(Link::Memif, mode, Load::stream(Kind::StreamUp, 1 << 20), round, rate * speed);
            let gbit = rate * speed * f64::from(1 << 23) / 1e9;
            cells.push(Cell { gbit_per_s: Some(gbit), gbit_per_cpu_s: Some(1.25 * gbit), ..up });
        }
        cells.push(Cell::skipped(Link::Veth, Mode::Kcm, LOAD, round, "the kernel has no AF_KCM".to_owned()));
    }
    let core = CoreShares { user_ns: 1_000.0, system_ns: 9_000.0, softirq_ns: 6_000.0 };
    let details = cells.iter().map(|_| Detail { client_busy: 0.42, core, ..Detail::default() }).collect();
    let confirmed = |mode, requests_per_s, server_cpu_ns_per_request| Confirmation {
        mode,
        load: LOAD,
        requests_per_s,
        server_cpu_ns_per_request,
    };
    let run = Run {
        date: "2026-01-31".to_owned(),
        cpu: "A Processor".to_owned(),
        cores: 2,
        is_virtual: true,
        kernel: "6.1.0".to_owned(),
        commit: "abcdef0".to_owned(),
        server_core: 0,
        client_core: 1,
        busy_before: 0.02,
        steered: true,
        seconds: 1.0,
        rounds: 2,
        store_bytes: 256 << 20,
        modes: vec![ModeNotes {
            mode: Mode::Paste,
            domain: Some("volatile (clwb, sfence)".to_owned()),
            notes: vec!["a note".to_owned()],
        }],
        details,
        profiles: vec![
            profiled(Link::Veth, Mode::Paste, [2500.0, 100.0, 200.0, 300.0, 60.0, 10.0, 80.0, 3000.0]),
            profiled(Link::Memif, Mode::DpdkCopy, [150.0, 0.0, 400.0, 500.0, 50.0, 10.0, 100.0, 90.0]),
            profiled(Link::Memif, Mode::Paste, [450.0, 100.0, 190.0, 310.0, 60.0, 10.0, 80.0, 100.0]),
        ],
        confirmation: vec![
            confirmed(Mode::StatusQuo, 40_000.0, 17_000.0),
            confirmed(Mode::Paste, 60_000.0, 6_000.0),
        ],
        failures: vec![Failure {
            link: Link::Memif,
            mode: Mode::Limit,
            load: LOAD,
            during: "round 2".to_owned(),
            why: "the server ended with exit status: 1".to_owned(),
        }],
    };
    Results { cells, run }
}

#[test]
fn a_small_comparison_as_a_page() {
    insta::assert_snapshot!("page", markdown::report(&results(), &[]));
}

#[test]
fn a_small_comparison_as_a_table() {
    insta::assert_snapshot!("table", text::table(&results()));
}

#[test]
fn the_page_names_its_plots_and_they_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let font = Font::load().expect("the font of the packages that are needed");
    write(&results(), folder.path(), font, &mut Vec::new()).expect("written");
    let page = std::fs::read_to_string(folder.path().join("report.md")).expect("the page");
    for plot in ["latency-veth", "connections-veth", "cpu"] {
        assert!(page.contains(&format!("({plot}.svg)")), "{plot} is not on the page");
        let svg =
            std::fs::read_to_string(folder.path().join(plot).with_extension("svg")).expect("an SVG file");
        assert!(svg.starts_with("<svg") && svg.contains("paste"), "{plot}: {svg}");
        let png = std::fs::read(folder.path().join(plot).with_extension("png")).expect("a PNG file");
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{plot}: {} bytes", png.len());
    }
    // One size makes no line, and on memif there was one load.
    assert!(!page.contains("size-veth") && !page.contains("connections-memif"));
}

#[test]
fn a_comparison_that_is_not_fair_says_so() {
    let mut results = results();
    let page = markdown::report(&results, &[]);
    assert!(!page.contains("Unsteered") && !page.contains("Not a quiet machine"));
    results.run.steered = false;
    results.run.busy_before = 0.3;
    let page = markdown::report(&results, &[]);
    assert!(page.contains("Unsteered") && page.contains("30 % busy"));
}

#[test]
fn another_load_stands_in_for_the_targets_own() {
    let mut results = results();
    assert_eq!(reference(&results), Some(LOAD));
    results.cells.retain(|cell| cell.load != LOAD);
    assert_eq!(reference(&results), Some(Load { connections: 1, ..LOAD }));
    assert!(text::table(&results).contains("1024 B, 1 connection;"));
    results.cells.clear();
    assert_eq!(text::table(&results), "");
    markdown::report(&results, &[]);
}
