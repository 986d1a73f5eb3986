//! What README.md, ARCHITECTURE.md and CONTRIBUTING.md say of the crates is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ci/ lies in the workspace")
}

fn read(file: impl AsRef<Path>) -> String {
    let file = workspace().join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// An arrow from a crate to one that it uses, and whether only tests do.
type Arrow = (String, String, bool);

fn arrows_between_crates() -> BTreeSet<Arrow> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(workspace());
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let mut arrows = BTreeSet::new();
    for package in list(&metadata["packages"]) {
        for used in list(&package["dependencies"]).iter().filter(|used| used["path"].is_string()) {
            let name = |package: &Value| package["name"].as_str().expect("a name").to_owned();
            arrows.insert((name(&package), name(used), used["kind"] == "dev"));
        }
    }
    // What a crate uses anyway its tests may use as well, with other features.
    arrows
        .iter()
        .filter(|(from, to, dev)| !(*dev && arrows.contains(&(from.clone(), to.clone(), false))))
        .cloned()
        .collect()
}

#[test]
fn the_architecture_draws_every_arrow_between_crates() {
    let text = read("ARCHITECTURE.md");
    let room = text.split("## ").find(|section| section.starts_with("Rooms")).expect("a section on rooms");
    let mut drawn = BTreeSet::new();
    for line in room.lines().filter_map(|line| line.strip_prefix("    ")) {
        let from = line.split_whitespace().next().expect("a crate");
        let (used, by_tests) = line.split_once("in tests:").unwrap_or((line, ""));
        let used = used.split_once("──>").map_or("", |(_, used)| used).replace("; by feature", ",");
        for (names, dev) in [(used.as_str(), false), (by_tests, true)] {
            let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
            drawn.extend(names.map(|to| (from.to_owned(), to.to_owned(), dev)));
        }
    }
    let arrows = arrows_between_crates();
    let missing: Vec<_> = arrows.difference(&drawn).collect();
    let surplus: Vec<_> = drawn.difference(&arrows).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "not drawn: {missing:?}; drawn and not there: {surplus:?}"
    );
}

#[test]
fn who_wants_kernel_sockets_only_compiles_no_tcp_core_no_dpdk_and_no_libclang() {
    let compiled = |features: &[&str]| -> BTreeSet<String> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "tree",
            "--offline",
            "--package",
            "stack",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ]);
        cargo.args(["--format", "{lib}"]).args(features).current_dir(workspace());
        let output = cargo.output().expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
    };
    let others = ["dpdk", "dpdk_sys", "stack_dpdk", "stack_tcp", "smoltcp", "bindgen", "clang_sys"];
    let with_dpdk = compiled(&["--features", "dpdk"]);
    assert!(others.iter().all(|name| with_dpdk.contains(*name)), "{with_dpdk:?}");
    for features in [&["--no-default-features", "--features", "kernel"][..], &[]] {
        let compiled = compiled(features);
        assert!(compiled.contains("stack_kernel"), "{compiled:?}");
        let surplus: Vec<_> = others.iter().filter(|name| compiled.contains(**name)).collect();
        assert!(surplus.is_empty(), "{surplus:?}");
    }
}

#[test]
fn unsafe_stands_where_contributing_says_and_nowhere_else() {
    let text = read("CONTRIBUTING.md");
    let rule =
        text.split("\n- ").find(|rule| rule.starts_with("`unsafe` stands in")).expect("a rule on unsafe");
    let places: Vec<&str> = rule.split('`').filter(|word| word.contains('/')).collect();
    let mut unused: BTreeSet<&str> = places.iter().copied().collect();
    for file in sources(workspace()) {
        let name = file.strip_prefix(workspace()).expect("below").to_str().expect("UTF-8");
        if read(&file).lines().any(has_unsafe) {
            let place = places.iter().find(|place| name.starts_with(*place));
            unused.remove(place.unwrap_or_else(|| panic!("{name} has unsafe code")));
        }
    }
    assert!(unused.is_empty(), "there is no unsafe code in {unused:?}");
}

/// Whether a line of source has code that is unsafe, or allows it.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let follows =
        |rest: &str| ["{", "fn ", "impl ", "trait ", "extern "].iter().any(|word| rest.starts_with(word));
    code.contains(concat!("allow(", "unsafe_code")) || code.split(concat!("unsafe", " ")).skip(1).any(follows)
}

/// Rust files that are not a build's.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
}
