//! The Redis serialization protocol: requests as they come in segments, and replies in both of its versions.

mod decoder;
mod number;
mod reply;
mod request;

pub use decoder::{Decoder, MAX_ARGUMENTS, MAX_LINE_BYTES, ProtocolError, Room};
pub use number::{Decimal, parse_integer};
pub use reply::{Part, Reply};
pub use request::{IN_PLACE_BYTES, Request};
