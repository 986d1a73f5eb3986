//! The store of a server.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, anyhow, ensure};
use pmem::{Contents, Options, Region, RegionInfo, Shard, ShardSeed};

use crate::cli::ServeArgs;
use crate::service::MAX_SHARDS;

/// Opens or makes the store that was asked for, with a shard for each core at least. Nothing of an existing one is
/// changed before its first shard is opened. Until all are open, `stop` ends it.
pub(super) fn open(
    args: &ServeArgs,
    cores: NonZeroU16,
    stop: &Arc<AtomicBool>,
) -> Result<(RegionInfo, Vec<ShardSeed>)> {
    let options = Options {
        size: args.pm_size.map(|size| size.as_u64()),
        shards: args.shards,
        shards_if_new: Some(cores.get().into()),
        log_entries: args.log_entries,
        buffer_bytes: args.buffer_bytes,
        pack_below: args.pack_below,
        contents: Contents::Bodies,
        max_record_bytes: u32::try_from(args.max_record.as_u64()).unwrap_or(u32::MAX),
        domain: args.domain.into(),
        volatile: args.volatile,
        force: args.force,
        timed: args.profile,
        populate: true,
        trust_durable: true,
        watch: program::watch_opening("pmlog", args.json, stop),
        ..Options::default()
    };
    let region = Region::open(&args.pm, &options).map_err(|error| {
        match program::option_for(&error, "--pm-size, --shards, --log-entries, --buffer-bytes, --force") {
            Some(option) => anyhow!("{error} (here: {option})"),
            None => error.into(),
        }
    })?;
    let info = region.info().clone();
    let shards = info.geometry.shards;
    ensure!(
        shards >= cores.get().into(),
        "{} has {shards} shard(s), and each of {cores} cores needs one: serve with fewer --cores, or have the store \
         made again with --force, which destroys the records in it",
        args.pm.display()
    );
    ensure!(
        shards as usize <= MAX_SHARDS,
        "{} has {shards} shards, and at most {MAX_SHARDS} can be served",
        args.pm.display()
    );
    Ok((info, region.into_seeds()))
}

/// Payload of each shard that is read before it is served.
const READ_BYTES: u64 = 128 << 20;

/// Opens a shard. Of a large one most payload is left to the scrub that goes on while it is served, so that opening takes a
/// time by the number of its records, and not of their bytes.
pub(super) fn open_shard(seed: ShardSeed) -> Result<Shard> {
    let mut shard = seed.open()?;
    let mut left = READ_BYTES;
    while left > 0 && !shard.is_scrubbed() {
        left = left.saturating_sub(shard.scrub(left).bytes);
    }
    Ok(shard)
}
