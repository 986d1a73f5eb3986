//! TCP (RFC 9293), one connection at a time and without I/O.

pub(crate) mod isn;
pub(crate) mod options;
pub(crate) mod rtt;
pub(crate) mod seq;
