//! A switch with two ports: on one the frames of a VLAN have its tag, on the other none has one.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::io::Errno;

use crate::link::tap;

const FRAME_BYTES: usize = 2048;

/// A running switch. It ends, and its interfaces go, when it is dropped.
pub struct Trunk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    /// Frames with the tag that came from the trunk, and others.
    tagged: AtomicU64,
    others: AtomicU64,
}

impl Trunk {
    /// Makes the TAP interfaces `access`, without tags, and `trunk`, where frames have the tag of `vlan`. They are down
    /// at first and without addresses.
    ///
    /// # Errors
    /// The kernel makes no such interfaces.
    pub fn new(access: &str, trunk: &str, vlan: u16) -> Result<Self> {
        let (access, trunk) = (tap(access)?, tap(trunk)?);
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("trunk".to_owned());
        let thread = thread.spawn(move || own.carry(&access, &trunk, vlan))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many frames with the tag came from the trunk, and how many others, which went nowhere.
    pub fn counts(&self) -> [u64; 2] {
        [&self.shared.tagged, &self.shared.others].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn carry(&self, access: &OwnedFd, trunk: &OwnedFd, vlan: u16) -> Result<()> {
        let [high, low] = vlan.to_be_bytes();
        let tag = [0x81, 0, high, low];
        let mut frame = vec![0; FRAME_BYTES];
        while !self.ends.load(Ordering::Relaxed) {
            let mut is_idle = true;
            // Room for the tag is left in front.
            if let Some(len) = read(access, &mut frame[4..])? {
                is_idle = false;
                frame.copy_within(4..16, 0);
                frame[12..16].copy_from_slice(&tag);
                write(trunk, &frame[..len + 4])?;
            }
            if let Some(len) = read(trunk, &mut frame)? {
                is_idle = false;
                // The kernel talks on the interface as well, and has no tag.
                if len >= 18 && frame[12..16] == tag {
                    self.tagged.fetch_add(1, Ordering::Relaxed);
                    frame.copy_within(0..12, 4);
                    write(access, &frame[4..len])?;
                } else {
                    self.others.fetch_add(1, Ordering::Relaxed);
                }
            }
            if is_idle {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }
}

/// The next frame's length, if there is one.
fn read(tap: &OwnedFd, into: &mut [u8]) -> Result<Option<usize>> {
    match rustix::io::read(tap, into) {
        Ok(len) => Ok(Some(len)),
        // There is none, or the interface is down.
        Err(Errno::AGAIN | Errno::INTR | Errno::IO | Errno::BADFD) => Ok(None),
        Err(error) => Err(error).context("cannot read from a TAP interface"),
    }
}

fn write(tap: &OwnedFd, frame: &[u8]) -> Result<()> {
    match rustix::io::write(tap, frame) {
        // A full queue loses frames, as a switch does.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::IO | Errno::BADFD) => Ok(()),
        Err(error) => Err(error).context("cannot write to a TAP interface"),
    }
}
