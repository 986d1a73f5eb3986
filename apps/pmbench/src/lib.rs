//! `pmbench`: durable appends over every kind of network stack, measured side by side.
//!
//! [`serve`] is the servers, one for each way the field has of doing it; [`protocol`] is how the program that
//! measures talks to one.

pub mod cli;
pub mod protocol;
pub mod serve;
