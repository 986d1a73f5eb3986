//! The environment abstraction layer: started once, lives as long as the process.

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use dpdk_sys as sys;

use crate::arguments::{self, Machine};
use crate::attach::{self, AttachError};
use crate::device::PortId;
use crate::{errno_text, last_errno, log};

static TRIED: AtomicBool = AtomicBool::new(false);

/// The proof that the EAL runs.
#[derive(Clone, Copy, Debug)]
pub struct Eal(());

/// Why the EAL did not start.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// Second call in one process.
    #[error(
        "the EAL can be started once per process, and that was tried before; share the first Eal instead"
    )]
    Repeated,
    /// An argument that C cannot take.
    #[error("the EAL argument {0:?} contains a NUL byte; remove it")]
    Nul(String),
    /// The C library did not open EAL's log stream.
    #[error("EAL's log cannot be redirected: {0}; free some memory or file descriptors")]
    Log(std::io::Error),
    /// EAL's own refusal.
    #[error("the EAL did not start with `{arguments}` ({code}): {reason}. {remedy}")]
    Init {
        /// The arguments as EAL got them.
        arguments: String,
        /// DPDK's error code as text.
        code: String,
        /// What EAL logged.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Why a thread could not be made known to the EAL.
#[derive(Debug, thiserror::Error)]
#[error(
    "the thread cannot be registered with the EAL ({0}); use fewer than 128 threads, and no secondary process"
)]
pub struct ThreadError(String);

impl Eal {
    /// Starts the EAL with `arguments` as DPDK documents them, without a program name.
    ///
    /// What they leave open gets a default: virtual addresses for IOVA, hugepages without files if some are
    /// free and 512 MiB of plain memory otherwise, no telemetry socket, and one lcore over all permitted CPUs.
    /// EAL's log goes to `tracing`, target `dpdk::eal`.
    ///
    /// # Errors
    /// [`EalError`]; no second attempt is possible in the same process.
    pub fn init<I>(arguments: I) -> Result<Self, EalError>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let user: Vec<String> = arguments.into_iter().map(Into::into).collect();
        let words = arguments::complete(&user, &Machine::detect());
        let nul_free = |word: &String| CString::new(word.as_str()).map_err(|_| EalError::Nul(word.clone()));
        let strings = words.iter().map(nul_free).collect::<Result<Vec<_>, _>>()?;
        if TRIED.swap(true, Ordering::SeqCst) {
            return Err(EalError::Repeated);
        }
        if !log::install() {
            return Err(EalError::Log(std::io::Error::last_os_error()));
        }
        // EAL permutes the vector and keeps pointers into it, so it stays until the process ends.
        let count = i32::try_from(strings.len()).unwrap_or(i32::MAX);
        let mut vector: Vec<*mut c_char> = strings.into_iter().map(CString::into_raw).collect();
        vector.push(std::ptr::null_mut());
        let vector = vector.leak();
        // SAFETY: `vector` is a NULL-terminated argument vector of NUL-terminated strings, alive for good.
        let (result, reason) = log::listening(|| unsafe { sys::rte_eal_init(count, vector.as_mut_ptr()) });
        if result < 0 {
            let code = last_errno();
            return Err(EalError::Init {
                arguments: words[1..].join(" "),
                code: errno_text(code),
                remedy: init_remedy(code, &reason),
                reason,
            });
        }
        Ok(Self(()))
    }

    /// Probes a device and returns its port: a PCI address (`0000:02:00.0`) or a virtual device with its
    /// arguments (`net_tap0,iface=tap0`). A device that is there already is found again.
    ///
    /// # Errors
    /// [`AttachError`] with DPDK's own reason and what to do about it.
    pub fn attach(&self, device: &str) -> Result<PortId, AttachError> {
        attach::attach(device)
    }

    /// All ports that there are, those of devices bound to a userspace driver at the start included.
    pub fn ports(&self) -> Vec<PortId> {
        attach::ports()
    }

    /// The first port that there is.
    ///
    /// # Errors
    /// [`AttachError::NoPorts`] says how to come by one.
    pub fn first_port(&self) -> Result<PortId, AttachError> {
        self.ports().first().copied().ok_or(AttachError::NoPorts)
    }

    /// Whether devices use physical addresses, with nothing between them and all of memory.
    pub fn uses_physical_addresses(&self) -> bool {
        crate::addresses::are_physical()
    }

    /// DPDK's release, as it runs.
    pub fn version(&self) -> String {
        // SAFETY: rte_version returns a NUL-terminated string in static storage.
        unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
    }

    /// The CPUs of EAL's worker lcores, in the order of the lcores: all that `-l` names but the first. None with the
    /// defaults of [`init`](Self::init), where one lcore floats over all permitted CPUs.
    pub fn worker_cpus(&self) -> Vec<usize> {
        let mut cpus = Vec::new();
        let mut lcore = u32::MAX;
        loop {
            // SAFETY: reads EAL's table of lcores; the search begins behind `lcore`, and skips the main one.
            lcore = unsafe { sys::rte_get_next_lcore(lcore, 1, 0) };
            if lcore >= sys::RTE_MAX_LCORE {
                return cpus;
            }
            // SAFETY: the lcore exists.
            cpus.extend(usize::try_from(unsafe { sys::rte_lcore_to_cpu_id(lcore as i32) }).ok());
        }
    }

    /// Gives the calling thread an lcore id, and with it its own cache in each pool. Threads without one
    /// work too, at the price of a few compare-and-swap operations per burst.
    ///
    /// # Errors
    /// [`ThreadError`] when all ids are taken.
    pub fn register_thread(&self) -> Result<RegisteredThread, ThreadError> {
        // SAFETY: reads a thread-local variable.
        if unsafe { sys::rte_lcore_id() } != sys::LCORE_ID_ANY {
            return Ok(RegisteredThread { registered_here: false, _this_thread: PhantomData });
        }
        // SAFETY: the EAL runs, and this thread has no id yet.
        if unsafe { sys::rte_thread_register() } < 0 {
            return Err(ThreadError(errno_text(last_errno())));
        }
        Ok(RegisteredThread { registered_here: true, _this_thread: PhantomData })
    }
}

/// The calling thread's lcore id, given back when dropped.
#[derive(Debug)]
#[must_use = "the thread loses its lcore id when this is dropped"]
pub struct RegisteredThread {
    registered_here: bool,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.registered_here {
            // SAFETY: this thread registered itself; the type is bound to its thread.
            unsafe { sys::rte_thread_unregister() }
        }
    }
}

fn init_remedy(code: i32, reason: &str) -> &'static str {
    match code {
        _ if reason.contains("hugepage") => {
            "Reserve hugepages (dpdk-hugepages.py --setup 1G), or leave the memory options away to do without"
        }
        libc::EACCES | libc::EPERM => {
            "Set RUNTIME_DIRECTORY to a folder that this user can write, or run with more rights"
        }
        libc::ENOMEM => "Lower -m, or reserve hugepages (dpdk-hugepages.py --setup 1G)",
        libc::EALREADY | libc::EAGAIN => {
            "End the other process that uses the same --file-prefix, or choose another"
        }
        _ => "Check the EAL arguments against DPDK's Linux guide",
    }
}
