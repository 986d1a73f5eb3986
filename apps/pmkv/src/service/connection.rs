//! One connection: from slots to requests, and from replies to sends.

use std::time::Duration;

use pmem::{Extent, Shard};
use stack::net::{ConnId, LEAST_SEND_BYTES, Net, SendError};
use stack::time::Instant;

use super::{SPARE_REQUESTS, Shared};
use crate::command::Context;
use crate::dispatch::{self, Outcome};
use crate::resp::{Decoder, Part, Room};

/// Replies that are collected before they are sent. Beyond that, a client has to read first.
const MAX_COLLECTED_BYTES: usize = 64 * 1024;
/// What somebody may still send after the last reply. A connection closed with unread bytes would be reset, and the reset
/// could overtake the reply.
const MAX_LINGER_BYTES: usize = 64 << 20;
/// How long the other side may take to end a connection whose last reply is sent.
const LINGER: Duration = Duration::from_secs(5);

/// The state of one place in the connection table.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Whose place it is.
    id: Option<ConnId>,
    decoder: Decoder,
    /// What of the last slot is not decoded yet.
    input: Option<Extent>,
    /// How much of what is owed is sent: bytes of text, and extents.
    sent: (usize, usize),
    /// Bytes of memory that are counted for it.
    counted_bytes: usize,
    peer_finished: bool,
    /// FIN is sent; since when, and so much was dropped since.
    has_finished: bool,
    finished: Option<Instant>,
    dropped_bytes: usize,
    /// Whether it is only told that there are too many.
    is_told_off: bool,
    /// Whether its replies wait for the next commit.
    awaits_commit: bool,
}

impl Connection {
    pub(super) fn is(&self, conn: ConnId) -> bool {
        self.id == Some(conn)
    }

    pub(super) fn open(&mut self, conn: ConnId) {
        *self = Self { id: Some(conn), ..Self::default() };
    }

    pub(super) fn peer_finished(&mut self) {
        self.peer_finished = true;
    }

    /// The connection ends with what it is told.
    pub(super) fn is_told_off(&mut self) {
        self.is_told_off = true;
    }

    /// Resets a connection whose other side does not end it.
    pub(super) fn tick<N: Net>(&mut self, index: u32, shared: &mut Shared, net: &mut N) {
        if self.finished.is_some_and(|since| shared.now - since >= LINGER) {
            self.abort(index, shared, net);
        }
    }

    /// Gives up all that the connection held, and the place itself.
    pub(super) fn vacate(&mut self, index: u32, shared: &mut Shared) {
        shared.with_client(index, |client, shared| {
            shared.clients.forget(client);
            *client = crate::clients::Client { index, ..Default::default() };
        });
        shared.pending_bytes -= self.counted_bytes;
        shared.told_off -= u32::from(self.is_told_off);
        shared.clients.connected -= 1;
        *self = Self::default();
    }

    /// Resets the connection.
    pub(super) fn abort<N: Net>(&mut self, index: u32, shared: &mut Shared, net: &mut N) {
        let Some(conn) = self.id else { return };
        net.abort(conn);
        self.input = None;
        self.decoder.reset();
        self.has_finished = true;
        self.sent = (0, 0);
        let client = &mut shared.clients.places[index as usize];
        client.is_leaving = true;
        client.out.clear();
        self.count(index, shared);
    }

    /// Something has come, or there is room to send.
    pub(super) fn readable<N: Net>(
        &mut self,
        index: u32,
        shared: &mut Shared,
        net: &mut N,
        shard: &mut Shard,
    ) {
        self.go_on(index, shared, net, shard);
    }

    /// What the replies have waited for is durable.
    pub(super) fn committed<N: Net>(
        &mut self,
        index: u32,
        shared: &mut Shared,
        net: &mut N,
        shard: &mut Shard,
    ) {
        self.awaits_commit = false;
        self.go_on(index, shared, net, shard);
    }

    /// Reads, acts and replies until there is nothing to read, or until it has to wait.
    pub(super) fn go_on<N: Net>(&mut self, index: u32, shared: &mut Shared, net: &mut N, shard: &mut Shard) {
        let Some(conn) = self.id else { return };
        while !self.has_finished && shared.failed.is_none() {
            let is_drained = self.read(conn, index, shared, net, shard);
            let all_sent = self.send(conn, index, shared, net);
            if shared.clients.places[index as usize].is_leaving && all_sent {
                self.has_finished = true;
                self.finished = Some(shared.now);
                net.finish(conn);
            }
            if is_drained || !all_sent {
                break;
            }
        }
        if self.has_finished {
            self.drop_input(conn, net);
        }
        self.count(index, shared);
        if shared.pending_bytes > shared.server.config.max_pending_bytes
            && self.counted_bytes > MAX_COLLECTED_BYTES
        {
            tracing::warn!(
                bytes = self.counted_bytes,
                "a client is disconnected: it sends half requests, or does not read"
            );
            shared.server.stats.cut_off += 1;
            self.abort(index, shared, net);
        }
    }

    /// Counts the memory that it takes for what is not whole, and for what is not sent.
    fn count(&mut self, index: u32, shared: &mut Shared) {
        let client = &shared.clients.places[index as usize];
        let transaction = client.transaction.as_ref().map_or(0, |transaction| transaction.held_bytes);
        let bytes = self.decoder.held_bytes() + client.out.held_bytes() + transaction;
        shared.pending_bytes = shared.pending_bytes - self.counted_bytes + bytes;
        self.counted_bytes = bytes;
    }

    /// Does what is asked for, until there is nothing more to read (true), or replies have to go out first.
    fn read<N: Net>(
        &mut self,
        conn: ConnId,
        index: u32,
        shared: &mut Shared,
        net: &mut N,
        shard: &mut Shard,
    ) -> bool {
        loop {
            if self.peer_finished && shared.clients.places[index as usize].waiting.is_some() {
                // Nobody is there any more to get what it waits for.
                shared.with_client(index, |client, shared| _ = shared.clients.stop_waiting(client));
                shared.clients.places[index as usize].is_leaving = true;
            }
            let client = &shared.clients.places[index as usize];
            if client.is_leaving || client.waiting.is_some() || shared.failed.is_some() {
                return true;
            }
            if client.out.held_bytes() > MAX_COLLECTED_BYTES {
                return false;
            }
            if self.input.is_none() {
                let Some(slot) = net.recv(conn) else {
                    if self.peer_finished {
                        shared.clients.places[index as usize].is_leaving = true;
                    }
                    return true;
                };
                self.input = Some(slot.keep());
            }
            let arena = shard.arena().clone();
            let room = Room {
                arena: &arena,
                reserve: shard.reserve() + arena.buffers() / 16,
                max_bytes: shared.server.config.max_value_bytes,
                is_known: client.user.is_some(),
            };
            match self.decoder.next(&mut self.input, &mut shared.spare, &room) {
                Ok(Some(request)) => act(request, index, shared, shard),
                Ok(None) => {}
                Err(error) => {
                    let client = &mut shared.clients.places[index as usize];
                    client.out.error(&format!("ERR {error}"));
                    client.is_leaving = true;
                    self.input = None;
                    self.decoder.reset();
                }
            }
        }
    }

    /// Sends what is owed; true if all of it is sent. Nothing is sent that somebody has to wait for.
    fn send<N: Net>(&mut self, conn: ConnId, index: u32, shared: &mut Shared, net: &mut N) -> bool {
        let out = &mut shared.clients.places[index as usize].out;
        if out.is_empty() {
            return true;
        }
        if shared.failed.is_some() {
            return false;
        }
        if shared.pending.is_some() {
            if !std::mem::replace(&mut self.awaits_commit, true) {
                shared.awaiting.push(index);
            }
            return false;
        }
        loop {
            let sent = match out.part(self.sent.0, self.sent.1) {
                None => break,
                Some(Part::Extent(extent)) => {
                    net.send_extent(conn, extent.clone()).map(|()| self.sent.1 += 1)
                }
                Some(Part::Text(text)) => match net.send(conn, text) {
                    // There may never be room for a long text as a whole.
                    Err(SendError::Full) if text.len() > LEAST_SEND_BYTES => {
                        let len = net.send_space(conn).bytes.clamp(LEAST_SEND_BYTES, text.len());
                        net.send(conn, &text[..len]).map(|()| self.sent.0 += len)
                    }
                    sent => sent.map(|()| self.sent.0 += text.len()),
                },
            };
            match sent {
                Ok(()) => {}
                Err(SendError::Full) => return false,
                Err(SendError::Closed) => break,
            }
        }
        out.clear();
        self.sent = (0, 0);
        true
    }

    /// Drops what still comes on a connection that is finished.
    fn drop_input<N: Net>(&mut self, conn: ConnId, net: &mut N) {
        self.input = None;
        while let Some(slot) = net.recv(conn) {
            self.dropped_bytes += slot.bytes().len();
        }
        if self.dropped_bytes > MAX_LINGER_BYTES {
            net.abort(conn);
        }
    }
}

/// Does what a request asks for.
fn act(request: crate::resp::Request, index: u32, shared: &mut Shared, shard: &mut Shard) {
    shared.server.stats.commands += 1;
    shared.store.begin(shard);
    let mut request = Some(request);
    shared.with_client(index, |client, shared| {
        let Some(asked) = &request else { return };
        client.last_ms = shared.store.now_ms();
        let mut out = std::mem::take(&mut client.out);
        client.out.set_resp3(out.is_resp3());
        let mut cx = Context {
            req: asked,
            name: "",
            store: &mut shared.store,
            shard,
            out: &mut out,
            client,
            clients: &mut shared.clients,
            server: &mut shared.server,
            is_in_transaction: false,
        };
        let outcome = dispatch::handle(&mut cx);
        // Messages to the client itself, which it has published, come behind the reply.
        let own = std::mem::replace(&mut client.out, out);
        client.out.append(&own);
        if outcome == Outcome::Queued
            && let Some(transaction) = &mut client.transaction
            && let Some(request) = request.take()
        {
            transaction.held_bytes += request.text_bytes() + 64;
            transaction.requests.push(request);
        }
    });
    shared.finish_record(shard);
    shared.tell_changes();
    if let Some(mut request) = request
        && shared.spare.len() < SPARE_REQUESTS
        && request.text_bytes() <= MAX_COLLECTED_BYTES
    {
        request.clear();
        shared.spare.push(request);
    }
}
