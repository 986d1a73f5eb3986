//! The servers that are compared, with the kernel's sockets as their clients: what is acknowledged lies on the
//! medium, and what is counted is what was done.

mod bench;
mod counts;
mod modes;
