//! What pmtool finds out about a machine, and how it moves a NIC between drivers.
//!
//! Everything is read from sysfs and procfs below a root folder, so that it can be tried on the likeness of any machine.

pub mod bind;
pub mod doctor;
mod memory;
pub mod nic;
mod routes;
pub mod system;
