//! `cargo xtask vm`: the whole way on (virtual) hardware. A NIC behind an IOMMU puts packets by DMA into persistent
//! memory, in a machine whose plug can be pulled.

mod blocklog;
mod client;
mod evidence;
mod fixture;
mod image;
mod qemu;
mod scenarios;

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use self::fixture::Fixture;
use self::image::{Image, PACKAGES};
use self::qemu::{Machine, Medium, Nic};
use self::scenarios::{MORE_PROGRAMS, SCENARIOS, Scenario};
use crate::inside;
use crate::setup::{self, Verbosity};
use crate::steps::{self, Step, workspace};

/// How often the power is cut where nothing else is said: in CI, and with --all.
const FEW_CUTS: u32 = 3;
const MANY_CUTS: u32 = 20;

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Scenarios by name; without any, those that CI runs.
    names: Vec<String>,
    /// Every scenario, and the power cut 20 times in place of 3.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Shows what there is to run.
    #[arg(long)]
    list: bool,
    /// A prompt in the machine, with its NIC on a network of its own.
    #[arg(long, conflicts_with_all = ["names", "all"])]
    shell: bool,
    /// Leaves packages alone: what is needed is there, or this is no Debian.
    #[arg(long)]
    no_setup: bool,
    /// How often to cut the power.
    #[arg(long, value_name = "N")]
    cuts: Option<u32>,
    /// What chance does, such as the moment of a power cut: an earlier run's seed repeats it.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Builds the programs and the guest, and runs the rest inside namespaces. Returns whether everything passed.
///
/// # Errors
/// Something does not build, or the kernel refuses the namespaces.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        for scenario in SCENARIOS {
            println!(
                "{:<14} {}{}",
                scenario.name,
                scenario.what,
                if scenario.in_ci { "" } else { " (not in CI)" }
            );
        }
        return Ok(true);
    }
    for name in &options.names {
        ensure!(
            SCENARIOS.iter().any(|scenario| scenario.name == name),
            "there is no scenario '{name}'; 'cargo xtask vm --list' shows those there are"
        );
    }
    if !options.no_setup {
        setup::run(Verbosity::WhenInstalling)?;
        setup::provide(&PACKAGES, Verbosity::WhenInstalling)?;
    }
    let is_chosen = |scenario: &&Scenario| match options.names.as_slice() {
        [] => options.all || scenario.in_ci,
        names => names.iter().any(|name| name == scenario.name),
    };
    let chosen: Vec<_> = SCENARIOS.iter().filter(is_chosen).collect();
    let takes = |name: &str| options.shell || chosen.iter().any(|scenario| scenario.name == name);
    let more = MORE_PROGRAMS.iter().filter(|(name, _)| takes(name)).flat_map(|(_, programs)| *programs);
    let image = prepare(&more.copied().collect())?;
    let folder = lab::target_directory().join("vm/runs");
    let mut command = lab::inside(&std::env::current_exe()?)?;
    command.arg("vm-inside").arg("--vmlinux").arg(&image.vmlinux).arg("--initrd").arg(&image.initrd);
    command.arg("--folder").arg(&folder);
    if options.shell {
        command.arg("--shell");
    } else {
        let cuts = options.cuts.unwrap_or(if options.all { MANY_CUTS } else { FEW_CUTS });
        command.args([
            "--cuts",
            &cuts.to_string(),
            "--seed",
            &options.seed.unwrap_or_else(any_seed).to_string(),
        ]);
        command.args(chosen.iter().map(|scenario| scenario.name));
    }
    // A Ctrl-C at the machine's prompt is the guest's; elsewhere it ends the namespaces with all that runs in them.
    if options.shell {
        return Ok(command.status().context("cannot start setpriv and unshare")?.success());
    }
    Ok(inside::run(&mut command)?.context("interrupted")?.success())
}

/// Builds pmlog, pmtool and `more` programs, and the guest with all of them in it.
fn prepare(more: &BTreeSet<&str>) -> Result<Image> {
    let mut programs = steps::programs(["pmlog", "pmtool"])?.to_vec();
    for program in more {
        programs.extend(steps::programs([*program])?);
    }

    let step = Step::start("guest");
    let image = image::build(&lab::target_directory().join("vm"), &workspace().join("ci/vm"), &programs)?;
    let size = fs::metadata(&image.initrd)?.len() >> 20;
    let kernel = image.vmlinux.parent().and_then(|folder| folder.file_name()).unwrap_or_default();
    step.end(&format!("{} and {size} MiB of programs", kernel.to_string_lossy()));
    Ok(image)
}

fn any_seed() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

/// What `vm` runs inside its namespaces.
#[derive(Args)]
pub struct Inside {
    #[arg(long)]
    vmlinux: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    shell: bool,
    #[arg(long, default_value_t = FEW_CUTS)]
    cuts: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    names: Vec<String>,
}

/// Runs the scenarios one after the other; all of them, also after one has failed. Returns whether all passed.
///
/// # Errors
/// The network between host and guest cannot be made, or the guest's prompt ended badly.
pub fn run_inside(inside: &Inside) -> Result<bool> {
    lab::Lab::enter(&inside.folder)?;
    let image = Image { vmlinux: inside.vmlinux.clone(), initrd: inside.initrd.clone() };
    if inside.shell {
        let fixture = Fixture::new("shell", &inside.folder, &image, 0, 0, &|_| {})?;
        let nvdimm = Medium::Nvdimm { caches_persist: false };
        let machine =
            Machine { nic: Nic::E1000e, medium: nvdimm, iommu: true, file: fixture.medium()?, disk: None };
        machine.shell(&image)?;
        return Ok(true);
    }
    println!("seed {}", inside.seed);
    let (mut passed, mut failed) = (0, 0);
    for name in &inside.names {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).context("no such scenario")?;
        if play(scenario, inside, &image) { passed += 1 } else { failed += 1 }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn play(scenario: &Scenario, inside: &Inside, image: &Image) -> bool {
    let started = Instant::now();
    let spinner =
        if std::io::stdout().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    spinner.enable_steady_tick(Duration::from_millis(100));
    let tell = |text: &str| spinner.set_message(format!("{}: {text}", scenario.name));
    let outcome = Fixture::new(scenario.name, &inside.folder, image, inside.cuts, inside.seed, &tell)
        .and_then(|fixture| (scenario.run)(&fixture).inspect(|_| fixture.clear()));
    spinner.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    match &outcome {
        Ok(done) => println!("PASS {:<14} {done} ({seconds:.0} s)", scenario.name),
        Err(error) => println!(
            "FAIL {:<14} {error:#} ({seconds:.0} s; what passed over the console is in {})",
            scenario.name,
            inside.folder.join(scenario.name).display()
        ),
    }
    outcome.is_ok()
}
