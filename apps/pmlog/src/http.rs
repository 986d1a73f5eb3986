//! HTTP/1.1 over received slots, without I/O (RFC 9112): heads are parsed where they arrived, and bodies
//! come out as pieces of the buffers that the network filled.

mod authority;
mod chunked;
mod decimal;
mod decoder;
mod head;
mod head_cache;
mod name;
mod range;
mod refusal;
mod route;

pub use decoder::{Decoder, Item};
pub use head::{Framing, Head, MAX_HEAD_BYTES};
pub use head_cache::HeadCache;
pub use name::{NoName, Position, RecordName};
pub use range::{ByteRange, Part};
pub use refusal::{Refusal, Status};
pub use route::{Ask, DEFAULT_LIST_LIMIT, FeedStart, MAX_LIST_LIMIT, Route, Start};
