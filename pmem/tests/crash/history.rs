//! Histories of a store: lives that append, commit, trim and note, and end by a power cut, a kill or a failing medium;
//! and what must be true after each.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use pmem::{
    AppendError, Buffer, Extent, Geometry, LineModel, Medium as _, ModelKind, OpenError, Options, Pending,
    Record, Region, Shard,
};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::common::{PAYLOAD_OFFSET, append, contents, payload, rng, rot, tiny};

/// Of each shard.
const REGION_BYTES: usize = 96 << 10;
/// Buffers of a shard that a device has at a time.
const LENT: usize = 8;

/// What histories have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub power_cuts: u64,
    pub kills: u64,
    pub failures: u64,
    pub damages: u64,
    pub records: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        let Self { power_cuts, kills, failures, damages, records } = other;
        self.power_cuts += power_cuts;
        self.kills += kills;
        self.failures += failures;
        self.damages += damages;
        self.records += records;
    }
}

/// Runs the history of a seed; the error says what was violated.
pub fn run(seed: u64, lives: u32) -> Result<Seen, String> {
    // Each medium has as many.
    let kind = KINDS[(seed % KINDS.len() as u64) as usize];
    let mut random = rng(seed);
    let shards = [1, 1, 2, 3][random.random_range(0..4)];
    let mut history = History {
        kind,
        options: Options { shards: Some(shards), ..tiny() },
        geometry: None,
        model: LineModel::of(kind, vec![0; REGION_BYTES * shards as usize], random.next_u64()),
        logs: (0..shards).map(|_| Log::default()).collect(),
        epoch: 0,
        has_bad_superblock: false,
        payloads: seed << 32,
        seen: Seen::default(),
        random,
    };
    let name = |error| format!("{kind:?}, {shards} shards, {error}");
    history.make().map_err(|error| name(format!("making the store: {error}")))?;
    for life in 0..lives {
        history.live().map_err(|error| name(format!("life {life}: {error}")))?;
    }
    Ok(history.seen)
}

const KINDS: [ModelKind; 5] =
    [ModelKind::Lines, ModelKind::Pages, ModelKind::Disk, ModelKind::CacheLines, ModelKind::FenceOnly];

struct History {
    random: ChaCha8Rng,
    kind: ModelKind,
    options: Options,
    /// Once the store is made.
    geometry: Option<Geometry>,
    model: Arc<LineModel>,
    logs: Vec<Log>,
    /// The highest of any shard so far.
    epoch: u32,
    /// Whether a copy of the superblock may still be damaged.
    has_bad_superblock: bool,
    payloads: u64,
    seen: Seen,
}

/// What a shard's log must and may hold.
#[derive(Clone)]
pub struct Log {
    /// Every record that was appended and may be in the log, by number.
    pub submitted: BTreeMap<u64, Vec<u8>>,
    /// Every record below is acknowledged, by a receipt or by having been recovered.
    pub acknowledged: u64,
    /// Damage to any entry below has a name.
    vouched: u64,
    /// Every record below is gone for sure, and may be gone.
    pub trimmed: u64,
    pub trim_asked: u64,
    /// Entries that are damaged, all of one record. It is not among those that were submitted any more.
    damaged: Vec<Range<u64>>,
    /// Whether some of them may have been dropped.
    is_dropping: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            submitted: BTreeMap::new(),
            acknowledged: 1,
            vouched: 1,
            trimmed: 1,
            trim_asked: 1,
            damaged: Vec::new(),
            is_dropping: false,
        }
    }
}

/// A shard that is open, and what is around it.
struct Open {
    shard: Shard,
    /// Appends that are not confirmed, and what was durable when they were written.
    pending: Vec<(Pending, u64)>,
    held: Vec<Record>,
    /// Buffers that a device writes to whenever it likes.
    lent: Vec<Buffer>,
    /// As the log's, once it is over what is under way.
    vouched: u64,
    damaged: Vec<Range<u64>>,
}

/// How an operation came out.
enum Done {
    Well,
    /// The medium failed.
    Failed(String),
}

impl History {
    /// Makes the store: on a power cut there is a complete one or none, and once it is said to be there it is.
    fn make(&mut self) -> Result<(), String> {
        let fails = self.may_fail() && self.random.random_bool(0.4);
        if fails {
            self.make_over_a_failing_medium();
        }
        self.cut_power_soon(24);
        let region = Region::over(self.model.clone(), &self.options).or_else(|error| match error {
            // What a failed attempt has left, when whoever makes it says so.
            OpenError::NotAStore { .. } | OpenError::Damaged { .. } if fails => {
                Region::over(self.model.clone(), &Options { force: true, ..self.options.clone() })
            }
            other => Err(other),
        });
        let region = region.map_err(|error| error.to_string())?;
        region.begin().map_err(|error| error.to_string())?;
        self.geometry = Some(region.info().geometry);
        if let Some(image) = self.model.crashed() {
            match self.reopen(&image) {
                Ok(shards) if shards.iter().all(|shard| shard.next_seq() == 1) => {}
                Ok(_) => return Err("a new store has records".into()),
                // A superblock in pieces is no store yet; anything else would be one that cannot be opened.
                Err(OpenError::NotAStore { .. } | OpenError::Damaged { .. }) => {}
                Err(error) => return Err(format!("half-made store: {error}")),
            }
        }
        self.model.disarm();
        drop(region);
        let image = self.crash_image();
        self.reopen(&image).map_err(|error| format!("the new store is not durable: {error}"))?;
        self.lose_a_superblock(&image)?;
        self.boot(image);
        Ok(())
    }

    /// Makes a store whose medium refuses a write. Whoever comes next finds what is in the cache, and at times one copy of the
    /// superblock damaged.
    fn make_over_a_failing_medium(&mut self) {
        self.model.fail_fence_once(self.random.random_range(0..3), "no space");
        let made = Region::over(self.model.clone(), &self.options).expect("nothing is written yet").begin();
        if self.model.will_fail_once() {
            self.model.fail_fences(None);
        } else {
            assert!(made.is_err(), "the medium has refused a write, and nobody says so");
            self.seen.failures += 1;
        }
        self.model = self.model.kill();
        if self.random.random_bool(0.3) {
            let copy = self.random.random_range(0..2);
            let at = self.random.random_range(self.superblocks()[copy].clone());
            rot(&self.model, at, 1 << self.random.random_range(0..8));
        }
    }

    /// Whether fences can fail here at all.
    fn may_fail(&self) -> bool {
        !matches!(self.kind, ModelKind::CacheLines | ModelKind::FenceOnly)
    }

    /// Opens the store, works with it for a while, and dies.
    fn live(&mut self) -> Result<(), String> {
        let fails = self.may_fail() && self.random.random_bool(0.2);
        if fails {
            self.model.fail_fence_once(self.random.random_range(0..8), "no space");
        }
        if self.random.random_bool(0.6) {
            self.end_soon(9 * self.logs.len() as u64);
        }
        let opened = self.open();
        let is_failed = fails && !self.model.will_fail_once();
        let mut shards = match opened {
            Ok(shards) if !self.model.has_crashed() => shards,
            Ok(_) => return self.end(),
            Err(_) if is_failed => return self.fail(),
            Err(error) => return Err(format!("opening: {error}")),
        };
        self.adopt(&mut shards)?;
        // At times long enough to go round the log.
        let (most, sudden) = if self.random.random_bool(0.1) { (500, 0.001) } else { (120, 0.03) };
        self.end_soon(10 * most as u64 - 800);
        for _ in 0..self.random.random_range(1..most) {
            if self.random.random_bool(sudden) {
                self.end_soon(6);
            }
            let at = self.random.random_range(0..shards.len());
            let open = &mut shards[at];
            let done = self.operate(at, open)?;
            if self.model.has_crashed() {
                return self.end();
            }
            if let Done::Failed(why) = done {
                if !fails || self.model.will_fail_once() {
                    return Err(why);
                }
                let open = &mut shards[at];
                // What came before is not durable, whatever is done now.
                if open.shard.commit().is_ok() {
                    return Err("a shard goes on after its medium has failed".into());
                }
                return self.fail();
            }
            self.note(at, &shards[at]);
        }
        self.model.disarm();
        drop(shards);
        let image = self.crash_image();
        self.die(image)
    }

    fn open(&mut self) -> Result<Vec<Open>, OpenError> {
        let region = Region::over(self.model.clone(), &self.options)?;
        let open = |shard| Open {
            shard,
            pending: Vec::new(),
            held: Vec::new(),
            lent: Vec::new(),
            vouched: 0,
            damaged: Vec::new(),
        };
        region.into_seeds().into_iter().map(|seed| seed.open().map(open)).collect()
    }

    fn operate(&mut self, at: usize, open: &mut Open) -> Result<Done, String> {
        match self.random.random_range(0..100) {
            0..45 => Ok(self.append(at, open)),
            45..62 => self.commit(at, open),
            62..72 => self.trim(at, open),
            72..77 => Ok(Self::checkpoint(open)),
            77..80 => self.drop_damaged(at, open),
            80..95 => {
                self.receive(open);
                Ok(Done::Well)
            }
            _ => {
                open.held.truncate(2);
                let (head, next) = (open.shard.head_seq(), open.shard.next_seq());
                open.held.extend(open.shard.record(self.random.random_range(head..=next)));
                Ok(Done::Well)
            }
        }
    }

    /// What an operation has acknowledged counts once it is over and the power is still there.
    fn note(&mut self, at: usize, open: &Open) {
        let log = &mut self.logs[at];
        log.acknowledged = log.acknowledged.max(open.shard.committed_seq());
        log.vouched = log.vouched.max(open.vouched);
        log.trimmed = open.shard.head_seq();
        log.damaged = open.damaged.clone();
        log.is_dropping = false;
    }

    fn append(&mut self, at: usize, open: &mut Open) -> Done {
        self.payloads += 1;
        let most = *[40, 300, 600, 3000, 9000].get(self.random.random_range(0..5)).unwrap();
        let bytes = payload(self.payloads, self.random.random_range(0..most));
        let segment = if self.random.random_bool(0.1) { 60 } else { self.random.random_range(300..800) };
        let is_whole = bytes.len() <= segment;
        match self.random.random_range(0..8) {
            way @ 0..4 if is_whole => {
                let Ok(extent) = arrive(open, &bytes) else { return Done::Well };
                // The same bytes once more, from where they lie, make another record.
                let again = (way == 3).then(|| extent.clone());
                let done = self.appended(at, open, &bytes, |shard| shard.append_extent(extent));
                match (done, again) {
                    (Done::Well, Some(extent)) => {
                        self.appended(at, open, &bytes, |shard| shard.append_extent(extent))
                    }
                    (done, _) => done,
                }
            }
            4 => self.appended(at, open, &bytes, |shard| shard.append_copy(&bytes)),
            _ => self.appended(at, open, &bytes, |shard| append(shard, &bytes, segment)),
        }
    }

    /// Appends a record.
    fn appended(
        &mut self,
        at: usize,
        open: &mut Open,
        bytes: &[u8],
        append: impl FnOnce(&mut Shard) -> Result<Pending, AppendError>,
    ) -> Done {
        let (seq, bound) = (open.shard.next_seq(), open.shard.committed_seq());
        match append(&mut open.shard) {
            Ok(pending) => {
                open.pending.push((pending, bound));
                self.logs[at].submitted.insert(seq, bytes.to_vec());
                self.seen.records += 1;
                Done::Well
            }
            Err(AppendError::Full(_)) => Done::Well,
            // A header had to be written first.
            Err(other) => Done::Failed(other.to_string()),
        }
    }

    /// Commits, or starts to, or looks whether that is done.
    fn commit(&mut self, at: usize, open: &mut Open) -> Result<Done, String> {
        let shard = &mut open.shard;
        let durable = if shard.commits_later() && self.random.random_bool(0.8) {
            if shard.is_committing() { shard.look_at_commit() } else { shard.start_commit() }
        } else {
            shard.commit().map(Some)
        };
        let durable = match durable {
            Ok(Some(durable)) => durable,
            Ok(None) => return Ok(Done::Well),
            Err(error) => return Ok(Done::Failed(error.to_string())),
        };
        for (pending, bound) in std::mem::take(&mut open.pending) {
            match durable.confirm(pending) {
                Ok(receipt) => {
                    let bytes = self.logs[at].submitted.get(&receipt.seq).ok_or("a receipt for nothing")?;
                    if receipt.len != bytes.len() as u64 || receipt.crc32c != crc32c::crc32c(bytes) {
                        return Err(format!("the receipt of record {} does not match it", receipt.seq));
                    }
                    open.vouched = open.vouched.max(bound);
                }
                Err(pending) => open.pending.push((pending, bound)),
            }
        }
        Ok(Done::Well)
    }

    fn trim(&mut self, at: usize, open: &mut Open) -> Result<Done, String> {
        let shard = &mut open.shard;
        let before = self.random.random_range(shard.head_seq()..=shard.next_seq());
        let asked = shard.records(before).next().map_or(shard.committed_seq(), |info| info.seq);
        let log = &mut self.logs[at];
        log.trim_asked = log.trim_asked.max(asked);
        let (bound, old) = (shard.committed_seq(), shard.head_seq());
        let head = match shard.trim(before) {
            Ok(trimmed) => trimmed.head,
            Err(error) => return Ok(Done::Failed(error.to_string())),
        };
        if head > log.trim_asked || head < before.min(bound) {
            return Err(format!("trimmed before {before}, up to {head}"));
        }
        if head > old {
            open.vouched = open.vouched.max(bound);
        }
        open.damaged = behind(&open.damaged, head);
        Ok(Done::Well)
    }

    fn checkpoint(open: &mut Open) -> Done {
        let bound = open.shard.committed_seq();
        match open.shard.checkpoint() {
            Ok(()) => open.vouched = open.vouched.max(bound),
            Err(error) => return Done::Failed(error.to_string()),
        }
        Done::Well
    }

    /// Gives up what is damaged.
    fn drop_damaged(&mut self, at: usize, open: &mut Open) -> Result<Done, String> {
        while let Some(Range { start, end }) = open.damaged.last().cloned() {
            self.logs[at].is_dropping = true;
            match open.shard.drop_quarantined(start, end - start) {
                Ok(true) => open.damaged.truncate(open.damaged.len() - 1),
                Ok(false) => return Err(format!("damaged entries {start}..{end} cannot be dropped")),
                Err(error) => return Ok(Done::Failed(error.to_string())),
            }
        }
        Ok(Done::Well)
    }

    /// A device writes to buffers that it has, gets more of them, and gives some back that nobody keeps.
    fn receive(&mut self, open: &mut Open) {
        for _ in 0..self.random.random_range(1..20) {
            self.payloads += 1;
            let count = open.lent.len();
            match self.random.random_range(0..4) {
                0 if count > 0 => drop(open.lent.swap_remove(self.random.random_range(0..count))),
                1 if count < LENT => open.lent.extend(open.shard.arena().take()),
                _ if count > 0 => {
                    let buffer = &mut open.lent[self.random.random_range(0..count)];
                    assert!(buffer.arrive(self.random.random_range(0..24), &payload(self.payloads, 1000)));
                }
                _ => {}
            }
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

    /// The medium has failed: the process ends, and the next one finds the caches as they are.
    fn fail(&mut self) -> Result<(), String> {
        self.seen.failures += 1;
        if self.random.random_bool(0.3) {
            let image = self.crash_image();
            return self.die(image);
        }
        self.model = self.model.kill();
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        if let Some(killed) = self.model.killed() {
            // The next life finds the same memory, durable or not.
            self.seen.kills += 1;
            self.model = killed;
            return Ok(());
        }
        let image = self.model.crashed().expect("this life has ended");
        self.die(image)
    }

    /// The power is cut: checks what is left, and boots from it.
    fn die(&mut self, mut image: Vec<u8>) -> Result<(), String> {
        self.seen.power_cuts += 1;
        let shards = self.reopen(&image).map_err(|error| format!("after the power cut: {error}"))?;
        self.check(&shards)?;
        self.lose_a_header(&image, &shards)?;
        self.lose_a_superblock(&image)?;
        self.damage(&mut image, &shards)?;
        if self.random.random_bool(0.05) && !self.has_bad_superblock {
            let copy = self.random.random_range(0..2);
            self.spoil(&mut image, self.superblocks()[copy].clone());
            self.has_bad_superblock = true;
        }
        let at = self.random.random_range(0..shards.len());
        if self.random.random_bool(0.25) && shards[at].recovery().header_damage.is_none() {
            let copy = self.random.random_range(0..2);
            self.spoil(&mut image, self.headers(at)[copy].clone());
        }
        self.boot(image);
        Ok(())
    }

    fn boot(&mut self, image: Vec<u8>) {
        self.model = LineModel::of(self.kind, image, self.random.next_u64());
    }

    /// Opens an image with a medium that forgets nothing.
    fn reopen(&self, image: &[u8]) -> Result<Vec<Shard>, OpenError> {
        // Without a size nothing is said about making a store; an empty medium must not become one here.
        if self.superblocks().into_iter().all(|range| image[range].iter().all(|&byte| byte == 0)) {
            return Err(OpenError::NotAStore { path: "(image)".into() });
        }
        let region = Region::over(LineModel::from_image(image.to_vec()), &self.options)?;
        region.into_seeds().into_iter().map(|seed| seed.open()).collect()
    }

    /// What was acknowledged depends on neither copy of a header alone. Where the crash has come into one of them, nothing is
    /// promised without the other.
    fn lose_a_header(&mut self, image: &[u8], shards: &[Shard]) -> Result<(), String> {
        let at = self.random.random_range(0..shards.len());
        if shards[at].recovery().header_damage.is_some() {
            return Ok(());
        }
        for copy in 0..2 {
            let lost = |error: String| format!("without copy {copy} of shard {at}'s header: {error}");
            let mut image = image.to_vec();
            self.spoil(&mut image, self.headers(at)[copy].clone());
            let shards = self.reopen(&image).map_err(|error| lost(error.to_string()))?;
            self.check(&shards).map_err(lost)?;
            if shards[at].recovery().header_damage.is_none() {
                return Err(lost("nobody says so".into()));
            }
        }
        Ok(())
    }

    /// Each copy of the superblock alone is a store's.
    fn lose_a_superblock(&mut self, image: &[u8]) -> Result<(), String> {
        if self.has_bad_superblock {
            return Ok(());
        }
        for copy in 0..2 {
            let lost = |error: String| format!("without copy {copy} of the superblock: {error}");
            let mut image = image.to_vec();
            self.spoil(&mut image, self.superblocks()[copy].clone());
            let region = Region::over(LineModel::from_image(image), &self.options);
            if !region.map_err(|error| lost(error.to_string()))?.info().repaired {
                return Err(lost("nobody says so".into()));
            }
        }
        Ok(())
    }

    /// Damages a record that was durable: it is named, and all others are as they were. At times it stays so.
    fn damage(&mut self, image: &mut Vec<u8>, shards: &[Shard]) -> Result<(), String> {
        let at = self.random.random_range(0..shards.len());
        let (shard, log) = (&shards[at], &self.logs[at]);
        let vouched = log.vouched.min(shard.next_seq());
        let whole = shard.records(0).filter(|info| info.seq + info.entries <= vouched);
        let whole: Vec<_> = whole.collect();
        if !behind(&log.damaged, 0).is_empty() || whole.is_empty() {
            return Ok(());
        }
        let info = whole[self.random.random_range(0..whole.len())];
        let entry = info.seq + self.random.random_range(0..info.entries);
        let mut place = self.entry(at, entry);
        if info.extents > 0 && self.random.random_bool(0.5) {
            let pieces: Vec<_> = shard.record(info.seq).unwrap().pieces().collect();
            let bytes = pieces[self.random.random_range(0..pieces.len())].bytes().as_ptr() as usize;
            let from = bytes - shard.arena().medium().base().as_ptr() as usize;
            place = from..from + 1;
        }
        let mut damaged = image.clone();
        self.spoil(&mut damaged, place);
        let bytes = self.logs[at].submitted.remove(&info.seq).expect("it was recovered");
        self.logs[at].damaged = std::iter::once(info.seq..info.seq + info.entries).collect();
        let shards = self.reopen(&damaged).map_err(|error| format!("with a damaged record: {error}"))?;
        self.check(&shards).map_err(|error| format!("with record {} damaged: {error}", info.seq))?;
        self.seen.damages += 1;
        if self.random.random_bool(0.2) {
            *image = damaged;
        } else {
            self.logs[at].submitted.insert(info.seq, bytes);
            self.logs[at].damaged.clear();
        }
        Ok(())
    }

    /// Changes a bit.
    fn spoil(&mut self, image: &mut [u8], place: Range<usize>) {
        let at = self.random.random_range(place);
        image[at] ^= 1 << self.random.random_range(0..8);
    }

    fn superblocks(&self) -> [Range<usize>; 2] {
        let places = self.geometry.map_or([0, self.model.len() - 4096], |geometry| geometry.superblocks());
        places.map(|place| place..place + 104)
    }

    /// What says something of both copies of a shard's header.
    fn headers(&self, shard: usize) -> [Range<usize>; 2] {
        let geometry = self.geometry.expect("the store is made");
        geometry.headers_of(shard as u32).map(|place| place..place + 48)
    }

    fn entry(&self, shard: usize, seq: u64) -> Range<usize> {
        let geometry = self.geometry.expect("the store is made");
        let log = geometry.log_offset + geometry.log_stride * shard as u64;
        let from = (log + seq % u64::from(geometry.log_entries) * 64) as usize;
        from..from + 64
    }

    fn check(&self, shards: &[Shard]) -> Result<(), String> {
        for (at, (shard, log)) in shards.iter().zip(&self.logs).enumerate() {
            log.check(shard).map_err(|error| format!("shard {at}: {error}"))?;
            if shard.epoch() <= self.epoch {
                return Err(format!("epoch {} of shard {at} was there before", shard.epoch()));
            }
        }
        Ok(())
    }

    /// The store is open: what it holds is durable now, and what it does not hold never happened.
    fn adopt(&mut self, shards: &mut [Open]) -> Result<(), String> {
        for (at, (open, log)) in shards.iter_mut().zip(&mut self.logs).enumerate() {
            log.check(&open.shard).map_err(|error| format!("shard {at}: {error}"))?;
            if open.shard.epoch() <= self.epoch {
                return Err(format!("epoch {} of shard {at} was there before", open.shard.epoch()));
            }
            log.acknowledged = open.shard.next_seq();
            log.vouched = log.acknowledged;
            log.submitted.split_off(&log.acknowledged);
            log.trimmed = open.shard.head_seq();
            log.trim_asked = log.trimmed;
            log.damaged = named(&open.shard);
            log.is_dropping = false;
            open.damaged = log.damaged.clone();
        }
        self.epoch = shards.iter().map(|open| open.shard.epoch()).max().unwrap_or(self.epoch);
        self.has_bad_superblock = false;
        Ok(())
    }
}

impl Log {
    /// acknowledged ⊆ recovered ⊆ submitted, in order, bytes equal; what is damaged is named.
    pub fn check(&self, shard: &Shard) -> Result<(), String> {
        let (head, next) = (shard.head_seq(), shard.next_seq());
        if head < self.trimmed || head > self.trim_asked {
            return Err(format!("the head is {head}, not {}..={}", self.trimmed, self.trim_asked));
        }
        if next < self.acknowledged {
            return Err(format!("acknowledged up to {}, recovered up to {next}", self.acknowledged));
        }
        let (named, damaged) = (named(shard), behind(&self.damaged, head));
        let is_damaged = |run: &Range<u64>| damaged.iter().any(|damaged| damaged.contains(&run.start));
        let is_right = if self.is_dropping { named.iter().all(is_damaged) } else { named == damaged };
        if !is_right || shard.quarantine_counts().0 != named.len() as u64 {
            return Err(format!("{damaged:?} is damaged, and found was {:?}", shard.quarantines()));
        }
        let recovered: BTreeMap<_, _> = contents(shard).into_iter().collect();
        let expected: BTreeMap<_, _> =
            self.submitted.range(head..next.max(head)).map(|(&seq, bytes)| (seq, bytes.clone())).collect();
        if recovered != expected {
            let (recovered, expected) = (recovered.keys(), expected.keys());
            return Err(format!("recovered {recovered:?}, expected {expected:?} (or other bytes)"));
        }
        Ok(())
    }
}

/// What a shard says is damaged.
fn named(shard: &Shard) -> Vec<Range<u64>> {
    shard.quarantines().iter().map(|run| run.seq..run.seq + run.entries).collect()
}

/// Ranges as far as a trim has left them.
fn behind(ranges: &[Range<u64>], head: u64) -> Vec<Range<u64>> {
    let left = ranges.iter().map(|range| range.start.max(head)..range.end);
    left.filter(|range| !range.is_empty()).collect()
}

/// Bytes that have come in one piece, in a buffer that a device had or a free one.
fn arrive(open: &mut Open, bytes: &[u8]) -> Result<Extent, ()> {
    let mut buffer = open.lent.pop().or_else(|| open.shard.arena().take()).ok_or(())?;
    assert!(buffer.arrive(PAYLOAD_OFFSET, bytes));
    buffer.into_extent(PAYLOAD_OFFSET as u16, bytes.len() as u16).ok_or(())
}
