//! The stack behind packetdrill's interface for shared objects: `packetdrill --so_filename=libpacketdrill_so.so`.
//!
//! Time is virtual: it goes on when packetdrill sleeps, waits for a packet, or looks at the clock, a little each time.
//! Calls that the stack has no counterpart for fail with ENOSYS, and options that it does not have with ENOPROTOOPT.
//! `README.md` says how to build packetdrill and what its own scripts come to.

// packetdrill is C. What crosses is in `interface`.
#![allow(unsafe_code)]

mod host;
mod interface;
