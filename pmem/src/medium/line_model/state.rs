//! What a model knows of its lines: what is durable, what is on its way, and who has sent it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    sync::Arc,
};

use super::{LineModel, ModelKind, Shared};
use crate::medium::LINE_BYTES;

/// Bytes that reach the medium together or not at all.
const ATOM_BYTES: usize = 8;
/// The unit in which pages and disks are written.
const BLOCK_BYTES: usize = 4096;
const BLOCK_LINES: usize = BLOCK_BYTES / LINE_BYTES;
/// Whoever was there before the process.
const NOBODY: usize = usize::MAX;

pub(super) struct State {
    durable: Vec<u8>,
    /// Lines, by number, whose memory differs from what is durable or may do so.
    lines: BTreeMap<usize, Line>,
    handles: Vec<Handle>,
    pub(super) operations: u64,
    fuse: Option<Fuse>,
    pub(super) image: Option<Vec<u8>>,
    pub(super) killed: Option<Arc<LineModel>>,
    failure: Option<Failure>,
    chance: Chance,
}

#[derive(Clone)]
struct Line {
    is_dirty: bool,
    /// The handle that stored to it last.
    writer: usize,
    /// What is on its way and who sent it, oldest first.
    sent: Vec<(usize, [u8; LINE_BYTES])>,
    /// Whether it counts as durable and is not: no flush does anything for it, until it is stored to again.
    is_lost: bool,
}

/// What one handle has asked for.
#[derive(Default)]
struct Handle {
    /// Blocks for the next fence, where those are written by blocks.
    asked: BTreeSet<usize>,
    is_underway: bool,
    /// What the fence that is under way will say.
    failure: Option<String>,
}

/// What fences do instead of making anything durable.
enum Failure {
    /// They all say this.
    Each(String),
    /// The one after so many says this, and what waits for it is lost to all that come after.
    Once(u32, String),
}

struct Fuse {
    at_operation: u64,
    end: End,
}

pub(super) enum End {
    PowerCut(Box<dyn FnMut() -> u64 + Send>),
    Kill,
}

/// What a medium does on its own: SplitMix64, so that a seed says all about it.
#[derive(Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

impl State {
    pub(super) fn new(durable: Vec<u8>, chance: Chance) -> Self {
        Self {
            durable,
            lines: BTreeMap::new(),
            handles: vec![Handle::default()],
            operations: 0,
            fuse: None,
            image: None,
            killed: None,
            failure: None,
            chance,
        }
    }

    /// What a killed process leaves to the next one, whose handles are others.
    pub(super) fn orphaned(&mut self, shared: &Shared, memory: &[u8]) -> Self {
        let chance = self.fork_chance();
        if shared.kind == ModelKind::FenceOnly {
            // What any CPU sees survives; a fence only waits until all do.
            return Self::new(memory.to_vec(), chance);
        }
        let mut state = Self::new(self.durable.clone(), chance);
        state.lines = self.lines.clone();
        for line in state.lines.values_mut() {
            line.is_dirty |= !line.sent.is_empty();
            line.writer = NOBODY;
            line.sent.iter_mut().for_each(|(by, _)| *by = NOBODY);
        }
        state
    }

    pub(super) fn add_handle(&mut self) -> usize {
        self.handles.push(Handle::default());
        self.handles.len() - 1
    }

    pub(super) fn fork_chance(&mut self) -> Chance {
        Chance::new(self.chance.next())
    }

    pub(super) fn dirtied(&mut self, writer: usize, lines: Range<usize>) {
        for number in lines {
            let line = self.lines.entry(number).or_insert(Line {
                is_dirty: false,
                writer,
                sent: Vec::new(),
                is_lost: false,
            });
            (line.is_dirty, line.writer, line.is_lost) = (true, writer, false);
        }
    }

    /// Sends dirty lines on their way.
    pub(super) fn send(&mut self, shared: &Shared, by: usize, lines: Range<usize>) {
        for (&number, line) in self.lines.range_mut(lines) {
            if std::mem::take(&mut line.is_dirty) {
                line.sent.push((by, shared.line(number)));
            }
        }
    }

    /// Has the blocks of some lines written by the next fence.
    pub(super) fn ask_for(&mut self, by: usize, lines: Range<usize>) {
        if !lines.is_empty() {
            self.handles[by].asked.extend(lines.start / BLOCK_LINES..lines.end.div_ceil(BLOCK_LINES));
        }
    }

    /// Starts a fence, which nobody may have started before.
    pub(super) fn start(&mut self, shared: &Shared, by: usize) -> io::Result<()> {
        for block in std::mem::take(&mut self.handles[by].asked) {
            self.send(shared, by, block * BLOCK_LINES..(block + 1) * BLOCK_LINES);
        }
        if shared.kind == ModelKind::FenceOnly {
            let own = self.lines.iter_mut().filter(|(_, line)| line.writer == by && line.is_dirty);
            own.for_each(|(&number, line)| {
                line.is_dirty = false;
                line.sent.push((by, shared.line(number)));
            });
        }
        match &mut self.failure {
            None => {}
            Some(Failure::Each(message)) => return Err(io::Error::other(message.clone())),
            Some(Failure::Once(others, _)) if *others > 0 => *others -= 1,
            Some(Failure::Once(_, message)) => {
                self.handles[by].failure = Some(std::mem::take(message));
                self.failure = None;
            }
        }
        self.handles[by].is_underway = true;
        Ok(())
    }

    /// Whether a fence that was started is still under way, for all that anybody has seen.
    pub(super) fn goes_on(&mut self, by: usize) -> bool {
        self.handles[by].is_underway && !self.chance.one_in(2)
    }

    /// Ends the fence that was started, if one was.
    pub(super) fn finish(&mut self, shared: &Shared, by: usize) -> io::Result<()> {
        let handle = &mut self.handles[by];
        if !std::mem::take(&mut handle.is_underway) {
            return Ok(());
        }
        let failure = handle.failure.take();
        let Self { durable, lines, chance, .. } = self;
        let is_by_blocks = matches!(shared.kind, ModelKind::Pages | ModelKind::Disk);
        lines.retain(|&number, line| {
            let Some(last) = line.sent.iter().rposition(|&(sender, _)| sender == by) else {
                return true;
            };
            let (_, bytes) = line.sent[last];
            let place = &mut durable[number * LINE_BYTES..][..LINE_BYTES];
            let seen = shared.line(number);
            for atom in (0..LINE_BYTES).step_by(ATOM_BYTES) {
                let atom = atom..atom + ATOM_BYTES;
                let is_written = failure.is_none() || is_by_blocks && chance.one_in(2);
                if is_written {
                    // A device that reads memory when it likes has some of it later than other.
                    let read = if is_by_blocks && chance.one_in(2) { &seen } else { &bytes };
                    place[atom.clone()].copy_from_slice(&read[atom]);
                }
            }
            if failure.is_some() {
                match shared.kind {
                    ModelKind::Disk => line.is_dirty = true,
                    _ => line.is_lost = !line.is_dirty,
                }
                line.sent.retain(|&(sender, _)| sender != by);
            } else {
                // What was sent before cannot come later.
                line.sent.drain(..=last);
            }
            line.is_dirty || line.is_lost || !line.sent.is_empty()
        });
        failure.map_or(Ok(()), |message| Err(io::Error::other(message)))
    }

    /// Pages are written back when the kernel likes, too.
    pub(super) fn write_back(&mut self, shared: &Shared) {
        if self.lines.is_empty() || !self.chance.one_in(64) {
            return;
        }
        let at = self.chance.next() as usize % self.lines.len();
        let block = self.lines.keys().nth(at).expect("there are so many") / BLOCK_LINES;
        let Self { durable, lines, .. } = self;
        let dirty = lines.range_mut(block * BLOCK_LINES..(block + 1) * BLOCK_LINES);
        for (&number, line) in dirty.filter(|(_, line)| line.is_dirty) {
            durable[number * LINE_BYTES..][..LINE_BYTES].copy_from_slice(&shared.line(number));
            line.is_dirty = false;
            line.sent.clear();
        }
        lines.retain(|_, line| line.is_dirty || line.is_lost || !line.sent.is_empty());
    }

    /// What each line that is not sure may hold besides what is durable.
    pub(super) fn unsure(&self, shared: &Shared) -> Vec<(usize, Vec<[u8; LINE_BYTES]>)> {
        let each = self.lines.iter().map(|(&number, line)| {
            let mut contents: Vec<_> = line.sent.iter().map(|&(_, bytes)| bytes).collect();
            contents.extend(line.shows(shared.kind).then(|| shared.line(number)));
            contents.dedup();
            contents.retain(|bytes| bytes[..] != self.durable[number * LINE_BYTES..][..LINE_BYTES]);
            (number * LINE_BYTES, contents)
        });
        each.filter(|(_, contents)| !contents.is_empty()).collect()
    }

    pub(super) fn image_by_chance(&mut self, shared: &Shared) -> Vec<u8> {
        let mut chance = self.fork_chance();
        self.image(shared, &mut || chance.next())
    }

    pub(super) fn image(&self, shared: &Shared, random: &mut dyn FnMut() -> u64) -> Vec<u8> {
        let mut image = self.durable.clone();
        let is_by_blocks = matches!(shared.kind, ModelKind::Pages | ModelKind::Disk);
        let mut block = None;
        for (&number, line) in &self.lines {
            if is_by_blocks && block.is_none_or(|(other, _)| other != number / BLOCK_LINES) {
                let is_whole = random() % 4;
                block = Some((number / BLOCK_LINES, (is_whole > 1).then_some(is_whole)));
            }
            let seen = line.shows(shared.kind).then(|| shared.line(number));
            let newest = seen.as_ref().or(line.sent.last().map(|(_, bytes)| bytes));
            // Often a line is lost or saved as a whole; that finds what needs several lines of the same age.
            let whole = random();
            let whole = whole.is_multiple_of(2).then(|| random() % 3);
            for atom in (0..LINE_BYTES).step_by(ATOM_BYTES) {
                // A line leaves the cache whenever it likes: what is durable, what was flushed and what is
                // there now may each be what the medium holds.
                let choice = match block {
                    Some((_, Some(2))) => 0,
                    Some((_, Some(_))) => 2,
                    _ => whole.unwrap_or_else(|| random() % 3),
                };
                let bytes = match (choice, line.sent.as_slice()) {
                    (0, _) => continue,
                    (1, [(_, only)]) => Some(only),
                    (1, [first, .., (_, last)]) => {
                        Some(if random().is_multiple_of(2) { &first.1 } else { last })
                    }
                    _ => newest,
                };
                if let Some(bytes) = bytes {
                    let place = number * LINE_BYTES + atom;
                    image[place..place + ATOM_BYTES].copy_from_slice(&bytes[atom..atom + ATOM_BYTES]);
                }
            }
        }
        image
    }

    /// What was asked for to happen now, if its time has come.
    pub(super) fn burn(&mut self) -> Option<End> {
        let operations = self.operations;
        self.fuse.take_if(|fuse| fuse.at_operation <= operations).map(|fuse| fuse.end)
    }

    pub(super) fn cut_power_at(&mut self, at_operation: u64, random: Box<dyn FnMut() -> u64 + Send>) {
        self.fuse = Some(Fuse { at_operation, end: End::PowerCut(random) });
    }

    pub(super) fn kill_at(&mut self, at_operation: u64) {
        self.fuse = Some(Fuse { at_operation, end: End::Kill });
    }

    pub(super) fn disarm(&mut self) {
        self.fuse = None;
    }

    pub(super) fn fail_each(&mut self, message: Option<&str>) {
        self.failure = message.map(|message| Failure::Each(message.to_owned()));
    }

    pub(super) fn fail_once(&mut self, others: u32, message: &str) {
        self.failure = Some(Failure::Once(others, message.to_owned()));
    }

    pub(super) fn will_fail_once(&self) -> bool {
        matches!(self.failure, Some(Failure::Once(..)))
    }
}

impl Line {
    /// Whether what the CPU sees of it may be what the medium holds.
    fn shows(&self, kind: ModelKind) -> bool {
        match kind {
            ModelKind::Disk => !self.sent.is_empty(),
            _ => !self.is_lost,
        }
    }
}
