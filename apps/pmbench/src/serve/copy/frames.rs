//! A DPDK port as smoltcp sees a device: a burst of received frames, one at a time, and frames to be sent.

use anyhow::Result;
use dpdk::{MbufBatch, Pool, PoolConfig, Port, PortConfig, RxQueue, TxQueue};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::serve::device::Device;

/// Mbufs that are with the device or on their way.
const MBUFS: u32 = 8192 - 1;
/// An Ethernet header and an IP packet of the usual length.
const FRAME_BYTES: usize = 14 + 1500;

/// The port, its received frames and those that wait to be sent.
pub(super) struct Frames {
    rx: RxQueue,
    received: MbufBatch,
    /// How many of them were taken.
    taken: usize,
    sender: Sender,
    _port: Port,
}

struct Sender {
    tx: TxQueue,
    pool: Pool,
    waiting: MbufBatch,
}

impl Frames {
    pub(super) fn start(device: &Device) -> Result<Self> {
        let config = PoolConfig { mbufs: MBUFS, ..PoolConfig::default() };
        let received = Pool::dram(device.eal, "received", &config)?;
        let sent = Pool::dram(device.eal, "sent", &config)?;
        let mut port = Port::start(device.id, &PortConfig::default(), &[received])?;
        let (rx, tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
        device.started(&port);
        let sender = Sender { tx, pool: sent, waiting: MbufBatch::new() };
        Ok(Self { rx, received: MbufBatch::new(), taken: 0, sender, _port: port })
    }

    /// Receives the next burst, of so many frames; the one before is done with.
    pub(super) fn burst(&mut self) -> usize {
        self.received.clear();
        self.taken = 0;
        self.rx.burst(&mut self.received)
    }

    /// The next frame, which smoltcp is to be given.
    pub(super) fn next(&self) -> Option<&[u8]> {
        self.received.iter().nth(self.taken).map(|mbuf| mbuf.bytes())
    }

    /// Whether another frame can be made: not while the device takes none.
    pub(super) fn has_room(&self) -> bool {
        self.sender.waiting.room() > 0
    }

    /// Hands to the device what waits; returns how many frames it took.
    pub(super) fn flush(&mut self) -> usize {
        self.sender.flush()
    }
}

impl Sender {
    fn flush(&mut self) -> usize {
        if self.waiting.is_empty() { 0 } else { self.tx.burst(&mut self.waiting) }
    }
}

impl phy::Device for Frames {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        if self.sender.waiting.room() == 0 {
            self.sender.flush();
        }
        let mbuf = self.received.iter().nth(self.taken)?;
        self.taken += 1;
        Some((Received(mbuf.bytes()), ToSend(&mut self.sender)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<ToSend<'_>> {
        if self.sender.waiting.room() == 0 {
            self.sender.flush();
        }
        (self.sender.waiting.room() > 0).then_some(ToSend(&mut self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

/// A received frame.
pub(super) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// The right to send a frame.
pub(super) struct ToSend<'a>(&'a mut Sender);

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Sender { pool, waiting, .. } = self.0;
        let mut mbuf = pool.alloc();
        match mbuf.as_mut().and_then(|mbuf| mbuf.append(len)) {
            Some(bytes) => {
                let result = f(bytes);
                // Without room it is lost, as on a network; TCP sends it again.
                drop(mbuf.map(|mbuf| waiting.push(mbuf)));
                result
            }
            None => f(&mut [0; FRAME_BYTES][..len]),
        }
    }
}
