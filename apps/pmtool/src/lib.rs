//! What pmtool finds out about a machine, how it moves a NIC between drivers, and what it does with stores.
//!
//! What is said of a machine is read from sysfs and procfs below a root folder, so that it can be tried on the likeness of any machine.

pub mod bind;
pub mod doctor;
mod memory;
pub mod nic;
mod routes;
pub mod store;
pub mod system;
