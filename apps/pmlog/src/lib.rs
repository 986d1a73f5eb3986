//! `pmlog`: an HTTP/1.1 log server whose records are durable where the network card put them.
//!
//! [`http`] turns received slots into requests, [`service`] turns requests into appends and replies, on any
//! network that implements [`stack::net::Net`].

pub mod cli;
pub mod http;
pub mod service;
