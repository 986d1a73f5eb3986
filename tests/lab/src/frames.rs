//! Frames as they are, past the kernel's protocols.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use smoltcp::phy::{Device as _, Medium, RawSocket, RxToken as _, TxToken as _};
use smoltcp::time::Instant as Time;

/// A packet socket on an interface: what it sends goes out as it is, and it sees all that passes.
pub struct Frames(RawSocket);

impl Frames {
    /// On the interface of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn on(interface: &str) -> Result<Self> {
        let socket = RawSocket::new(interface, Medium::Ethernet);
        socket.map(Self).with_context(|| format!("no packet socket on {interface}"))
    }

    /// Sends a frame, at its full length.
    ///
    /// # Errors
    /// The kernel takes no more.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let token = self.0.transmit(Time::ZERO).context("a packet socket always takes a frame")?;
        token.consume(frame.len(), |bytes| bytes.copy_from_slice(frame));
        Ok(())
    }

    /// The next frame of which `wanted` makes something, or nothing within `limit`.
    pub fn wait_for<T>(&mut self, limit: Duration, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            match self.0.receive(Time::ZERO) {
                Some((token, _)) => {
                    if let Some(found) = token.consume(&mut wanted) {
                        return Some(found);
                    }
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }
}
