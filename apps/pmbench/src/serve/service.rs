//! The application of the modes that receive into named buffers: every append is kept where it arrived.

use std::collections::VecDeque;

use pmem::{Draft, Durable, Extent, Pending, Shard};
use pmlog::http::{Decoder, Item, Refusal};
use stack::net::{ConnId, Event, Net, SendError, Service};

use super::ledger::Ledger;
use super::reply;
use super::requests::accept;

/// Requests of one connection that may be unanswered at a time; a client that sends more waits.
const MAX_PIPELINE: usize = 32;

/// Appends to the log, or does all but that.
pub(super) struct AppendService {
    /// Whether records are made durable, or dropped as soon as they are whole.
    keeps: bool,
    connections: Vec<Connection>,
    /// Connections with appends that wait for the commit.
    awaiting: Vec<ConnId>,
    /// The next record's number, where nothing is kept.
    next: u64,
    pub(super) ledger: Ledger,
}

/// One place of the connection table.
struct Connection {
    id: Option<ConnId>,
    decoder: Decoder,
    /// What of the last slot is not decoded yet.
    input: Option<Extent>,
    body: Option<Draft>,
    body_bytes: u64,
    pending: VecDeque<(Pending, u64)>,
    /// Numbers of records that are durable and whose replies had no room yet.
    owed: VecDeque<u64>,
    /// Whether reading ended since too much was unanswered.
    is_full: bool,
    /// Why the connection ends, and whether it was told so.
    refusal: Option<Refusal>,
    is_told: bool,
}

impl AppendService {
    pub(super) fn new(max_connections: usize, keeps: bool) -> Self {
        Self {
            keeps,
            connections: (0..max_connections).map(|_| Connection::vacant()).collect(),
            awaiting: Vec::with_capacity(max_connections),
            next: 1,
            ledger: Ledger::default(),
        }
    }

    fn place(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|place| place.id == Some(conn))
    }

    /// Decodes what has arrived and acts on it, as far as answers that are owed allow.
    fn read<N: Net>(&mut self, conn: ConnId, net: &mut N, shard: &mut Shard) {
        let Some(place) = self.connections.get_mut(conn.index as usize) else { return };
        if place.id != Some(conn) {
            return;
        }
        loop {
            place.is_full = place.pending.len() + place.owed.len() >= MAX_PIPELINE;
            if place.is_full || place.refusal.is_some() {
                break;
            }
            let is_whole = match place.decoder.next(&mut place.input) {
                Ok(Some(Item::Head(head))) => match accept(&head, shard.max_record_bytes()) {
                    Ok(_) => place.begin(self.keeps, shard),
                    Err(refusal) => Err(refusal),
                },
                Ok(Some(Item::Data(extent))) => place.add(extent, shard).map(|()| false),
                Ok(Some(Item::End)) => Ok(true),
                Ok(None) => match net.recv(conn) {
                    Some(slot) => {
                        place.input = Some(slot.keep());
                        Ok(false)
                    }
                    None => break,
                },
                Err(refusal) => Err(refusal),
            };
            let outcome = match is_whole {
                Ok(true) => match place.body.take() {
                    Some(draft) => shard.append(draft).map_err(Refusal::from).map(|pending| {
                        if place.pending.is_empty() {
                            self.awaiting.push(conn);
                        }
                        place.pending.push_back((pending, place.body_bytes));
                    }),
                    None => {
                        place.owed.push_back(self.next);
                        place.answer(|reply| net.send(conn, reply));
                        self.next += 1;
                        self.ledger.done(place.body_bytes);
                        Ok(())
                    }
                },
                Ok(false) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = outcome {
                self.ledger.errors += 1;
                place.refusal = Some(refusal);
                place.body = None;
                place.input = None;
            }
        }
        place.end(conn, net);
    }
}

impl Service for AppendService {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        match event {
            Event::Opened { conn, .. } => {
                if let Some(place) = self.connections.get_mut(conn.index as usize) {
                    *place = Connection { id: Some(conn), ..Connection::vacant() };
                } else {
                    net.abort(conn);
                }
            }
            Event::Readable { conn } => self.read(conn, net, shard),
            Event::Writable { conn } => {
                if let Some(place) = self.place(conn) {
                    place.answer(|reply| net.send(conn, reply));
                }
                self.read(conn, net, shard);
            }
            Event::PeerFinished { conn } => {
                self.read(conn, net, shard);
                net.finish(conn);
            }
            Event::Closed { conn, .. } => {
                if let Some(place) = self.place(conn) {
                    let broken = place.decoder.is_mid_request() || !place.pending.is_empty();
                    let broken = broken && place.refusal.is_none();
                    *place = Connection::vacant();
                    self.ledger.errors += u64::from(broken);
                }
            }
        }
    }

    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
        let mut awaiting = std::mem::take(&mut self.awaiting);
        for &conn in &awaiting {
            let Some(place) = self.connections.get_mut(conn.index as usize) else { continue };
            if place.id != Some(conn) {
                continue;
            }
            while let Some((pending, payload_bytes)) = place.pending.pop_front() {
                match durable.confirm(pending) {
                    Ok(receipt) => {
                        place.owed.push_back(receipt.seq);
                        self.ledger.done(payload_bytes);
                    }
                    Err(pending) => {
                        place.pending.push_front((pending, payload_bytes));
                        break;
                    }
                }
            }
            place.answer(|reply| net.reply(conn, durable, reply));
            if place.is_full || place.refusal.is_some() {
                self.read(conn, net, shard);
            }
        }
        // What was read just now waits for the next commit.
        awaiting.clear();
        awaiting.append(&mut self.awaiting);
        self.awaiting = awaiting;
    }

    fn commit_failed<N: Net>(&mut self, why: &str, net: &mut N, _shard: &mut Shard) {
        tracing::error!("the store failed: {why}");
        for conn in self.awaiting.drain(..) {
            self.ledger.errors += 1;
            net.abort(conn);
        }
    }

    fn requests(&self) -> u64 {
        self.ledger.requests
    }
}

impl Connection {
    fn vacant() -> Self {
        Self {
            id: None,
            decoder: Decoder::default(),
            input: None,
            body: None,
            body_bytes: 0,
            pending: VecDeque::with_capacity(MAX_PIPELINE),
            owed: VecDeque::with_capacity(MAX_PIPELINE),
            is_full: false,
            refusal: None,
            is_told: false,
        }
    }

    /// Begins with a request's body; true if it is whole, since it lay right behind its head.
    fn begin(&mut self, keeps: bool, shard: &mut Shard) -> Result<bool, Refusal> {
        self.body_bytes = 0;
        self.body = keeps.then(|| shard.draft());
        match self.decoder.whole_body(&mut self.input) {
            Some(extent) => self.add(extent, shard).map(|()| true),
            None => Ok(false),
        }
    }

    /// Adds a piece to the body.
    fn add(&mut self, extent: Extent, shard: &mut Shard) -> Result<(), Refusal> {
        self.body_bytes += extent.len() as u64;
        match &mut self.body {
            Some(draft) => shard.push(draft, extent).map_err(Refusal::from),
            None => Ok(()),
        }
    }

    /// Sends what is owed, as far as there is room.
    fn answer(&mut self, mut send: impl FnMut(&[u8]) -> Result<(), SendError>) {
        while let Some(&seq) = self.owed.front() {
            match send(&reply::appended(seq)) {
                Ok(()) => drop(self.owed.pop_front()),
                Err(SendError::Full) => return,
                Err(SendError::Closed) => self.owed.clear(),
            }
        }
    }

    /// Sends the last reply, once nothing is owed before it, and reads over what comes then.
    fn end<N: Net>(&mut self, conn: ConnId, net: &mut N) {
        let Some(refusal) = self.refusal else { return };
        while net.recv(conn).is_some() {}
        if !self.is_told && self.pending.is_empty() && self.owed.is_empty() {
            self.is_told = true;
            // A client that has gone misses nothing.
            let _ = net.send(conn, reply::refused(refusal).as_bytes());
            net.finish(conn);
        }
    }
}
