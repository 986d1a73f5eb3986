//! The other end of pmfwd's ports: memif ports of this process, which puts the very bytes on the wire.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dpdk::{Eal, MbufBatch, Pool, PoolConfig, Port, PortConfig, RxQueue, TxQueue};

const PATIENCE: Duration = Duration::from_secs(30);

/// The addresses of pmfwd's ports.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];

/// Where frames go into one of pmfwd's ports and come out of it.
pub struct Peer {
    _port: Port,
    pool: Pool,
    rx: RxQueue,
    tx: TxQueue,
}

/// The devices that pmfwd is to be given: servers, so that it can be started first.
pub fn devices(folder: &Path) -> [String; 2] {
    [0, 1].map(|port| {
        let socket = folder.join(format!("memif{port}"));
        let mac = MACS[port].map(|byte| format!("{byte:02x}")).join(":");
        format!("net_memif{port},role=server,id=0,socket-abstract=no,mac={mac},socket={}", socket.display())
    })
}

/// Connects to both of pmfwd's ports, which must be started.
pub fn connect(folder: &Path) -> Result<[Peer; 2]> {
    let eal = Eal::init(["--no-huge", "--no-shconf", "--no-pci", "-m", "128"])?;
    Ok([Peer::new(eal, folder, 0)?, Peer::new(eal, folder, 1)?])
}

impl Peer {
    fn new(eal: Eal, folder: &Path, number: usize) -> Result<Self> {
        let socket = folder.join(format!("memif{number}"));
        let device =
            format!("net_memif{number},role=client,id=0,socket-abstract=no,socket={}", socket.display());
        let id = eal.attach(&device)?;
        let pool = PoolConfig { mbufs: 4095, cache: 0, ..PoolConfig::default() };
        let pool = Pool::dram(eal, &format!("peer{number}"), &pool)?;
        let mut port = Port::start(id, &PortConfig::default(), std::slice::from_ref(&pool))?;
        let (rx, tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
        let end = Instant::now() + PATIENCE;
        while !port.link()?.up {
            ensure!(Instant::now() < end, "port {number} has no link");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut peer = Self { _port: port, pool, rx, tx };
        // A memif client offers no buffers before it has looked for frames.
        ensure!(peer.arrived().is_empty(), "frames arrived unasked");
        Ok(peer)
    }

    /// Sends frames, in order, as long as they are taken.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for frames in frames.chunks(32) {
            let mut batch = MbufBatch::new();
            for frame in frames {
                let mut packet = self.pool.alloc().context("all mbufs are out")?;
                packet.append(frame.len()).context("a frame fits a buffer")?.copy_from_slice(frame);
                ensure!(batch.push(packet).is_ok(), "a batch holds 32 packets");
            }
            while !batch.is_empty() {
                self.tx.burst(&mut batch);
                ensure!(Instant::now() < end, "pmfwd takes no frames");
            }
        }
        Ok(())
    }

    /// Whatever has arrived by now.
    pub fn arrived(&mut self) -> Vec<Vec<u8>> {
        let mut batch = MbufBatch::new();
        self.rx.burst(&mut batch);
        batch.iter().map(|packet| packet.segments().flatten().copied().collect()).collect()
    }

    /// As many frames, in the order of their arrival.
    pub fn receive(&mut self, count: usize) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        while frames.len() < count {
            frames.extend(self.arrived());
            ensure!(Instant::now() < end, "{} frames of {count} arrived", frames.len());
        }
        Ok(frames)
    }
}

/// Frames of many lengths, each unlike the others.
pub fn frames(count: usize) -> Vec<Vec<u8>> {
    let frame = |number: usize| {
        let mut bytes = b"\x02\0\0\0\0\x0a\x02\0\0\0\0\x0b\x88\xb5".to_vec();
        bytes.extend((number as u64).to_le_bytes());
        bytes.extend(lab::noise(number as u64, 38 + number * 37 % 1400));
        bytes
    };
    (0..count).map(frame).collect()
}
