//! `cargo xtask bench open`: what opening a store takes, as a table and as JSON.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::steps::cargo;

/// Measures stores of so many MiB each.
pub fn run(sizes: &[&str]) -> Result<()> {
    let folder = lab::target_directory().join("bench/open");
    fs::create_dir_all(&folder)?;
    let mut command = cargo();
    command.args(["bench", "--package", "pmem", "--bench", "open", "--"]).arg(&folder).args(sizes);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo bench` ended with {}", output.status);
    fs::write(folder.join("results.json"), output.stdout)?;
    println!("written to {}", folder.display());
    Ok(())
}
