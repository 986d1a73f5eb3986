//! A small comparison from end to end: servers, clients, links, and what is written about them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A comparison of a few modes, as short as it gets.
fn compare(out: &Path, more: &[&str]) -> Output {
    ends(&mut command(out, "2", "1", more))
}

fn ends(command: &mut Command) -> Output {
    lab::output_within(command.stdin(Stdio::null()), Duration::from_secs(120)).expect("it ends")
}

fn command(out: &Path, connections: &str, rounds: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args(["run", "--sizes", "1024", "--connections", connections, "--persist-delay-us", "0"]);
    command.args(["--rounds", rounds, "--seconds", "0.3", "--warmup", "0", "--out"]).arg(out).args(more);
    if !rustix::process::geteuid().is_root() {
        command.arg("--unsteered");
    }
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn read(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn each_mode_is_measured_on_its_links() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let output =
        compare(folder.path(), &["--modes", "status-quo,paste,paste-echo,limit", "--no-wrk", "--no-streams"]);
    assert!(output.status.success(), "{}", text(&output));
    let results = read(&folder.path().join("results.json"));
    let cells = results.as_array().expect("a list of cells");
    let find = |link: &str, mode: &str| {
        let mut cells = cells.iter();
        let cell = cells.find(|cell| cell["link"] == link && cell["mode"] == mode);
        cell.unwrap_or_else(|| panic!("no {mode} on {link} in {results}"))
    };
    assert_eq!(cells.len(), 4 + 3 + 3, "{results}");
    for (link, mode) in [
        ("veth", "status-quo"),
        ("veth", "paste"),
        ("veth", "paste-echo"),
        ("veth", "limit"),
        ("memif", "paste"),
        ("memif", "paste-echo"),
        ("memif", "limit"),
        ("ring", "paste"),
        ("ring", "paste-echo"),
        ("ring", "limit"),
    ] {
        let cell = find(link, mode);
        let figure = |name: &str| cell[name].as_f64().unwrap_or_else(|| panic!("no {name} in {cell}"));
        assert!(figure("requests_per_s") > 0.0 && figure("p50_us") > 0.0, "{cell}");
        assert!(figure("p50_us") <= figure("p99_us") && figure("p99_us") <= figure("p999_us"), "{cell}");
        assert_eq!(
            figure("copied_bytes_per_request"),
            if mode == "status-quo" { 1024.0 } else { 0.0 },
            "{cell}"
        );
        let fences = figure("fences_per_request");
        match mode {
            "status-quo" => assert!((fences - 1.0).abs() < 0.05, "{cell}"),
            "paste" => assert!(fences > 0.4 && fences < 1.05, "one for each burst of up to two: {cell}"),
            _ => assert_eq!(fences, 0.0, "{cell}"),
        }
    }
    let page = std::fs::read_to_string(folder.path().join("report.md")).expect("a report");
    assert!(page.contains("| veth | status-quo |") && page.contains("## What can be compared"), "{page}");
    assert!(text(&output).contains("memif paste-echo"), "{}", text(&output));
}

#[test]
fn where_the_time_goes_is_measured_at_the_loads_of_the_targets() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let modes = ["--modes", "dpdk-copy,paste", "--links", "memif", "--no-wrk", "--no-streams"];
    let output = ends(&mut command(folder.path(), "50", "1", &modes));
    assert!(output.status.success(), "{}", text(&output));
    let cells = read(&folder.path().join("results.json"));
    assert_eq!(cells.as_array().map(Vec::len), Some(2), "profiles are no cells: {cells}");
    let run = read(&folder.path().join("run.json"));
    let profiles = run["profiles"].as_array().expect("a list");
    assert_eq!(profiles.len(), 2, "{run}");
    for profile in profiles {
        let shares = profile["stages"].as_array().expect("a list").iter();
        let sum: f64 = shares.filter_map(|share| share["ns_per_request"].as_f64()).sum();
        let cpu = profile["server_cpu_ns_per_request"].as_f64().expect("a figure");
        assert!(sum > 0.0 && sum <= cpu, "{profile}");
    }
    let page = std::fs::read_to_string(folder.path().join("report.md")).expect("a report");
    assert!(page.contains("## Where a request's time goes") && page.contains("| memif | paste | "), "{page}");
}

#[test]
fn on_ring_each_target_is_judged() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args([
        "run",
        "--links",
        "ring",
        "--only-targets",
        "--connections",
        "50",
        "--persist-delay-us",
        "0",
    ]);
    command
        .args(["--rounds", "1", "--seconds", "0.3", "--warmup", "0", "--no-wrk", "--no-streams", "--out"])
        .arg(folder.path());
    if !rustix::process::geteuid().is_root() {
        command.arg("--unsteered");
    }
    // Eight cells, and as many profiles.
    let output = lab::output_within(command.stdin(Stdio::null()), Duration::from_secs(300)).expect("it ends");
    assert!(output.status.success(), "{}", text(&output));
    let cells = read(&folder.path().join("results.json"));
    // All modes with 1 KiB, and of the others those that are compared.
    let cells = cells.as_array().expect("a list").iter();
    let found: BTreeSet<_> =
        cells.map(|cell| format!("{} {}", cell["size"], cell["mode"].as_str().unwrap_or_default())).collect();
    let compared = [64, 1024, 8192].map(|size| ["dpdk-copy", "paste"].map(|mode| format!("{size} {mode}")));
    let bounds = ["1024 paste-echo", "1024 limit"].map(str::to_owned);
    assert_eq!(found, compared.into_iter().flatten().chain(bounds).collect());
    let said = text(&output);
    for size in [64, 1024, 8192] {
        let target = format!("ring: paste / dpdk-copy, requests per CPU second, {size} B, 50 connections");
        assert!(said.contains(&target), "no {target} in {said}");
    }
    assert!(said.contains("ring: paste / limit") && said.contains("ring: paste / paste-echo"), "{said}");
    let page = std::fs::read_to_string(folder.path().join("report.md")).expect("a report");
    assert!(page.contains("| ring | 64 B, 50 connections | requests per CPU second | >= 1.6 |"), "{page}");
    assert!(page.contains("What it does not"), "{page}");
}

#[test]
fn a_stream_of_large_records_is_measured_each_way() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let modes = ["--modes", "status-quo,dpdk-copy,kernel-paste,paste", "--no-wrk"];
    let mut command = command(folder.path(), "2", "1", &modes);
    // Some thirty servers.
    let output = lab::output_within(command.stdin(Stdio::null()), Duration::from_secs(400)).expect("it ends");
    assert!(output.status.success(), "{}", text(&output));
    let results = read(&folder.path().join("results.json"));
    let cells = results.as_array().expect("a list of cells").iter();
    let streams: Vec<_> = cells.clone().filter(|cell| cell["kind"] != "requests").collect();
    assert_eq!(streams.len(), 2 * (4 + 2 + 2), "{results}");
    for cell in streams {
        assert!(cell["size"] == 1 << 20 && cell["connections"] == 1, "{cell}");
        let figure = |name: &str| cell[name].as_f64().unwrap_or_else(|| panic!("no {name} in {cell}"));
        assert!(figure("gbit_per_s") > 0.0, "{cell}");
        let by_time = f64::from(1 << 23) / figure("server_cpu_ns_per_request");
        assert!((figure("gbit_per_cpu_s") / by_time - 1.0).abs() < 1e-9, "{cell}");
        let copies = match (cell["mode"].as_str(), cell["kind"].as_str()) {
            (Some("dpdk-copy"), Some("stream-up")) => 2.0,
            (Some("dpdk-copy"), _) | (Some("status-quo"), Some("stream-up")) => 1.0,
            _ => 0.0,
        };
        let copied = figure("copied_bytes_per_request") / f64::from(1 << 20);
        // Parts of a window's first and last record lie outside of it, and there may be few in between.
        assert!(copied >= 0.4 * copies && copied <= 2.5 * copies + 0.1, "{copied} copies: {cell}");
        let is_flushed = figure("flushed_lines_per_request") > 0.0;
        assert_eq!(is_flushed, cell["kind"] == "stream-up", "{cell}");
    }
    assert!(
        cells.filter(|cell| cell["kind"] == "requests").all(|cell| cell["gbit_per_s"].is_null()),
        "{results}"
    );
    let page = std::fs::read_to_string(folder.path().join("report.md")).expect("a report");
    assert!(page.contains("## Large records: a stream up, records of 1048576 B"), "{page}");
    assert!(page.contains(
        "| paste / dpdk-copy | memif | a stream down, records of 1048576 B | Gbit per CPU second |"
    ));
    assert!(
        text(&output).contains("a stream down, records of 1048576 B: Gbit per CPU second"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_second_client_confirms() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let output = compare(folder.path(), &["--modes", "status-quo,paste", "--links", "veth", "--no-streams"]);
    assert!(output.status.success(), "{}", text(&output));
    let run = read(&folder.path().join("run.json"));
    let confirmed: Vec<_> = run["confirmation"].as_array().expect("a list").iter().collect();
    assert_eq!(confirmed.len(), 2, "{run}");
    assert!(confirmed.iter().all(|mode| mode["requests_per_s"].as_f64() > Some(0.0)), "{run}");
}

#[test]
fn a_mode_that_fails_is_named_after_the_others_have_run() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    // Half a store of this size does not hold a receive ring.
    let small =
        ["--modes", "status-quo,paste", "--links", "veth", "--no-wrk", "--no-streams", "--pm-size", "2MiB"];
    let output = compare(folder.path(), &small);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let run = read(&folder.path().join("run.json"));
    let failures = run["failures"].as_array().expect("a list");
    assert!(failures.iter().any(|failure| failure["mode"] == "paste"), "{run}");
    assert!(text(&output).contains("FAILED"), "{}", text(&output));
}

#[test]
fn what_cannot_be_compared_is_refused_at_once() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    for wrong in [
        &["--server-core", "0", "--client-core", "0"][..],
        &["--server-core", "1000"],
        &["--modes", "kcm", "--links", "memif,ring"],
    ] {
        let output = compare(folder.path(), wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}: {}", text(&output));
        assert!(text(&output).contains("pmbench: "), "{}", text(&output));
        assert!(!folder.path().join("results.json").exists());
    }
    let usage = compare(folder.path(), &["--server-core", "none"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn an_interrupted_comparison_ends_at_once_and_leaves_nothing() {
    let folder = lab::scratch_directory("bench-").expect("a folder");
    let out = folder.path().join("out");
    let mut command =
        command(&out, "2", "1000", &["--modes", "paste", "--links", "memif", "--no-wrk", "--no-streams"]);
    // Where it makes the folder that it works in.
    command.env("CARGO_TARGET_DIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut errors = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("round 1 ") {
        line.clear();
        assert_ne!(errors.read_line(&mut line).expect("lines"), 0, "it ended before the first cell");
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let mut rest = String::new();
    // All that it started holds the other end, too.
    errors.read_to_string(&mut rest).expect("the end of what it says");
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "{rest}");
    assert!(rest.contains("interrupted"), "{rest}");
    let left = std::fs::read_dir(folder.path().join("scratch")).expect("the folder for folders").count();
    assert_eq!(left, 0, "{rest}");
    assert!(!out.join("results.json").exists());
}
