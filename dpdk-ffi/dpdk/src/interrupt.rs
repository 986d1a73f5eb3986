//! Sleeping until a receive queue has something.
//!
//! A queue's interrupt is on only while its thread sleeps: [`RxQueue::sleep`] switches it on, looks at the queue once
//! more, since what came just before raises no interrupt, and switches it off before it returns.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use dpdk_sys as sys;
use rustix::event::epoll::{CreateFlags, create};
use rustix::event::{EventfdFlags, eventfd};

use crate::batch::Batch;
use crate::device::{PortError, PortId, PortInfo};
use crate::errno_text;
use crate::queue::RxQueue;
use crate::running::Running;

/// Where one thread sleeps, until a device or a [`Bell`] wakes it.
#[derive(Debug)]
pub struct Sleeper {
    epoll: OwnedFd,
    bell: Bell,
    /// What the kernel tells DPDK of when the bell was rung. It holds the address for as long as `epoll` is open.
    watch: NonNull<sys::rte_epoll_event>,
}

// SAFETY: the watch is this sleeper's alone, and holds no pointer to anything of a thread.
unsafe impl Send for Sleeper {}

/// Ends a [`Sleeper`]'s sleep, or keeps the next one from beginning, from any thread.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

/// Why a thread did not sleep.
#[derive(Debug, thiserror::Error)]
pub enum SleepError {
    /// The kernel gave no descriptors, or did not wait for them.
    #[error(
        "a core cannot sleep until a frame comes: {action}: {reason}; see the limit on descriptors (ulimit -n)"
    )]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        reason: io::Error,
    },
    /// The interrupt could not be switched.
    #[error("{port} cannot {action} of receive queue {queue} ({code})")]
    Interrupt {
        /// The port's name.
        port: String,
        /// What was tried.
        action: &'static str,
        /// The queue's number.
        queue: u16,
        /// DPDK's error code as text.
        code: String,
    },
}

impl Sleeper {
    /// A place to sleep, with a bell.
    ///
    /// # Errors
    /// [`SleepError::Kernel`]: there are too many descriptors.
    pub fn new() -> Result<Self, SleepError> {
        let kernel =
            |action| move |reason: rustix::io::Errno| SleepError::Kernel { action, reason: reason.into() };
        let epoll = create(CreateFlags::CLOEXEC).map_err(kernel("epoll_create"))?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(kernel("eventfd"))?;
        let mut watch = Box::<sys::rte_epoll_event>::default();
        watch.epdata.event = libc::EPOLLIN as u32;
        let watch = NonNull::from(Box::leak(watch));
        let sleeper = Self { epoll, bell: Bell(Arc::new(bell)), watch };
        // SAFETY: both descriptors are open; the watch stays in its place until the sleeper is dropped.
        let result = unsafe {
            sys::rte_epoll_ctl(
                sleeper.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                sleeper.bell.0.as_raw_fd(),
                watch.as_ptr(),
            )
        };
        match result {
            0 => Ok(sleeper),
            _ => Err(SleepError::Kernel { action: "epoll_ctl", reason: io::Error::last_os_error() }),
        }
    }

    /// What wakes the thread that sleeps here.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Sleeps until the bell rings, for at most `limit`, cut to whole milliseconds from above. A signal that this
    /// thread handles ends it too.
    ///
    /// # Errors
    /// [`SleepError::Kernel`]: the kernel does not wait.
    pub fn sleep(&mut self, limit: Duration) -> Result<(), SleepError> {
        let mut events = [sys::rte_epoll_event::default(); 2];
        let limit_ms = i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: there is room for as many events. What else is in the set than the bell was put there by
        // `RxQueue::sleep`, which keeps its port until it has taken it out again.
        let count = unsafe {
            sys::rte_epoll_wait_interruptible(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                limit_ms,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let reason = io::Error::last_os_error();
            return match reason.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(SleepError::Kernel { action: "epoll_wait", reason }),
            };
        };
        if events.iter().take(count).any(|event| event.fd == self.bell.0.as_raw_fd()) {
            // A count of zero has been read by nobody else; either way the bell is silent now.
            let _ = rustix::io::read(&self.bell.0, &mut [0; 8]);
        }
        Ok(())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: the watch was leaked from a box. DPDK looks at it in `sleep` only, and the set goes with this sleeper.
        drop(unsafe { Box::from_raw(self.watch.as_ptr()) });
    }
}

impl Bell {
    /// Wakes the thread that sleeps.
    pub fn ring(&self) {
        // A count at its end was rung before, and is still to be heard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl RxQueue {
    /// Adds what has arrived to the batch, and returns how many packets these are. If there are none, sleeps first: until
    /// something arrives, the sleeper's bell rings, or `limit` is over, whichever comes first; the packets then come
    /// by [`burst`](Self::burst).
    ///
    /// The port must have been started with [`rx_interrupts`](crate::PortConfig::rx_interrupts).
    ///
    /// # Errors
    /// [`SleepError`]; packets that were received are in the batch all the same.
    pub fn sleep<const N: usize>(
        &mut self,
        sleeper: &mut Sleeper,
        batch: &mut Batch<N>,
        limit: Duration,
    ) -> Result<usize, SleepError> {
        let (port, index) = (self.port().clone(), self.index());
        let armed = Armed::new(&port, index, sleeper)?;
        let count = self.burst(batch);
        let slept = if count == 0 { sleeper.sleep(limit) } else { Ok(()) };
        let disarmed = armed.disarm();
        slept.and(disarmed).map(|()| count)
    }
}

/// A queue whose interrupt is on, and wakes a sleeper.
struct Armed<'a> {
    port: &'a Running,
    queue: u16,
}

impl<'a> Armed<'a> {
    /// Added anew for each sleep, the queue's descriptor wakes at once if it was raised before. TAP needs that: its
    /// driver receives only once a signal has been handled, by whichever thread, that may come later than the wake-up.
    fn new(port: &'a Running, queue: u16, sleeper: &Sleeper) -> Result<Self, SleepError> {
        let _control = port.control();
        watch(port.id(), queue, sys::RTE_INTR_EVENT_ADD, sleeper.epoll.as_raw_fd())
            .map_err(|code| SleepError::interrupt(port.id(), "wait for the interrupt", queue, code))?;
        let armed = Self { port, queue };
        match switch(port.id(), queue, true) {
            Ok(()) => Ok(armed),
            Err(code) => {
                let _ = armed.unwatch();
                Err(SleepError::interrupt(port.id(), "switch on the interrupt", queue, code))
            }
        }
    }

    fn disarm(self) -> Result<(), SleepError> {
        let _control = self.port.control();
        let id = self.port.id();
        let switched = switch(id, self.queue, false)
            .map_err(|code| SleepError::interrupt(id, "switch off the interrupt", self.queue, code));
        self.unwatch().and(switched)
    }

    fn unwatch(&self) -> Result<(), SleepError> {
        let id = self.port.id();
        watch(id, self.queue, sys::RTE_INTR_EVENT_DEL, -1)
            .map_err(|code| SleepError::interrupt(id, "forget the interrupt", self.queue, code))
    }
}

impl SleepError {
    fn interrupt(id: PortId, action: &'static str, queue: u16, code: i32) -> Self {
        Self::Interrupt { port: id.name(), action, queue, code: errno_text(code) }
    }
}

/// Drivers of DPDK 22.11 whose interrupts have no switch and are always on: what a thread waits for is the descriptor
/// from which frames are read.
fn has_no_switch(driver: &str) -> bool {
    driver == "net_tap"
}

/// Drivers of DPDK 22.11 that leave cards' tables of MSI-X vectors for receive queues as they are after a reset: empty.
/// Seen on QEMU's e1000e, where MSI and the interrupt pin work by vfio; by uio_pci_generic the pin is asserted for
/// ever, until the kernel switches it off.
fn routes_no_msix(driver: &str) -> bool {
    driver == "net_e1000_em"
}

/// Whether vfio brings a device's interrupts, and not by MSI-X, as the kernel's list of interrupts tells.
fn has_one_vector(address: &str) -> bool {
    let (pin, msi) = (format!("vfio-intx({address})"), format!("vfio-msi[0]({address})"));
    std::fs::read_to_string("/proc/interrupts").is_ok_and(|told| told.contains(&pin) || told.contains(&msi))
}

/// Refuses a queue whose interrupt nobody could wait for. It is off afterwards, where it has a switch.
pub(crate) fn check(port: &Running, info: &PortInfo, queue: u16) -> Result<(), PortError> {
    let _control = port.control();
    let id = port.id();
    let (name, driver) = (info.name.clone(), info.driver.clone());
    // SAFETY: the port runs, and DPDK checks the queue's number.
    let descriptor = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(id.0, queue) };
    let works = descriptor >= 0
        && (has_no_switch(&driver) || try_switch(id, queue, true) == 0 && try_switch(id, queue, false) == 0);
    if !works {
        return Err(PortError::NoRxInterrupts { port: name, driver });
    }
    if routes_no_msix(&driver) && !has_one_vector(&name) {
        return Err(PortError::UnroutedRxInterrupts { port: name, driver });
    }
    Ok(())
}

/// Puts a queue's interrupt into a set of descriptors, or takes it out of the one it is in.
fn watch(id: PortId, queue: u16, event: u32, epoll: i32) -> Result<(), i32> {
    // SAFETY: the port runs, and its queue is the caller's alone.
    match unsafe { sys::rte_eth_dev_rx_intr_ctl_q(id.0, queue, epoll, event as i32, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(code),
    }
}

/// Switches a queue's interrupt. Where that has no switch it is on.
fn switch(id: PortId, queue: u16, on: bool) -> Result<(), i32> {
    match try_switch(id, queue, on) {
        code if code == 0 || code == -libc::ENOTSUP => Ok(()),
        code => Err(code),
    }
}

fn try_switch(id: PortId, queue: u16, on: bool) -> i32 {
    // SAFETY: the port runs; DPDK checks the queue's number, and nobody else controls the port meanwhile.
    unsafe {
        match on {
            true => sys::rte_eth_dev_rx_intr_enable(id.0, queue),
            false => sys::rte_eth_dev_rx_intr_disable(id.0, queue),
        }
    }
}
