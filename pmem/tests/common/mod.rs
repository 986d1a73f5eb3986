//! What the tests of the store share: records of known bytes, cut into segments as a network would.

#![allow(dead_code, reason = "each test program uses another part of it")]
#![allow(unsafe_code, reason = "a medium changes under an open store where somebody else writes to it")]

use std::sync::Arc;

use pmem::{AppendError, Full, LineModel, Medium, Options, Pending, Region, Shard};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where payload begins in a buffer: behind headroom and headers.
pub const PAYLOAD_OFFSET: usize = 128 + 66;

/// Small buffers, so that small regions have many, and a short log, so that it is gone round often, with a header written
/// several times meanwhile.
pub fn tiny() -> Options {
    let checkpoint_entries = 8;
    Options {
        buffer_bytes: Some(1024),
        log_entries: Some(64),
        reserve: Some(4),
        checkpoint_entries,
        ..Options::default()
    }
}

pub fn open(model: &Arc<LineModel>, options: &Options) -> Shard {
    let medium: Arc<dyn Medium> = model.clone();
    Region::over(medium, options).unwrap().into_shard().unwrap()
}

pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Bytes that depend on `seed` alone.
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng(seed).fill_bytes(&mut bytes);
    bytes
}

/// Appends `bytes`, which arrive in segments of `segment` bytes at most, each in a buffer of its own.
pub fn append(shard: &mut Shard, bytes: &[u8], segment: usize) -> Result<Pending, AppendError> {
    let mut draft = shard.draft();
    for piece in bytes.chunks(segment) {
        let full = Full::Buffers { free: 0, reserve: 0 };
        let mut buffer = shard.arena().take().ok_or(AppendError::Full(full))?;
        assert!(buffer.arrive(PAYLOAD_OFFSET, piece));
        shard.push(&mut draft, buffer.into_extent(PAYLOAD_OFFSET as u16, piece.len() as u16).unwrap())?;
    }
    shard.append(draft)
}

/// Appends and commits; returns the number.
pub fn store(shard: &mut Shard, bytes: &[u8], segment: usize) -> u64 {
    let pending = append(shard, bytes, segment).unwrap();
    shard.commit().unwrap().confirm(pending).unwrap().seq
}

/// All durable records, checked against their own checksums and lengths.
pub fn contents(shard: &Shard) -> Vec<(u64, Vec<u8>)> {
    let read = |seq| {
        let record = shard.record(seq).unwrap();
        let bytes = record.to_vec();
        assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (record.len(), record.crc32c()));
        (seq, bytes)
    };
    shard.records(0).map(|info| read(info.seq)).collect()
}

/// Changes bits of a byte of the medium behind an open store's back.
pub fn rot(model: &Arc<LineModel>, at: usize, bits: u8) {
    assert!(at < model.len());
    // SAFETY: inside of the medium; the test is the only thread, and no reference into the medium lives meanwhile.
    unsafe {
        let byte = model.base().as_ptr().add(at);
        byte.write(byte.read() ^ bits);
    }
}

/// What the CPU sees of a medium, and what a power cut would leave of it at least.
pub fn memory(model: &LineModel) -> (Vec<u8>, Vec<u8>) {
    // SAFETY: the test is the only thread, and nothing is written while the bytes are copied.
    let seen = unsafe { std::slice::from_raw_parts(model.base().as_ptr(), model.len()) }.to_vec();
    (seen, model.crash(|| 0))
}
