//! Who is connected, and what is known of each.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use crate::glob;
use crate::resp::{Reply, Request};
use crate::store::StreamId;

/// One client. Its place is there whether somebody has it or not.
#[derive(Debug, Default)]
pub struct Client {
    /// Its place.
    pub index: u32,
    /// Its number, which no other has had; 0 for nobody.
    pub id: u64,
    /// Where it is.
    pub addr: Option<SocketAddr>,
    /// What it calls itself.
    pub name: Vec<u8>,
    /// The library that it uses.
    pub lib_name: Vec<u8>,
    /// That library's version.
    pub lib_ver: Vec<u8>,
    /// Who it is; none before it has said so, where it has to.
    pub user: Option<String>,
    /// Since when it is connected.
    pub opened_ms: u64,
    /// When it has last sent a request.
    pub last_ms: u64,
    /// What it has sent last.
    pub last_command: &'static str,
    /// Commands of a transaction that has begun.
    pub transaction: Option<Box<Transaction>>,
    /// Keys that it watches.
    pub watched: Vec<Box<[u8]>>,
    /// Whether one of them has changed.
    pub is_dirty: bool,
    /// Channels that it listens to.
    pub channels: Vec<Box<[u8]>>,
    /// Patterns of channels that it listens to.
    pub patterns: Vec<Box<[u8]>>,
    /// What it waits for.
    pub waiting: Option<Box<Waiting>>,
    /// What is owed to it.
    pub out: Reply,
    /// No request is read any more; the connection ends when all is sent.
    pub is_leaving: bool,
}

/// A client's place, which it can be taken out of in no time.
#[derive(Debug, Default)]
pub struct Place(Box<Client>);

impl Deref for Place {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for Place {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}

/// Commands of a transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The commands, which are done together.
    pub requests: Vec<Request>,
    /// Whether one of them was refused already.
    pub is_aborted: bool,
    /// Bytes of memory that they take.
    pub held_bytes: usize,
}

/// A client that waits for entries of streams.
#[derive(Debug)]
pub struct Waiting {
    /// The streams, and the number behind which an entry is news.
    pub streams: Vec<(Box<[u8]>, StreamId)>,
    /// Entries of each stream that it takes.
    pub count: usize,
    /// When it waits no longer; 0 for never.
    pub until_ms: u64,
}

impl Client {
    /// Whether it listens to anything.
    pub fn is_subscribed(&self) -> bool {
        !self.channels.is_empty() || !self.patterns.is_empty()
    }
}

/// All clients of a core, and what they have in common.
#[derive(Debug, Default)]
pub struct Clients {
    /// By their places.
    pub places: Vec<Place>,
    /// How many are connected.
    pub connected: u32,
    /// The number of the next that comes.
    pub next_id: u64,
    watching: HashMap<Box<[u8]>, Vec<u32>>,
    listening: HashMap<Box<[u8]>, Vec<u32>>,
    patterns: HashMap<Box<[u8]>, Vec<u32>>,
    waiting: HashMap<Box<[u8]>, Vec<u32>>,
    deadlines: BTreeSet<(u64, u32)>,
    /// Those that have got something, or can go on.
    pub woken: Vec<u32>,
}

impl Clients {
    /// So many places.
    pub fn new(places: usize) -> Self {
        let place = |index| Place(Box::new(Client { index, ..Client::default() }));
        Self { places: (0..places as u32).map(place).collect(), next_id: 1, ..Self::default() }
    }

    /// Whether anybody wants to know which keys change.
    pub fn wants_changes(&self) -> bool {
        !self.watching.is_empty() || !self.waiting.is_empty()
    }

    /// A client watches a key from now on.
    pub fn watch(&mut self, client: &mut Client, key: &[u8]) {
        if !client.watched.iter().any(|watched| **watched == *key) {
            client.watched.push(key.into());
            self.watching.entry(key.into()).or_default().push(client.index);
        }
    }

    /// A client watches nothing any more.
    pub fn unwatch(&mut self, client: &mut Client) {
        for key in client.watched.drain(..) {
            leave(&mut self.watching, &key, client.index);
        }
        client.is_dirty = false;
    }

    /// A key has changed. Whoever waits for it is woken.
    pub fn changed(&mut self, key: &[u8]) {
        for &index in self.watching.get(key).into_iter().flatten() {
            self.places[index as usize].is_dirty = true;
        }
        self.woken.extend(self.waiting.get(key).into_iter().flatten());
    }

    /// A client waits for streams.
    pub fn wait(&mut self, client: &mut Client, waiting: Waiting) {
        for (key, _) in &waiting.streams {
            self.waiting.entry(key.clone()).or_default().push(client.index);
        }
        if waiting.until_ms != 0 {
            self.deadlines.insert((waiting.until_ms, client.index));
        }
        client.waiting = Some(Box::new(waiting));
    }

    /// A client waits no longer.
    pub fn stop_waiting(&mut self, client: &mut Client) -> Option<Box<Waiting>> {
        let waiting = client.waiting.take()?;
        for (key, _) in &waiting.streams {
            leave(&mut self.waiting, key, client.index);
        }
        self.deadlines.remove(&(waiting.until_ms, client.index));
        Some(waiting)
    }

    /// The next client that has waited long enough.
    pub fn next_overdue(&self, now_ms: u64) -> Option<u32> {
        self.deadlines.first().filter(|(until_ms, _)| *until_ms <= now_ms).map(|(_, index)| *index)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.places.iter().filter(|client| client.waiting.is_some()).count()
    }

    /// A client listens to a channel, or to all that match a pattern; false if it does already.
    pub fn subscribe(&mut self, client: &mut Client, channel: &[u8], is_pattern: bool) -> bool {
        let (own, all) = match is_pattern {
            true => (&mut client.patterns, &mut self.patterns),
            false => (&mut client.channels, &mut self.listening),
        };
        if own.iter().any(|have| **have == *channel) {
            return false;
        }
        own.push(channel.into());
        all.entry(channel.into()).or_default().push(client.index);
        true
    }

    /// A client no longer listens.
    pub fn unsubscribe(&mut self, client: &mut Client, channel: &[u8], is_pattern: bool) {
        let (own, all) = match is_pattern {
            true => (&mut client.patterns, &mut self.patterns),
            false => (&mut client.channels, &mut self.listening),
        };
        own.retain(|have| **have != *channel);
        leave(all, channel, client.index);
    }

    /// Hands a message to all that listen; `from` is not among the others. How many they are.
    pub fn publish(&mut self, from: &mut Client, channel: &[u8], message: &[u8]) -> usize {
        let mut heard = 0;
        let Self { places, listening, patterns, woken, .. } = self;
        let mut tell = |index: u32, pattern: Option<&[u8]>| {
            let client = if index == from.index { &mut *from } else { &mut places[index as usize] };
            client.out.push(if pattern.is_some() { 4 } else { 3 });
            client.out.bulk(if pattern.is_some() { b"pmessage" } else { b"message" });
            pattern.iter().for_each(|pattern| client.out.bulk(pattern));
            client.out.bulk(channel);
            client.out.bulk(message);
            woken.push(index);
            heard += 1;
        };
        listening.get(channel).into_iter().flatten().for_each(|index| tell(*index, None));
        for (pattern, indices) in patterns.iter().filter(|(pattern, _)| glob::matches(pattern, channel)) {
            indices.iter().for_each(|index| tell(*index, Some(pattern)));
        }
        heard
    }

    /// Channels that somebody listens to, and how many do.
    pub fn channels(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.listening.iter().map(|(channel, indices)| (&**channel, indices.len()))
    }

    /// How many patterns there are.
    pub fn pattern_count(&self) -> usize {
        self.patterns.len()
    }

    /// A client is gone, or begins afresh: it watches, waits for and listens to nothing.
    pub fn forget(&mut self, client: &mut Client) {
        self.unwatch(client);
        self.stop_waiting(client);
        for channel in std::mem::take(&mut client.channels) {
            leave(&mut self.listening, &channel, client.index);
        }
        for pattern in std::mem::take(&mut client.patterns) {
            leave(&mut self.patterns, &pattern, client.index);
        }
        client.transaction = None;
    }
}

fn leave(all: &mut HashMap<Box<[u8]>, Vec<u32>>, key: &[u8], index: u32) {
    if let Some(indices) = all.get_mut(key) {
        indices.retain(|have| *have != index);
        if indices.is_empty() {
            all.remove(key);
        }
    }
}
