//! A store that becomes another one, while the power goes.

use std::{io::Read as _, sync::OnceLock};

use flate2::read::GzDecoder;
use pmem::{LineModel, ModelKind, OpenError, Options, Region};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::common::{contents, open, rng, store, tiny};

/// Formats over a store: the old one is whole then, or there is none, or the new one. The error says what else there is.
pub fn format(seed: u64) -> Result<(), String> {
    let mut random = rng(seed);
    (0..12).try_for_each(|_| format_once(&mut random))
}

fn format_once(random: &mut ChaCha8Rng) -> Result<(), String> {
    let model = LineModel::new(96 << 10);
    let mut shard = open(&model, &tiny());
    store(&mut shard, b"old", 800);
    drop(shard);
    let at = model.operations() + random.random_range(0..28);
    let mut chance = rng(random.next_u64());
    model.crash_at(at, move || chance.next_u64());
    let region = Region::over(model.clone(), &Options { force: true, ..tiny() });
    region.and_then(|region| region.begin()).map_err(|error| error.to_string())?;
    let image = model.crashed().unwrap_or_else(|| model.crash(|| random.next_u64()));
    let is_zero = |from: usize| image[from..from + 512].iter().all(|&byte| byte == 0);
    if is_zero(0) && is_zero(image.len() - 4096) {
        return Ok(());
    }
    let opened = Region::over(LineModel::from_image(image), &tiny()).and_then(Region::into_shard);
    match opened {
        Ok(shard) => match contents(&shard).as_slice() {
            [] => Ok(()),
            [(1, bytes)] if bytes == b"old" => Ok(()),
            other => Err(format!("found {other:?}")),
        },
        Err(OpenError::NotAStore { .. } | OpenError::Damaged { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The records of each shard.
type Contents = Vec<Vec<(u64, Vec<u8>)>>;

/// Opens a store of the first format: whenever that ends, it is one of that format or of this one, with all that it held.
pub fn take_over(seed: u64) -> Result<(), String> {
    static OLD: OnceLock<(Vec<u8>, Contents)> = OnceLock::new();
    let (old, expected) = OLD.get_or_init(|| {
        let mut image = Vec::new();
        let packed = &include_bytes!("../golden/version-1.store.gz")[..];
        GzDecoder::new(packed).read_to_end(&mut image).expect("the image is whole");
        let contents = read(ModelKind::Lines, &image).expect("it opens");
        (image, contents)
    });
    (0..8).try_for_each(|at| take_over_once(rng(seed ^ at << 32), old, expected))
}

fn take_over_once(mut random: ChaCha8Rng, old: &Vec<u8>, expected: &Contents) -> Result<(), String> {
    let kinds = [ModelKind::Lines, ModelKind::Pages, ModelKind::Disk];
    let kind = kinds[random.random_range(0..kinds.len())];
    let model = LineModel::of(kind, old.clone(), random.next_u64());
    let mut chance = rng(random.next_u64());
    let at = random.random_range(0..12);
    model.crash_at(at, move || chance.next_u64());
    let opened = Region::over(model.clone(), &kept()).and_then(Region::into_shard);
    opened.map_err(|error| error.to_string())?;
    let image = model.crashed().unwrap_or_else(|| model.crash(|| random.next_u64()));
    // An older program takes it for its own until it is told otherwise.
    let is_old = |place: usize| image[place + 8..place + 12] == [1, 0, 0, 0];
    if is_old(0) && is_old(256) && image != *old {
        return Err(format!("{kind:?}, before operation {at}: it is still of the first format, and changed"));
    }
    let found = read(kind, &image).map_err(|error| format!("{kind:?}, before operation {at}: {error}"))?;
    if found == *expected { Ok(()) } else { Err(format!("{kind:?}, before operation {at}: other records")) }
}

fn kept() -> Options {
    Options { reserve: Some(2), ..Options::default() }
}

fn read(kind: ModelKind, image: &[u8]) -> Result<Contents, OpenError> {
    let region = Region::over(LineModel::of(kind, image.to_vec(), 0), &kept())?;
    region.into_seeds().into_iter().map(|seed| seed.open().map(|shard| contents(&shard))).collect()
}
