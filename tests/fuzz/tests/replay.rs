//! The corpus: what the fuzzer has kept since it reached something, and what has ever broken something.

use std::fs;
use std::path::Path;

use fuzz::TARGETS;

/// Runs a target on each file of its folder, in the order of their names, and says which it is on.
fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target's name");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = fs::read_dir(&folder).expect("a target has a folder in the corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("the folder can be read").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        println!("{}", file.display());
        (target.run)(&fs::read(&file).expect("a file of the corpus"));
    }
}

#[test]
fn frames() {
    replay("frames");
}

#[test]
fn options() {
    replay("options");
}

#[test]
fn datagrams() {
    replay("datagrams");
}

#[test]
fn http() {
    replay("http");
}

#[test]
fn kv() {
    replay("kv");
}

#[test]
fn medium() {
    replay("medium");
}

#[test]
fn each_folder_of_the_corpus_is_a_targets() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for folder in fs::read_dir(corpus).expect("there is a corpus") {
        let name = folder.expect("it can be read").file_name();
        assert!(TARGETS.iter().any(|target| name == target.name), "{name:?} is no target");
    }
}
