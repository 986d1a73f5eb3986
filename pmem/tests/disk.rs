//! Stores on disks: what a device may do to blocks that are under way when the power goes, and files and devices as disks.

mod common;

#[allow(unsafe_code, reason = "memory that is written to a disk is memory that outlives no process")]
mod model {
    use std::{
        alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
        collections::{BTreeMap, BTreeSet},
        io,
        ptr::{self, NonNull},
        sync::{Arc, Mutex, MutexGuard},
    };

    use pmem::{Domain, Medium};
    use rand::RngExt as _;
    use rand_chacha::ChaCha8Rng;

    const BLOCK_BYTES: usize = 4096;
    const SECTOR_BYTES: usize = 512;
    /// What a torn sector is torn into.
    const WORD_BYTES: usize = 8;

    /// Memory over a disk that writes whole blocks, in any order, and reads them from memory whenever it likes while the
    /// fence that they belong to is under way.
    pub struct Disk {
        base: NonNull<u8>,
        len: usize,
        state: Mutex<State>,
    }

    struct State {
        platter: Vec<u8>,
        dirty: BTreeSet<usize>,
        /// Blocks of the fence that was started, as they were then.
        underway: BTreeMap<usize, Vec<u8>>,
        is_underway: bool,
        rng: ChaCha8Rng,
        /// Fences until the device fails, if it does.
        fails_after: Option<u32>,
    }

    // SAFETY: the memory is this value's alone, and its contract says who touches it.
    unsafe impl Send for Disk {}
    // SAFETY: as above.
    unsafe impl Sync for Disk {}

    impl Disk {
        /// A disk that holds `platter`, read into memory.
        pub fn new(platter: Vec<u8>, rng: ChaCha8Rng) -> Arc<Self> {
            let len = platter.len();
            assert_eq!(len % BLOCK_BYTES, 0);
            let layout = layout(len);
            // SAFETY: the length is not 0.
            let base = unsafe { alloc_zeroed(layout) };
            let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
            // SAFETY: both have this length.
            unsafe { ptr::copy_nonoverlapping(platter.as_ptr(), base.as_ptr(), len) };
            let (dirty, underway) = (BTreeSet::new(), BTreeMap::new());
            let state = State { platter, dirty, underway, is_underway: false, rng, fails_after: None };
            Arc::new(Self { base, len, state: Mutex::new(state) })
        }

        /// Has the device refuse writes after so many more fences.
        pub fn fail_after(&self, fences: u32) {
            self.state().fails_after = Some(fences);
        }

        /// What the disk holds after a power cut now: of each sector that is under way the old bytes, the new ones, or words
        /// of both.
        pub fn crash(&self) -> Vec<u8> {
            let mut state = self.state();
            let State { platter, underway, rng, .. } = &mut *state;
            let mut image = platter.clone();
            for (&block, started) in underway.iter() {
                let written = self.read(block, started, rng);
                for from in (0..BLOCK_BYTES).step_by(SECTOR_BYTES) {
                    let kind = rng.random_range(0..3);
                    for word in (from..from + SECTOR_BYTES).step_by(WORD_BYTES) {
                        if kind == 1 || kind == 2 && rng.random_bool(0.5) {
                            image[block + word..][..WORD_BYTES]
                                .copy_from_slice(&written[word..][..WORD_BYTES]);
                        }
                    }
                }
            }
            image
        }

        /// What a device reads of a block: some of it when it was told to, and some just now.
        fn read(&self, block: usize, started: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
            let mut bytes = started.to_vec();
            for word in (0..BLOCK_BYTES).step_by(WORD_BYTES) {
                if rng.random_bool(0.5) {
                    bytes[word..word + WORD_BYTES].copy_from_slice(&self.memory(block + word, WORD_BYTES));
                }
            }
            bytes
        }

        fn memory(&self, from: usize, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            // SAFETY: the range is a block's or part of one, and the one thread of these tests has no reference into it.
            unsafe { ptr::copy_nonoverlapping(self.base.as_ptr().add(from), bytes.as_mut_ptr(), len) };
            bytes
        }

        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap()
        }

        fn start(&self, state: &mut State) -> io::Result<()> {
            if let Some(left) = &mut state.fails_after {
                *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the device is gone"))?;
            }
            let dirty = std::mem::take(&mut state.dirty);
            state.underway =
                dirty.into_iter().map(|block| (block, self.memory(block, BLOCK_BYTES))).collect();
            state.is_underway = true;
            Ok(())
        }

        fn finish(&self, state: &mut State) {
            let State { platter, underway, rng, .. } = state;
            for (&block, started) in underway.iter() {
                platter[block..block + BLOCK_BYTES].copy_from_slice(&self.read(block, started, rng));
            }
            underway.clear();
            state.is_underway = false;
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            // SAFETY: it was allocated so.
            unsafe { dealloc(self.base.as_ptr(), layout(self.len)) };
        }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK_BYTES).unwrap()
    }

    // SAFETY: the memory stays where it is until the value is dropped, and all methods stay within it.
    unsafe impl Medium for Disk {
        fn base(&self) -> NonNull<u8> {
            self.base
        }

        fn len(&self) -> usize {
            self.len
        }

        unsafe fn store(&self, offset: usize, bytes: &[u8]) {
            assert!(offset + bytes.len() <= self.len);
            // SAFETY: the range is inside, and the caller has it for itself.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) }
        }

        unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
            // SAFETY: the same contract.
            unsafe { self.store(offset, bytes) }
        }

        fn flush(&self, offset: usize, len: usize) {
            let blocks = offset / BLOCK_BYTES..(offset + len).min(self.len).div_ceil(BLOCK_BYTES);
            self.state().dirty.extend(blocks.map(|block| block * BLOCK_BYTES));
        }

        fn fence(&self) -> io::Result<()> {
            let mut state = self.state();
            self.finish(&mut state);
            self.start(&mut state)?;
            self.finish(&mut state);
            Ok(())
        }

        fn start_fence(&self) -> io::Result<bool> {
            let mut state = self.state();
            self.finish(&mut state);
            self.start(&mut state)?;
            Ok(false)
        }

        fn is_fenced(&self) -> io::Result<bool> {
            let mut state = self.state();
            if state.is_underway && state.rng.random_bool(0.6) {
                self.finish(&mut state);
            }
            Ok(!state.is_underway)
        }

        fn fences_later(&self) -> bool {
            true
        }

        fn domain(&self) -> Domain {
            Domain::Model
        }

        fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
            self
        }
    }
}

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use common::{append, contents, payload, rng, store};
use model::Disk;
use pmem::{
    AppendError, CommitError, Domain, DomainChoice, Durable, Kind, Medium, OpenError, Options, Pending,
    Region, Shard, Snapshot, SnapshotEvent,
};
use rand::{Rng as _, RngExt as _};

const SEEDS: u64 = 150;
const OPERATIONS: usize = 120;

fn over(disk: &Arc<Disk>) -> Shard {
    let medium: Arc<dyn Medium> = disk.clone();
    let options =
        Options { buffer_bytes: Some(2176), log_entries: Some(256), reserve: Some(4), ..Options::default() };
    Region::over(medium, &options).unwrap().into_shard().unwrap()
}

/// What was acknowledged, and what was given to the log.
#[derive(Default)]
struct Told {
    pending: Vec<(Pending, Vec<u8>)>,
    acknowledged: BTreeMap<u64, Vec<u8>>,
}

impl Told {
    fn confirm(&mut self, durable: Option<Durable>) {
        let Some(durable) = durable else { return };
        for (pending, bytes) in std::mem::take(&mut self.pending) {
            match durable.confirm(pending) {
                Ok(receipt) => assert!(self.acknowledged.insert(receipt.seq, bytes).is_none()),
                Err(pending) => self.pending.push((pending, bytes)),
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_torn_sectors_and_writes_in_any_order() {
    let first: u64 = rand::random();
    for seed in (0..SEEDS).map(|number| first.wrapping_add(number)) {
        println!("seed {seed}");
        let mut random = rng(seed);
        let mut disk = Disk::new(vec![0; 512 << 10], rng(random.next_u64()));
        let mut shard = over(&disk);
        let (mut told, mut payloads) = (Told::default(), seed);
        for _ in 0..OPERATIONS {
            match random.random_range(0..100) {
                0..50 => {
                    payloads += 1;
                    let len = [10, 100, 600, 1024, 1400, 5000][random.random_range(0..6)];
                    let bytes = payload(payloads, len);
                    match append(&mut shard, &bytes, 1448) {
                        Ok(pending) => told.pending.push((pending, bytes)),
                        Err(AppendError::Full(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                50..70 if !shard.is_committing() && shard.uncommitted() => {
                    told.confirm(shard.start_commit().unwrap());
                }
                50..85 => told.confirm(shard.look_at_commit().unwrap()),
                85..88 => {
                    let durable = shard.commit().unwrap();
                    told.confirm(Some(durable));
                    assert!(told.pending.is_empty());
                }
                88..92 => {
                    let head =
                        shard.trim(random.random_range(shard.head_seq()..=shard.next_seq())).unwrap().head;
                    told.acknowledged = told.acknowledged.split_off(&head);
                }
                92..94 => shard.checkpoint().unwrap(),
                _ => {
                    let image = disk.crash();
                    drop(shard);
                    disk = Disk::new(image, rng(random.next_u64()));
                    shard = over(&disk);
                    assert_eq!(shard.recovery().quarantined, 0);
                    let found: BTreeMap<_, _> = contents(&shard).into_iter().collect();
                    for (seq, bytes) in &told.acknowledged {
                        assert_eq!(found.get(seq), Some(bytes), "record {seq}");
                    }
                    // What was appended and not acknowledged may be there, as it was, and nothing else.
                    let given: Vec<_> = told.pending.drain(..).map(|(_, bytes)| bytes).collect();
                    for (seq, bytes) in found {
                        told.acknowledged.entry(seq).or_insert_with(|| {
                            assert!(given.contains(&bytes), "record {seq} is nobody's");
                            bytes
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn what_comes_while_a_commit_is_under_way_is_confirmed_by_the_next() {
    let disk = Disk::new(vec![0; 256 << 10], rng(1));
    let mut shard = over(&disk);
    let first = append(&mut shard, &payload(1, 1024), 1448).unwrap();
    assert!(shard.start_commit().unwrap().is_none());
    assert!(shard.is_committing());
    let second = append(&mut shard, &payload(2, 1024), 1448).unwrap();
    let durable = (0..1000).find_map(|_| shard.look_at_commit().unwrap()).expect("it ends");
    assert!(!shard.is_committing() && shard.uncommitted());
    let seq = durable.confirm(first).unwrap().seq;
    let second = durable.confirm(second).expect_err("it came afterwards");
    assert_eq!(contents(&shard), [(seq, payload(1, 1024))], "what is not durable is not read");
    let durable = shard.commit().unwrap();
    assert!(durable.confirm(second).is_ok() && !shard.uncommitted());
}

#[test]
fn a_commit_that_fails_under_way_confirms_nothing_and_ends_the_shard() {
    let disk = Disk::new(vec![0; 256 << 10], rng(1));
    let mut shard = over(&disk);
    append(&mut shard, &payload(1, 1024), 1448).map(drop).unwrap();
    disk.fail_after(0);
    assert!(matches!(shard.start_commit(), Err(CommitError::Fence { .. })));
    assert!(matches!(shard.look_at_commit(), Err(CommitError::Poisoned { .. })));
    assert!(matches!(append(&mut shard, b"more", 1448), Err(AppendError::Poisoned { .. })));
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn as_disk() -> Options {
    Options { size: Some(4 << 20), domain: DomainChoice::Disk, ..Options::default() }
}

fn open(path: &Path, options: &Options) -> Shard {
    Region::open(path, options).unwrap().into_shard().unwrap()
}

#[test]
fn a_store_on_a_disk_is_in_the_file_when_a_commit_is_done_and_is_opened_in_either_domain() {
    let folder = folder();
    let path = folder.path().join("store");
    let region = Region::open(&path, &as_disk()).unwrap();
    let info = region.info().clone();
    assert!(matches!((info.kind, info.domain), (Kind::File, Domain::Disk(_))));
    assert!(info.to_string().contains("O_DIRECT") && info.to_string().contains("measured"), "{info}");
    let mut shard = region.into_shard().unwrap();
    let mut stored = Vec::new();
    for number in 0..200 {
        let bytes = payload(number, [20, 300, 1024, 9000][number as usize % 4]);
        let pending = append(&mut shard, &bytes, 1448).unwrap();
        let mut durable = shard.start_commit().unwrap();
        while durable.is_none() {
            durable = shard.look_at_commit().unwrap();
        }
        let seq = durable.unwrap().confirm(pending).unwrap().seq;
        stored.push((seq, bytes));
    }
    // A copy of the file as it is now, and not of memory, holds them all.
    let copy = folder.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let snapshot = Snapshot::open(&copy).unwrap();
    let mut found = Vec::new();
    snapshot
        .scan(0, |event| match event {
            SnapshotEvent::Record(record) => {
                let mut bytes = Vec::new();
                snapshot.write_record(&record, &mut bytes).unwrap();
                found.push((record.info.seq, bytes));
            }
            SnapshotEvent::Corrupt(corruption) => panic!("{corruption}"),
        })
        .unwrap();
    assert_eq!(found, stored);
    drop(shard);
    for options in [Options::default(), as_disk(), Options::default(), as_disk()] {
        let mut shard = open(&path, &options);
        assert_eq!(contents(&shard), stored, "{:?}", options.domain);
        let bytes = payload(stored.len() as u64, 1200);
        stored.push((store(&mut shard, &bytes, 1448), bytes));
    }
}

#[test]
fn shards_of_a_store_on_a_disk_do_not_write_over_each_others_headers() {
    let folder = folder();
    let path = folder.path().join("store");
    let options = Options { shards: Some(4), size: Some(8 << 20), ..as_disk() };
    for round in 0..2 {
        let seeds = Region::open(&path, &options).unwrap().into_seeds();
        std::thread::scope(|scope| {
            for seed in seeds {
                scope.spawn(move || {
                    let mut shard = seed.open().unwrap();
                    assert_eq!(contents(&shard).len(), usize::from(round > 0));
                    for number in 0..12 {
                        let seq = store(&mut shard, &payload(number, 1000), 1448);
                        assert_eq!(shard.trim(seq).unwrap().head, seq);
                    }
                });
            }
        });
    }
}

#[test]
fn memory_that_does_not_survive_is_no_disk() {
    let refused = |path: &Path, options: &Options| Region::open(path, options).map(drop).unwrap_err();
    let path = Path::new("/dev/shm").join(format!("pmem-disk-{}", std::process::id()));
    let error = refused(&path, &Options { volatile: true, ..as_disk() });
    assert!(matches!(error, OpenError::Volatile { .. }), "{error}");
    assert!(!path.exists());
    let error = refused(Path::new("/dev/null"), &as_disk());
    assert!(error.to_string().contains("no disk"), "{error}");
}
