//! The connections of the generator: a request on each, and what came of it.

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use pmem::Extent;
use smoltcp::wire::Ipv4Cidr;
use stack::Endpoint;
use stack::net::{CloseReason, ConnId, Event, Transport};
use stack::transport::OverEndpoint;

use super::device::{Clock, instant};
use super::pace::{FIRST_REPLY, Pace};
use super::reply::{KnownHead, Reply};
use super::summary::{Errors, Summary, latencies};

/// Handshakes that are under way at a time: fewer than any listener's backlog.
const MAX_OPENING: usize = 32;

/// Connections over one transport, each with at most one request on its way.
pub struct Client<T> {
    transport: T,
    clock: Clock,
    /// How long to sleep after a step without anything to do, if at all.
    nap: Option<Duration>,
    /// Requests, in named buffers, which are sent by turns.
    requests: Vec<Vec<Extent>>,
    /// Whose turn it is.
    next: usize,
    connections: Vec<Connection>,
    /// Connections without a request, in the order in which they became so.
    idle: VecDeque<ConnId>,
    known_head: KnownHead,
    /// The bytes of replies, where somebody wants to read them.
    heard: Option<Vec<u8>>,
    opened: usize,
    open: usize,
    is_counting: bool,
    is_closing: bool,
    refused: Option<CloseReason>,
    counts: Counts,
}

/// What is known of a connection, by its index in the stack's table.
struct Connection {
    /// When the request that is on its way was due, by the clock.
    request: Option<u64>,
    /// Whether the connection was given up, for a reason that was counted.
    is_lost: bool,
    reply: Reply,
}

/// What is counted from [`Client::reset`] on.
struct Counts {
    latencies_ns: Histogram<u64>,
    requests: u64,
    errors: Errors,
    busy_ns: u64,
    ran_ns: u64,
    retransmits_before: u64,
}

impl Counts {
    fn new(retransmits_before: u64) -> Self {
        Self {
            latencies_ns: latencies(),
            requests: 0,
            errors: Errors::default(),
            busy_ns: 0,
            ran_ns: 0,
            retransmits_before,
        }
    }
}

impl<T: Transport + OverEndpoint<Endpoint = Endpoint>> Client<T> {
    /// A client that will have `connections` connections and sends `request` on them.
    pub fn new(
        transport: T,
        request: Vec<Extent>,
        connections: usize,
        clock: Clock,
        nap: Option<Duration>,
    ) -> Self {
        Self {
            transport,
            clock,
            nap,
            requests: vec![request],
            next: 0,
            connections: (0..connections)
                .map(|_| Connection { request: None, is_lost: false, reply: Reply::new() })
                .collect(),
            idle: VecDeque::with_capacity(connections),
            known_head: KnownHead::default(),
            heard: None,
            opened: 0,
            open: 0,
            is_counting: true,
            is_closing: false,
            refused: None,
            counts: Counts::new(0),
        }
    }

    /// Opens all connections, from each of `own` in turn.
    ///
    /// # Errors
    /// Not all are open after `limit`, or one of them was refused.
    pub fn open(
        &mut self,
        server: SocketAddrV4,
        own: &[Ipv4Cidr],
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<()> {
        let limit_ns = self.clock.now_ns() + limit.as_nanos() as u64;
        let mut begun = 0;
        while self.opened < self.connections.len() {
            let now_ns = self.clock.now_ns();
            check_stop(stop)?;
            if let Some(reason) = self.refused {
                bail!("{server} ended a connection that was to be opened ({reason:?}); does it serve?");
            }
            ensure!(
                now_ns < limit_ns,
                "{} of {} connections to {server} are open after {limit:?}; is the server there, and on this link?",
                self.opened,
                self.connections.len()
            );
            while begun < self.connections.len() && begun - self.opened < MAX_OPENING {
                let local = own.get(begun % own.len()).map(|own| SocketAddr::from((own.address(), 0)));
                let endpoint = self.transport.endpoint_mut();
                endpoint
                    .connect(instant(now_ns), SocketAddr::V4(server), local)
                    .with_context(|| format!("no connection {} to {server}", begun + 1))?;
                begun += 1;
            }
            self.step(now_ns, None)?;
        }
        Ok(())
    }

    /// Sends `count` requests, one behind the other, each of which appends a record; returns the records' numbers.
    ///
    /// # Errors
    /// One of them was not appended, or the reply did not come within `limit`.
    pub fn append_some(&mut self, count: u32, limit: Duration, stop: &AtomicBool) -> Result<Vec<u64>> {
        let append = |_| {
            let conn = self.idle.pop_front().context("no connection is left for an append")?;
            self.heard = Some(Vec::new());
            let begin_ns = self.clock.now_ns();
            self.send(conn, begin_ns);
            let mut now_ns = begin_ns;
            while self.connections[conn.index as usize].request.is_some() {
                check_stop(stop)?;
                ensure!(now_ns < begin_ns + limit.as_nanos() as u64, "no reply to an append after {limit:?}");
                self.step(now_ns, None)?;
                now_ns = self.clock.now_ns();
            }
            let reply = self.heard.take().unwrap_or_default();
            number(&reply)
                .with_context(|| format!("no append's reply: {:?}", String::from_utf8_lossy(&reply)))
        };
        (0..count).map(append).collect()
    }

    /// From here on sends these requests, by turns.
    pub fn send_these(&mut self, requests: Vec<Vec<Extent>>) {
        (self.requests, self.next) = (requests, 0);
    }

    /// Sends requests at `pace` for some time, and if there was no reply by then, until there is one.
    ///
    /// # Errors
    /// The user has asked for the end, or the device failed.
    pub fn run(&mut self, duration: Duration, mut pace: Pace, stop: &AtomicBool) -> Result<()> {
        let begin_ns = self.clock.now_ns();
        let end_ns = begin_ns + duration.as_nanos() as u64;
        let mut now_ns = begin_ns;
        let patience_ns = end_ns + FIRST_REPLY.as_nanos() as u64;
        while now_ns < end_ns || (self.counts.requests == 0 && now_ns < patience_ns) {
            check_stop(stop)?;
            let is_busy = self.step(now_ns, Some((&mut pace, begin_ns)))?;
            if let Some(nap) = self.nap
                && !is_busy
            {
                thread::sleep(nap);
            }
            now_ns = self.clock.now_ns();
        }
        self.counts.ran_ns += now_ns - begin_ns;
        Ok(())
    }

    /// Waits for the replies that are owed, without counting them; those that do not come within `limit` are errors.
    ///
    /// # Errors
    /// The user has asked for the end, or the device failed.
    pub fn settle(&mut self, limit: Duration, stop: &AtomicBool) -> Result<()> {
        self.is_counting = false;
        let limit_ns = self.clock.now_ns() + limit.as_nanos() as u64;
        let mut now_ns = self.clock.now_ns();
        while self.owed() > 0 && now_ns < limit_ns {
            check_stop(stop)?;
            self.step(now_ns, None)?;
            now_ns = self.clock.now_ns();
        }
        self.counts.errors.unanswered = self.owed() as u64;
        Ok(())
    }

    /// Requests without a reply.
    fn owed(&self) -> usize {
        self.connections.iter().filter(|connection| connection.request.is_some()).count()
    }

    /// Forgets what was counted so far.
    pub fn reset(&mut self) {
        let errors = std::mem::take(&mut self.counts.errors);
        self.counts = Counts::new(self.transport.endpoint().counters().retransmits);
        // An error is never forgotten: a connection that broke while warming up is missing in the measurement.
        self.counts.errors = errors;
    }

    /// What was counted.
    pub fn summary(&self) -> Summary {
        let Counts { latencies_ns, requests, errors, busy_ns, ran_ns, retransmits_before } = &self.counts;
        let retransmits = self.transport.endpoint().counters().retransmits - retransmits_before;
        Summary::new(latencies_ns, *requests, *ran_ns, *busy_ns, retransmits, errors.clone())
    }

    /// Closes all connections, those that do not close within `limit` by a reset.
    ///
    /// # Errors
    /// The device failed.
    pub fn close(&mut self, limit: Duration) -> Result<()> {
        self.is_closing = true;
        let mut live: Vec<ConnId> = self.idle.drain(..).collect();
        live.sort();
        for conn in &live {
            self.transport.finish(*conn);
        }
        let limit_ns = self.clock.now_ns() + limit.as_nanos() as u64;
        loop {
            let now_ns = self.clock.now_ns();
            self.step(now_ns, None)?;
            // Those that had a request on their way have one still, or come to rest here.
            while let Some(conn) = self.idle.pop_front() {
                self.transport.finish(conn);
                live.push(conn);
            }
            if self.open == 0 || now_ns > limit_ns {
                break;
            }
        }
        for conn in live {
            self.transport.abort(conn);
        }
        self.step(self.clock.now_ns(), None).map(drop)
    }

    /// A burst: replies, and the requests that are due then. False if there was nothing to do.
    fn step(&mut self, now_ns: u64, pace: Option<(&mut Pace, u64)>) -> Result<bool> {
        let received = self.transport.receive(instant(now_ns))?;
        let mut events = 0;
        while let Some(event) = self.transport.next_event() {
            self.event(event);
            events += 1;
        }
        let mut started = 0;
        if let Some((pace, begin_ns)) = pace {
            while let Some(&conn) = self.idle.front() {
                let now_ns = self.clock.now_ns();
                let Some(due_ns) = pace.take_due(now_ns - begin_ns) else { break };
                self.idle.pop_front();
                self.send(conn, begin_ns + due_ns);
                started += 1;
            }
        }
        let sent = self.transport.transmit(instant(now_ns))?;
        let is_busy = received + events + started + sent > 0;
        if self.is_counting && is_busy {
            self.counts.busy_ns += self.clock.now_ns() - now_ns;
        }
        Ok(is_busy)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Opened { conn, .. } => {
                self.opened += 1;
                self.open += 1;
                self.idle.push_back(conn);
            }
            Event::Readable { conn } => self.receive(conn),
            // A request fits whenever the one before it was answered; and no UDP port is bound.
            Event::Writable { .. } | Event::Datagrams { .. } => {}
            Event::PeerFinished { conn } => {
                if !self.is_closing {
                    self.lose(conn, |errors| errors.closed += 1);
                }
            }
            Event::Closed { conn, reason } => {
                if self.opened < self.connections.len() {
                    self.refused = Some(reason);
                } else {
                    self.open -= 1;
                }
                if !self.is_closing {
                    self.lose(conn, |errors| errors.closed += 1);
                }
            }
        }
    }

    /// Takes what has come of a connection's reply.
    fn receive(&mut self, conn: ConnId) {
        while let Some(slot) = self.transport.recv(conn) {
            if let Some(heard) = &mut self.heard {
                heard.extend_from_slice(slot.bytes());
            }
            let connection = &mut self.connections[conn.index as usize];
            let Some(due_ns) = connection.request else {
                if !self.is_closing {
                    self.lose(conn, |errors| errors.malformed += 1);
                }
                continue;
            };
            match connection.reply.take(slot.bytes(), &mut self.known_head) {
                Ok(false) => {}
                Ok(true) => {
                    connection.request = None;
                    if self.is_counting {
                        self.counts.requests += 1;
                        self.counts.latencies_ns.saturating_record(self.clock.now_ns() - due_ns);
                    }
                    self.idle.push_back(conn);
                }
                Err(error) => {
                    self.lose(conn, |errors| errors.note(error));
                }
            }
        }
    }

    fn send(&mut self, conn: ConnId, due_ns: u64) {
        let request = &self.requests[self.next];
        self.next = (self.next + 1) % self.requests.len();
        let sent = request.iter().try_for_each(|piece| self.transport.send_extent(conn, piece.clone()));
        match sent {
            Ok(()) => self.connections[conn.index as usize].request = Some(due_ns),
            Err(_) => self.lose(conn, |errors| errors.unsent += 1),
        }
    }

    /// Gives a connection up, and counts why, once.
    fn lose(&mut self, conn: ConnId, count: impl FnOnce(&mut Errors)) {
        let connection = &mut self.connections[conn.index as usize];
        if connection.is_lost {
            return;
        }
        connection.is_lost = true;
        connection.request = None;
        count(&mut self.counts.errors);
        self.idle.retain(|idle| *idle != conn);
        self.transport.abort(conn);
    }
}

/// The number of the record that a reply speaks of.
fn number(reply: &[u8]) -> Option<u64> {
    let body = reply.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let body: serde_json::Value = serde_json::from_slice(&reply[body..]).ok()?;
    body["seq"].as_u64()
}

/// Fails when the user has asked for the end.
fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
