//! `pmbench`: durable appends over every kind of network stack, measured side by side.
//!
//! [`serve`] is the servers, one for each way the field has of doing it; [`load`] is the client of all of them;
//! [`protocol`] is how the program that measures talks to a server.

pub mod cli;
mod cpu;
pub mod load;
pub mod protocol;
pub mod serve;
