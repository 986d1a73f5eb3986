//! Crash tests over the line model: whatever was acknowledged is there after a power cut, nothing else appears,
//! and each single kind of flush and fence is shown to be needed by leaving it out.
//!
//! `PMEM_CRASH_SEED=n` replays one history; `PMEM_CRASH_SEEDS=n` runs that many.

#![allow(unsafe_code, reason = "a medium that forgets flushes is a medium")]

mod common;

use std::{
    collections::BTreeMap,
    io,
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{contents, payload, rng, tiny};
use pmem::{
    AppendError, Domain, Geometry, LineModel, Medium, OpenError, Options, Pending, Record, Region, Shard,
};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

const REGION_BYTES: usize = 96 << 10;

/// What the test does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Format,
    Open,
    Push,
    Append,
    /// An append of a record that has arrived in one piece.
    AppendOne,
    Commit,
    Trim,
    Checkpoint,
}

/// Where a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Superblock,
    Header,
    Log,
    Arena,
}

/// A kind of operation that a medium can be made to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The flushes to an area that come after so many fences of the phase.
    Flush(Phase, Area, u32),
    /// A fence that comes after so many others of the phase.
    Fence(Phase, u32),
}

/// The line model, but one kind of flush or fence does nothing.
struct Forgetful {
    model: Arc<LineModel>,
    forgets: Option<Kind>,
    /// The phase, and how many fences it has seen.
    phase: Mutex<(Phase, u32)>,
    geometry: Geometry,
    /// Whether the forgotten kind occurred at all.
    forgot: AtomicBool,
}

impl Forgetful {
    fn phase(&self, phase: Phase) {
        *self.phase.lock().unwrap() = (phase, 0);
    }

    fn area(&self, offset: usize) -> Area {
        let geometry = &self.geometry;
        let is_in = |copies: [usize; 2]| copies.iter().any(|&copy| (copy..copy + 256).contains(&offset));
        match offset as u64 {
            _ if is_in(geometry.superblocks()) || is_in([0, 256]) => Area::Superblock,
            _ if is_in(geometry.headers_of(0)) => Area::Header,
            offset if offset < geometry.arena_offset => Area::Log,
            _ => Area::Arena,
        }
    }

    fn forgets(&self, kind: Kind) -> bool {
        let forgets = self.forgets == Some(kind);
        self.forgot.fetch_or(forgets, Ordering::Relaxed);
        forgets
    }
}

// SAFETY: the memory is the line model's, and so is everything that touches it.
unsafe impl Medium for Forgetful {
    fn base(&self) -> NonNull<u8> {
        self.model.base()
    }

    fn len(&self) -> usize {
        self.model.len()
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.model.store(offset, bytes) }
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.model.dma(offset, bytes) }
    }

    fn flush(&self, offset: usize, len: usize) {
        let (phase, fences) = *self.phase.lock().unwrap();
        if !self.forgets(Kind::Flush(phase, self.area(offset), fences)) {
            self.model.flush(offset, len);
        }
    }

    fn fence(&self) -> io::Result<()> {
        let (phase, fences) = *self.phase.lock().unwrap();
        self.phase.lock().unwrap().1 += 1;
        if self.forgets(Kind::Fence(phase, fences)) { Ok(()) } else { self.model.fence() }
    }

    fn domain(&self) -> Domain {
        Domain::Model
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        self
    }
}

/// One history of appends, commits, trims and crashes, and what must be true after each.
struct History {
    random: ChaCha8Rng,
    forgets: Option<Kind>,
    geometry: Geometry,
    model: Arc<LineModel>,
    /// Every record that was appended and may be in the log, by number.
    submitted: BTreeMap<u64, Vec<u8>>,
    /// Every record below is acknowledged, by a receipt or by having been recovered.
    acknowledged: u64,
    /// Every record below is gone for sure, and may be gone.
    trimmed: u64,
    trim_asked: u64,
    crashes: u32,
    kills: u32,
    /// Fences that failed, and ended a life.
    failures: u32,
    records: u64,
    payloads: u64,
    forgot: bool,
}

/// What a history has seen.
#[derive(Default)]
struct Seen {
    crashes: u32,
    kills: u32,
    failures: u32,
    records: u64,
    forgot: bool,
}

impl History {
    fn new(seed: u64, forgets: Option<Kind>) -> Self {
        let medium: Arc<dyn Medium> = LineModel::new(REGION_BYTES);
        let geometry = Region::over(medium, &tiny()).unwrap().info().geometry;
        Self {
            random: rng(seed),
            forgets,
            geometry,
            model: LineModel::new(REGION_BYTES),
            submitted: BTreeMap::new(),
            acknowledged: 1,
            trimmed: 1,
            trim_asked: 1,
            crashes: 0,
            kills: 0,
            failures: 0,
            records: 0,
            payloads: seed << 32,
            forgot: false,
        }
    }

    /// Runs the history; the error says what was violated.
    fn run(mut self, lives: u32) -> Result<Seen, String> {
        self.make()?;
        for life in 0..lives {
            let medium = self.medium();
            let lived = self.live(&medium).map_err(|error| format!("life {life}: {error}"));
            self.forgot |= medium.forgot.load(Ordering::Relaxed);
            lived?;
        }
        let Self { crashes, kills, failures, records, forgot, .. } = self;
        Ok(Seen { crashes, kills, failures, records, forgot })
    }

    fn medium(&self) -> Arc<Forgetful> {
        Arc::new(Forgetful {
            model: self.model.clone(),
            forgets: self.forgets,
            phase: Mutex::new((Phase::Format, 0)),
            geometry: self.geometry,
            forgot: false.into(),
        })
    }

    /// Makes the store: on a power cut there is a complete one or none, and once it is said to be there it is.
    fn make(&mut self) -> Result<(), String> {
        if self.random.random_bool(0.2) {
            self.make_over_a_failing_disk();
        }
        self.cut_power_soon(24);
        let medium = self.medium();
        let made = Region::over(medium.clone(), &tiny()).or_else(|error| match error {
            // What a failed attempt has left, when whoever makes it says so.
            OpenError::NotAStore { .. } | OpenError::Damaged { .. } if self.failures > 0 => {
                Region::over(medium.clone(), &Options { force: true, ..tiny() })
            }
            other => Err(other),
        });
        let made = made.map_err(|error| format!("making the store: {error}"))?;
        if !made.info().is_new {
            medium.phase(Phase::Open);
        }
        made.begin().map_err(|error| format!("making the store: {error}"))?;
        self.forgot |= medium.forgot.load(Ordering::Relaxed);
        if let Some(image) = self.model.crashed() {
            match reopen(&image) {
                Ok(shard) if shard.next_seq() == 1 => {}
                Ok(shard) => return Err(format!("a new store begins at {}", shard.next_seq())),
                // A superblock in pieces is no store yet; anything else would be one that cannot be opened.
                Err(OpenError::NotAStore { .. } | OpenError::Damaged { .. }) => {}
                Err(error) => return Err(format!("half-made store: {error}")),
            }
        }
        drop(made);
        let image = self.crash_image();
        reopen(&image).map_err(|error| format!("the new store is not durable: {error}"))?;
        self.model = LineModel::from_image(image);
        Ok(())
    }

    /// Makes a store whose disk refuses a write. Whoever comes next finds what is in the cache.
    fn make_over_a_failing_disk(&mut self) {
        self.model.fail_fence_once(self.random.random_range(0..3), "no space");
        let medium: Arc<dyn Medium> = self.model.clone();
        let made = Region::over(medium, &tiny()).expect("nothing is written yet").begin();
        assert!(made.is_err(), "the disk has refused a write, and nobody says so");
        self.failures += 1;
    }

    /// As [`work`](Self::work), sometimes with a disk that refuses a write: the error ends this life, and the next one
    /// finds the cache as it is.
    fn live(&mut self, medium: &Arc<Forgetful>) -> Result<(), String> {
        let fails = self.random.random_bool(0.2);
        if fails {
            self.model.fail_fence_once(self.random.random_range(0..8), "no space");
        }
        let model = self.model.clone();
        let lived = self.work(medium);
        if fails && !model.will_fail_once() && lived.is_err() && Arc::ptr_eq(&model, &self.model) {
            self.failures += 1;
            self.model.disarm();
            return Ok(());
        }
        model.fail_fences(None);
        lived
    }

    /// Opens the store, works with it for a while, and dies: of a power cut or of a signal.
    fn work(&mut self, medium: &Arc<Forgetful>) -> Result<(), String> {
        if self.random.random_bool(0.6) {
            self.end_soon(9);
        }
        medium.phase(Phase::Open);
        let region = Region::over(medium.clone(), &tiny()).map_err(|error| format!("opening: {error}"))?;
        let mut shard = region.into_shard().map_err(|error| format!("opening: {error}"))?;
        if self.model.has_crashed() {
            return self.end();
        }
        self.adopt(&shard)?;

        let mut pending: Vec<Pending> = Vec::new();
        let mut held: Vec<Record> = Vec::new();
        self.end_soon(400);
        for _ in 0..self.random.random_range(1..120) {
            if self.random.random_bool(0.03) {
                self.end_soon(6);
            }
            match self.random.random_range(0..100) {
                0..45 => self.append(medium, &mut shard, &mut pending)?,
                45..65 => self.commit(medium, &mut shard, &mut pending)?,
                65..75 => {
                    if self.trim(medium, &mut shard)? {
                        return self.end();
                    }
                }
                75..80 => {
                    medium.phase(Phase::Checkpoint);
                    shard.checkpoint().map_err(|error| error.to_string())?;
                }
                80..95 => self.scribble(&shard),
                _ => {
                    held.truncate(2);
                    held.extend(shard.record(self.random.random_range(shard.head_seq()..=shard.next_seq())));
                }
            }
            if self.model.has_crashed() {
                return self.end();
            }
            // What this operation has acknowledged counts from here on: the power was still there.
            self.acknowledged = self.acknowledged.max(shard.committed_seq());
        }
        self.model.disarm();
        let image = self.crash_image();
        self.die(image)
    }

    fn append(
        &mut self,
        medium: &Forgetful,
        shard: &mut Shard,
        pending: &mut Vec<Pending>,
    ) -> Result<(), String> {
        self.payloads += 1;
        let most = *[40, 300, 600, 3000, 9000].get(self.random.random_range(0..5)).unwrap();
        let bytes = payload(self.payloads, self.random.random_range(0..most));
        let segment = if self.random.random_bool(0.1) { 60 } else { self.random.random_range(300..830) };
        let seq = shard.next_seq();
        medium.phase(Phase::Push);
        let result = if bytes.len() <= segment && self.random.random_bool(0.5) {
            append_one(medium, shard, &bytes)
        } else {
            append_in_phases(medium, shard, &bytes, segment)
        };
        match result {
            Ok(receipt) => {
                pending.push(receipt);
                self.submitted.insert(seq, bytes);
                self.records += 1;
            }
            Err(AppendError::Full(_)) => {}
            // A header had to be written first.
            Err(other) => return Err(other.to_string()),
        }
        Ok(())
    }

    fn commit(
        &mut self,
        medium: &Forgetful,
        shard: &mut Shard,
        pending: &mut Vec<Pending>,
    ) -> Result<(), String> {
        medium.phase(Phase::Commit);
        let durable = shard.commit().map_err(|error| error.to_string())?;
        for pending in pending.drain(..) {
            let receipt = durable.confirm(pending).map_err(|_| "an append was not confirmed")?;
            let bytes = &self.submitted[&receipt.seq];
            if receipt.len != bytes.len() as u64 || receipt.crc32c != crc32c::crc32c(bytes) {
                return Err(format!("the receipt of record {} does not match it", receipt.seq));
            }
        }
        Ok(())
    }

    /// Trims; true if the power went away meanwhile.
    fn trim(&mut self, medium: &Forgetful, shard: &mut Shard) -> Result<bool, String> {
        medium.phase(Phase::Trim);
        let before = self.random.random_range(shard.head_seq()..=shard.next_seq());
        let head = shard.records(before).next().map_or(shard.committed_seq(), |info| info.seq);
        self.trim_asked = self.trim_asked.max(head);
        let trimmed = shard.trim(before).map_err(|error| error.to_string())?;
        assert_eq!(trimmed.head, self.trim_asked.max(trimmed.head));
        if self.model.has_crashed() {
            return Ok(true);
        }
        self.trimmed = trimmed.head;
        Ok(false)
    }

    /// A network card receives into free buffers what nobody keeps.
    fn scribble(&mut self, shard: &Shard) {
        let count = self.random.random_range(1..40);
        let mut taken: Vec<_> = (0..count).map_while(|_| shard.arena().take()).collect();
        for buffer in &mut taken {
            self.payloads += 1;
            assert!(buffer.arrive(0, &payload(self.payloads, 1000)));
        }
    }

    fn cut_power_soon(&mut self, operations: u64) {
        let at = self.model.operations() + self.random.random_range(0..operations);
        let mut random = rng(self.random.next_u64());
        self.model.crash_at(at, move || random.next_u64());
    }

    /// Ends this life soon: by a power cut, or by a kill that leaves the caches as they are.
    fn end_soon(&mut self, operations: u64) {
        if self.random.random_bool(0.5) {
            self.cut_power_soon(operations);
        } else {
            self.model.kill_at(self.model.operations() + self.random.random_range(0..operations));
        }
    }

    fn crash_image(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        self.model.crash(|| random.next_u64())
    }

    fn end(&mut self) -> Result<(), String> {
        if let Some(killed) = self.model.killed() {
            // The next life finds the same memory, durable or not.
            self.kills += 1;
            self.model = killed;
            return Ok(());
        }
        let image = self.model.crashed().expect("this life has ended");
        self.die(image)
    }

    /// The power is cut: checks what is left, and boots from it.
    fn die(&mut self, image: Vec<u8>) -> Result<(), String> {
        self.crashes += 1;
        let shard = reopen(&image).map_err(|error| format!("after the power cut: {error}"))?;
        self.check(&shard)?;
        self.lose_a_header(&image, shard.recovery().header_damage.is_some())?;
        self.model = LineModel::from_image(image);
        Ok(())
    }

    /// What was acknowledged depends on neither copy of the header alone. Where the crash has come into one of them
    /// (`is_halved`), nothing is promised without the other.
    fn lose_a_header(&mut self, image: &[u8], is_halved: bool) -> Result<(), String> {
        if is_halved {
            return Ok(());
        }
        for copy in 0..2 {
            let mut image = image.to_vec();
            let at = self.geometry.headers_of(0)[copy] + self.random.random_range(0..44);
            image[at] ^= 1 << self.random.random_range(0..8);
            let shard =
                reopen(&image).map_err(|error| format!("without copy {copy} of the header: {error}"))?;
            self.check(&shard).map_err(|error| format!("without copy {copy} of the header: {error}"))?;
            if shard.recovery().header_damage.is_none() {
                return Err(format!("copy {copy} of the header is damaged, and nobody says so"));
            }
        }
        Ok(())
    }

    /// acknowledged ⊆ recovered ⊆ submitted, in order, bytes equal.
    fn check(&self, shard: &Shard) -> Result<(), String> {
        let (head, next) = (shard.head_seq(), shard.next_seq());
        if head < self.trimmed || head > self.trim_asked {
            return Err(format!("the head is {head}, not {}..={}", self.trimmed, self.trim_asked));
        }
        if next < self.acknowledged {
            return Err(format!("acknowledged up to {}, recovered up to {next}", self.acknowledged));
        }
        let recovered: BTreeMap<_, _> = contents(shard).into_iter().collect();
        let expected: BTreeMap<_, _> =
            self.submitted.range(head..next.max(head)).map(|(&seq, b)| (seq, b.clone())).collect();
        if shard.quarantine_counts() != (0, 0) {
            return Err(format!("a crash has damaged what was durable: {:?}", shard.quarantines()));
        }
        if recovered != expected {
            let (recovered, expected) = (recovered.keys(), expected.keys());
            return Err(format!("recovered {recovered:?}, expected {expected:?} (or other bytes)"));
        }
        Ok(())
    }

    /// The store is open: what it holds is durable now, and what it does not hold never happened.
    fn adopt(&mut self, shard: &Shard) -> Result<(), String> {
        self.check(shard)?;
        self.acknowledged = shard.next_seq();
        self.submitted.split_off(&self.acknowledged);
        self.trimmed = shard.head_seq();
        self.trim_asked = self.trimmed;
        Ok(())
    }
}

/// Appends a record, telling the medium where flushes come from.
fn append_in_phases(
    medium: &Forgetful,
    shard: &mut Shard,
    bytes: &[u8],
    segment: usize,
) -> Result<Pending, AppendError> {
    let mut draft = shard.draft();
    for piece in bytes.chunks(segment) {
        let full = pmem::Full::Buffers { free: 0, reserve: 0 };
        let mut buffer = shard.arena().take().ok_or(AppendError::Full(full))?;
        assert!(buffer.arrive(100, piece));
        shard.push(&mut draft, buffer.into_extent(100, piece.len() as u16).unwrap())?;
    }
    medium.phase(Phase::Append);
    shard.append(draft)
}

/// Appends a record that arrives in one piece.
fn append_one(medium: &Forgetful, shard: &mut Shard, bytes: &[u8]) -> Result<Pending, AppendError> {
    let full = pmem::Full::Buffers { free: 0, reserve: 0 };
    let mut buffer = shard.arena().take().ok_or(AppendError::Full(full))?;
    assert!(buffer.arrive(100, bytes));
    medium.phase(Phase::AppendOne);
    shard.append_extent(buffer.into_extent(100, bytes.len() as u16).unwrap())
}

/// Boots from an image with a medium that forgets nothing.
fn reopen(image: &[u8]) -> Result<Shard, OpenError> {
    let medium: Arc<dyn Medium> = LineModel::from_image(image.to_vec());
    // Without a size nothing is said about making a store; an empty medium must not become one here.
    let is_zero = |from: usize| image[from..from + 512].iter().all(|&byte| byte == 0);
    if is_zero(0) && is_zero(image.len() - 4096) {
        return Err(OpenError::NotAStore { path: "(image)".into() });
    }
    Region::over(medium, &Options { size: None, ..tiny() })?.into_shard()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("the variable is a number"))
}

#[test]
fn acknowledged_records_survive_and_no_others_appear() {
    let seeds = match number("PMEM_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PMEM_CRASH_SEEDS").unwrap_or(150),
    };
    let mut total = Seen::default();
    for seed in seeds.clone() {
        match History::new(seed, None).run(12) {
            Ok(seen) => {
                total.crashes += seen.crashes;
                total.kills += seen.kills;
                total.failures += seen.failures;
                total.records += seen.records;
            }
            Err(error) => panic!("PMEM_CRASH_SEED={seed}: {error}"),
        }
    }
    let Seen { crashes, kills, failures, records, .. } = total;
    println!(
        "{} histories, {crashes} power cuts, {kills} kills, {failures} failed fences, {records} records",
        seeds.count()
    );
    assert!(crashes > 0 && kills > 0 && failures > 0 && records > 0);
}

/// Leaves out one kind of flush or fence; some history must notice.
fn is_needed(kind: Kind) {
    let mut occurred = false;
    for seed in 0..1500 {
        // An open store that is broken may also trip an assertion of this test or of the store itself.
        let run = std::panic::catch_unwind(|| History::new(seed, Some(kind)).run(12));
        match run {
            Ok(Ok(seen)) => occurred |= seen.forgot,
            Ok(Err(error)) => {
                println!("{kind:?}: seed {seed}: {error}");
                History::new(seed, None).run(12).expect("the same history is sound when nothing is left out");
                return;
            }
            Err(_) => panic!("{kind:?}: seed {seed} panicked"),
        }
    }
    panic!(
        "{kind:?} can be left out and nobody notices (it {} occur)",
        if occurred { "did" } else { "did not" }
    );
}

macro_rules! needed {
    ($($name:ident: $kind:expr;)*) => {
        $(#[test] fn $name() { is_needed($kind); })*
    };
}

needed! {
    without_the_flush_of_new_headers: Kind::Flush(Phase::Format, Area::Header, 1);
    without_the_fence_of_new_headers: Kind::Fence(Phase::Format, 1);
    without_the_flush_of_a_new_superblock: Kind::Flush(Phase::Format, Area::Superblock, 2);
    without_the_fence_of_a_new_superblock: Kind::Fence(Phase::Format, 2);
    without_the_flush_of_payload: Kind::Flush(Phase::Push, Area::Arena, 0);
    without_the_flush_of_a_full_pack: Kind::Flush(Phase::Append, Area::Arena, 0);
    without_the_flush_of_entries: Kind::Flush(Phase::Append, Area::Log, 0);
    without_the_flush_of_a_single_piece: Kind::Flush(Phase::AppendOne, Area::Arena, 0);
    without_the_flush_of_a_single_pieces_entry: Kind::Flush(Phase::AppendOne, Area::Log, 0);
    without_the_flush_of_the_pack: Kind::Flush(Phase::Commit, Area::Arena, 0);
    without_the_fence_of_a_commit: Kind::Fence(Phase::Commit, 0);
    without_the_flush_of_a_trim: Kind::Flush(Phase::Trim, Area::Header, 0);
    without_the_fence_of_a_trim: Kind::Fence(Phase::Trim, 0);
    without_the_flush_of_a_trims_second_copy: Kind::Flush(Phase::Trim, Area::Header, 1);
    without_the_fence_of_a_trims_second_copy: Kind::Fence(Phase::Trim, 1);
    without_the_flush_of_a_checkpoint: Kind::Flush(Phase::Checkpoint, Area::Header, 0);
    without_the_fence_of_a_checkpoint: Kind::Fence(Phase::Checkpoint, 0);
    without_the_flush_of_the_superblock_found: Kind::Flush(Phase::Open, Area::Superblock, 0);
    without_the_fence_of_the_superblock_found: Kind::Fence(Phase::Open, 0);
    without_the_flush_of_recovered_payload: Kind::Flush(Phase::Open, Area::Arena, 1);
    without_the_flush_of_recovered_entries: Kind::Flush(Phase::Open, Area::Log, 1);
    without_the_fence_of_what_was_recovered: Kind::Fence(Phase::Open, 1);
    without_the_flush_of_a_new_epoch: Kind::Flush(Phase::Open, Area::Header, 2);
    without_the_fence_of_a_new_epoch: Kind::Fence(Phase::Open, 2);
    without_the_flush_of_a_new_epochs_second_copy: Kind::Flush(Phase::Open, Area::Header, 3);
    without_the_fence_of_a_new_epochs_second_copy: Kind::Fence(Phase::Open, 3);
}

/// A process is killed before step `kill` of a trim, and the power is cut before step `cut` of the opening that follows; the
/// error says what was violated. None if there are no so many steps.
fn killed_then_cut(kill: u64, cut: u64, seed: u64, forgets: Option<Kind>) -> Option<Result<(), String>> {
    let mut history = History::new(seed, forgets);
    let mut shard = common::open(&history.model, &tiny());
    let records: Vec<_> =
        (0..3_u64).map(|number| common::store(&mut shard, &payload(number, 100), 800)).collect();
    history.model.kill_at(history.model.operations() + kill);
    shard.trim(records[1]).expect("the model takes it");
    drop(shard);
    history.model = history.model.killed()?;
    let medium = history.medium();
    let mut random = rng(seed);
    history.model.crash_at(history.model.operations() + cut, move || random.next_u64());
    let region = Region::over(medium.clone(), &tiny()).expect("nothing is damaged yet");
    medium.phase(Phase::Open);
    drop(region.into_shard().expect("the model takes it"));
    let image = history.model.crashed()?;
    let head = |shard: &Shard| shard.head_seq() == records[0] || shard.head_seq() == records[1];
    Some(match reopen(&image) {
        Ok(shard) if head(&shard) && shard.next_seq() == records[2] + 1 => Ok(()),
        Ok(shard) => Err(format!("records from {} to before {}", shard.head_seq(), shard.next_seq())),
        Err(error) => Err(error.to_string()),
    })
}

/// Both have to come into a header, at steps of which there are few.
#[test]
fn without_the_flush_of_the_header_found() {
    let kind = Kind::Flush(Phase::Open, Area::Header, 1);
    let mut noticed = None;
    let mut pairs = 0;
    for kill in 0.. {
        if killed_then_cut(kill, 0, 0, None).is_none() {
            break;
        }
        for cut in 0.. {
            let Some(first) = killed_then_cut(kill, cut, 0, None) else { break };
            first.unwrap_or_else(|error| panic!("killed before {kill}, cut before {cut}: {error}"));
            pairs += 1;
            for seed in 1..12 {
                let sound = killed_then_cut(kill, cut, seed, None).expect("as many steps");
                sound.unwrap_or_else(|error| {
                    panic!("killed before {kill}, cut before {cut}, seed {seed}: {error}")
                });
                // What is forgotten is no step.
                let outcome = killed_then_cut(kill, cut, seed, Some(kind)).unwrap_or(Ok(()));
                noticed = noticed.or(outcome.err().map(|error| (kill, cut, seed, error)));
            }
        }
    }
    println!("{pairs} pairs of steps; {noticed:?}");
    assert!(pairs > 50 && noticed.is_some(), "{kind:?} can be left out and nobody notices, in {pairs} pairs");
}

/// Formats over an old store and loses power meanwhile: the old store is whole, or there is none, or the new one.
fn format_over(seed: u64, forgets: Option<Kind>) -> Result<(), String> {
    let mut history = History::new(seed, forgets);
    let old = history.model.clone();
    let mut shard = common::open(&old, &tiny());
    common::store(&mut shard, b"old", 800);
    drop(shard);
    let medium = history.medium();
    history.cut_power_soon(28);
    let force = Options { force: true, ..tiny() };
    let region = Region::over(medium, &force).map_err(|error| error.to_string())?;
    region.begin().map_err(|error| error.to_string())?;
    let image = match history.model.crashed() {
        Some(image) => image,
        None => history.crash_image(),
    };
    match reopen(&image) {
        Ok(shard) => match contents(&shard).as_slice() {
            [] => Ok(()),
            [(1, bytes)] if bytes == b"old" => Ok(()),
            other => Err(format!("found {other:?}")),
        },
        Err(OpenError::NotAStore { .. } | OpenError::Damaged { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn formatting_over_a_store_leaves_the_old_one_or_none_or_the_new_one() {
    for seed in 0..500 {
        format_over(seed, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    for kind in [Kind::Flush(Phase::Format, Area::Superblock, 0), Kind::Fence(Phase::Format, 0)] {
        let noticed = (0..2000).find_map(|seed| Some((seed, format_over(seed, Some(kind)).err()?)));
        println!("{kind:?}: {noticed:?}");
        assert!(noticed.is_some(), "{kind:?} can be left out and nobody notices");
    }
}
