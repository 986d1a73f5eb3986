//! Instructions of real servers, counted by callgrind.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// Counts those of a few requests of 64 bytes.
fn count(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args([
        "instructions",
        "--modes",
        "paste",
        "--sizes",
        "64",
        "--connections",
        "4",
        "--requests",
        "50",
    ]);
    command.arg("--out").arg(folder).args(more).stdin(Stdio::null());
    lab::output_within(&mut command, Duration::from_secs(280)).expect("it ends")
}

#[test]
fn rooms_add_up_and_ceilings_hold() {
    let folder = lab::scratch_directory("instructions-").expect("a folder");
    // What was not counted may have a ceiling, too.
    let ceiling = folder.path().join("ceiling.json");
    let allow = |instructions: f64, room: &str| {
        let count = json!({"mode": "paste", "size": 64, "connections": 4, "room": room,
            "instructions_per_request": instructions});
        std::fs::write(&ceiling, json!([count]).to_string()).expect("it can be written");
    };
    allow(1.0, "all");
    let output = count(folder.path(), &["--ceiling", ceiling.to_str().expect("UTF-8")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("paste, 64 bytes, all: ") && error.contains("1 are allowed"), "{error}");

    rooms_add_up(folder.path());
}

#[test]
fn on_ring_rooms_add_up_too() {
    let folder = lab::scratch_directory("instructions-").expect("a folder");
    let output = count(folder.path(), &["--link", "ring"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("instructions a request, ring, 4 connections"), "{table}");
    rooms_add_up(folder.path());
}

#[test]
fn a_link_of_the_kernels_is_refused() {
    let folder = lab::scratch_directory("instructions-").expect("a folder");
    let output = count(folder.path(), &["--link", "veth"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("choose memif or ring"), "{error}");
}

fn rooms_add_up(folder: &Path) {
    let text = std::fs::read_to_string(folder.join("results.json")).expect("results");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    let counts = results.as_array().expect("a list");
    let each = |count: &Value| count["instructions_per_request"].as_f64().expect("a number");
    let of = |room: &str| {
        let found = counts.iter().find(|count| count["room"] == room);
        each(found.unwrap_or_else(|| panic!("no {room} in {text}")))
    };
    let rooms = counts.iter().filter(|count| count["room"] != "all" && count["connections"] == 4);
    let sum: f64 = rooms.map(each).sum();
    assert!((sum / of("all") - 1.0).abs() < 0.001, "{text}");
    assert!(of("empty poll") > 0.0 && of("empty poll") < of("all"), "{text}");
    for room in ["driver", "TCP state", "pmem", "HTTP"] {
        assert!(of(room) > 0.0, "{room}: {text}");
    }
}
