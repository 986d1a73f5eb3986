//! How long a store takes to open after its process was killed, and how much memory, by size and fill; a table on standard
//! error, JSON on standard output.
//!
//! A store is filled with records of 1 KiB and left without a last header, as by a kill; its file stays in the page cache.
//! Each opening is a process of its own, so that its peak of memory is its own, too. What a store of 1 TiB would take is
//! calculated from the time and the memory that each record and each buffer took.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use pmem::{Options, Region};
use serde::{Deserialize, Serialize};

const RECORD_BYTES: usize = 1024;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// Records that one commit makes durable while a store is filled.
const BATCH: u64 = 1024;
const ROUNDS: usize = 3;

/// One opening.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Opening {
    seconds: f64,
    records: u64,
    buffers: u64,
    /// DRAM that is the process's own afterwards, without the store's pages.
    memory_bytes: u64,
}

/// What a store of one size and fill took, by the quickest of some openings.
#[derive(Serialize)]
struct Cell {
    region_bytes: u64,
    fill_percent: u64,
    #[serde(flatten)]
    opening: Opening,
    ns_per_record: f64,
    memory_bytes_per_buffer: f64,
    /// As measured, for a store of 1 TiB as full.
    calculated_tib_seconds: f64,
}

#[derive(Serialize)]
struct Results {
    record_bytes: usize,
    cells: Vec<Cell>,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--open", path] => Ok(serde_json::to_writer(io::stdout(), &open(Path::new(path))?)?),
        [folder, ref sizes @ ..] if !sizes.is_empty() => measure(Path::new(folder), sizes),
        _ => Err("give a folder for the stores, and their sizes in MiB".into()),
    }
}

fn measure(folder: &Path, sizes: &[&str]) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    let mut cells = Vec::new();
    eprintln!(
        "{:>9} {:>5} {:>10} {:>9} {:>10} {:>11} {:>12}",
        "store", "fill", "records", "opened", "a record", "a buffer", "1 TiB so"
    );
    for size in sizes {
        let bytes = size.parse::<u64>()? * MIB;
        for fill_percent in [50, 100] {
            let store = Store(folder.join("store.pm"));
            fill(&store.0, bytes, fill_percent)?;
            let openings = (0..ROUNDS).map(|_| opened(&store.0)).collect::<Result<Vec<_>, _>>()?;
            let quickest = openings.into_iter().min_by(|one, other| one.seconds.total_cmp(&other.seconds));
            let cell = Cell::new(bytes, fill_percent, quickest.ok_or("nothing was opened")?);
            eprintln!(
                "{:>5} MiB {:>4}% {:>10} {:>7.3} s {:>7.1} ns {:>9.1} B {:>10.1} s",
                bytes / MIB,
                fill_percent,
                cell.opening.records,
                cell.opening.seconds,
                cell.ns_per_record,
                cell.memory_bytes_per_buffer,
                cell.calculated_tib_seconds
            );
            cells.push(cell);
        }
    }
    Ok(serde_json::to_writer_pretty(io::stdout(), &Results { record_bytes: RECORD_BYTES, cells })?)
}

impl Cell {
    fn new(region_bytes: u64, fill_percent: u64, opening: Opening) -> Self {
        let Opening { seconds, records, buffers, memory_bytes } = opening;
        Self {
            region_bytes,
            fill_percent,
            opening,
            ns_per_record: seconds * 1e9 / records.max(1) as f64,
            memory_bytes_per_buffer: memory_bytes as f64 / buffers as f64,
            calculated_tib_seconds: seconds * TIB as f64 / region_bytes as f64,
        }
    }
}

/// A file that goes with this.
struct Store(PathBuf);

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// A new store, with so much of its buffers full, and no header written behind the last record.
fn fill(path: &Path, bytes: u64, percent: u64) -> Result<(), Failure> {
    let options = Options { size: Some(bytes), reserve: Some(0), force: true, ..Options::default() };
    let mut shard = Region::open(path, &options)?.into_shard()?;
    let records = shard.arena().buffers() as u64 * percent / 100;
    let mut payload = [0; RECORD_BYTES];
    for number in 0..records {
        payload[..8].copy_from_slice(&number.to_le_bytes());
        let _pending = shard.append_copy(&payload)?;
        if number % BATCH == BATCH - 1 {
            shard.commit()?;
        }
    }
    shard.commit()?;
    Ok(())
}

fn opened(path: &Path) -> Result<Opening, Failure> {
    let output = Command::new(env::current_exe()?).arg("--open").arg(path).output()?;
    if !output.status.success() {
        return Err(format!(
            "opening ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn open(path: &Path) -> Result<Opening, Failure> {
    let options = Options { trust_durable: true, ..Options::default() };
    let before = own_bytes()?;
    let begun = Instant::now();
    let shard = Region::open(path, &options)?.into_shard()?;
    let seconds = begun.elapsed().as_secs_f64();
    let (records, buffers) = (shard.recovery().records, shard.arena().buffers() as u64);
    let memory_bytes = own_bytes()?.saturating_sub(before);
    // Not as a clean end would leave it.
    std::mem::forget(shard);
    Ok(Opening { seconds, records, buffers, memory_bytes })
}

/// Memory of this process that no file is behind.
fn own_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
