//! `cargo xtask dpdk`: the distribution's DPDK, built anew with few drivers, for programs that carry it in themselves.
//!
//! `meson-dpdk/` is the project, the source package its subproject; both meet below `target/dpdk`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Args;

use crate::setup::{self, Verbosity};
use crate::steps::{Step, lines, workspace};

/// What building DPDK takes, beyond what building paste-dpdk takes.
const PACKAGES: [(&str, &str); 5] = [
    ("dpkg-dev", "unpacks the source package"),
    ("meson", "DPDK's build system"),
    ("ninja-build", "runs what meson has planned"),
    ("python3-pyelftools", "DPDK's build reads driver information from object files"),
    ("xz-utils", "the source package is compressed"),
];

/// The package whose source is built, and one built from it that is installed here.
const SOURCE: &str = "dpdk";
const INSTALLED: &str = "libdpdk-dev";

/// The files that make `meson-dpdk/` a meson project.
const PROJECT: [&str; 4] = ["drivers.txt", "meson.build", "meson_options.txt", "native.ini"];

#[derive(Args)]
pub struct Options {
    /// Code for any processor of this kind, where the one that builds is not the one that runs.
    #[arg(long)]
    generic: bool,
    /// A driver beyond those of meson-dpdk/drivers.txt, such as net/qede; may be repeated.
    #[arg(long = "driver", value_name = "CLASS/NAME")]
    drivers: Vec<String>,
    /// Leaves packages alone: what is needed is there, or this is no Debian.
    #[arg(long)]
    no_setup: bool,
}

/// Builds and installs below `target/dpdk`.
///
/// # Errors
/// The source cannot be had, or does not build; the message holds the end of what was said.
pub fn run(options: &Options) -> Result<()> {
    if !options.no_setup {
        setup::run(Verbosity::WhenInstalling)?;
        setup::provide(&PACKAGES, Verbosity::WhenInstalling)?;
    }
    // Where cargo's configuration has builds look for it, whatever target folder this build uses.
    let tree = Tree::below(workspace().join("target/dpdk"))?;
    tree.provide_source()?;
    tree.configure(options)?;
    tree.build()?;
    let archives = sizes(&tree.install.join("lib"), "a")?;
    println!("installed {archives} of archives in {}", tree.install.display());
    println!("cargo build --release --features static    links against it");
    Ok(())
}

struct Tree {
    root: PathBuf,
    project: PathBuf,
    source: PathBuf,
    build: PathBuf,
    install: PathBuf,
}

impl Tree {
    fn below(root: PathBuf) -> Result<Self> {
        let project = root.join("project");
        let source = project.join("subprojects/dpdk");
        fs::create_dir_all(project.join("subprojects"))?;
        for file in PROJECT {
            let from = workspace().join("meson-dpdk").join(file);
            fs::copy(&from, project.join(file)).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(Self { project, source, build: root.join("build"), install: root.join("install"), root })
    }

    /// Downloads the source package and unpacks it, unless that version is there already.
    fn provide_source(&self) -> Result<()> {
        let step = Step::start("source");
        let lists = self.root.join("apt");
        let sources = lists.join("sources.d");
        for folder in ["lists/partial", "cache/archives/partial", "sources.d"] {
            fs::create_dir_all(lists.join(folder))?;
        }
        let policy = said(Command::new("apt-cache").args(["policy", INSTALLED]).env("LC_ALL", "C"))?;
        let version = installed_version(&policy)
            .with_context(|| format!("{INSTALLED} is not installed; run `cargo xtask setup`"))?
            .to_owned();
        let stamp = self.root.join("source-version");
        if self.source.exists() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == version) {
            step.end(&format!("{SOURCE} {version}, unpacked before"));
            return Ok(());
        }
        let archives = source_lists(&policy);
        ensure!(!archives.is_empty(), "apt does not say where {INSTALLED} {version} comes from");
        fs::write(sources.join("source.list"), archives)?;

        // Lists of its own: the system's have no source packages, and need root to get them.
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.current_dir(&lists).args(["--quiet", "-o", "Dir::Etc::SourceList=/dev/null"]);
            for (option, folder) in [
                ("Dir::Etc::SourceParts", "sources.d"),
                ("Dir::State::Lists", "lists"),
                ("Dir::Cache", "cache"),
            ] {
                command.arg("-o").arg(format!("{option}={}", lists.join(folder).display()));
            }
            command.args(arguments);
            command
        };
        step.progress("apt-get update");
        said(&mut apt(&["update"]))?;
        step.progress("apt-get source");
        said(&mut apt(&["source", "--download-only", "--only-source", &format!("{SOURCE}={version}")]))?;
        let description =
            lists.join(format!("{SOURCE}_{}.dsc", version.rsplit(':').next().unwrap_or(&version)));
        if self.source.exists() {
            fs::remove_dir_all(&self.source)?;
        }
        step.progress("unpacking");
        said(Command::new("dpkg-source").arg("--extract").arg(&description).arg(&self.source))?;
        fs::write(&stamp, &version)?;
        step.end(&format!("{SOURCE} {version}"));
        Ok(())
    }

    /// Has meson plan the build, and says which of the wanted drivers are not in it.
    fn configure(&self, options: &Options) -> Result<()> {
        let step = Step::start("configure");
        let mut meson = Command::new("meson");
        meson.current_dir(&self.root).arg("setup");
        if self.build.join("build.ninja").exists() {
            meson.arg("--wipe");
        }
        meson.arg(&self.build).arg(&self.project).arg("--native-file").arg(self.project.join("native.ini"));
        meson.arg("--prefix").arg(&self.install).args(["--libdir", "lib"]);
        meson.arg(format!("-Dplatform={}", if options.generic { "generic" } else { "native" }));
        meson.arg(format!("-Dmore_drivers={}", options.drivers.join(",")));
        let output = said(&mut meson)?;
        let built = drivers_built(&output);
        let listed = fs::read_to_string(self.project.join("drivers.txt"))?;
        let missing: Vec<&str> = listed
            .lines()
            .filter_map(|line| line.split('#').next().map(str::trim).filter(|name| !name.is_empty()))
            .chain(options.drivers.iter().map(String::as_str))
            .filter(|name| !built.contains(*name))
            .collect();
        step.end(&format!("{} drivers", built.len()));
        if let Some(unknown) = options.drivers.iter().find(|name| missing.contains(&name.as_str())) {
            bail!("there is no driver {unknown}, or it lacks a library; see {}", self.log().display());
        }
        if !missing.is_empty() {
            println!("left out, since their libraries are not here: {}", missing.join(", "));
        }
        Ok(())
    }

    fn build(&self) -> Result<()> {
        let step = Step::start("compile");
        // Of an earlier build there may be archives that this one does not make.
        if self.install.exists() {
            fs::remove_dir_all(&self.install)?;
        }
        let mut said = Vec::new();
        let mut ninja = Command::new("ninja");
        ninja.arg("-C").arg(&self.build).arg("install");
        let status = lines(&mut ninja, |line| {
            step.progress(line);
            said.push(line.to_owned());
        })
        .context("ninja cannot be started")?;
        ensure!(
            status.success(),
            "ninja ended with {status}\n{}",
            said[said.len().saturating_sub(40)..].join("\n")
        );
        step.end("archives");
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.build.join("meson-logs/meson-log.txt")
    }
}

/// What a command says; an error with all of it if the command fails.
fn said(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut text = String::new();
    let status = lines(command, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    ensure!(status.success(), "{name} ended with {status}\n{text}");
    Ok(text)
}

/// The version that `apt-cache policy` calls installed.
fn installed_version(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Installed: "))?;
    (version != "(none)").then_some(version)
}

/// Lists of source packages beside each list of packages that `apt-cache policy` names.
fn source_lists(policy: &str) -> String {
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed = if keyring.exists() { format!("[signed-by={}] ", keyring.display()) } else { String::new() };
    let places = policy.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, uri, place, _, "Packages"] if uri.contains(":/") => {
                let (suite, component) = place.rsplit_once('/')?;
                Some(format!("deb-src {signed}{uri} {suite} {component}\n"))
            }
            _ => None,
        }
    });
    places.collect::<BTreeSet<String>>().into_iter().collect()
}

/// The drivers, as class/name, of the list that DPDK's build prints.
fn drivers_built(output: &str) -> BTreeSet<String> {
    let lines = output.lines().map(|line| line.trim_start_matches("dpdk|").trim());
    let mut drivers = BTreeSet::new();
    let mut class = None;
    for line in
        lines.skip_while(|line| *line != "Drivers Enabled").take_while(|line| *line != "Content Skipped")
    {
        if let Some(name) = line.strip_suffix(':') {
            class = Some(name.to_owned());
        } else if let (Some(class), true) = (&class, line.ends_with(',')) {
            let names = line.split(',').map(str::trim).filter(|name| !name.is_empty());
            drivers.extend(names.map(|name| format!("{class}/{name}")));
        }
    }
    drivers
}

/// The bytes of a folder's files of one kind.
fn sizes(folder: &Path, extension: &str) -> Result<ByteSize> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|found| found == extension) {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(ByteSize(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
libdpdk-dev:
  Installed: 22.11.11-0+deb12u1
  Candidate: 22.11.11-0+deb12u1
  Version table:
 *** 22.11.11-0+deb12u1 500
        500 https://mirror.example/debian bookworm/main amd64 Packages
        500 https://mirror.example/security bookworm-security/main amd64 Packages
        100 /var/lib/dpkg/status
";

    #[test]
    fn the_source_is_looked_for_where_the_package_came_from() {
        assert_eq!(installed_version(POLICY), Some("22.11.11-0+deb12u1"));
        assert_eq!(installed_version("dpdk:\n  Installed: (none)\n"), None);
        let lists = source_lists(POLICY);
        let ends: Vec<&str> =
            lists.lines().map(|line| line.rsplit_once("mirror.example/").unwrap().1).collect();
        assert_eq!(ends, ["debian bookworm main", "security bookworm-security main"]);
        assert!(lists.lines().all(|line| line.starts_with("deb-src ")));
    }

    #[test]
    fn drivers_are_read_from_what_the_build_prints() {
        let output = "\
dpdk| Drivers Enabled
dpdk| ===============

dpdk| bus:
dpdk| pci, vdev,
dpdk| dma:

dpdk| net:
dpdk| af_packet, tap,
dpdk| virtio,

dpdk| Message: 
dpdk| Content Skipped
dpdk| net/mlx5:\tmissing dependency, \"mlx5\"
";
        let built: Vec<String> = drivers_built(output).into_iter().collect();
        assert_eq!(built, ["bus/pci", "bus/vdev", "net/af_packet", "net/tap", "net/virtio"]);
    }
}
