//! What an application is written against, whatever carries its connections.
//!
//! [`net`] has connections, events, slots and replies, [`server`] the loop of one core, [`profile`] where its time
//! goes, [`doze`] how cores that sleep are woken, and [`time`] what the time is.

#![forbid(unsafe_code)]

pub mod doze;
mod group;
pub mod net;
pub mod profile;
pub mod server;
mod step;
pub mod time;
