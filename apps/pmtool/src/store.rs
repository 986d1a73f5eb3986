//! The commands about stores.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use pmem::{Contents, DomainChoice, Options, Region, Shape};
use program::parse_size;
use program::store::{self, Dropped, Target, Telling};

const FORMAT_EXAMPLES: &str = "\
Examples:
  pmtool format /var/lib/pmlog.pm --size 1GiB
  pmtool format /var/lib/pmlog.pm --size 16GiB --shards 2 --for pmlog
  pmtool format /dev/dax0.0";

const REPAIR_EXAMPLES: &str = "\
Examples:
  pmtool repair /var/lib/pmlog.pm                       what is damaged, and what would be written
  pmtool repair /var/lib/pmlog.pm --write               writes damaged copies of superblock and headers again
  pmtool repair /var/lib/pmlog.pm --drop 17 --write     gives up record 17, which is damaged
  pmtool repair /var/lib/pmlog.pm --drop all --write    gives up all damaged records
No record that can be read is ever lost by this. Exit code 1 if the store is not sound.";

const SALVAGE_EXAMPLES: &str = "\
Examples:
  pmtool salvage /var/lib/broken.pm /var/lib/pmlog.pm
  pmtool salvage /var/lib/broken.pm /var/lib/pmlog.pm --size 32GiB --json > report.json
All records that can be read keep their numbers, epochs and order. What was lost is reported. Of a shard that lost its
header, records that were trimmed last may be back. A store that lost its superblock is found by its logs.";

const RESIZE_EXAMPLES: &str = "\
Examples:
  pmtool resize /var/lib/pmlog.pm /var/lib/larger.pm --size 64GiB && mv /var/lib/larger.pm /var/lib/pmlog.pm
All records keep their numbers, epochs and order. A damaged store is refused: repair or salvage it first.";

/// What to do with a store. It must not be in use.
#[derive(Subcommand)]
pub enum StoreTask {
    /// Makes a new, empty store.
    #[command(after_help = FORMAT_EXAMPLES)]
    Format(FormatArgs),
    /// Says what a store is and how full, without reading its records.
    #[command(after_help = "Example: pmtool info /var/lib/pmlog.pm")]
    Info(LookArgs),
    /// Checks every record of a store, and names those that are damaged.
    #[command(after_help = "Example: pmtool verify /var/lib/pmlog.pm\nExit code 1 if anything is damaged.")]
    Verify(LookArgs),
    /// Says what can be mended of a damaged store, and with --write mends it.
    #[command(after_help = REPAIR_EXAMPLES)]
    Repair(RepairArgs),
    /// Copies all that can be read of a damaged store to a new one, and reports what was lost.
    #[command(after_help = SALVAGE_EXAMPLES)]
    Salvage(SalvageArgs),
    /// Copies a store to a new one of another size.
    #[command(after_help = RESIZE_EXAMPLES)]
    Resize(ResizeArgs),
}

/// A store to be looked at.
#[derive(Args)]
pub struct LookArgs {
    /// The store: a file, a disk or a device-DAX device.
    path: PathBuf,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A store to be made.
#[derive(Args)]
pub struct FormatArgs {
    /// Where: a file, a disk or a device-DAX device.
    path: PathBuf,
    /// How large; without it, all of a device.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<ByteSize>,
    /// How many shards: a server has one for each core.
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: u32,
    /// How long each buffer is, a multiple of 64; 2176 without it.
    #[arg(long, value_name = "BYTES")]
    buffer_bytes: Option<u16>,
    /// How many entries the log of each shard has, a power of two; three to six for each buffer without it.
    #[arg(long, value_name = "N")]
    log_entries: Option<u32>,
    /// The program whose records it will hold. Others refuse it then; without it, each takes it.
    #[arg(long = "for", value_enum, value_name = "PROGRAM")]
    owner: Option<Owner>,
    /// Even if there is a store or something else. What that holds is lost.
    #[arg(long)]
    force: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    medium: MediumArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Owner {
    Pmlog,
    Pmkv,
    Pmfwd,
}

/// How a new store is written.
#[derive(Args)]
struct MediumArgs {
    /// How its bytes reach the medium.
    #[arg(long, value_enum, default_value_t = DomainOption::Auto)]
    domain: DomainOption,
    /// Accept memory that loses everything with the power (tmpfs, hugetlbfs).
    #[arg(long)]
    volatile: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DomainOption {
    /// As what is there asks for.
    Auto,
    /// Past the page cache, as to a disk: for block devices.
    Disk,
}

/// A store to be mended.
#[derive(Args)]
pub struct RepairArgs {
    /// The store.
    path: PathBuf,
    /// Give up this damaged record, S-N in a store of several shards, or all of them.
    #[arg(long, value_name = "N|all")]
    drop: Option<Dropped>,
    /// Do it. Without this nothing is written.
    #[arg(long)]
    write: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A store to be saved.
#[derive(Args)]
pub struct SalvageArgs {
    /// The damaged store. It is only read.
    from: PathBuf,
    /// Where to make the new one.
    to: PathBuf,
    /// How large to make it; as large as the damaged one without it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<ByteSize>,
    /// How long the damaged one is, if not all of its device: needed only where its superblock is lost in both copies.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    from_size: Option<ByteSize>,
    /// How many shards it has, if that is not found: as above.
    #[arg(long, value_name = "N")]
    from_shards: Option<u32>,
    /// How long its buffers are, if not 2176 bytes: as above.
    #[arg(long, value_name = "BYTES")]
    from_buffer_bytes: Option<u16>,
    /// How many entries the log of each of its shards has, if it was made with --log-entries: as above.
    #[arg(long, value_name = "N")]
    from_log_entries: Option<u32>,
    #[command(flatten)]
    new: NewArgs,
}

/// A store to be made larger or smaller.
#[derive(Args)]
pub struct ResizeArgs {
    /// The store. It is only read.
    from: PathBuf,
    /// Where to make the new one.
    to: PathBuf,
    /// How large to make it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: ByteSize,
    #[command(flatten)]
    new: NewArgs,
}

#[derive(Args)]
struct NewArgs {
    /// How many entries the log of each shard of it has, a power of two.
    #[arg(long, value_name = "N")]
    log_entries: Option<u32>,
    /// The report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    medium: MediumArgs,
}

/// Does it; the exit code.
///
/// # Errors
/// It cannot be done.
pub fn run(task: &StoreTask) -> Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let telling = |json| Telling { name: "pmtool", json };
    let is_well = match task {
        StoreTask::Format(args) => {
            format(args, &mut out)?;
            true
        }
        StoreTask::Info(args) => {
            store::info(&args.path, telling(args.json), &mut out)?;
            true
        }
        StoreTask::Verify(args) => store::verify(&args.path, telling(args.json), &mut out)?,
        StoreTask::Repair(args) => {
            store::repair(&args.path, args.drop, args.write, telling(args.json), &mut out)?
        }
        StoreTask::Salvage(args) => {
            let to = args.new.target(&args.to, args.size);
            store::salvage(
                &args.from,
                &args.shape(),
                to,
                &*program::stop_signal()?,
                telling(args.new.json),
                &mut out,
            )?;
            true
        }
        StoreTask::Resize(args) => {
            let to = args.new.target(&args.to, Some(args.size));
            store::resize(&args.from, to, &*program::stop_signal()?, telling(args.new.json), &mut out)?;
            true
        }
    };
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl SalvageArgs {
    fn shape(&self) -> Shape {
        Shape {
            bytes: self.from_size.map(|size| size.as_u64()),
            shards: self.from_shards,
            buffer_bytes: self.from_buffer_bytes,
            log_entries: self.from_log_entries,
        }
    }
}

impl NewArgs {
    fn target<'a>(&self, path: &'a std::path::Path, size: Option<ByteSize>) -> Target<'a> {
        Target {
            path,
            size: size.map(|size| size.as_u64()),
            log_entries: self.log_entries,
            domain: self.medium.domain.into(),
            volatile: self.medium.volatile,
        }
    }
}

fn format(args: &FormatArgs, out: &mut impl Write) -> Result<()> {
    let stop = program::stop_signal()?;
    let options = Options {
        size: args.size.map(|size| size.as_u64()),
        shards: Some(args.shards),
        buffer_bytes: args.buffer_bytes,
        log_entries: args.log_entries,
        contents: match args.owner {
            None => Contents::Unknown,
            Some(Owner::Pmlog) => Contents::Bodies,
            Some(Owner::Pmkv) => Contents::Changes,
            Some(Owner::Pmfwd) => Contents::Frames,
        },
        domain: args.medium.domain.into(),
        volatile: args.medium.volatile,
        force: args.force,
        watch: program::watch_opening("pmtool", args.json, &stop),
        ..Options::default()
    };
    let path = args.path.display();
    let region =
        Region::open(&args.path, &options).map_err(|error| match program::option_for(&error, "--force") {
            Some("--pm-size 1GiB") => anyhow!("{error} (here: --size 1GiB)"),
            Some(option) => anyhow!("{error} (here: {option})"),
            None => error.into(),
        })?;
    ensure!(
        region.info().is_new,
        "{path} holds a store already, and was left alone; choose another path, or --force to destroy what it holds"
    );
    region.begin().with_context(|| format!("no store was made in {path}"))?;
    if args.json {
        let geometry = &region.info().geometry;
        let made = serde_json::json!({
            "path": path.to_string(),
            "store": region.info().uuid.to_string(),
            "contents": region.info().contents.to_string(),
            "region_bytes": geometry.region_bytes,
            "shards": geometry.shards,
            "buffers": geometry.buffers,
            "buffer_bytes": geometry.buffer_bytes,
            "log_entries": geometry.log_entries,
        });
        writeln!(out, "{made}")?;
    } else {
        writeln!(out, "{}", region.info())?;
    }
    Ok(out.flush()?)
}

impl From<DomainOption> for DomainChoice {
    fn from(option: DomainOption) -> Self {
        match option {
            DomainOption::Auto => Self::Found,
            DomainOption::Disk => Self::Disk,
        }
    }
}
