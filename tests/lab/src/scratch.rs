//! Where files that stand for persistent memory may lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The folder that cargo builds into: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}

/// A new folder on a disk, not on tmpfs: a file in memory is volatile, and `pmlog` refuses it as a medium
/// unless it is asked for. Removed when dropped.
///
/// # Errors
/// Neither the target folder nor `/var/tmp` nor `/tmp` is on a disk and writable.
pub fn scratch_directory(prefix: &str) -> Result<TempDir> {
    let target = target_directory().join("scratch");
    let mut reasons = Vec::new();
    for parent in [target.as_path(), Path::new("/var/tmp"), Path::new("/tmp")] {
        match disk_directory(parent, prefix) {
            Ok(directory) => return Ok(directory),
            Err(reason) => reasons.push(format!("{}: {reason:#}", parent.display())),
        }
    }
    anyhow::bail!("no folder on a disk to work in; set CARGO_TARGET_DIR to one\n{}", reasons.join("\n"))
}

fn disk_directory(parent: &Path, prefix: &str) -> Result<TempDir> {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    std::fs::create_dir_all(parent)?;
    let kind = rustix::fs::statfs(parent).context("statfs failed")?.f_type;
    if MEMORY_FILE_SYSTEMS.contains(&(kind as u64)) {
        anyhow::bail!("lies in memory, not on a disk");
    }
    Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?)
}
