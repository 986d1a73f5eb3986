//! Replies that may take other cores: records and trims of their shards, and listings.
//!
//! A reply asks one question at a time and waits for the answer. What is read from another core's shard is copied
//! there, in parts, into memory taken at the start; the record's own core holds it until all is copied.

use pmem::Shard;
use stack::net::Net;

use super::checked::About;
use super::exchange::{PAGE_RECORDS, Page, PageQuery, Query};
use super::out::{Out, Progress};
use super::peers::{BorrowedChunk, HeldLease, Owner, Peers};
use super::render::{Rendered, ReplyFormat};
use crate::http::{ByteRange, Position, Start};

/// Bytes given to the network at a time: well below a send queue.
const PIECE_BYTES: usize = 2048;

/// A record of another core's.
#[derive(Debug)]
pub(super) struct Fetch {
    core: usize,
    shard: u32,
    seq: u64,
    range: Option<ByteRange>,
    stage: FetchStage,
    /// What the record is, until the status line and fields are out.
    head: Option<About>,
    is_begun: bool,
    /// Bytes that are not sent yet.
    left: u64,
}

enum FetchStage {
    /// The first part is to be asked for.
    Begin,
    /// The next part is to be asked for.
    Next(HeldLease),
    /// An answer is to come.
    Asked,
    /// A part is here, and sent in part.
    Part { bytes: BorrowedChunk, sent: usize, lease: Option<HeldLease> },
    /// The rest cannot be had.
    Failed,
}

impl Fetch {
    pub(super) fn new(core: usize, shard: u32, seq: u64, range: Option<ByteRange>) -> Self {
        Self { core, shard, seq, range, stage: FetchStage::Begin, head: None, is_begun: false, left: 0 }
    }

    /// A part has come, the first one with what the record is.
    pub(super) fn take(&mut self, begins: Option<About>, bytes: BorrowedChunk, lease: Option<HeldLease>) {
        if let Some(about) = begins {
            (self.head, self.left, self.is_begun) = (begins, about.given_bytes(), true);
        }
        self.stage = FetchStage::Part { bytes, sent: 0, lease };
    }

    /// There is nothing more to come. True if nothing has been sent yet that would have to be taken back.
    pub(super) fn fail(&mut self) -> bool {
        self.stage = FetchStage::Failed;
        !self.is_begun
    }

    /// Sends it; `begin` sends what stands before its bytes, which HEAD is content with.
    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        peers: &mut Peers,
        is_head: bool,
        begin: impl FnOnce(&mut Out<'_, N>, &About) -> Result<(), Progress>,
    ) -> Result<(), Progress> {
        if let FetchStage::Failed = self.stage {
            return Err(Progress::Broken);
        }
        if let FetchStage::Part { bytes, sent, lease } = &mut self.stage {
            if let Some(about) = self.head {
                begin(out, &about)?;
                self.head = None;
            }
            if is_head {
                return Ok(());
            }
            while let Some(piece) = bytes.bytes()[*sent..].chunks(PIECE_BYTES).next() {
                out.copied(piece)?;
                *sent += piece.len();
                self.left = self.left.saturating_sub(piece.len() as u64);
            }
            self.stage = match lease.take() {
                // The part goes back before the next one is asked for.
                Some(lease) => FetchStage::Next(lease),
                None if self.left == 0 => return Ok(()),
                None => return Err(Progress::Broken),
            };
        }
        self.ask(out, peers);
        Err(Progress::Blocked)
    }

    /// Asks for what comes next, unless that has been done.
    fn ask<N>(&mut self, out: &Out<'_, N>, peers: &mut Peers) {
        let Self { core, shard, seq, range, .. } = *self;
        match std::mem::replace(&mut self.stage, FetchStage::Asked) {
            FetchStage::Begin => {
                if !peers.ask(core, out.conn(), |chunk| Query::Open { shard, seq, range, chunk }) {
                    self.stage = FetchStage::Begin;
                }
            }
            FetchStage::Next(held) => {
                let lease = held.id();
                if peers.ask(core, out.conn(), |chunk| Query::More { lease, chunk }) {
                    held.travels();
                } else {
                    self.stage = FetchStage::Next(held);
                }
            }
            stage => self.stage = stage,
        }
    }
}

/// A trim of another core's shard.
#[derive(Debug)]
pub(super) struct RemoteTrim {
    core: usize,
    shard: u32,
    before: u64,
    is_asked: bool,
}

impl RemoteTrim {
    pub(super) fn new(core: usize, shard: u32, before: u64) -> Self {
        Self { core, shard, before, is_asked: false }
    }

    pub(super) fn shard(&self) -> u32 {
        self.shard
    }

    /// Asks, unless that has been done.
    pub(super) fn ask<N>(&mut self, out: &Out<'_, N>, peers: &mut Peers) -> Progress {
        let Self { core, shard, before, .. } = *self;
        self.is_asked = self.is_asked || peers.ask_briefly(core, out.conn(), Query::Trim { shard, before });
        Progress::Blocked
    }
}

/// A listing of the records of all shards, or of one, in the order of epoch, shard and number. The store may change
/// between two pieces: what comes after its turn is left out, and the list ends where records are trimmed before theirs.
#[derive(Debug)]
pub(super) struct Listing {
    /// One shard only, in the order of numbers.
    only: Option<u32>,
    cursor: Cursor,
    has_head: bool,
    is_first: bool,
    stage: ListStage,
}

#[derive(Debug)]
enum ListStage {
    /// The next records are to be looked up.
    Look,
    /// An answer is to come.
    Asked,
    Page(Box<Page>),
    /// There are no more.
    End,
}

/// How far a listing is.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    at: Position,
    /// Of the shards that were asked for this epoch, the next epoch that one of them has.
    next_epoch: Option<u32>,
    /// Whether all shards were asked, from the first on.
    is_whole: bool,
    left: u64,
}

impl Listing {
    pub(super) fn new(only: Option<u32>, start: Option<Start>, left: u64) -> Self {
        let first = Position { epoch: 0, shard: only.unwrap_or(0), seq: 0 };
        let at = match start {
            Some(Start::Position(position)) => position,
            Some(Start::Seq(seq)) => Position { seq, ..first },
            None => first,
        };
        Self {
            only,
            cursor: Cursor { at, next_epoch: None, is_whole: at.shard == 0, left },
            has_head: false,
            is_first: true,
            stage: if left == 0 { ListStage::End } else { ListStage::Look },
        }
    }

    /// An answer has come.
    pub(super) fn take(&mut self, page: Box<Page>) {
        self.stage = ListStage::Page(page);
    }

    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        rendered: &mut Rendered,
        peers: &mut Peers,
        main: &mut Shard,
        format: ReplyFormat,
    ) -> Result<(), Progress> {
        if !self.has_head {
            out.text(rendered.list_head(&peers.ends(self.only, main), peers.own_name(), format))?;
            self.has_head = true;
        }
        if format.is_head() {
            return Ok(());
        }
        loop {
            let Position { shard, seq, .. } = self.cursor.at;
            match &self.stage {
                ListStage::Asked => return Err(Progress::Blocked),
                ListStage::Look => self.look(out, peers, main)?,
                ListStage::End => {
                    return out.text(rendered.list_piece(&[], None, self.is_first, true, format));
                }
                ListStage::Page(page) if seq != 0 && seq < page.head => self.stage = ListStage::End,
                ListStage::Page(page) => {
                    let next = self.cursor.behind(page, self.only.is_some(), peers.exchange.shards());
                    if !page.records.is_empty() || next.is_none() {
                        let name = peers.exchange.name_of(shard);
                        let is_end = next.is_none();
                        out.text(rendered.list_piece(&page.records, name, self.is_first, is_end, format))?;
                        self.is_first = false;
                    }
                    let Some(next) = next else { return Ok(()) };
                    (self.cursor, self.stage) = (next, ListStage::Look);
                }
            }
        }
    }

    fn look<N>(&mut self, out: &Out<'_, N>, peers: &mut Peers, main: &mut Shard) -> Result<(), Progress> {
        let Cursor { at: Position { epoch, shard, seq }, left, .. } = self.cursor;
        let limit = usize::try_from(left).unwrap_or(PAGE_RECORDS).min(PAGE_RECORDS);
        let epoch = if self.only.is_none() { Some(epoch) } else { None };
        let query = PageQuery { shard, epoch, from: seq, limit };
        match peers.owner_of(shard) {
            Owner::This => self.take(Box::new(peers.list(&query, main))),
            Owner::Core(core) => {
                if peers.ask_briefly(core, out.conn(), Query::List(query)) {
                    self.stage = ListStage::Asked;
                }
                return Err(Progress::Blocked);
            }
        }
        Ok(())
    }
}

impl Cursor {
    /// Where the listing goes on behind a page; none if it ends with it.
    fn behind(mut self, page: &Page, has_one_shard: bool, shards: u32) -> Option<Self> {
        self.left = self.left.saturating_sub(page.records.len() as u64);
        if self.left == 0 {
            return None;
        }
        if let Some(last) = page.records.last()
            && page.records.len() == PAGE_RECORDS
        {
            self.at.seq = last.seq + last.entries;
            return Some(self);
        }
        self.next_epoch = self.next_epoch.into_iter().chain(page.next_epoch).min();
        if has_one_shard { None } else { self.next_shard(shards) }
    }

    /// The next shard of this epoch, or the first of the next epoch; none if there is none.
    fn next_shard(mut self, shards: u32) -> Option<Self> {
        let Position { epoch, shard, .. } = self.at;
        if shard + 1 < shards {
            self.at = Position { epoch, shard: shard + 1, seq: 0 };
            return Some(self);
        }
        // Shards before the one that the listing began with may have records of any later epoch.
        let epoch = if self.is_whole { self.next_epoch } else { epoch.checked_add(1) }?;
        let at = Position { epoch, shard: 0, seq: 0 };
        Some(Self { at, next_epoch: None, is_whole: true, left: self.left })
    }
}

impl std::fmt::Debug for FetchStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Begin => "Begin",
            Self::Next(_) => "Next",
            Self::Asked => "Asked",
            Self::Part { .. } => "Part",
            Self::Failed => "Failed",
        })
    }
}
