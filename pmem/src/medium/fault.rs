//! SIGBUS in a mapped store: the kernel has no page for an address that is mapped, and the process must end. Before it
//! does, the store, the place in it and the likely cause are told on the standard error.

use std::{
    ffi::{c_int, c_void},
    mem,
    os::fd::{AsRawFd, BorrowedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    ptr::NonNull,
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicUsize, Ordering},
    },
};

/// Mappings that can be named at a time. A program has a store or two.
const MAPPINGS: usize = 64;
/// Bytes of a path that are told; the end of a longer one, which says more.
const PATH_BYTES: usize = 256;

/// A mapping that is named if the kernel has no page for an address in it.
pub(crate) struct Named(Option<&'static Slot>);

/// What the handler knows of a mapping. All of it can be read at any time, in whatever state.
struct Slot {
    is_taken: AtomicBool,
    /// 0 while the rest is not valid.
    base: AtomicUsize,
    len: AtomicUsize,
    file: AtomicI32,
    path_len: AtomicUsize,
    path: [AtomicU8; PATH_BYTES],
}

static SLOTS: [Slot; MAPPINGS] = [const {
    Slot {
        is_taken: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
        path_len: AtomicUsize::new(0),
        path: [const { AtomicU8::new(0) }; PATH_BYTES],
    }
}; MAPPINGS];

/// What was to be done on SIGBUS before: Rust's own handler, which knows guard pages of stacks.
static EARLIER: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether a thread is telling already.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

impl Named {
    /// Names `base..base + len`, over a file that stays open for as long as this lives.
    pub(crate) fn new(base: NonNull<u8>, len: usize, path: &Path, file: BorrowedFd<'_>) -> Self {
        install();
        let is_free = |slot: &&Slot| !slot.is_taken.swap(true, Ordering::Acquire);
        let Some(slot) = SLOTS.iter().find(is_free) else {
            tracing::debug!(path = %path.display(), "too many mappings to name this one on SIGBUS");
            return Self(None);
        };
        let path = path.as_os_str().as_bytes();
        let told = &path[path.len().saturating_sub(PATH_BYTES)..];
        slot.path.iter().zip(told).for_each(|(to, &byte)| to.store(byte, Ordering::Relaxed));
        slot.path_len.store(told.len(), Ordering::Relaxed);
        slot.file.store(file.as_raw_fd(), Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.base.store(base.as_ptr() as usize, Ordering::Release);
        Self(Some(slot))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.base.store(0, Ordering::Relaxed);
            slot.is_taken.store(false, Ordering::Release);
        }
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is a valid `sigaction`; the handler has the signature that SA_SIGINFO asks for and does
        // nothing but what signal-safety(7) allows. It runs on the thread's alternate stack, if that has one.
        let done = unsafe {
            let mut earlier: libc::sigaction = mem::zeroed();
            let known = libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut earlier);
            if known == 0 {
                // Before the handler can run.
                let _ = EARLIER.set(earlier);
            }
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
        };
        if done != 0 {
            tracing::debug!("SIGBUS cannot be handled: {}", std::io::Error::last_os_error());
        }
    });
}

/// Tells what is known of the address, and lets the signal do what it does by default when the access is made again.
/// What lies in no store is left to whoever had the signal before.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid structure; `si_addr` belongs to SIGBUS.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // A process may send the signal as well, and then there is no address.
    let slot = SLOTS.iter().find(|slot| slot.has(address)).filter(|_| code > 0);
    let Some(slot) = slot else { return pass_on(signal, info, context) };
    if IS_TOLD.swap(true, Ordering::AcqRel) {
        // Another thread tells, and ends the process.
        loop {
            // SAFETY: waits for a signal, and nothing else.
            unsafe { libc::pause() };
        }
    }
    slot.message(address - slot.base.load(Ordering::Relaxed), code).write();
    // SAFETY: all zeros is a valid `sigaction`, and SIG_DFL one for every signal.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// Does what was done on the signal before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let earlier = EARLIER.get();
    let handler = earlier.map_or(libc::SIG_DFL, |earlier| earlier.sa_sigaction);
    let has_info = earlier.is_some_and(|earlier| earlier.sa_flags & libc::SA_SIGINFO != 0);
    match handler {
        libc::SIG_IGN => {}
        // SAFETY: as above; raised again so that a signal which was sent ends the process as well.
        libc::SIG_DFL => unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
            libc::raise(signal);
        },
        // SAFETY: whoever installed it gave a function of this signature, as its flags say.
        handler if has_info => unsafe {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            mem::transmute::<usize, Handler>(handler)(signal, info, context);
        },
        // SAFETY: as above.
        handler => unsafe { mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) },
    }
}

impl Slot {
    fn has(&self, address: usize) -> bool {
        let base = self.base.load(Ordering::Acquire);
        base != 0 && (base..base + self.len.load(Ordering::Relaxed)).contains(&address)
    }

    /// What is told of a fault at an offset.
    fn message(&self, offset: usize, code: c_int) -> Message {
        let mut message = Message { bytes: [0; Message::BYTES], len: 0 };
        message.text(b"\nSIGBUS: the store ");
        let len = self.path_len.load(Ordering::Relaxed).min(PATH_BYTES);
        self.path[..len].iter().for_each(|byte| message.text(&[byte.load(Ordering::Relaxed)]));
        message.text(b" failed at byte ");
        message.number(offset);
        match (code, self.file_len()) {
            (libc::BUS_MCEERR_AR | libc::BUS_MCEERR_AO, _) => message.text(
                b": the memory there is damaged (a media error, or a poisoned line). Verify the store, and replace the \
                  medium\n",
            ),
            (_, Some(file_len)) if file_len <= offset => {
                message.text(b": the file was cut off under this process, at ");
                message.number(file_len);
                message.text(b" bytes. Restore it from a copy; what is left can be dumped and verified\n");
            }
            _ => message.text(
                b": the kernel has no page for it. Most likely the file system is full (or huge pages are short), and the \
                  file has holes; else its device fails. Make room and start again: acknowledged records are in the \
                  store\n",
            ),
        }
        message
    }

    /// How long the file is now.
    fn file_len(&self) -> Option<usize> {
        // SAFETY: all zeros is a valid `stat`; the kernel fills it, or says why not. The call is signal-safe.
        unsafe {
            let mut stat: libc::stat = mem::zeroed();
            let done = libc::fstat(self.file.load(Ordering::Relaxed), &raw mut stat);
            let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
            (done == 0 && is_file).then_some(stat.st_size as usize)
        }
    }
}

/// A text that is put together without memory of its own.
struct Message {
    bytes: [u8; Self::BYTES],
    len: usize,
}

impl Message {
    const BYTES: usize = 768;

    fn text(&mut self, text: &[u8]) {
        let len = text.len().min(Self::BYTES - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text[..len]);
        self.len += len;
    }

    fn number(&mut self, number: usize) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        let mut rest = number;
        while {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            rest > 0
        } {}
        self.text(&digits[first..]);
    }

    fn write(&self) {
        // SAFETY: writes initialised bytes; a signal-safe call. If it fails there is nobody to tell.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len) };
    }
}
