//! What carries frames to and from the stack.

#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod kernel;
