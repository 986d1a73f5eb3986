//! `pmbench connections`, from outside.

use std::process::Command;

use serde_json::Value;

/// All that is promised of the results is there, and an idle connection holds no more than it may: what 40,000
/// hold more than 10,000, by each of them, since what is held once is not theirs.
#[test]
fn an_idle_connection_holds_at_most_a_kibibyte() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_pmbench"))
        .args(["connections", "--counts", "10000,40000", "--rounds", "1", "--requests", "1000"])
        .args(["--skip-instructions", "--json", "--out"])
        .arg(folder.path())
        .output()
        .expect("pmbench starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    let text = std::fs::read_to_string(folder.path().join("results.json")).expect("results.json");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), said);
    let rows = said["rows"].as_array().expect("rows");
    let held = |row: &Value, name: &str| {
        row[name].as_f64().expect("a number") * row["connections"].as_f64().expect("a number")
    };
    let of_each = |name: &str| (held(&rows[1], name) - held(&rows[0], name)) / 30_000.0;
    let resident = of_each("resident_bytes_per_connection");
    assert!((384.0..=1024.0).contains(&resident), "{resident} bytes for each\n{said:#}");
    for row in rows {
        assert!(row["ns_per_request"].as_f64().is_some_and(|ns| ns > 0.0), "{row}");
    }
    assert!(said["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{said}");
}
