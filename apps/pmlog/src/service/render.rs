//! Replies as text. Everything is written into buffers that are kept from reply to reply.

use std::io::Write as _;

use pmem::{Receipt, RecordInfo, Shard, Trimmed};
use serde::Serialize;

use crate::http::{Ask, Head, Refusal, Route, Status};

/// Bytes of one piece of a listing. It is sent whole or not at all, so it stays well below a send queue.
const LIST_PIECE_BYTES: usize = 1024;
/// No entry of a listing is longer: three numbers of at most 20 digits, a checksum, their keys, a comma.
const LIST_ENTRY_BYTES: usize = 128;

/// How a reply is dressed for the client that gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    is_http11: bool,
    is_head: bool,
    closes: bool,
}

impl Manner {
    /// How to answer what was not understood as a request.
    pub(super) const CLOSING: Self = Self { is_http11: true, is_head: false, closes: true };

    /// How to answer the request of `head`; with `closes`, as the last one of its connection.
    pub(super) fn of(head: &Head, closes: bool) -> Self {
        // A listing's length is not known before its end. Where chunks are not understood, the end of the
        // connection is the end of the list (RFC 9112, section 6.3).
        let endless = !head.is_http11 && matches!(head.route, Ok(Route::Ask(Ask::List { .. })));
        Self { is_http11: head.is_http11, is_head: head.is_head, closes: closes || endless }
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

    fn connection_field(self) -> &'static str {
        match (self.closes, self.is_http11) {
            (true, _) => "Connection: close\r\n",
            (false, true) => "",
            (false, false) => "Connection: keep-alive\r\n",
        }
    }
}

/// How the store is, as `GET /health` tells it.
#[derive(Debug, Serialize)]
pub(super) struct Health<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    domain: &'a str,
    head: u64,
    next: u64,
    records: u64,
    free_buffers: usize,
    buffers: usize,
    appended_records: u64,
    payload_bytes: u64,
    copied_bytes: u64,
    flushed_lines: u64,
    fences: u64,
}

impl<'a> Health<'a> {
    pub(super) fn of(domain: &'a str, failed: Option<&'a str>, shard: &Shard) -> Self {
        let counters = shard.counters();
        Self {
            status: if failed.is_some() { "failed" } else { "ok" },
            reason: failed,
            domain,
            head: shard.head_seq(),
            next: shard.next_seq(),
            records: shard.recovery().records + counters.appended_records - counters.trimmed_records,
            free_buffers: shard.arena().free_buffers(),
            buffers: shard.arena().buffers(),
            appended_records: counters.appended_records,
            payload_bytes: counters.payload_bytes,
            copied_bytes: counters.copied_bytes,
            flushed_lines: counters.flushed_lines,
            fences: counters.fences,
        }
    }
}

/// Room to write replies in.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    text: Vec<u8>,
    body: Vec<u8>,
}

/// A piece of a listing, ready to be sent.
#[derive(Debug)]
pub(super) struct ListPiece<'a> {
    pub(super) text: &'a [u8],
    /// How many records are in it.
    pub(super) records: u64,
    /// The number that the next piece begins with, or a higher one.
    pub(super) next: u64,
    /// Whether the list ends with it.
    pub(super) is_end: bool,
}

impl Rendered {
    pub(super) fn appended(&mut self, receipt: &Receipt, manner: Manner) -> &[u8] {
        let Receipt { seq, len, crc32c, .. } = receipt;
        self.json(Status::OK, manner, None, |body| {
            writeln!(body, r#"{{"seq":{seq},"length":{len},"crc32c":"{crc32c:08x}"}}"#)
        })
    }

    pub(super) fn trimmed(&mut self, trimmed: &Trimmed, manner: Manner) -> &[u8] {
        let Trimmed { head, records, .. } = trimmed;
        self.json(Status::OK, manner, None, |body| writeln!(body, r#"{{"head":{head},"trimmed":{records}}}"#))
    }

    pub(super) fn refused(&mut self, refusal: &Refusal, manner: Manner) -> &[u8] {
        // The reasons are this program's own words: nothing in them needs escaping.
        self.json(refusal.status(), manner, refusal.allow(), |body| {
            writeln!(body, r#"{{"error":"{refusal}"}}"#)
        })
    }

    pub(super) fn health(&mut self, health: &Health<'_>, manner: Manner) -> &[u8] {
        let status = if health.reason.is_some() { Refusal::StoreFailed.status() } else { Status::OK };
        self.json(status, manner, None, |body| {
            serde_json::to_writer(&mut *body, health)?;
            body.write_all(b"\n")
        })
    }

    /// The head before a record's bytes.
    pub(super) fn record_head(&mut self, len_bytes: u64, manner: Manner) -> &[u8] {
        self.text.clear();
        let connection = manner.connection_field();
        written(write!(
            self.text,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len_bytes}\r\n{connection}\r\n"
        ));
        &self.text
    }

    /// The head before a listing.
    pub(super) fn list_head(&mut self, manner: Manner) -> &[u8] {
        self.text.clear();
        let connection = manner.connection_field();
        let coding = if manner.is_http11 { "Transfer-Encoding: chunked\r\n" } else { "" };
        written(write!(
            self.text,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{coding}{connection}\r\n"
        ));
        &self.text
    }

    /// As many records as fit into one piece, and the end of the list behind the last of them.
    pub(super) fn list_piece(
        &mut self,
        from: u64,
        records: &mut impl Iterator<Item = RecordInfo>,
        is_first: bool,
        manner: Manner,
    ) -> ListPiece<'_> {
        self.text.clear();
        self.body.clear();
        let (mut count, mut next, mut is_end) = (0, from, false);
        let body = &mut self.body;
        while body.len() + LIST_ENTRY_BYTES <= LIST_PIECE_BYTES {
            let Some(RecordInfo { seq, epoch, len, crc32c, entries, .. }) = records.next() else {
                is_end = true;
                break;
            };
            body.extend_from_slice(if is_first && count == 0 { b"[" } else { b",\n " });
            written(write!(
                body,
                r#"{{"seq":{seq},"epoch":{epoch},"length":{len},"crc32c":"{crc32c:08x}"}}"#
            ));
            (count, next) = (count + 1, seq + entries);
        }
        if is_end {
            body.extend_from_slice(if is_first && count == 0 { b"[]\n" } else { b"]\n" });
        }
        if manner.is_http11 {
            written(write!(self.text, "{:x}\r\n", self.body.len()));
            self.text.append(&mut self.body);
            self.text.extend_from_slice(b"\r\n");
            if is_end {
                self.text.extend_from_slice(b"0\r\n\r\n");
            }
        } else {
            self.text.append(&mut self.body);
        }
        ListPiece { text: &self.text, records: count, next, is_end }
    }

    fn json(
        &mut self,
        status: Status,
        manner: Manner,
        allow: Option<&str>,
        write_body: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>,
    ) -> &[u8] {
        self.text.clear();
        self.body.clear();
        written(write_body(&mut self.body));
        let (Status { code, phrase }, length) = (status, self.body.len());
        written(write!(
            self.text,
            "HTTP/1.1 {code} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        ));
        if let Some(allow) = allow {
            written(write!(self.text, "Allow: {allow}\r\n"));
        }
        self.text.extend_from_slice(manner.connection_field().as_bytes());
        self.text.extend_from_slice(b"\r\n");
        if !manner.is_head {
            self.text.append(&mut self.body);
        }
        &self.text
    }
}

/// Writing into memory does not fail.
fn written(outcome: std::io::Result<()>) {
    debug_assert!(outcome.is_ok(), "a write into memory failed: {outcome:?}");
}
