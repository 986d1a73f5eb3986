//! `pmlog`: an HTTP/1.1 log server whose records are durable where the network card put them.
//!
//! | request | reply |
//! |---|---|
//! | `POST /append`, a body of any length up to `--max-record` | `{"seq":N,"length":L,"crc32c":"..."}`, once the record is durable |
//! | `GET /records/N` | the record's bytes, sent from where they lie; a part of them with `Range` |
//! | `GET /records?from=N&limit=M` | a list of `{"seq","epoch","length","crc32c","next"}`, and in the fields `Log-Head` and `Log-Next` from where on and up to where there are records; 410 if N was trimmed |
//! | `GET /records?from=N&follow=1&content=1` | the same entries as lines, as they become durable, each with its record's bytes |
//! | `DELETE /records?before=N` | `{"head":N,"trimmed":M}`: the records below N are gone |
//! | `GET /health` | how the store is |
//!
//! A store that is served by several cores has a shard for each, which numbers its records on its own. There a record
//! is named `S-N`: replies and listings have `"shard":S` beside `"seq":N`. A listing has all shards' records, in the
//! order of epoch, shard and number, and `from=E-S-N` goes on at a place in that order; `shard=S&from=N` lists one
//! shard. `before=S-N` trims one shard.
//!
//! A request that is not done is answered with its status and `{"error":"why, in one line"}`. Record numbers
//! rise but are not dense: a number is the record's place in the log.
//!
//! [`http`] turns received slots into requests, [`service`] turns requests into appends and replies, on any
//! network that implements [`stack::net::Net`]. [`serve`] runs that on a DPDK port or on Linux' sockets;
//! [`export`] and [`import`] take records out of servers and stores, in an [`archive`], and into servers, as a [`client`] of
//! theirs. [`inspect`] looks at a store without a network.

pub mod archive;
pub mod cli;
pub mod client;
pub mod export;
pub mod http;
pub mod import;
pub mod inspect;
pub mod serve;
pub mod service;
