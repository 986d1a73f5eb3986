//! A test, or a demonstration, as root of its own small world.

use std::any::type_name;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::output_within;
use crate::run;

/// Names the test that a process was started for.
const TEST: &str = "LAB_TEST";
/// The folder that the test may write into.
const DIRECTORY: &str = "LAB_DIRECTORY";
/// A file in that folder which says that the test's body ran to its end.
const FINISHED: &str = "finished";
/// Longer than any test takes, even on a busy machine.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// The world of one test: it has its own network and processes, and a folder on a disk.
pub struct Lab {
    directory: PathBuf,
}

impl Lab {
    /// A world in which this process already runs ([`inside`] started it), with a folder to write into.
    ///
    /// # Errors
    /// The loopback interface does not come up: this is not an own network namespace.
    pub fn enter(directory: &Path) -> Result<Self> {
        run("ip", ["link", "set", "lo", "up"])?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// A folder on a disk, empty at first, removed when the test ends.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file into the test's folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Runs the body of the test that calls this alone, as root of its own namespaces, in another process.
///
/// The closure must be written in the test function itself: the test's name is read off its type.
///
/// # Panics
/// The body returned an error, panicked, or did not run to its end.
pub fn isolated<F: FnOnce(&Lab) -> Result<()>>(body: F) {
    let test = test_name(type_name::<F>());
    if std::env::var_os(TEST).as_deref() == Some(OsStr::new(test)) {
        return alone(body);
    }
    if let Err(error) = elsewhere(test) {
        panic!("{test}: {error:#}");
    }
}

/// `crate::module::test::{{closure}}` is the test `module::test`.
fn test_name(closure: &'static str) -> &'static str {
    let path = closure.split_once("::").map_or(closure, |(_, path)| path);
    path.split("::{{").next().unwrap_or(path)
}

fn alone<F: FnOnce(&Lab) -> Result<()>>(body: F) {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).expect("set where the test was started"));
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&Lab::enter(&directory)?)));
    match outcome {
        Ok(Ok(())) => std::fs::write(directory.join(FINISHED), "").expect("the test's folder is writable"),
        Ok(Err(error)) => {
            print_logs(&directory);
            panic!("{error:?}");
        }
        Err(panic) => {
            print_logs(&directory);
            resume_unwind(panic);
        }
    }
}

/// What the servers of a failed test wrote.
fn print_logs(directory: &Path) {
    let Ok(files) = std::fs::read_dir(directory) else { return };
    for file in files.flatten().filter(|file| file.path().extension() == Some(OsStr::new("log"))) {
        if let Ok(text) = std::fs::read(file.path()) {
            eprintln!("---- {}\n{}", file.path().display(), String::from_utf8_lossy(&text));
        }
    }
}

fn elsewhere(test: &str) -> Result<()> {
    let directory = crate::scratch_directory("test-")?;
    let mut command = inside(&std::env::current_exe()?)?;
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(TEST, test).env(DIRECTORY, directory.path());
    let output = output_within(&mut command, TEST_LIMIT)?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("failed in its namespace with {}", output.status);
    }
    if !directory.path().join(FINISHED).exists() {
        bail!("did not run in its namespace: is the closure written in the test function itself?");
    }
    Ok(())
}

/// What `unshare` makes new for a program; root can do without the first two.
const NAMESPACES: [&str; 6] = ["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork"];

/// A command that runs `program` as root of new user, network, mount and process namespaces. All that it
/// starts is killed when it ends, and it is killed when the caller ends.
///
/// # Errors
/// The kernel refuses the namespaces; the message says what allows them.
pub fn inside(program: &Path) -> Result<Command> {
    match probe(&NAMESPACES) {
        Ok(()) => Ok(unshared(&NAMESPACES, program)),
        // A container may forbid user namespaces to root, who can do without.
        Err(_) if rustix::process::geteuid().is_root() => inside_as_root(program),
        Err(error) => Err(error),
    }
}

/// As [`inside`], but in the user namespace of the caller, who must be root: the kernel lets nobody else steer
/// received packets.
///
/// # Errors
/// The kernel refuses the namespaces; the message says what allows them.
pub fn inside_as_root(program: &Path) -> Result<Command> {
    let privileged = &NAMESPACES[2..];
    probe(privileged)?;
    Ok(unshared(privileged, program))
}

fn unshared(namespaces: &[&str], program: &Path) -> Command {
    // unshare ignores SIGINT and SIGTERM while it waits: the parent's death must reach it another way.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(namespaces)
        .arg("--kill-child=KILL")
        .arg("--")
        .arg(program);
    command
}

fn probe(kinds: &[&str]) -> Result<()> {
    run("unshare", kinds.iter().chain(&["true"])).map(drop).context(
        "the kernel refuses namespaces to this user; as root: sysctl -w kernel.unprivileged_userns_clone=1 \
         (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a container: --privileged",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_tells_its_test() {
        assert_eq!(test_name("interop::transfer::upload::{{closure}}"), "transfer::upload");
        assert_eq!(test_name("interop::upload::{{closure}}::{{closure}}"), "upload");
    }

    #[test]
    fn is_root_of_an_own_network() {
        isolated(|lab| {
            assert!(rustix::process::geteuid().is_root());
            assert_eq!(std::process::id(), 1);
            assert_eq!(std::fs::read_dir(lab.directory())?.count(), 0);
            let links = run("ip", ["-oneline", "link"])?;
            assert!(links.lines().count() == 1 && links.contains("lo:"), "{links}");
            Ok(())
        });
    }

    #[test]
    #[should_panic(expected = "failed in its namespace")]
    fn a_failure_inside_is_a_failure_outside() {
        isolated(|_| anyhow::bail!("on purpose"));
    }
}
