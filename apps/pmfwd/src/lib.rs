//! `pmfwd`: forwards packets between DPDK ports, in testpmd's words, with the packets in DRAM or in the named
//! buffers of persistent memory.
//!
//! [`forward`] has the ports, and a [`worker`] thread for each core. A worker takes its [`stream`]s (a receive queue and
//! the transmit queue that it feeds) round and round, a burst at a time, through the [`engine`] of a mode. In mode
//! `log` that is [`log`]: each frame is a durable record before it goes on. [`session`] is what runs until Ctrl-C,
//! [`console`] what takes commands; both show [`statistics`] as testpmd prints them.

pub mod burst;
pub mod capture;
pub mod cli;
pub mod console;
pub mod engine;
pub mod forward;
pub mod log;
pub mod packet;
pub mod session;
pub mod statistics;
pub mod stream;
pub mod worker;
