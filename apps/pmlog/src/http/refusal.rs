//! Why a request is refused, in one line, and with which status.

use pmem::{AppendError, EntryFault, Full};

/// A status line's number and phrase (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The three digits.
    pub code: u16,
    /// The phrase behind them.
    pub phrase: &'static str,
}

impl Status {
    /// The request was done.
    pub const OK: Self = Self::new(200, "OK");
    /// The part that was asked for follows.
    pub const PARTIAL: Self = Self::new(206, "Partial Content");

    const fn new(code: u16, phrase: &'static str) -> Self {
        Self { code, phrase }
    }
}

/// Why a request was not done. The text is the one-line reason that the client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no HTTP/1.x request head.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// Framing that two readers could understand differently (RFC 9112, section 6.3).
    #[error("ambiguous body length: {0}")]
    Ambiguous(&'static str),
    /// Chunked framing that does not follow RFC 9112, section 7.1.
    #[error("malformed chunked body: {0}")]
    MalformedChunk(&'static str),
    /// A query or a path that the resource does not understand.
    #[error("bad request target: {0}")]
    BadTarget(&'static str),
    /// No such resource.
    #[error("no such resource; there are /append, /records, /records/N and /health")]
    NoResource,
    /// No such record.
    #[error("no record {seq}; the store holds records from {head} to before {next}")]
    NoRecord {
        /// The number asked for.
        seq: u64,
        /// The oldest record's number.
        head: u64,
        /// The number of the next record to come.
        next: u64,
    },
    /// A record that was found damaged before.
    #[error("record {seq} is damaged and cannot be given: log entry {entry}: {fault}")]
    Damaged {
        /// The number asked for.
        seq: u64,
        /// The log entry that is wrong.
        entry: u64,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// A record whose bytes are no longer those that were acknowledged.
    #[error(
        "record {seq} is not what was stored: its checksum does not match, so something else wrote into the store, or \
         the medium fails"
    )]
    Altered {
        /// The number asked for.
        seq: u64,
    },
    /// A range that the record has no byte of.
    #[error("the record has {len_bytes} bytes, and none of those that are asked for")]
    Range {
        /// The record's length.
        len_bytes: u64,
    },
    /// A list was to begin with records that are trimmed.
    #[error(
        "records from {from} on were trimmed: shard {} holds those from {head} to before {next}; go on from there, or \
         leave from out for all that there are",
        shard.unwrap_or(0)
    )]
    Trimmed {
        /// Which shard, where there are several.
        shard: Option<u32>,
        /// The number asked for.
        from: u64,
        /// The oldest record's number.
        head: u64,
        /// The number of the next record to come.
        next: u64,
    },
    /// A number alone does not name a record here.
    #[error(
        "the store has {shards} shards, which number their records each on its own: name SHARD-NUMBER, such as 0-{seq}"
    )]
    NoShardNamed {
        /// How many shards there are.
        shards: u32,
        /// The number given.
        seq: u64,
    },
    /// A position in the order of all records, or a number in one shard.
    #[error(
        "the store has {shards} shards: list all from EPOCH-SHARD-NUMBER on, or one with shard=SHARD&from=NUMBER"
    )]
    NoPosition {
        /// How many shards there are.
        shards: u32,
    },
    /// A feed is of one shard.
    #[error(
        "the store has {shards} shards, each with an order of its own: follow each over a connection of its own, with \
         shard=SHARD"
    )]
    NoFeed {
        /// How many shards there are.
        shards: u32,
    },
    /// As many clients follow as may.
    #[error(
        "{max} clients follow the log, or have records streamed to them, by this core already: try again later, or raise \
         the server's --max-followers"
    )]
    Followers {
        /// How many may.
        max: u32,
    },
    /// The server ends while somebody follows.
    #[error("the server ends; go on from next when it is back")]
    Ending,
    /// No such shard.
    #[error("no shard {shard}; the store has {shards}, numbered from 0")]
    NoShard {
        /// The shard asked for.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
    /// An append was to be a record that is not the next one.
    #[error(
        "the next record of {} is number {next}, and not the one that If-Next names: nothing was appended now. A record \
         that has that number by now may be this one, from a request whose reply was lost",
        shard.map_or_else(|| "the store".to_owned(), |shard| format!("shard {shard}"))
    )]
    NotNext {
        /// Which shard, where there are several.
        shard: Option<u32>,
        /// The number that the next record gets.
        next: u64,
    },
    /// An append was to be a record of another shard than this connection's.
    #[error(
        "what comes by this connection is appended to shard {own}, and If-Next names shard {named}: connect again, until \
         that is the shard"
    )]
    OtherShard {
        /// The shard that this connection's appends go to.
        own: u32,
        /// The shard that was named.
        named: u32,
    },
    /// The resource exists, but not for this method.
    #[error("method not allowed here; allowed: {allow}")]
    Method {
        /// The methods that are allowed, as the `Allow` field gives them.
        allow: &'static str,
    },
    /// No request, or too little of one, for too long.
    #[error("the request took too long to arrive")]
    Timeout,
    /// An append without a body length.
    #[error("an append needs Content-Length or Transfer-Encoding: chunked")]
    LengthRequired,
    /// A body beyond the longest record.
    #[error("the body is longer than the longest record, {max} bytes; the server's --max-record sets it")]
    TooLarge {
        /// Bytes of the longest record.
        max: u64,
    },
    /// An `Expect` field other than `100-continue`.
    #[error("the only expectation that can be met is 100-continue")]
    Expectation,
    /// A head longer than the server keeps.
    #[error("the request head is longer than {max} bytes or has more than {max_fields} fields")]
    HeadTooLarge {
        /// Bytes of the longest head.
        max: usize,
        /// The most header fields.
        max_fields: usize,
    },
    /// A transfer coding that is not `chunked`.
    #[error("the only transfer coding understood is chunked")]
    Coding,
    /// A version other than HTTP/1.x.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// The medium failed: what it holds of this request is unknown.
    #[error("the store failed and the record is not acknowledged; restart the server to recover")]
    CommitFailed,
    /// The medium failed: the records are still there.
    #[error("the store failed and nothing was trimmed; restart the server to recover")]
    TrimFailed,
    /// The network delivered into a buffer of another shard's.
    #[error("the body arrived in memory that does not belong to this store")]
    Foreign,
    /// The medium had failed before.
    #[error("the store failed earlier and takes no more writes; restart the server to recover")]
    StoreFailed,
    /// All places for connections are taken, but those kept for looks at the server's health.
    #[error(
        "all {max} connections that the server takes are open, and this one is for /health alone; try again later, or \
         raise the server's --max-connections"
    )]
    Busy {
        /// Connections that a core takes.
        max: u32,
    },
    /// No room for the record.
    #[error("{}; trim old records with DELETE /records?before=N, or {}", what_is_full(.0), how_more(.0))]
    StoreFull(Full),
}

fn what_is_full(full: &Full) -> String {
    match full {
        Full::LogEntries { needed, free } => {
            format!("the store's log is full: the record takes {needed} log entries, and {free} are free")
        }
        Full::Buffers { free, reserve } => {
            format!("the store's buffers are full: {free} are free, and {reserve} are left to the network")
        }
    }
}

fn how_more(full: &Full) -> &'static str {
    match full {
        Full::LogEntries { .. } => "make a larger store, whose log is longer",
        Full::Buffers { .. } => "make a larger store",
    }
}

/// How a client is told that its record was not appended.
impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full(full) => Self::StoreFull(full),
            AppendError::TooLong { max, .. } => Self::TooLarge { max },
            AppendError::Poisoned { .. } => Self::StoreFailed,
            AppendError::Foreign => Self::Foreign,
        }
    }
}

impl Refusal {
    /// The status that goes with the reason.
    pub const fn status(&self) -> Status {
        match self {
            Self::Malformed(_)
            | Self::Ambiguous(_)
            | Self::MalformedChunk(_)
            | Self::BadTarget(_)
            | Self::NoShardNamed { .. }
            | Self::NoPosition { .. }
            | Self::NoFeed { .. } => Status::new(400, "Bad Request"),
            Self::NoResource | Self::NoRecord { .. } | Self::NoShard { .. } => Status::new(404, "Not Found"),
            Self::Method { .. } => Status::new(405, "Method Not Allowed"),
            Self::Timeout => Status::new(408, "Request Timeout"),
            Self::Trimmed { .. } | Self::Damaged { .. } => Status::new(410, "Gone"),
            Self::LengthRequired => Status::new(411, "Length Required"),
            Self::NotNext { .. } => Status::new(412, "Precondition Failed"),
            Self::TooLarge { .. } => Status::new(413, "Content Too Large"),
            Self::Range { .. } => Status::new(416, "Range Not Satisfiable"),
            Self::Expectation => Status::new(417, "Expectation Failed"),
            Self::OtherShard { .. } => Status::new(421, "Misdirected Request"),
            Self::HeadTooLarge { .. } => Status::new(431, "Request Header Fields Too Large"),
            Self::Altered { .. } | Self::CommitFailed | Self::TrimFailed | Self::Foreign => {
                Status::new(500, "Internal Server Error")
            }
            Self::Coding => Status::new(501, "Not Implemented"),
            Self::StoreFailed | Self::Busy { .. } | Self::Followers { .. } | Self::Ending => {
                Status::new(503, "Service Unavailable")
            }
            Self::Version => Status::new(505, "HTTP Version Not Supported"),
            Self::StoreFull(_) => Status::new(507, "Insufficient Storage"),
        }
    }

    /// A field that goes with the reason, by its name and value.
    pub const fn field(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Method { allow } => Some(("Allow", allow)),
            Self::Busy { .. } | Self::Followers { .. } => Some(("Retry-After", "1")),
            _ => None,
        }
    }
}
