//! Devices, whether they run as ports or not: their numbers, what they can do, and what can be wrong with them.

mod error;
mod id;
mod info;

pub use error::PortError;
pub use id::PortId;
pub use info::{Offloads, PortInfo};

pub(crate) use id::text;
pub(crate) use info::{OFFLOADS, bus_name};
