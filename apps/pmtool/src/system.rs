//! The machine as files: reading below a root folder, and the few writes that make the kernel do something.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where sys, proc and dev are.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// The machine whose sys, proc and dev lie in `root`; `/` is the one this runs on.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a path such as `sys/class/net` really is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    /// A file's text without the white space around it; none if it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        // Not every file below /proc is UTF-8 (a command line, for one).
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// The last part of what a link points to: how sysfs names a device's driver or group.
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The names in a folder, sorted; none for a folder that is not there.
    pub fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names
    }

    /// Whether something is there.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }
}

/// What changes the machine. The live one writes and calls modprobe; tests answer as a kernel would.
pub trait Kernel {
    /// Writes to a file of sysfs.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;

    /// Loads a module with what it depends on.
    ///
    /// # Errors
    /// There is no such module, or it did not load.
    fn load_module(&self, name: &str) -> io::Result<()>;
}

/// The kernel this process runs on.
#[derive(Clone, Copy, Debug)]
pub struct LiveKernel;

impl Kernel for LiveKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // Sysfs takes a value in one write to a file that exists; a typing error must not make a new file elsewhere.
        let mut file = std::fs::File::options().write(true).open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        let output = Command::new("modprobe").arg(name).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
