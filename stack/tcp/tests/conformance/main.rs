//! `docs/tcp-conformance.md` and `docs/limits.md` say what is so: each requirement has a test that exists or a reason,
//! and each number is that of the code.
//!
//! The first is written from `requirements.txt`: a heading for each RFC, and a line for each requirement with its
//! number, what it asks in a few words, and the tests, or a reason behind `-`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const REQUIREMENTS: &str = include_str!("requirements.txt");

/// How to write the document anew.
const REMEDY: &str = "write it with CONFORMANCE=write cargo test -p stack-tcp --test conformance";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where each test of the workspace stands, by its name; scripts are tests, too.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut tests = BTreeMap::<String, Vec<String>>::new();
    let mut folders: Vec<_> = ["apps", "pmem", "stack", "tests"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(workspace().join(&folder)).expect("the workspace can be listed") {
            let entry = entry.expect("the workspace can be listed");
            let (name, path) =
                (entry.file_name().into_string().expect("names are text"), folder.join(entry.file_name()));
            let file = path.to_str().expect("names are text").to_owned();
            if entry.file_type().expect("entries have types").is_dir() {
                folders.push(path);
            } else if name.ends_with(".pkt") {
                tests.entry(name).or_default().push(file);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(workspace().join(&path)).expect("sources can be read");
                for name in tests_in(&text) {
                    tests.entry(name.to_owned()).or_default().push(file.clone());
                }
            }
        }
    }
    tests
}

/// The names of the functions behind `#[test]`.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|rest| {
        let name = rest.split_once("fn ")?.1;
        name.split_once('(').map(|(name, _)| name)
    })
}

/// The document, or what is wrong with the requirements.
fn document(requirements: &str, tests: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
    let mut document = String::from(
        "# Conformance\n\nEach requirement, and the tests that show it or the reason why there is none. The numbers of \
         RFC 9293 are those of its appendix B; those of others are sections. Names that end in `.pkt` are [scripts in \
         packetdrill's language](../tests/packetdrill/README.md). This page is generated; `stack/tcp/tests/conformance` has its source, and fails if a \
         test is named that does not exist.\n",
    );
    for (index, line) in requirements.lines().enumerate() {
        let wrong = |what: String| format!("requirements.txt:{}: {what}", index + 1);
        if let Some(heading) = line.strip_prefix("# ") {
            let _ = write!(document, "\n## {heading}\n\n| | asks | shown by |\n|---|---|---|\n");
        } else if !line.is_empty() {
            let [number, asks, shown] = line.split(" | ").collect::<Vec<_>>()[..] else {
                return Err(wrong("not three parts".into()));
            };
            let shown = match shown.strip_prefix("- ") {
                Some(reason) => reason.to_owned(),
                None => shown
                    .split(", ")
                    .map(|name| link(name, tests))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(wrong)?
                    .join(", "),
            };
            let _ = writeln!(document, "| {number} | {asks} | {shown} |");
        }
    }
    Ok(document)
}

fn link(name: &str, tests: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
    match tests.get(name).map(Vec::as_slice) {
        Some([file]) => Ok(format!("[`{name}`](../{file})")),
        Some(files) => Ok(format!("`{name}` in {}", files.join(", "))),
        None => Err(format!("there is no test {name}")),
    }
}

#[test]
fn each_requirement_of_rfc9293_has_a_test_or_a_reason() {
    for (kind, count) in [("MUST", 69), ("SHLD", 31)] {
        for number in 1..=count {
            let start = format!("{kind}-{number} | ");
            let lines = REQUIREMENTS.lines().filter(|line| line.starts_with(&start)).count();
            assert_eq!(lines, 1, "{kind}-{number}");
        }
    }
}

#[test]
fn each_test_that_the_document_names_exists_and_the_document_is_new() {
    let path = workspace().join("docs/tcp-conformance.md");
    let document = document(REQUIREMENTS, &tests()).unwrap_or_else(|wrong| panic!("{wrong}"));
    if std::env::var("CONFORMANCE").is_ok_and(|what| what == "write") {
        std::fs::write(&path, &document).expect("the document can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == document, "docs/tcp-conformance.md is not what requirements.txt says; {REMEDY}");
}

#[test]
fn a_test_that_does_not_exist_is_found_out() {
    let tests = BTreeMap::from([("there".to_owned(), vec!["a.rs".to_owned()])]);
    assert_eq!(
        document("# A\n1 | asks | there\n2 | asks | not_there", &tests),
        Err("requirements.txt:3: there is no test not_there".into())
    );
    assert!(document("1 | asks | there", &tests).is_ok_and(|text| text.contains("[`there`](../a.rs)")));
}

/// The numbers of `docs/limits.md`: in each line of a table a constant, its text in the code, and the file.
#[test]
fn the_limits_are_those_of_the_code() {
    let tests = tests();
    let limits = std::fs::read_to_string(workspace().join("docs/limits.md")).expect("the document is there");
    let mut checked = 0;
    for line in limits.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> =
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, value, file, ..] = cells[..] else { panic!("not enough cells: {line}") };
        let folders = ["stack/tcp/src", "apps/pmlog/src"].map(|folder| workspace().join(folder).join(file));
        let path = folders.iter().find(|path| path.exists()).unwrap_or(&folders[0]);
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_setting = text.contains(&format!(" {name}: {value},"));
        let is_constant = text.match_indices("const ").any(|(at, _)| {
            text[at..].starts_with(&format!("const {name}: "))
                && text[at..].split_once(';').is_some_and(|(rest, _)| rest.ends_with(&format!("= {value}")))
        });
        assert!(is_constant || is_setting, "{file} has no {name} of {value}; correct docs/limits.md");
        checked += 1;
    }
    assert!(checked >= 20, "{checked} limits are not all");
    // What a paragraph says is shown by a test is.
    for name in limits.split('`').skip(1).step_by(2).filter(|name| {
        name.len() > 24
            && !name.contains(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_')
    }) {
        assert!(tests.contains_key(name), "docs/limits.md names the test {name}, which does not exist");
    }
}
