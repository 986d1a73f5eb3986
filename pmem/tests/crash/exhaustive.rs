//! All histories of a few operations, and of each all states that a power cut may leave in its last operation.
//!
//! What the medium holds grows from fence to fence: all that a cut may leave before one it may also leave just before it. So it
//! is enough to look there, and at the end. A record's payload is right as a whole or not at all; so its lines are one place,
//! which is as it was, as it was written, or half so. So is each line of the log, of a header, and of short records' buffer.

#![allow(unsafe_code, reason = "a medium that is looked at before each fence is a medium")]

use std::{
    collections::BTreeMap,
    env, io,
    ptr::NonNull,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use pmem::{Domain, LINE_BYTES, LineModel, Medium, ModelKind, Options, Pending, Region, Shard};

use crate::{
    common::{PAYLOAD_OFFSET, payload, tiny},
    history::Log,
    run,
};

/// What `cargo test` runs. `CRASH_DEPTH=n` goes further.
const DEPTH: u32 = 3;
const REGION_BYTES: usize = 64 << 10;

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// A record that lies in its log entry.
    Inline,
    /// A short record, which shares a buffer with others.
    Shared,
    /// A record in a buffer of its own.
    Own,
    /// A record of more pieces than one log entry names.
    Multi,
    Commit,
    /// Of the oldest record.
    Trim,
    Checkpoint,
    /// Killed, and opened again.
    Reopen,
}

const OPERATIONS: [Operation; 8] = [
    Operation::Inline,
    Operation::Shared,
    Operation::Own,
    Operation::Multi,
    Operation::Commit,
    Operation::Trim,
    Operation::Checkpoint,
    Operation::Reopen,
];

/// The model, and what a power cut could leave of it before each fence.
struct Watched {
    model: Arc<LineModel>,
    is_watching: AtomicBool,
    seen: Mutex<Vec<Moment>>,
}

/// What is durable, and what may be there instead.
struct Moment {
    durable: Vec<u8>,
    unsure: Vec<(usize, Vec<[u8; LINE_BYTES]>)>,
}

impl Watched {
    fn over(model: Arc<LineModel>) -> Arc<Self> {
        Arc::new(Self { model, is_watching: false.into(), seen: Mutex::default() })
    }

    fn look(&self) {
        if self.is_watching.load(Ordering::Relaxed) {
            let moment = Moment { durable: self.model.crash(|| 0), unsure: self.model.unsure() };
            self.seen.lock().unwrap().push(moment);
        }
    }
}

// SAFETY: the memory is the model's, and so is everything that touches it.
unsafe impl Medium for Watched {
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
        self.model.flush(offset, len);
    }

    fn fence(&self) -> io::Result<()> {
        self.look();
        self.model.fence()
    }

    fn domain(&self) -> Domain {
        self.model.domain()
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        self
    }
}

fn options() -> Options {
    // Headers ahead of entries are for longer histories.
    Options { checkpoint_entries: 64, ..tiny() }
}

/// The same new store for all.
fn new_store() -> &'static [u8] {
    static STORE: OnceLock<Vec<u8>> = OnceLock::new();
    STORE.get_or_init(|| {
        let model = LineModel::new(REGION_BYTES);
        drop(Region::over(model.clone(), &options()).unwrap().into_shard().unwrap());
        model.crash(|| 0)
    })
}

/// Where records' payload lies, so that its lines are one place.
type Places = BTreeMap<usize, usize>;

struct Play {
    medium: Arc<Watched>,
    shard: Option<Shard>,
    pending: Vec<Pending>,
    log: Log,
    places: Places,
}

/// Plays a history; the number of states that its last operation may leave, all of which are as they must be.
fn play(kind: ModelKind, operations: &[Operation]) -> Result<u64, String> {
    let medium = Watched::over(LineModel::of(kind, new_store().to_vec(), 0));
    let mut play =
        Play { medium, shard: None, pending: Vec::new(), log: Log::default(), places: Places::new() };
    play.open();
    let (last, before) = operations.split_last().expect("a history has an operation");
    for (number, &operation) in before.iter().enumerate() {
        play.operate(number, operation);
    }
    play.medium.is_watching.store(true, Ordering::Relaxed);
    let (mut log, watched) = (play.log.clone(), play.medium.clone());
    play.operate(before.len(), *last);
    // While it goes on, what it appends may be there, and what it trims may be gone.
    log.submitted.extend(play.log.submitted.iter().map(|(&seq, bytes)| (seq, bytes.clone())));
    log.trim_asked = log.trim_asked.max(play.log.trim_asked);
    let mut states = 0;
    for moment in std::mem::take(&mut *watched.seen.lock().unwrap()) {
        states += check_all(&moment, &log, &play.places)?;
    }
    play.medium.is_watching.store(true, Ordering::Relaxed);
    play.medium.look();
    for moment in std::mem::take(&mut *play.medium.seen.lock().unwrap()) {
        states += check_all(&moment, &play.log, &play.places)?;
    }
    Ok(states)
}

impl Play {
    fn open(&mut self) {
        let region = Region::over(self.medium.clone(), &options()).expect("a sound store opens");
        let shard = region.into_shard().expect("a sound store opens");
        self.log.acknowledged = shard.next_seq();
        self.log.submitted.split_off(&self.log.acknowledged);
        self.shard = Some(shard);
    }

    fn operate(&mut self, number: usize, operation: Operation) {
        let bytes = |len| payload(number as u64 + 1, len);
        match operation {
            Operation::Inline => self.append(number, &bytes(10), 10),
            Operation::Shared => self.append(number, &bytes(100), 100),
            Operation::Own => self.append(number, &bytes(600), 600),
            Operation::Multi => self.append(number, &bytes(550), 120),
            Operation::Commit => {
                let shard = self.shard.as_mut().expect("it is open");
                let durable = shard.commit().expect("the model does not fail");
                for pending in self.pending.drain(..) {
                    durable.confirm(pending).expect("it came before");
                }
                self.log.acknowledged = shard.committed_seq();
            }
            Operation::Trim => {
                let shard = self.shard.as_mut().expect("it is open");
                let before = shard.head_seq() + 1;
                self.log.trim_asked =
                    shard.records(before).next().map_or(shard.committed_seq(), |info| info.seq);
                self.log.trimmed = shard.trim(before).expect("the model does not fail").head;
                assert_eq!(self.log.trimmed, self.log.trim_asked);
            }
            Operation::Checkpoint => {
                let shard = self.shard.as_mut().expect("it is open");
                shard.checkpoint().expect("the model does not fail");
            }
            Operation::Reopen => {
                self.shard = None;
                self.pending.clear();
                let is_watching = self.medium.is_watching.load(Ordering::Relaxed);
                let killed = Watched::over(self.medium.model.kill());
                killed.is_watching.store(is_watching, Ordering::Relaxed);
                let before = std::mem::replace(&mut self.medium, killed);
                self.open();
                // Who asks for what was seen has the one before.
                before.seen.lock().unwrap().append(&mut self.medium.seen.lock().unwrap());
            }
        }
    }

    fn append(&mut self, number: usize, bytes: &[u8], segment: usize) {
        let shard = self.shard.as_mut().expect("it is open");
        let seq = shard.next_seq();
        let mut draft = shard.draft();
        for piece in bytes.chunks(segment) {
            let mut buffer = shard.arena().take().expect("there is room for a few records");
            assert!(buffer.arrive(PAYLOAD_OFFSET, piece));
            let from = shard.arena().address(buffer.id()) as usize - self.medium.base().as_ptr() as usize;
            let lines = from / LINE_BYTES..(from + shard.arena().buffer_bytes()) / LINE_BYTES;
            self.places.extend(lines.map(|line| (line, number)));
            let extent = buffer.into_extent(PAYLOAD_OFFSET as u16, piece.len() as u16).expect("it fits");
            shard.push(&mut draft, extent).expect("there is room");
        }
        self.pending.push(shard.append(draft).expect("there is room"));
        self.log.submitted.insert(seq, bytes.to_vec());
    }
}

/// What lies in one place: lines that are lost, saved or torn together.
type Place<'a> = Vec<&'a (usize, Vec<[u8; LINE_BYTES]>)>;

/// Checks all that a power cut may leave; the number of states.
fn check_all(moment: &Moment, log: &Log, places: &Places) -> Result<u64, String> {
    let mut of: BTreeMap<(usize, usize), Place<'_>> = BTreeMap::new();
    for line in &moment.unsure {
        let number = line.0 / LINE_BYTES;
        let place = places.get(&number).map_or((1, number), |&record| (0, record));
        of.entry(place).or_default().push(line);
    }
    let of: Vec<_> = of.into_values().collect();
    let mut states = 0;
    let mut check = |image: &[u8]| {
        states += 1;
        let model = LineModel::from_image(image.to_vec());
        let opened = Region::over(model, &options()).and_then(Region::into_shard);
        log.check(&opened.map_err(|error| error.to_string())?)
    };
    // Each place as it was, or as it is, or as it was on its way.
    let versions: Vec<usize> =
        of.iter().map(|place| place.iter().map(|(_, contents)| contents.len()).max().unwrap_or(0)).collect();
    let mut choice = vec![0; of.len()];
    loop {
        let mut image = moment.durable.clone();
        for (place, &version) in of.iter().zip(&choice) {
            put(&mut image, place, version, usize::MAX);
        }
        check(&image)?;
        // One of them in halves.
        for (at, place) in of.iter().enumerate().filter(|&(at, _)| choice[at] > 0) {
            let is_newest = choice.iter().zip(&versions).all(|(choice, versions)| choice == versions);
            if !is_newest && of.len() > 4 {
                break;
            }
            let mut torn = image.clone();
            put_durable(&mut torn, &moment.durable, place);
            let words = place.len() * LINE_BYTES / 8;
            for first in [1, 2, words / 2, words - 1] {
                put(&mut torn, place, choice[at], first);
                check(&torn)?;
            }
        }
        let Some(at) = (0..choice.len()).find(|&at| choice[at] < versions[at]) else { return Ok(states) };
        choice[at] += 1;
        choice[..at].fill(0);
    }
}

/// Writes the first words of a place's version; version 0 is what is durable.
fn put(image: &mut [u8], place: &Place<'_>, version: usize, words: usize) {
    let mut left = words.saturating_mul(8);
    for (at, contents) in place {
        let len = left.min(LINE_BYTES);
        left -= len;
        if let Some(bytes) = version.checked_sub(1).map(|version| &contents[version.min(contents.len() - 1)])
        {
            image[*at..at + len].copy_from_slice(&bytes[..len]);
        }
    }
}

fn put_durable(image: &mut [u8], durable: &[u8], place: &Place<'_>) {
    for (at, _) in place {
        image[*at..at + LINE_BYTES].copy_from_slice(&durable[*at..at + LINE_BYTES]);
    }
}

#[test]
fn all_short_histories_leave_what_was_acknowledged_in_all_states() {
    let depth =
        env::var("CRASH_DEPTH").map_or(DEPTH, |depth| depth.parse().expect("CRASH_DEPTH is a number"));
    let (histories, states) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None);
    for depth in 1..=depth {
        run::each(0..8_u64.pow(depth), |number| {
            let operations: Vec<_> =
                (0..depth).map(|at| OPERATIONS[(number >> (3 * at)) as usize % 8]).collect();
            for kind in [ModelKind::Lines, ModelKind::Disk] {
                match play(kind, &operations) {
                    Ok(count) => states.fetch_add(count, Ordering::Relaxed),
                    Err(why) => {
                        let found = format!("{kind:?}: {operations:?}: {why}");
                        println!("CRASH failed {number} {found}");
                        failed.lock().unwrap().get_or_insert(found);
                        0
                    }
                };
                histories.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (histories, states) = (histories.into_inner(), states.into_inner());
    println!("CRASH exhausted {depth} {histories} {states}");
    assert_eq!(failed.into_inner().unwrap(), None);
    assert!(states > 10 * histories, "{states} states of {histories} histories");
}
