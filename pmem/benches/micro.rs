//! What an append and a persist cost on plain memory, with the flushes and fences of real persistent memory.
//!
//! `append/N` is one record of N bytes that has arrived in segments of at most 1448: its pieces are pushed, appended
//! and committed. A trim every 1,024 records is part of it. `persist/N_lines` is N lines stored, flushed and
//! fenced once.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pmem::{Buffer, Extent, LINE_BYTES, MEMORY, Options, Region, Shard};

const SEGMENT_BYTES: usize = 1448;
const HEADER_BYTES: usize = 66;
const TRIM_EVERY: u64 = 1024;

fn shard() -> Shard {
    let options = Options { size: Some(64 << 20), ..Options::default() };
    let region = Region::open(MEMORY, &options).expect("64 MiB of memory");
    println!("{}", region.info());
    region.into_shard().expect("a new store opens")
}

/// A piece that lies where a network card would have put it. Its bytes are whatever was there: writing them is the
/// card's work.
fn arrived(shard: &Shard, len: usize) -> Extent {
    let buffer = shard.arena().take().expect("trimming keeps buffers free");
    buffer.into_extent(HEADER_BYTES as u16, len as u16).expect("a segment fits into a buffer")
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for (name, len) in [("64B", 64), ("1KiB", 1024), ("4KiB", 4096)] {
        let mut shard = shard();
        let mut appended = 0u64;
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut draft = shard.draft();
                for at in (0..len).step_by(SEGMENT_BYTES) {
                    let extent = arrived(&shard, SEGMENT_BYTES.min(len - at));
                    shard.push(&mut draft, extent).expect("there is room");
                }
                let pending = shard.append(draft).expect("there is room");
                let receipt = shard.commit().expect("memory does not fail").confirm(pending);
                appended += 1;
                if appended.is_multiple_of(TRIM_EVERY) {
                    shard.trim(shard.next_seq()).expect("memory does not fail");
                }
                black_box(receipt)
            });
        });
    }
    group.finish();
}

fn persist(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("persist");
    let shard = shard();
    let arena = shard.arena();
    let medium = Arc::clone(arena.medium());
    let mut buffers: Vec<Buffer> = (0..4096).map(|_| arena.take().expect("a new store has these")).collect();
    for lines in [1, 16] {
        let bytes = [0x5a; 16 * LINE_BYTES];
        let mut turn = 0;
        group.bench_function(format!("{lines}_lines"), |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % buffers.len();
                let buffer = &mut buffers[turn];
                assert!(buffer.arrive(0, &bytes[..lines * LINE_BYTES]));
                let offset = arena.address(buffer.id()) as usize - medium.base().as_ptr() as usize;
                medium.flush(offset, lines * LINE_BYTES);
                medium.fence().expect("memory does not fail");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append, persist);
criterion_main!(benches);
