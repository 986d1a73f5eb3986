//! Ports that run, as they and their queues hold them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dpdk_sys as sys;

use crate::device::{PortId, bus_name};
use crate::errno_text;

const MAX_PORTS: usize = sys::RTE_MAX_ETHPORTS as usize;

/// Which ports have a [`Port`](crate::Port).
static RUNNING: [AtomicBool; MAX_PORTS] = [const { AtomicBool::new(false) }; MAX_PORTS];

/// Stops and closes the port when its last holder goes.
#[derive(Debug)]
pub(crate) struct Running {
    id: PortId,
    control: Mutex<()>,
}

impl Running {
    /// The port's one; none if it has a [`Port`](crate::Port) already.
    pub(crate) fn claim(id: PortId) -> Option<Arc<Self>> {
        let had = RUNNING[usize::from(id.0)].swap(true, Ordering::AcqRel);
        (!had).then(|| Arc::new(Self { id, control: Mutex::new(()) }))
    }

    pub(crate) fn id(&self) -> PortId {
        self.id
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let id = self.id;
        let device = id.device();
        // SAFETY: the last handle on the port and its queues is this one.
        let closed = unsafe {
            sys::rte_eth_dev_stop(id.0);
            sys::rte_eth_dev_close(id.0)
        };
        if closed != 0 {
            tracing::warn!(port = id.0, "the port did not close: {}", errno_text(closed));
        }
        // A virtual device can be made again under its name only once it is gone.
        if let Ok(device) = device {
            let removed = match bus_name(device).as_str() {
                // SAFETY: the device is still known to its bus, and no port of ours uses it.
                "vdev" => unsafe { sys::rte_dev_remove(device) },
                _ => 0,
            };
            if removed != 0 {
                tracing::warn!(port = id.0, "the virtual device was not removed: {}", errno_text(removed));
            }
        }
        RUNNING[usize::from(id.0)].store(false, Ordering::Release);
    }
}
