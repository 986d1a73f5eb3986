//! Commands: what they are called, what they take, and how they are found.

use std::borrow::Cow;

use pmem::{AppendError, Shard};

use crate::clients::{Client, Clients};
use crate::commands;
use crate::resp::{Decimal, Reply, Request, parse_integer};
use crate::server::Server;
use crate::store::{Bytes, Damaged, Object, Source, Store, Value};

/// What a command says of itself.
#[derive(Debug)]
pub struct Command {
    /// Its name, in small letters.
    pub name: &'static str,
    /// How many arguments it takes, its name included; that many or more if it is negative.
    pub arity: i32,
    /// Properties.
    pub flags: &'static [Flag],
    /// The first key, the last one (counted from the end if negative), and how far apart they are; zeros for none.
    pub keys: (i32, i32, i32),
    /// Does it.
    pub run: fn(&mut Context<'_>) -> Result<(), Refusal>,
}

/// A property of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// It changes keys.
    Write,
    /// It looks at them.
    Readonly,
    /// It is refused while there is no memory for more.
    Denyoom,
    /// It takes a short time, whatever it finds.
    Fast,
    /// It administers the server.
    Admin,
    /// It is about channels.
    Pubsub,
    /// It may wait.
    Blocking,
    /// It may come from whoever has not said who he is.
    NoAuth,
    /// It is not kept for a transaction's end.
    NoMulti,
}

impl Flag {
    /// What Redis calls it; none where it has no word.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Write => Some("write"),
            Self::Readonly => Some("readonly"),
            Self::Denyoom => Some("denyoom"),
            Self::Fast => Some("fast"),
            Self::Admin => Some("admin"),
            Self::Pubsub => Some("pubsub"),
            Self::Blocking => Some("blocking"),
            Self::NoAuth => Some("no_auth"),
            Self::NoMulti => Some("no_multi"),
        }
    }
}

impl Command {
    /// The command of a name.
    pub fn find(name: &[u8]) -> Option<&'static Self> {
        let mut lower = [0; MAX_NAME_BYTES];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let table = commands::table();
        table.binary_search_by(|command| command.name.as_bytes().cmp(lower)).ok().map(|at| table[at])
    }

    /// Whether it has a property.
    pub fn is(&self, flag: Flag) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether a request has as many arguments as it takes.
    pub fn takes(&self, request: &Request) -> bool {
        let len = i32::try_from(request.len()).unwrap_or(i32::MAX);
        if self.arity < 0 { len >= -self.arity } else { len == self.arity }
    }
}

/// No name is longer.
const MAX_NAME_BYTES: usize = 32;

/// Why a command was not done, in Redis' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR value is not a valid float")]
    NotAFloat,
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR no such key")]
    NoKey,
    #[error("ERR offset is out of range")]
    Offset,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR increment would produce NaN or Infinity")]
    NotFinite,
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(Cow<'static, str>),
    #[error("ERR value is out of range, must be positive")]
    NotPositive,
    #[error("ERR DB index is out of range")]
    NoDatabase,
    #[error("ERR invalid cursor")]
    Cursor,
    #[error("ERR hash value is not an integer")]
    HashNotAnInteger,
    #[error("OOM command not allowed when used memory > 'maxmemory'.")]
    OutOfMemory,
    #[error("OOM command not allowed: the store is full; remove keys, or make it larger with --pm-size")]
    Full,
    #[error("ERR more than 2 GiB would change at once; change less at a time")]
    LongRecord,
    #[error("NOAUTH Authentication required.")]
    NoAuth,
    #[error("WRONGPASS invalid username-password pair or user is disabled.")]
    WrongPassword,
    #[error("EXECABORT Transaction discarded because of previous errors.")]
    Aborted,
    #[error("ERR {0}")]
    Damaged(Damaged),
    #[error("{0}")]
    Other(Cow<'static, str>),
}

impl From<Damaged> for Refusal {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        if matches!(error, AppendError::TooLong { .. }) { Self::LongRecord } else { Self::Full }
    }
}

impl From<&'static str> for Refusal {
    fn from(text: &'static str) -> Self {
        Self::Other(text.into())
    }
}

/// What a command works with.
pub struct Context<'a> {
    /// The request.
    pub req: &'a Request,
    /// The command's name, as messages have it.
    pub name: &'static str,
    /// The keys.
    pub store: &'a mut Store,
    /// What they lie in.
    pub shard: &'a Shard,
    /// Where the reply goes.
    pub out: &'a mut Reply,
    /// Who asks. It is not among the others meanwhile.
    pub client: &'a mut Client,
    /// All others.
    pub clients: &'a mut Clients,
    /// The rest.
    pub server: &'a mut Server,
    /// Whether it is part of a transaction, so that it must not wait.
    pub is_in_transaction: bool,
}

impl<'a> Context<'a> {
    /// Argument number `index`.
    pub fn arg(&self, index: usize) -> Cow<'a, [u8]> {
        self.req.arg(index)
    }

    /// An argument as an integer.
    ///
    /// # Errors
    /// It is none.
    pub fn integer(&self, index: usize) -> Result<i64, Refusal> {
        parse_integer(&self.req.arg(index)).ok_or(Refusal::NotAnInteger)
    }

    /// An argument, to be stored where it is.
    pub fn with_source<T>(&self, index: usize, then: impl FnOnce(Source<'_>) -> T) -> T {
        match self.req.in_place(index) {
            Some(extents) => then(Source::Extents(extents)),
            None => then(Source::Bytes(&self.req.arg(index))),
        }
    }

    /// The string that a key stands for.
    ///
    /// # Errors
    /// It stands for something else.
    pub fn string(&self, key: &[u8]) -> Result<Option<&Value>, Refusal> {
        match self.store.get(key).map(|entry| &entry.object) {
            None => Ok(None),
            Some(Object::String(value)) => Ok(Some(value)),
            Some(_) => Err(Refusal::WrongType),
        }
    }

    /// The bytes of the string that a key stands for, copied.
    ///
    /// # Errors
    /// It stands for something else.
    pub fn string_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(value) = self.string(key)? else { return Ok(None) };
        Ok(Some(self.store.bytes(value, self.shard)?.to_vec()))
    }

    /// When a key expires; 0 for never.
    pub fn expires_ms(&self, key: &[u8]) -> u64 {
        self.store.get(key).map_or(0, |entry| entry.expires_ms)
    }

    /// Replies with the string that a key stands for, or with none.
    ///
    /// # Errors
    /// It stands for something else.
    pub fn reply_string(&mut self, key: &[u8]) -> Result<(), Refusal> {
        let Self { store, shard, out, .. } = self;
        match store.get(key).map(|entry| &entry.object) {
            None => out.null(),
            Some(Object::String(value)) => reply_value(out, store, shard, value)?,
            Some(_) => return Err(Refusal::WrongType),
        }
        Ok(())
    }
}

/// Replies with a value: a long one from where it lies.
///
/// # Errors
/// It is damaged.
pub fn reply_value(out: &mut Reply, store: &Store, shard: &Shard, value: &Value) -> Result<(), Refusal> {
    match store.bytes(value, shard)? {
        Bytes::Short(bytes) => out.bulk(bytes),
        Bytes::Owned(bytes) => out.bulk(&bytes),
        Bytes::Long(extents) => out.extents(extents.into_iter()),
    }
    Ok(())
}

/// An argument as a number with a fraction.
///
/// # Errors
/// It is none.
pub fn decimal(text: &[u8]) -> Result<Decimal, Refusal> {
    Decimal::parse(text).ok_or(Refusal::NotAFloat)
}
