//! Ports by their numbers.

use std::ffi::{CStr, c_char};

use dpdk_sys as sys;

/// DPDK's number of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortId(pub(crate) u16);

impl PortId {
    /// The port's name; its number if the device is gone.
    pub fn name(self) -> String {
        let mut name = [0 as c_char; sys::RTE_ETH_NAME_MAX_LEN as usize];
        // SAFETY: DPDK writes a name of at most this length.
        match unsafe { sys::rte_eth_dev_get_name_by_port(self.0, name.as_mut_ptr()) } {
            0 => text(name.as_ptr()),
            _ => format!("port {}", self.0),
        }
    }
}

/// A C string, or nothing for NULL.
pub(crate) fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: callers pass NUL-terminated strings of DPDK's.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
