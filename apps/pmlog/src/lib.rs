//! `pmlog`: an HTTP/1.1 log server whose records are durable where the network card put them.
//!
//! [`http`] turns received slots into requests, [`service`] turns requests into appends and replies, on any
//! network that implements [`stack::net::Net`]. [`serve`] runs that on a DPDK port; [`inspect`] looks at a
//! store without a network.

pub mod cli;
pub mod http;
pub mod inspect;
pub mod serve;
pub mod service;
