//! TCP (RFC 9293), one connection at a time and without I/O.

mod ack;
pub(crate) mod congestion;
pub(crate) mod connection;
pub(crate) mod early;
mod ecn;
mod expected;
pub(crate) mod isn;
pub(crate) mod options;
pub(crate) mod path;
pub(crate) mod pieces;
mod prr;
mod rack;
pub(crate) mod recovery;
pub(crate) mod recv_queue;
pub(crate) mod round;
pub(crate) mod rtt;
pub(crate) mod rx;
pub(crate) mod scoreboard;
pub(crate) mod send_pool;
pub(crate) mod send_queue;
pub(crate) mod seq;
mod spares;
pub(crate) mod tx;
