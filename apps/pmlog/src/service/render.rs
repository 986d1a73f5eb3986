//! Replies as text. Everything is written into buffers that are kept from reply to reply.

use std::io::Write as _;

use arrayvec::ArrayVec;
use pmem::{Receipt, RecordInfo, Trimmed};
use serde::Serialize;
use stack::net::LEAST_SEND_BYTES;

use super::{
    checked::About, commits::CommitSummary, conditional::Numbered, exchange::ShardState,
    network::NetworkState, retain::Retain, text::Text,
};
use crate::http::{Ask, Head, Part, RecordName, Refusal, Route, Status};

/// The status line of nearly every reply.
const OK: &str = "HTTP/1.1 200 OK\r\n";

/// Bytes of the longest acknowledgement: a head with three digits and `Connection`, and a body with all its digits.
const ACKNOWLEDGEMENT_BYTES: usize = 256;

// It goes out as a whole, however little room there is.
const _: () = assert!(ACKNOWLEDGEMENT_BYTES <= LEAST_SEND_BYTES);

/// Bytes of its body: numbers of 10, 20, 20 and 8 digits, their keys, and room behind.
const ACKNOWLEDGEMENT_BODY_BYTES: usize = 128;

/// The longest value of a field that goes with a refusal: a record's name, of numbers of 10 and 20 digits and what is between
/// them, or an unsatisfied range.
const FIELD_BYTES: usize = 31;

/// Shards that one reply about the store has room for.
pub const MAX_SHARDS: usize = 32;

/// How a reply is dressed for the client that gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyFormat {
    is_http11: bool,
    is_head: bool,
    closes: bool,
}

impl ReplyFormat {
    /// How to answer what was not understood as a request.
    pub(super) const CLOSING: Self = Self { is_http11: true, is_head: false, closes: true };

    /// How to answer the request of `head`; with `closes`, as the last one of its connection.
    pub(super) fn of(head: &Head, closes: bool) -> Self {
        // A listing's length is not known before its end. Where chunks are not understood, the end of the
        // connection is the end of the list (RFC 9112, section 6.3).
        let is_list = matches!(head.route, Ok(Route::Ask(Ask::List { .. } | Ask::Feed { .. })));
        let endless = !head.is_http11 && is_list;
        Self { is_http11: head.is_http11, is_head: head.is_head, closes: closes || endless }
    }

    /// How to answer the append of `head`.
    #[inline]
    pub(super) fn of_append(head: &Head) -> Self {
        Self { is_http11: head.is_http11, is_head: false, closes: !head.keep_alive }
    }

    /// The same, as the last reply of the connection.
    pub(super) fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    /// Whether no further request is served after this reply.
    pub(super) fn closes(self) -> bool {
        self.closes
    }

    /// Whether the fields are sent, but not what they describe.
    pub(super) fn is_head(self) -> bool {
        self.is_head
    }

    /// The last field, where one is needed, and the empty line behind it.
    fn end_of_head(self) -> &'static str {
        match (self.closes, self.is_http11) {
            (true, _) => "Connection: close\r\n\r\n",
            (false, true) => "\r\n",
            (false, false) => "Connection: keep-alive\r\n\r\n",
        }
    }
}

/// How the store is, as `GET /health` tells it.
#[derive(Debug, Serialize)]
pub(super) struct Health<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The store's own identifier.
    store: &'a str,
    domain: &'a str,
    /// Of the only shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
    records: u64,
    /// Bytes in them, and bytes of the medium that they hold.
    live_bytes: u64,
    held_bytes: u64,
    /// What is kept of records; nothing where that is all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    retain: Option<String>,
    /// Records that are trimmed, since the start.
    trimmed_records: u64,
    free_buffers: u64,
    buffers: u64,
    free_log_entries: u64,
    log_entries: u64,
    /// Records that cannot be given: found when the store was opened, or read.
    damaged: u64,
    #[serde(flatten)]
    now: Now,
    appended_records: u64,
    payload_bytes: u64,
    copied_bytes: u64,
    flushed_lines: u64,
    fences: u64,
    /// Of a disk or a file in the page cache.
    written_bytes: u64,
    write_requests: u64,
    #[serde(flatten)]
    network: NetworkState,
    /// Where there are several.
    #[serde(skip_serializing_if = "ArrayVec::is_empty")]
    shards: ArrayVec<ShardState, MAX_SHARDS>,
}

/// What `GET /health` tells of the server, all cores together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Now {
    pub(super) connections: u64,
    pub(super) max_connections: u64,
    /// Clients that follow a log, or have records streamed to them.
    pub(super) followers: u64,
    pub(super) max_followers: u64,
    /// Of the damaged records, those that were found to have changed under the server.
    pub(super) altered: u64,
    pub(super) commits: CommitSummary,
}

impl<'a> Health<'a> {
    /// Of all shards, whichever cores they belong to.
    pub(super) fn of(
        (store, domain): (&'a str, &'a str),
        failed: Option<&'a str>,
        states: impl Iterator<Item = ShardState>,
        now: Now,
        retain: &Retain,
        network: NetworkState,
    ) -> Self {
        let mut shards: ArrayVec<_, MAX_SHARDS> = states.take(MAX_SHARDS).collect();
        let mut state = ShardState::default();
        shards.iter().for_each(|shard| state.add(*shard));
        // It needs no list.
        let only = if shards.len() == 1 { shards.pop() } else { None };
        Self {
            status: if failed.is_some() { "failed" } else { "ok" },
            reason: failed,
            store,
            domain,
            head: only.map(|shard| shard.head),
            next: only.map(|shard| shard.next),
            records: state.records,
            live_bytes: state.live_bytes,
            held_bytes: state.held_bytes,
            retain: (!retain.is_all()).then(|| retain.to_string()),
            trimmed_records: state.trimmed_records,
            free_buffers: state.free_buffers,
            buffers: state.buffers,
            free_log_entries: state.free_log_entries,
            log_entries: state.log_entries,
            damaged: state.damaged,
            now,
            appended_records: state.appended_records,
            payload_bytes: state.payload_bytes,
            copied_bytes: state.copied_bytes,
            flushed_lines: state.flushed_lines,
            fences: state.fences,
            written_bytes: state.written_bytes,
            write_requests: state.write_requests,
            network,
            shards,
        }
    }
}

/// Where a shard's log begins and ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Which, where there are several.
    pub(super) shard: Option<u32>,
    pub(super) head: u64,
    pub(super) next: u64,
}

/// Of all shards that a list is about.
pub(super) type Ends = ArrayVec<End, MAX_SHARDS>;

/// Room to write replies in.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    text: Vec<u8>,
    body: Vec<u8>,
    /// The last acknowledgement, and its head: most of the next one's is the same.
    acknowledgement: ArrayVec<u8, ACKNOWLEDGEMENT_BYTES>,
    acknowledged: Option<AcknowledgedHead>,
}

/// What the head of an acknowledgement depends on, and its length.
#[derive(Clone, Copy, Debug)]
struct AcknowledgedHead {
    format: ReplyFormat,
    body_bytes: usize,
    bytes: usize,
}

impl Rendered {
    #[inline]
    pub(super) fn appended(&mut self, receipt: &Receipt, shard: Option<u32>, format: ReplyFormat) -> &[u8] {
        self.acknowledged(receipt.seq, receipt.len, Some(receipt.crc32c), shard, format)
    }

    /// As [`appended`](Self::appended), of anything that has a number; the checksum only where there is one.
    #[inline(never)]
    pub(super) fn acknowledged(
        &mut self,
        seq: u64,
        len: u64,
        crc32c: Option<u32>,
        shard: Option<u32>,
        format: ReplyFormat,
    ) -> &[u8] {
        let mut body = ArrayVec::<u8, ACKNOWLEDGEMENT_BODY_BYTES>::new();
        open_object(&mut body, shard);
        body.text(r#""seq":"#).decimal(seq).text(r#","length":"#).decimal(len);
        if let Some(crc32c) = crc32c {
            body.text(r#","crc32c":""#).hex(crc32c).text("\"");
        }
        body.text("}\n");

        let text = &mut self.acknowledgement;
        match self.acknowledged {
            Some(head) if (head.format, head.body_bytes) == (format, body.len()) => text.truncate(head.bytes),
            _ => {
                text.clear();
                json_head(text, Status::OK, body.len(), None, format);
                self.acknowledged =
                    Some(AcknowledgedHead { format, body_bytes: body.len(), bytes: text.len() });
            }
        }
        if !format.is_head {
            text.bytes(&body);
        }
        text
    }

    /// As [`appended`](Self::appended), with the number that the next record gets.
    pub(super) fn appended_as(
        &mut self,
        numbered: &Numbered,
        shard: Option<u32>,
        format: ReplyFormat,
    ) -> &[u8] {
        let Receipt { seq, len, crc32c, .. } = numbered.receipt;
        self.json(Status::OK, format, None, |body| {
            open_object(body, shard);
            body.text(r#""seq":"#).decimal(seq).text(r#","length":"#).decimal(len);
            body.text(r#","crc32c":""#).hex(crc32c);
            body.text(r#"","next":"#).decimal(numbered.next).text("}\n");
        })
    }

    pub(super) fn trimmed(&mut self, trimmed: &Trimmed, shard: Option<u32>, format: ReplyFormat) -> &[u8] {
        let Trimmed { head, records, .. } = *trimmed;
        self.json(Status::OK, format, None, |body| {
            open_object(body, shard);
            body.text(r#""head":"#).decimal(head).text(r#","trimmed":"#).decimal(records).text("}\n");
        })
    }

    pub(super) fn refused(&mut self, refusal: &Refusal, format: ReplyFormat) -> &[u8] {
        let mut value = ArrayVec::<u8, FIELD_BYTES>::new();
        let field = match refusal {
            Refusal::NotNext { shard, next } => {
                let name = RecordName { shard: *shard, seq: *next };
                written(write!(value, "{name}"));
                Some("Log-Next")
            }
            Refusal::Range { len_bytes } => {
                written(write!(value, "bytes */{len_bytes}"));
                Some("Content-Range")
            }
            _ => None,
        };
        let field = field.zip(std::str::from_utf8(&value).ok()).or(refusal.field());
        self.json(refusal.status(), format, field, |body| {
            reason(body, refusal, None);
        })
    }

    pub(super) fn health(&mut self, health: &Health<'_>, format: ReplyFormat) -> &[u8] {
        let status = if health.reason.is_some() { Refusal::StoreFailed.status() } else { Status::OK };
        self.json(status, format, None, |body| {
            written(serde_json::to_writer(&mut *body, health).map_err(std::io::Error::from));
            body.text("\n");
        })
    }

    /// The head before a record's bytes, or a part of them.
    ///
    /// RFC 9530: what is sent has a content digest; a reply to HEAD has no content, and a part is not all of it, but both
    /// tell of the representation's (appendix B). Its CRC-32C is there against accidents, as section 5 allows, and not
    /// against attackers.
    pub(super) fn record_head(&mut self, about: &About, format: ReplyFormat) -> &[u8] {
        let About { len_bytes, crc32c, part } = *about;
        self.text.clear();
        match part {
            None => self.text.text(OK),
            Some(_) => status_line(&mut self.text, Status::PARTIAL),
        };
        self.text.text("Content-Type: application/octet-stream\r\nContent-Length: ");
        self.text.decimal(about.given_bytes()).text("\r\n");
        match part {
            None => self.text.text("Accept-Ranges: bytes\r\n"),
            Some(Part { first, bytes }) => {
                self.text.text("Content-Range: bytes ").decimal(first).text("-").decimal(first + bytes - 1);
                self.text.text("/").decimal(len_bytes).text("\r\n")
            }
        };
        let is_whole = !format.is_head && part.is_none();
        self.text.text(if is_whole { "Content-Digest" } else { "Repr-Digest" });
        self.text.text(": crc32c=:").base64(crc32c).text(":\r\n").text(format.end_of_head());
        &self.text
    }

    /// The head before records, line by line, in the chunks of the transfer coding where that is understood. It says what
    /// the head of a listing does, and which shard takes what is appended over this connection.
    pub(super) fn feed_head(
        &mut self,
        ends: &[End],
        own: Option<u32>,
        has_content: bool,
        format: ReplyFormat,
    ) -> &[u8] {
        let kind = if has_content { "application/vnd.pmlog.records" } else { "application/x-ndjson" };
        self.lines_head(kind, ends, own, format)
    }

    /// Records of one shard, a line for each.
    pub(super) fn feed_lines(
        &mut self,
        records: &[RecordInfo],
        shard: Option<u32>,
        format: ReplyFormat,
    ) -> &[u8] {
        self.body.clear();
        for info in records {
            entry(&mut self.body, info, shard, "", "\n");
        }
        self.list_framing(false, format)
    }

    /// A record's line, behind which its bytes come, and [an end](Self::feed_record_end).
    pub(super) fn feed_record(
        &mut self,
        info: &RecordInfo,
        shard: Option<u32>,
        format: ReplyFormat,
    ) -> &[u8] {
        self.text.clear();
        self.body.clear();
        entry(&mut self.body, info, shard, "", "\n");
        if format.is_http11 {
            written(write!(self.text, "{:x}\r\n", self.body.len() as u64 + info.len + 1));
        }
        self.text.append(&mut self.body);
        &self.text
    }

    /// What stands behind a record's bytes.
    pub(super) fn feed_record_end(format: ReplyFormat) -> &'static [u8] {
        if format.is_http11 { b"\n\r\n" } else { b"\n" }
    }

    /// Nothing new, behind which this number comes.
    pub(super) fn feed_heartbeat(&mut self, next: u64, shard: Option<u32>, format: ReplyFormat) -> &[u8] {
        self.body.clear();
        open_object(&mut self.body, shard);
        self.body.text(r#""next":"#).decimal(next).text("}\n");
        self.list_framing(false, format)
    }

    /// The last line, which says why it is the last one, or where to go on; without both there is none.
    pub(super) fn feed_end(
        &mut self,
        refusal: Option<&Refusal>,
        next: Option<u64>,
        shard: Option<u32>,
        format: ReplyFormat,
    ) -> &[u8] {
        self.body.clear();
        match (refusal, next) {
            (Some(refusal), _) => reason(&mut self.body, refusal, next),
            (None, Some(next)) => {
                open_object(&mut self.body, shard);
                self.body.text(r#""next":"#).decimal(next).text("}\n");
            }
            (None, None) if format.is_http11 => {
                self.text.clear();
                self.text.text("0\r\n\r\n");
                return &self.text;
            }
            (None, None) => {}
        }
        self.list_framing(true, format)
    }

    /// The head before a listing. It says from where on, and up to where, there are records.
    pub(super) fn list_head(&mut self, ends: &[End], own: Option<u32>, format: ReplyFormat) -> &[u8] {
        self.lines_head("application/json", ends, own, format)
    }

    fn lines_head(&mut self, kind: &str, ends: &[End], own: Option<u32>, format: ReplyFormat) -> &[u8] {
        self.text.clear();
        let coding = if format.is_http11 { "Transfer-Encoding: chunked\r\n" } else { "" };
        self.text.text(OK).text("Content-Type: ").text(kind).text("\r\n").text(coding);
        self.log_field("Log-Head: ", ends, |end| end.head);
        self.log_field("Log-Next: ", ends, |end| end.next);
        if let Some(shard) = own {
            self.text.text("Log-Shard: ").decimal(shard.into()).text("\r\n");
        }
        self.text.text(format.end_of_head());
        &self.text
    }

    /// A field with a record's name for each shard.
    fn log_field(&mut self, name: &str, ends: &[End], number: impl Fn(&End) -> u64) {
        for (place, end) in ends.iter().enumerate() {
            self.text.text(if place == 0 { name } else { ", " });
            if let Some(shard) = end.shard {
                self.text.decimal(shard.into()).text("-");
            }
            self.text.decimal(number(end));
        }
        self.text.text("\r\n");
    }

    /// Records of one shard, which fit into a piece, and the end of the list behind the last of them.
    pub(super) fn list_piece(
        &mut self,
        records: &[RecordInfo],
        shard: Option<u32>,
        is_first: bool,
        is_end: bool,
        format: ReplyFormat,
    ) -> &[u8] {
        self.body.clear();
        for (place, info) in records.iter().enumerate() {
            let before = if is_first && place == 0 { "[" } else { ",\n " };
            entry(&mut self.body, info, shard, before, "");
        }
        if is_end {
            self.body.text(if is_first && records.is_empty() { "[]\n" } else { "]\n" });
        }
        self.list_framing(is_end, format)
    }

    /// Puts a piece of a list, which is not empty, into a chunk where those are understood.
    fn list_framing(&mut self, is_end: bool, format: ReplyFormat) -> &[u8] {
        self.text.clear();
        if format.is_http11 {
            written(write!(self.text, "{:x}\r\n", self.body.len()));
            self.text.append(&mut self.body);
            self.text.extend_from_slice(if is_end { b"\r\n0\r\n\r\n" } else { b"\r\n" });
        } else {
            self.text.append(&mut self.body);
        }
        &self.text
    }

    fn json(
        &mut self,
        status: Status,
        format: ReplyFormat,
        field: Option<(&str, &str)>,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) -> &[u8] {
        self.text.clear();
        self.body.clear();
        write_body(&mut self.body);
        json_head(&mut self.text, status, self.body.len(), field, format);
        if !format.is_head {
            self.text.extend_from_slice(&self.body);
        }
        &self.text
    }
}

/// The head before JSON of `length` bytes.
#[inline]
fn json_head(
    text: &mut impl Text,
    status: Status,
    length: usize,
    field: Option<(&str, &str)>,
    format: ReplyFormat,
) {
    match status {
        Status::OK => text.text(OK),
        status => status_line(text, status),
    };
    text.text("Content-Type: application/json\r\nContent-Length: ").decimal(length as u64).text("\r\n");
    if let Some((name, value)) = field {
        text.text(name).text(": ").text(value).text("\r\n");
    }
    text.text(format.end_of_head());
}

fn status_line<T: Text>(text: &mut T, Status { code, phrase }: Status) -> &mut T {
    text.text("HTTP/1.1 ").decimal(code.into()).text(" ").text(phrase).text("\r\n")
}

/// Begins an object that may be of one shard of several.
#[inline]
fn open_object(body: &mut impl Text, shard: Option<u32>) {
    match shard {
        Some(shard) => body.text(r#"{"shard":"#).decimal(shard.into()).text(","),
        None => body.text("{"),
    };
}

/// Why not, in one line. Nothing in it needs escaping: the reasons are this program's own words. `next` is where to go on,
/// if the reason does not say that itself.
fn reason(body: &mut Vec<u8>, refusal: &Refusal, next: Option<u64>) {
    written(write!(body, r#"{{"error":"{refusal}""#));
    match refusal {
        Refusal::Trimmed { shard, head, next, .. } => {
            if let Some(shard) = *shard {
                body.text(r#","shard":"#).decimal(shard.into());
            }
            body.text(r#","head":"#).decimal(*head).text(r#","next":"#).decimal(*next);
        }
        Refusal::NotNext { shard, next } => {
            if let Some(shard) = *shard {
                body.text(r#","shard":"#).decimal(shard.into());
            }
            body.text(r#","next":"#).decimal(*next);
        }
        _ => {
            if let Some(next) = next {
                body.text(r#","next":"#).decimal(next);
            }
        }
    }
    body.text("}\n");
}

/// An entry of a listing.
fn entry(body: &mut Vec<u8>, info: &RecordInfo, shard: Option<u32>, before: &str, behind: &str) {
    let RecordInfo { seq, epoch, len, crc32c, entries, .. } = *info;
    body.text(before);
    open_object(body, shard);
    body.text(r#""seq":"#).decimal(seq).text(r#","epoch":"#).decimal(epoch.into());
    body.text(r#","length":"#).decimal(len).text(r#","crc32c":""#).hex(crc32c);
    body.text(r#"","next":"#).decimal(seq + entries).text("}").text(behind);
}

/// Writing into memory does not fail.
fn written(outcome: std::io::Result<()>) {
    debug_assert!(outcome.is_ok(), "a write into memory failed: {outcome:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use pmem::{Options, Region};

    #[test]
    fn the_longest_acknowledgement_has_room() {
        let region = Region::open("memory:", &Options { size: Some(1 << 20), ..Options::default() });
        let mut shard = region.and_then(Region::into_shard).expect("a volatile store of one shard");
        let draft = shard.draft();
        let pending = shard.append(draft).expect("room for an empty record");
        let mut receipt =
            shard.commit().expect("memory does not fail").confirm(pending).expect("it is durable");
        (receipt.seq, receipt.len, receipt.crc32c) = (u64::MAX, u64::MAX, u32::MAX);

        let mut rendered = Rendered::default();
        let number = u64::MAX;
        let json = format!(
            "{{\"shard\":{},\"seq\":{number},\"length\":{number},\"crc32c\":\"ffffffff\"}}\n",
            u32::MAX
        );
        for (is_http11, closes, field) in [
            (true, false, ""),
            (true, true, "Connection: close\r\n"),
            (false, true, "Connection: close\r\n"),
            (false, false, "Connection: keep-alive\r\n"),
        ] {
            let format = ReplyFormat { is_http11, is_head: false, closes };
            let text = rendered.appended(&receipt, Some(u32::MAX), format);
            let expected = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{field}\r\n{json}",
                json.len()
            );
            assert_eq!(String::from_utf8_lossy(text), expected);
        }
    }

    #[test]
    fn an_acknowledgement_owes_nothing_to_the_one_before() {
        let mut rendered = Rendered::default();
        let formats = [(true, false, false), (true, true, false), (false, false, true), (true, false, true)]
            .map(|(is_http11, is_head, closes)| ReplyFormat { is_http11, is_head, closes });
        for step in 0..500_u64 {
            let (format, shard) = (formats[(step / 3 % 4) as usize], (step % 7 == 0).then_some(3));
            let (seq, len) = (10_u64.pow((step % 20) as u32), 3 * 10_u64.pow((step / 5 % 19) as u32));
            let crc32c = (step % 3 > 0).then_some(step as u32);
            let text = rendered.acknowledged(seq, len, crc32c, shard, format).to_vec();
            let fresh = Rendered::default().acknowledged(seq, len, crc32c, shard, format).to_vec();
            assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(&fresh));
        }
    }
}
