//! The store of a server.

use anyhow::{Result, anyhow};
use pmem::{OpenError, Options, Region, RegionInfo, ShardSeed};

use crate::cli::ServeArgs;

/// Opens or makes the store that was asked for. Nothing of an existing one is changed yet.
pub(super) fn open(args: &ServeArgs) -> Result<(RegionInfo, ShardSeed)> {
    let options = Options {
        size: args.pm_size.map(|size| size.as_u64()),
        shards: Some(1),
        max_record_bytes: u32::try_from(args.max_record.as_u64()).unwrap_or(u32::MAX),
        volatile: args.volatile,
        force: args.force,
        ..Options::default()
    };
    let region = Region::open(&args.pm, &options).map_err(|error| match option_for(&error) {
        Some(option) => anyhow!("{error} (here: {option})"),
        None => error.into(),
    })?;
    let info = region.info().clone();
    Ok((info, region.into_seeds().swap_remove(0)))
}

/// The option that grants what the store's error asks for.
fn option_for(error: &OpenError) -> Option<&'static str> {
    match error {
        OpenError::NoSize { .. } => Some("--pm-size 1GiB"),
        OpenError::Volatile { .. } => Some("--volatile"),
        OpenError::NotAStore { .. } | OpenError::Version { .. } | OpenError::Damaged { .. } => {
            Some("--force")
        }
        OpenError::Mismatch { .. } => Some("--pm-size, --force"),
        _ => None,
    }
}
