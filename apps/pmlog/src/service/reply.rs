//! Replies: what is owed to a client, and how it is sent in pieces no larger than the network takes.

use pmem::{Durable, Pending, Receipt, Shard, Trimmed};
use stack::net::{ConnId, Net};

use super::{
    checked::{Checked, Unreadable},
    common::{Common, Counters},
    conditional::{Conditional, Numbered},
    feed::{Feed, Wanted},
    foreign::{Fetch, Listing, RemoteTrim},
    out::{Out, Progress, Sent},
    peers::{Owner, Peers, Reading},
    render::{End, Health, Rendered, ReplyFormat},
    stream::{Prepared, Sending},
};
use crate::http::{Ask, Refusal, Start};

/// One reply that is owed, in the order of the requests.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) content: Content,
    format: ReplyFormat,
}

/// What a reply says.
#[derive(Debug)]
pub(super) enum Content {
    /// `100 Continue`: the body is wanted.
    Continue,
    /// An append that is not durable yet. It holds up what is behind it.
    Waiting(Pending),
    /// What an append under a condition has come to, which is not durable yet.
    Conditional(Box<Conditional>),
    /// An append that is durable: only a [`Durable`] makes the receipt.
    Appended(Receipt),
    /// The same, of one that was to have this number.
    AppendedAs(Box<Numbered>),
    /// A body that was received and given up; so many had come.
    Counted { number: u64, len_bytes: u64 },
    /// The one-line reason why not.
    Refused(Refusal),
    /// To be looked at once all earlier replies are out, so that it sees what they did.
    Asked(Ask),
    /// The store was trimmed, or one shard of several.
    Trimmed(Trimmed, Option<u32>),
    /// How the store is, at the time of sending.
    Health,
    /// Anything that takes more than one step.
    Underway(Box<Underway>),
}

/// A reply that goes out in pieces, or waits for another core. All that owns something is in here, so that other
/// replies are small, and are dropped at no cost.
#[derive(Debug)]
pub(super) enum Underway {
    /// A record on its way.
    Record(Sending),
    /// A listing on its way.
    Listing(Listing),
    /// A record of another core's on its way.
    Fetch(Fetch),
    /// Another core is trimming its shard.
    RemoteTrim(RemoteTrim),
    /// Records on their way, line by line.
    Feed(Feed),
    /// A text that may be longer than a send queue.
    Text(Prepared),
    /// The end of a text, and what is to be said behind it.
    Behind(Prepared, Content),
}

impl Reply {
    pub(super) fn new(content: Content, format: ReplyFormat) -> Self {
        Self { content, format }
    }

    /// Whether later requests may be read and acted on before this reply is out. They may not when this one
    /// has yet to look at the store.
    #[inline]
    pub(super) fn lets_pass(&self) -> bool {
        match self.content {
            Content::Continue
            | Content::Waiting(_)
            | Content::Conditional(_)
            | Content::Appended(_)
            | Content::AppendedAs(_)
            | Content::Counted { .. }
            | Content::Refused(_)
            | Content::Trimmed(..) => true,
            Content::Asked(_) | Content::Health | Content::Underway(_) => false,
        }
    }

    /// What a durable append is answered with, and how.
    #[inline]
    pub(super) fn receipt(&self) -> Option<(Receipt, ReplyFormat)> {
        match self.content {
            Content::Appended(receipt) => Some((receipt, self.format)),
            _ => None,
        }
    }

    /// Whether nothing of this reply may go out before the next commit.
    #[inline]
    pub(super) fn awaits_commit(&self) -> bool {
        matches!(self.content, Content::Waiting(_) | Content::Conditional(_))
    }

    /// Whether it has said all that there is to be said, and waits for more.
    pub(super) fn follows(&self) -> bool {
        match &self.content {
            Content::Underway(underway) => matches!(&**underway, Underway::Feed(feed) if feed.is_at_rest()),
            _ => false,
        }
    }

    /// The client has finished sending, which ends what would go on for ever.
    pub(super) fn finished_by_peer(&mut self) {
        if let Some(feed) = self.content.feed() {
            feed.is_left();
        }
    }

    /// Takes the answer of another core to what this reply has asked. If it has not asked, what came goes back.
    pub(super) fn take(&mut self, reading: Reading, common: &mut Common) {
        self.content.take(reading, common);
    }

    /// Turns an append that `durable` covers into its receipt; false if the reply waits on for another commit.
    #[inline]
    pub(super) fn confirm(&mut self, durable: &Durable, counters: &mut Counters) -> bool {
        if !self.awaits_commit() {
            return true;
        }
        if let Content::Conditional(_) = self.content {
            return self.confirm_conditional(durable, counters);
        }
        // The placeholder is replaced on the next lines.
        if let Content::Waiting(pending) = std::mem::replace(&mut self.content, Content::Continue) {
            self.content = match durable.confirm(pending) {
                Ok(receipt) => {
                    counters.appended_records += 1;
                    counters.appended_bytes += receipt.len;
                    Content::Appended(receipt)
                }
                Err(pending) => {
                    self.content = Content::Waiting(pending);
                    return false;
                }
            };
        }
        true
    }

    #[cold]
    fn confirm_conditional(&mut self, durable: &Durable, counters: &mut Counters) -> bool {
        let content = std::mem::replace(&mut self.content, Content::Continue);
        let Content::Conditional(conditional) = content else { return true };
        let confirmed = conditional.confirm(durable, counters);
        let is_confirmed = confirmed.is_ok();
        self.content = confirmed.unwrap_or_else(|waiting| Content::Conditional(Box::new(waiting)));
        is_confirmed
    }

    /// Gives the network what it takes of this reply; also says how many bytes that was.
    pub(super) fn send<N: Net>(
        &mut self,
        conn: ConnId,
        common: &mut Common,
        net: &mut N,
        shard: &mut Shard,
    ) -> (Progress, u64) {
        let mut out = Out::new(net, conn);
        let mut progress = self.send_to(&mut out, common, shard).err().unwrap_or(Progress::Whole);
        let Sent { bytes, copied_bytes, damage, rest } = out.sent();
        if let Some(rest) = rest.filter(|_| progress != Progress::Broken) {
            let said = std::mem::replace(&mut self.content, Content::Continue);
            self.content = match progress {
                Progress::Whole => Underway::Text(rest),
                _ => Underway::Behind(rest, said),
            }
            .into();
            progress = Progress::Blocked;
        }
        if let Some((index, damage)) = damage {
            common.alarm.raise(index, &damage, common.now);
            common.peers.shard(index, shard).quarantine(damage);
        }
        common.counters.sent_bytes += bytes;
        common.counters.crossed_bytes += copied_bytes;
        (progress, bytes)
    }

    fn send_to<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        common: &mut Common,
        shard: &mut Shard,
    ) -> Result<(), Progress> {
        if let Content::Underway(underway) = &mut self.content
            && let Underway::Behind(text, content) = &mut **underway
        {
            text.send(out)?;
            self.content = std::mem::replace(content, Content::Continue);
        }
        if let Content::Asked(ask) = self.content {
            self.content = answer(ask, common, shard);
        }
        if let Content::Health = self.content {
            let text = health(common, shard, self.format);
            self.content = Underway::Text(Prepared::new(text)).into();
        }
        if let Content::Underway(underway) = &mut self.content
            && let Underway::Feed(feed) = &mut **underway
        {
            return feed.send(out, common, shard, self.format);
        }
        let Common { rendered, peers, .. } = common;
        match &mut self.content {
            Content::Continue => out.text(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Content::Waiting(_) | Content::Conditional(_) => Err(Progress::Blocked),
            Content::Appended(receipt) => out.text(rendered.appended(receipt, peers.own_name(), self.format)),
            Content::AppendedAs(numbered) => {
                out.text(rendered.appended_as(numbered, peers.own_name(), self.format))
            }
            Content::Counted { number, len_bytes } => {
                out.text(rendered.acknowledged(*number, *len_bytes, None, None, self.format))
            }
            Content::Refused(refusal) => out.text(rendered.refused(refusal, self.format)),
            Content::Trimmed(trimmed, of) => out.text(rendered.trimmed(trimmed, *of, self.format)),
            Content::Underway(underway) => underway.send_to(out, rendered, peers, shard, self.format),
            // They have become something else above.
            Content::Asked(_) | Content::Health => Ok(()),
        }
    }
}

impl Content {
    fn feed(&mut self) -> Option<&mut Feed> {
        let Self::Underway(underway) = self else { return None };
        match &mut **underway {
            Underway::Feed(feed) => Some(feed),
            Underway::Behind(_, content) => content.feed(),
            _ => None,
        }
    }

    fn take(&mut self, reading: Reading, common: &mut Common) {
        let Self::Underway(underway) = self else { return };
        if let Underway::Behind(_, content) = &mut **underway {
            return content.take(reading, common);
        }
        let refusal = match (reading, &mut **underway) {
            (reading, Underway::Feed(feed)) => return feed.take(reading, common),
            (Reading::Part { begins, bytes, lease }, Underway::Fetch(fetch)) => {
                common.counters.read_records += u64::from(begins.is_some());
                return fetch.take(begins, bytes, lease);
            }
            (Reading::Listed(page), Underway::Listing(listing)) => return listing.take(page),
            (Reading::Trimmed(trimmed), Underway::RemoteTrim(trim)) => {
                *self = Self::Trimmed(trimmed, Some(trim.shard()));
                return;
            }
            (Reading::Unreadable(refusal), Underway::Fetch(fetch)) => match fetch.fail() {
                true => refusal,
                false => return,
            },
            (Reading::TrimFailed, Underway::RemoteTrim(_)) => Refusal::TrimFailed,
            _ => return,
        };
        common.counters.refused += 1;
        *self = Self::Refused(refusal);
    }
}

impl From<Underway> for Content {
    fn from(underway: Underway) -> Self {
        Self::Underway(Box::new(underway))
    }
}

impl Underway {
    fn send_to<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        rendered: &mut Rendered,
        peers: &mut Peers,
        shard: &mut Shard,
        format: ReplyFormat,
    ) -> Result<(), Progress> {
        match self {
            Self::Text(text) => text.send(out),
            Self::Record(sending) => sending.send(out, rendered, format),
            Self::Listing(listing) => listing.send(out, rendered, peers, shard, format),
            Self::Fetch(fetch) => fetch.send(out, peers, format.is_head(), |out, about| {
                out.text(rendered.record_head(about, format))
            }),
            Self::RemoteTrim(trim) => Err(trim.ask(out, peers)),
            // The one has become what is behind it, and the other was sent before.
            Self::Behind(..) | Self::Feed(_) => Ok(()),
        }
    }
}

/// How the store and the server are, as the whole reply.
fn health(common: &mut Common, shard: &Shard, format: ReplyFormat) -> Vec<u8> {
    let Common {
        rendered,
        peers,
        store,
        domain,
        retain,
        network,
        counters,
        max_connections,
        commits,
        alarm,
        feeds,
        ..
    } = common;
    let connections = (counters.connections, (*max_connections).into());
    let now = peers.now(connections, feeds.count(), alarm.raised(), commits);
    let (failure, states) = (peers.exchange.failure(), peers.states(shard));
    let health = Health::of((store, domain), failure, states, now, retain, network.state());
    rendered.health(&health, format).to_vec()
}

/// Looks at the store, or trims it, when all earlier replies are out.
fn answer(ask: Ask, common: &mut Common, shard: &mut Shard) -> Content {
    answered(ask, common, shard).unwrap_or_else(|refusal| {
        common.counters.refused += 1;
        Content::Refused(refusal)
    })
}

fn answered(ask: Ask, common: &mut Common, shard: &mut Shard) -> Result<Content, Refusal> {
    match ask {
        Ask::Health => Ok(Content::Health),
        Ask::List { shard: only, from, limit } => listing(common, only, from, limit, shard),
        Ask::Feed { shard: only, from, limit, follow, content } => {
            let shards = common.peers.exchange.shards();
            let index = match only {
                Some(shard) if shard >= shards => return Err(Refusal::NoShard { shard, shards }),
                None if shards > 1 => return Err(Refusal::NoFeed { shards }),
                _ => only.unwrap_or(0),
            };
            let span = common.peers.span(index, shard);
            let name = common.peers.exchange.name_of(index);
            let feed = Feed::new(index, name, span, Wanted { from, limit, follow, content }, common)?;
            Ok(Underway::Feed(feed).into())
        }
        Ask::Record { name, range } => {
            let (index, seq) = common.peers.find(name)?;
            if let Owner::Core(core) = common.peers.owner_of(index) {
                return Ok(Underway::Fetch(Fetch::new(core, index, seq, range)).into());
            }
            let looked = Checked::look(common.peers.shard(index, shard), seq, range);
            let record = looked.map_err(|Unreadable { refusal, found }| {
                found.iter().for_each(|damage| common.alarm.raise(index, damage, common.now));
                refusal
            })?;
            common.counters.read_records += 1;
            Ok(Underway::Record(Sending::new(index, record)).into())
        }
        Ask::Trim { before } => {
            let (index, seq) = common.peers.find(before)?;
            if let Owner::Core(core) = common.peers.owner_of(index) {
                return Ok(Underway::RemoteTrim(RemoteTrim::new(core, index, seq)).into());
            }
            let trimmed = common.peers.shard(index, shard).trim(seq).map_err(|error| {
                common.fail(&error.to_string());
                Refusal::TrimFailed
            })?;
            common.peers.publish(shard);
            Ok(Content::Trimmed(trimmed, common.peers.exchange.name_of(index)))
        }
    }
}

fn listing(
    common: &Common,
    only: Option<u32>,
    from: Option<Start>,
    limit: u64,
    shard: &Shard,
) -> Result<Content, Refusal> {
    let shards = common.peers.exchange.shards();
    let named = only.or(match from {
        Some(Start::Position(position)) => Some(position.shard),
        _ => None,
    });
    if let Some(shard) = named.filter(|&shard| shard >= shards) {
        return Err(Refusal::NoShard { shard, shards });
    }
    let (first, in_shard) = match from {
        None => (0, 0),
        Some(Start::Seq(seq)) => (seq, only.unwrap_or(0)),
        Some(Start::Position(position)) => (position.seq, position.shard),
    };
    // An only shard need not be named.
    let only = if shards == 1 { Some(0) } else { only };
    if matches!((only, from), (Some(_), Some(Start::Position(_))) | (None, Some(Start::Seq(_)))) {
        return Err(Refusal::NoPosition { shards });
    }
    // Who goes on behind what he has read is told if there is a gap. At 0, and without a number, everybody begins with
    // what there is.
    for End { shard, head, next } in common.peers.ends(Some(in_shard), shard) {
        if first != 0 && first < head {
            return Err(Refusal::Trimmed { shard, from: first, head, next });
        }
    }
    Ok(Underway::Listing(Listing::new(only, from, limit)).into())
}
