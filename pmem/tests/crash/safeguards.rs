//! Each safeguard is left out once, and some history must notice.

#![cfg(debug_assertions)]

use std::{env, fs, path::Path, sync::Mutex};

use pmem::safeguard::{Safeguard, has_omitted, omit};

use crate::run;

/// Seeds that are tried for each.
const SEEDS: u64 = 3000;

/// How a safeguard was found to be needed.
enum Found {
    Red { seed: u64, why: String },
    Green { was_met: bool },
}

fn look_for(safeguard: Safeguard) -> Found {
    let mut was_met = false;
    for seed in 0..SEEDS {
        omit(Some(safeguard));
        let outcome = run::one(seed);
        was_met |= has_omitted();
        omit(None);
        if let Err(why) = outcome {
            run::one(seed).expect("the same history is sound when nothing is left out");
            return Found::Red { seed, why };
        }
    }
    Found::Green { was_met }
}

#[test]
fn each_safeguard_is_needed() {
    let only = env::var("CRASH_SAFEGUARD").ok();
    let chosen: Vec<_> = Safeguard::ALL
        .iter()
        .copied()
        .filter(|safeguard| only.as_ref().is_none_or(|name| *name == format!("{safeguard:?}")))
        .collect();
    assert!(!chosen.is_empty(), "there is no such safeguard");
    let green = Mutex::new(Vec::new());
    run::each(0..chosen.len() as u64, |at| {
        let safeguard = chosen[at as usize];
        match look_for(safeguard) {
            Found::Red { seed, why } => println!("CRASH red {safeguard:?} {seed} {why}"),
            Found::Green { was_met } => {
                let why = if was_met { "nobody notices" } else { "no history comes by there" };
                println!("CRASH green {safeguard:?} {why}");
                green.lock().unwrap().push(safeguard);
            }
        }
    });
    let green = green.into_inner().unwrap();
    println!("{} of {} are needed", chosen.len() - green.len(), chosen.len());
    assert!(green.is_empty(), "can be left out, and nobody notices: {green:?}");
}

/// A flush, fence or check that is new has its name, and the histories above must miss it.
#[test]
fn each_flush_and_fence_in_the_source_is_a_safeguard_and_each_safeguard_is_in_one_place() {
    let mut source = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    for safeguard in Safeguard::ALL {
        let name = format!("Safeguard::{safeguard:?}");
        let is_it = |line: &str| {
            line.match_indices(&name)
                .any(|(at, _)| !line[at + name.len()..].starts_with(|next: char| next.is_alphanumeric()))
        };
        let places: Vec<_> = source.iter().filter(|(_, _, line)| is_it(line)).collect();
        assert_eq!(places.len(), 1, "{name}: {places:?}");
    }
    let mut calls = 0;
    for (at, (file, number, line)) in source.iter().enumerate() {
        // Media and their models are what is below the safeguards.
        if file.contains("/medium") || !is_call(line) {
            continue;
        }
        calls += 1;
        let before = &source[at.saturating_sub(4)..=at];
        let is_named = before.iter().any(|(_, _, line)| line.contains("omits("));
        assert!(is_named, "{file}:{number} is no safeguard, which `safeguard.rs` has a list of: {line}");
    }
    assert!(calls >= 20, "only {calls} flushes and fences were found: what do they look like now?");
}

/// Whether a line of the source flushes or fences a medium.
fn is_call(line: &str) -> bool {
    let is_medium = ["medium.", "medium().", "flush_found("].iter().any(|name| line.contains(name));
    let does = [".flush(", ".fence()", ".start_fence()", ".is_fenced()", " flush_found("];
    is_medium && !line.contains("fn ") && does.iter().any(|call| line.contains(call))
}

/// Lines of code below a folder, with their files and numbers, without the tests at their ends.
fn read(folder: &Path, lines: &mut Vec<(String, usize, String)>) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, lines);
        } else if path.file_name().is_some_and(|name| name != "safeguard.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            let numbered = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
            let name = path.display().to_string();
            lines.extend(numbered.map(|(at, line)| (name.clone(), at + 1, line.to_owned())));
        }
    }
}
