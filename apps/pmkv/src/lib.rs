//! A key-value store with the Redis protocol, as an application of the stack: values stay in the packet buffers that they
//! came in, and what is answered is durable.
//!
//! [`resp`] takes requests apart and writes replies, [`store`] holds the keys and their log, [`commands`] are what clients
//! may ask for, and [`service`] is the loop between these and the connections.

#![forbid(unsafe_code)]

pub mod cli;
pub mod clients;
pub mod command;
pub mod commands;
pub mod dispatch;
mod glob;
pub mod resp;
pub mod serve;
pub mod server;
pub mod service;
pub mod store;
pub mod users;
