//! Looking for payload in the file behind the persistent memory, from outside and knowing nothing of its layout.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A piece of payload this long is never there by chance.
const MARK: usize = 8;
/// Distance between the marks that are looked for: each piece of `STEP` + `MARK` bytes and more has one.
const STEP: usize = 16;

/// Checks that every byte of every body lies in `file`, in pieces of any order. Returns how many bytes there were.
///
/// # Errors
/// How many bytes are missing, and the first of them.
pub fn find_all(file: &Path, bodies: &[Vec<u8>]) -> Result<u64> {
    let contents = read_used(file)?;
    let mut found: Vec<Vec<bool>> = bodies.iter().map(|body| vec![false; body.len()]).collect();
    let mut marks: HashMap<u64, (usize, usize)> = HashMap::new();
    for (number, body) in bodies.iter().enumerate() {
        for at in (0..body.len().saturating_sub(MARK - 1)).step_by(STEP) {
            marks.insert(word(&body[at..]), (number, at));
        }
    }
    for block in &contents {
        let mut at = 0;
        while at + MARK <= block.len() {
            let Some(&(number, offset)) = marks.get(&word(&block[at..])) else {
                at += 1;
                continue;
            };
            let body = &bodies[number];
            let before =
                block[..at].iter().rev().zip(body[..offset].iter().rev()).take_while(|(a, b)| a == b).count();
            let after = block[at..].iter().zip(&body[offset..]).take_while(|(a, b)| a == b).count();
            found[number][offset - before..offset + after].fill(true);
            at += after;
        }
    }
    // A packet's worth between two marks is looked for by itself; what is shorter than a mark could be anywhere by
    // chance and counts as missing.
    for (body, found) in bodies.iter().zip(&mut found) {
        for (start, end) in gaps(found) {
            if contents.iter().any(|block| contains(block, &body[start..end])) {
                found[start..end].fill(true);
            }
        }
    }
    let missing: usize = found.iter().flatten().filter(|found| !**found).count();
    if missing > 0 {
        let (number, at) = found
            .iter()
            .enumerate()
            .find_map(|(number, found)| Some((number, found.iter().position(|found| !found)?)))
            .context("nothing is missing after all")?;
        let len = bodies[number].len();
        anyhow::bail!(
            "{missing} payload bytes are not in {}: first byte {at} of body {number} ({len} bytes)",
            file.display()
        );
    }
    Ok(bodies.iter().map(|body| body.len() as u64).sum())
}

/// The parts of a file that hold anything but zeros, each with what follows it up to the next empty part.
fn read_used(path: &Path) -> Result<Vec<Vec<u8>>> {
    const BLOCK: usize = 64 << 10;
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let (mut at, mut is_open) = (0, false);
    let mut block = vec![0; BLOCK];
    loop {
        let read = file.read_at(&mut block, at)?;
        if read == 0 {
            break;
        }
        let is_used = block[..read].iter().any(|byte| *byte != 0);
        match parts.last_mut() {
            Some(part) if is_used && is_open => part.extend_from_slice(&block[..read]),
            _ if is_used => parts.push(block[..read].to_vec()),
            _ => {}
        }
        is_open = is_used;
        at += read as u64;
    }
    ensure!(!parts.is_empty(), "{} holds nothing at all", path.display());
    Ok(parts)
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..MARK].try_into().expect("a mark's length is that of a word"))
}

/// Runs of bytes that are not found yet.
fn gaps(found: &[bool]) -> Vec<(usize, usize)> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for run in found.chunk_by(|a, b| a == b) {
        if !run[0] {
            gaps.push((at, at + run.len()));
        }
        at += run.len();
    }
    gaps
}

fn contains(block: &[u8], piece: &[u8]) -> bool {
    // A longer piece has a mark in it and would have been found.
    (MARK..STEP + MARK).contains(&piece.len()) && block.windows(piece.len()).any(|window| window == piece)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(parts: &[(&[u8], usize)]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, zeros) in parts {
            file.write_all(bytes).unwrap();
            file.write_all(&vec![0; *zeros]).unwrap();
        }
        file
    }

    #[test]
    fn pieces_are_found_in_any_order() {
        let (a, b) = (lab::noise(1, 5000), lab::noise(2, 100));
        let file =
            file(&[(&[7], 3), (&a[2896..], 200_000), (&b, 17), (&a[..1448], 9), (&a[1448..2896], 100_000)]);
        assert_eq!(find_all(file.path(), &[a, b, Vec::new()]).unwrap(), 5100);
    }

    #[test]
    fn a_byte_that_is_not_there_is_missed() {
        let body = lab::noise(3, 3000);
        for at in [0, 1, 1500, 2999] {
            let mut damaged = body.clone();
            damaged[at] ^= 1;
            let file = file(&[(&[1, 2, 3], 10), (&damaged, 50)]);
            let error = find_all(file.path(), std::slice::from_ref(&body)).unwrap_err().to_string();
            assert!(error.contains("payload bytes are not in"), "{error}");
        }
    }

    #[test]
    fn an_empty_medium_holds_nothing() {
        assert!(find_all(file(&[(&[], 100_000)]).path(), &[lab::noise(4, 64)]).is_err());
    }
}
