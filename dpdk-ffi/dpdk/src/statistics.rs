//! What a port counted.

use std::ffi::CStr;

use dpdk_sys as sys;

use crate::device::PortError;
use crate::port::Port;

/// The counters that every driver has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames lost before the driver could take them, for want of descriptors or of room in a ring; none if nobody
    /// counts them.
    pub rx_missed: Option<u64>,
    /// Frames received in error.
    pub rx_errors: u64,
    /// Frames that failed to be sent.
    pub tx_errors: u64,
    /// Frames lost for want of mbufs.
    pub rx_no_mbuf: u64,
}

/// One counter of the driver's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedStatistic {
    /// Its name, as the driver has it.
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl Port {
    /// The counters since the start or the last reset.
    ///
    /// # Errors
    /// [`PortError::Call`]: the driver does not count.
    pub fn statistics(&self) -> Result<Statistics, PortError> {
        let _control = self.control();
        let mut stats = sys::rte_eth_stats::default();
        // SAFETY: the port exists, and the structure is writable.
        let result = unsafe { sys::rte_eth_stats_get(self.id().0, &mut stats) };
        PortError::check(self.id(), "read statistics", result)?;
        Ok(Statistics {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: self.missed.count(stats.imissed),
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_mbuf: stats.rx_nombuf,
        })
    }

    /// All of the driver's counters, in its order.
    ///
    /// # Errors
    /// [`PortError::Call`]: the driver does not count.
    pub fn extended_statistics(&self) -> Result<Vec<ExtendedStatistic>, PortError> {
        let _control = self.control();
        let id = self.id().0;
        let check = |result| PortError::check(self.id(), "read extended statistics", result);
        // SAFETY: without an array DPDK only returns the number of counters.
        let count = check(unsafe { sys::rte_eth_xstats_get_names(id, std::ptr::null_mut(), 0) })?;
        let mut names = vec![sys::rte_eth_xstat_name::default(); count as usize];
        let mut values = vec![sys::rte_eth_xstat::default(); count as usize];
        // SAFETY: the array has `count` elements.
        let named = check(unsafe { sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count) })?;
        // SAFETY: the array has `count` elements.
        let valued = check(unsafe { sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count) })?;
        // More than there was room for: the set changed between the calls, and nothing was written.
        if named > count || valued > count {
            return Err(PortError::Changed(self.id().name()));
        }
        let named = &names[..named as usize];
        let statistic = |value: &sys::rte_eth_xstat| {
            let name = named.get(usize::try_from(value.id).ok()?)?;
            // SAFETY: the driver wrote a NUL-terminated name.
            let name = unsafe { CStr::from_ptr(name.name.as_ptr()) }.to_string_lossy().into_owned();
            Some(ExtendedStatistic { name, value: value.value })
        };
        Ok(values[..valued as usize].iter().filter_map(statistic).collect())
    }

    /// Sets all counters to zero.
    ///
    /// # Errors
    /// [`PortError::Call`]: the driver cannot.
    pub fn reset_statistics(&self) -> Result<(), PortError> {
        let _control = self.control();
        // SAFETY: the port exists.
        let (basic, extended) =
            unsafe { (sys::rte_eth_stats_reset(self.id().0), sys::rte_eth_xstats_reset(self.id().0)) };
        self.missed.reset();
        PortError::check(self.id(), "reset statistics", basic)?;
        PortError::check(self.id(), "reset extended statistics", extended)?;
        Ok(())
    }
}
