//! `pmbench`: durable appends over every kind of network stack, measured side by side.
//!
//! [`serve`] is the servers, one for each way the field has of doing it; [`load`] is the client of all of them;
//! [`ring`] is both in one process, over a link that does as a NIC does;
//! [`run`] measures each server with that client, and talks to both over [`protocol`]; [`report`] shows what it found.
//! [`cores`] measures how pmlog scales, [`fwd`] how pmfwd forwards, [`instructions`] whose code a request runs, and
//! [`connections`] what many of them cost.

mod child;
pub mod cli;
pub mod connections;
pub mod cores;
pub mod fwd;
pub mod instructions;
pub mod load;
mod nic;
mod progress;
pub mod protocol;
pub mod report;
pub mod results;
pub mod ring;
pub mod run;
pub mod serve;
mod spread;
mod wire;
