//! The Debian packages that the workspace needs.

use std::io::IsTerminal;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

/// Each package, and what uses it.
const PACKAGES: [(&str, &str); 13] = [
    ("curl", "client in the demo and the tests"),
    ("dpdk", "dpdk-devbind.py, for real network cards"),
    ("ethtool", "switches the offloads of virtual wires off"),
    ("fonts-dejavu-core", "font of the plots"),
    ("iproute2", "makes virtual wires, and says what Linux knows of a connection"),
    ("iputils-ping", "client in the tests"),
    ("libclang-dev", "bindgen, for the bindings to DPDK"),
    ("libdpdk-dev", "the library itself"),
    ("pkg-config", "finds libdpdk for the build"),
    ("redis-server", "what pmkv has to answer like, and pmlog is measured beside"),
    ("redis-tools", "redis-cli and redis-benchmark, clients in the tests and in that comparison"),
    ("valgrind", "counts instructions"),
    ("wrk", "load in the demo, the tests and the comparison"),
];

/// Whether there is something to say when nothing is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Always,
    WhenInstalling,
}

/// Whether packages are looked after.
#[derive(Args, Clone)]
pub struct Packages {
    /// Leaves packages alone: what is needed is there, or this is no Debian.
    #[arg(long)]
    pub no_setup: bool,
}

impl Packages {
    /// Installs what is missing, unless that is left alone.
    pub fn provide(&self) -> Result<()> {
        if self.no_setup { Ok(()) } else { run(Verbosity::WhenInstalling) }
    }
}

/// Installs what is missing.
pub fn run(verbosity: Verbosity) -> Result<()> {
    provide(&PACKAGES, verbosity)
}

/// Installs what is missing of `packages`, each with what uses it.
pub fn provide(packages: &[(&str, &str)], verbosity: Verbosity) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        if verbosity == Verbosity::Always {
            println!("all {} packages are installed", packages.len());
        }
        return Ok(());
    }
    println!("installing:");
    for (package, use_) in &missing {
        println!("  {package:<17} {use_}");
    }
    let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    apt_get(&["update"], &names)?;
    let install = ["install", "--yes", "--no-install-recommends"];
    apt_get(&[&install[..], &names].concat(), &names)?;
    let still_missing = self::missing(packages)?;
    if !still_missing.is_empty() {
        bail!("apt-get says it is done, but {} is not installed", still_missing[0].0);
    }
    Ok(())
}

fn missing<'a>(packages: &[(&'a str, &'a str)]) -> Result<Vec<(&'a str, &'a str)>> {
    let names: Vec<&str> = packages.iter().map(|(package, _)| *package).collect();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(&names)
        .output()
        .with_context(|| {
            format!(
                "there is no dpkg-query here: this setup knows Debian 12 and its relatives. Elsewhere, \
                 install what corresponds to {}, and pass --no-setup",
                names.join(", ")
            )
        })?;
    // dpkg-query fails when it does not know a package, and lists the others all the same.
    let listed = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &str| listed.lines().any(|line| line == format!("{package} installed"));
    Ok(packages.iter().copied().filter(|(package, _)| !is_installed(package)).collect())
}

fn apt_get(arguments: &[&str], missing: &[&str]) -> Result<()> {
    let by_hand = || format!("as root, run: apt-get install {}", missing.join(" "));
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else {
        if Command::new("sudo").arg("--version").output().is_err() {
            bail!("installing needs root, and there is no sudo; {}", by_hand());
        }
        let mut sudo = Command::new("sudo");
        // Without a terminal nobody can answer a question for a password.
        if !std::io::stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        sudo.arg("env");
        sudo
    };
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments);
    let status = command.status().with_context(|| format!("cannot run apt-get; {}", by_hand()))?;
    if !status.success() {
        bail!("`apt-get {}` ended with {status}; {}", arguments.join(" "), by_hand());
    }
    Ok(())
}
