//! `--pcap-out`: copies of the frames that pass, written by a thread of their own.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use crossbeam_queue::ArrayQueue;
use dpdk::Mbuf;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use crate::burst::Burst;

/// Frames that may wait for the file; what comes on top is counted, and missing in it.
const WAITING_FRAMES: usize = 8192;
/// What is kept of a frame at most, in bytes.
const SNAP_BYTES: usize = 2048;
/// How long the thread sleeps when there is nothing to write.
const NAP: Duration = Duration::from_millis(1);

/// Sees the frames that pass a core.
pub trait Tap {
    /// Looks at a burst that was received, or is about to be sent where none is received.
    fn see(&mut self, burst: &Burst);
}

/// Sees nothing.
pub struct NoTap;

impl Tap for NoTap {
    #[inline]
    fn see(&mut self, _burst: &Burst) {}
}

/// Copies frames for the file.
#[derive(Clone)]
pub struct Capture(Arc<Shared>);

struct Shared {
    waiting: ArrayQueue<Box<Frame>>,
    free: ArrayQueue<Box<Frame>>,
    missed: AtomicU64,
    is_over: AtomicBool,
}

/// A copy of a frame.
struct Frame {
    seen: Duration,
    len: usize,
    kept: usize,
    bytes: [u8; SNAP_BYTES],
}

/// The thread that writes.
pub struct CaptureFile {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<u64>>,
}

impl Tap for &Capture {
    fn see(&mut self, burst: &Burst) {
        let seen = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for packet in burst {
            match self.0.free.pop() {
                Some(mut frame) => {
                    frame.fill(packet, seen);
                    // There is room for each frame that there is.
                    drop(self.0.waiting.push(frame));
                }
                None => {
                    self.0.missed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Frame {
    fn fill(&mut self, packet: &Mbuf, seen: Duration) {
        (self.seen, self.len, self.kept) = (seen, packet.len(), 0);
        for segment in packet.segments() {
            let room = &mut self.bytes[self.kept..];
            let len = segment.len().min(room.len());
            room[..len].copy_from_slice(&segment[..len]);
            self.kept += len;
        }
    }
}

impl CaptureFile {
    /// Makes the file, in place of any that is there, and takes the memory for frames on their way to it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let header = PcapHeader {
            snaplen: SNAP_BYTES as u32,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(BufWriter::new(file), header)
            .with_context(|| format!("cannot write to {}", path.display()))?;
        let shared = Arc::new(Shared {
            waiting: ArrayQueue::new(WAITING_FRAMES),
            free: ArrayQueue::new(WAITING_FRAMES),
            missed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        for _ in 0..WAITING_FRAMES {
            let frame = Frame { seen: Duration::ZERO, len: 0, kept: 0, bytes: [0; SNAP_BYTES] };
            drop(shared.free.push(Box::new(frame)));
        }
        let path = path.to_owned();
        let thread = std::thread::Builder::new().name("pcap".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || write(&shared, writer).with_context(|| format!("cannot write to {}", path.display()))
        })?;
        Ok(Self { shared, thread })
    }

    /// A core's way to the file.
    pub fn tap(&self) -> Capture {
        Capture(Arc::clone(&self.shared))
    }

    /// Writes what waits and closes the file. Returns how many frames are in it, and how many are missing since
    /// they came faster than they could be written.
    ///
    /// # Errors
    /// The file could not be written to its end.
    pub fn close(self) -> Result<(u64, u64)> {
        self.shared.is_over.store(true, Ordering::Release);
        let written = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((written, self.shared.missed.load(Ordering::Relaxed)))
    }
}

fn write(shared: &Shared, mut writer: PcapWriter<BufWriter<File>>) -> Result<u64> {
    let mut written = 0;
    loop {
        let is_over = shared.is_over.load(Ordering::Acquire);
        while let Some(frame) = shared.waiting.pop() {
            let packet = PcapPacket::new(frame.seen, frame.len as u32, &frame.bytes[..frame.kept]);
            writer.write_packet(&packet)?;
            written += 1;
            drop(shared.free.push(frame));
        }
        if is_over {
            std::io::Write::flush(&mut writer.into_writer())?;
            return Ok(written);
        }
        std::thread::sleep(NAP);
    }
}
