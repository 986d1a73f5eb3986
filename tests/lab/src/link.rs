//! A long or a bad cable: a thread that carries frames between TAP interfaces, with rate, delay, queue and losses.
//!
//! One interface is the client's; the frames of all servers go to it through one bottleneck, and its frames to them
//! through another. The kernel cuts what it sends over a TAP interface into frames before, and puts nothing together
//! behind: what the link loses is one segment, as on a wire.

mod path;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZero;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use smoltcp::phy::{Medium, TunTapInterface};

use crate::{precede, run};
use path::{Direction, Fate};
pub use path::{Path, PathCounters};

/// The longest frame that is carried; longer ones the kernel should have cut.
const FRAME_BYTES: usize = 2048;
/// Frames that may be on their way, both ways together.
const FRAMES: usize = 32_768;
/// Frames read from an interface before the others' turn.
const BURST: usize = 64;
/// While frames are on their way, how long new ones may wait to be read.
const LOOK_NS: u64 = 50_000;
/// How often a link at rest looks whether it shall end.
const REST_NS: u64 = 50_000_000;

/// From the client, and to it.
const UP: usize = 0;
const DOWN: usize = 1;

/// A running link. It ends, and its interfaces go, when it is dropped.
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    has_change: AtomicBool,
    /// What both directions shall be from now on, and the seed of their chance.
    change: Mutex<Option<(Path, u64)>>,
    counters: Mutex<[PathCounters; 2]>,
    /// The level at which the thread is to [`precede`] others; 0 for none.
    level: AtomicU8,
}

impl Link {
    /// Makes the TAP interface `client` and one for each of `servers`, and carries frames between them. The interfaces
    /// are in this network namespace at first, down and without addresses.
    ///
    /// # Errors
    /// The kernel makes no such interfaces.
    pub fn new(client: &str, servers: &[&str], path: Path, seed: u64) -> Result<Self> {
        let taps: Vec<_> =
            std::iter::once(&client).chain(servers).map(|&name| tap(name)).collect::<Result<_>>()?;
        let shared = Arc::new(Shared::default());
        let mut carrier = Carrier {
            taps,
            started: Instant::now(),
            directions: [Direction::new(path, seed), Direction::new(path, !seed)],
            frames: vec![0; FRAMES * FRAME_BYTES],
            free: (0..FRAMES as u32).rev().collect(),
            on_their_way: BinaryHeap::with_capacity(FRAMES),
            order: 0,
            heard: Vec::with_capacity(servers.len()),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new().name("link".to_owned()).spawn(move || carrier.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Both directions are so from now on, with chance from `seed`. Returns when that is so; frames on their way stay
    /// what they were.
    ///
    /// # Errors
    /// The link has failed; the message says why.
    pub fn change(&mut self, path: Path, seed: u64) -> Result<()> {
        *self.shared.change.lock().unwrap_or_else(PoisonError::into_inner) = Some((path, seed));
        self.shared.has_change.store(true, Ordering::Release);
        while self.shared.has_change.load(Ordering::Acquire) {
            self.check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Has the thread that carries the frames [precede](crate::precede) all that run at a lower level: it is to be a wire,
    /// and a wire does not wait for a CPU. Returns when that is so.
    ///
    /// # Errors
    /// As [`precede`](crate::precede).
    pub fn precede(&mut self, level: u8) -> Result<()> {
        self.shared.level.store(level, Ordering::Release);
        while self.shared.level.load(Ordering::Acquire) != 0 {
            self.check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What became of the client's frames, and of those to it.
    ///
    /// # Errors
    /// The link has failed; the message says why.
    pub fn counters(&mut self) -> Result<[PathCounters; 2]> {
        self.check()?;
        Ok(*self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) else {
            ensure!(self.thread.is_some(), "the link has failed before");
            return Ok(());
        };
        match thread.join() {
            Ok(Ok(())) => bail!("the link has ended by itself"),
            Ok(Err(error)) => Err(error.context("the link has failed")),
            Err(_) => bail!("the link's thread has panicked"),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes a TAP interface, and returns where its frames are read and written.
pub(crate) fn tap(name: &str) -> Result<OwnedFd> {
    let interface = TunTapInterface::new(name, Medium::Ethernet).with_context(|| {
        format!("no TAP interface {name}: is there a /dev/net/tun, and may it be opened?")
    })?;
    // Read and written past smoltcp, which takes memory for each frame.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let tap = pidfd_getfd(this, interface.as_raw_fd(), PidfdGetfdFlags::empty())?;
    // What a sender's queue holds before the link has looked is not what the link loses.
    run("ip", ["link", "set", name, "txqueuelen", "10000"])?;
    Ok(tap)
}

struct Carrier {
    /// The client's first.
    taps: Vec<OwnedFd>,
    started: Instant,
    directions: [Direction; 2],
    /// Places for frames, of equal size.
    frames: Vec<u8>,
    free: Vec<u32>,
    on_their_way: BinaryHeap<Reverse<Travelling>>,
    order: u64,
    /// Which Ethernet address was heard from which server.
    heard: Vec<([u8; 6], usize)>,
    shared: Arc<Shared>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    arrives_ns: u64,
    /// Of frames that arrive at the same time the one sent first is first.
    order: u64,
    place: u32,
    len: u16,
    from: u8,
}

impl Carrier {
    fn run(&mut self) -> Result<()> {
        // The kernel may wake a thread later than asked by this much, 50 us without it.
        rustix::thread::set_current_timer_slack(NonZero::new(1))?;
        while !self.shared.ends.load(Ordering::Relaxed) {
            self.take_change();
            self.take_level()?;
            let mut read = 0;
            for from in 0..self.taps.len() {
                read += self.read(from)?;
            }
            self.deliver()?;
            if read == 0 {
                *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) =
                    self.directions.each_ref().map(Direction::counters);
                self.rest()?;
            }
        }
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn take_change(&mut self) {
        if !self.shared.has_change.load(Ordering::Acquire) {
            return;
        }
        if let Some((path, seed)) = self.shared.change.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.directions[UP].change(path, seed);
            self.directions[DOWN].change(path, !seed);
        }
        self.shared.has_change.store(false, Ordering::Release);
    }

    fn take_level(&self) -> Result<()> {
        let level = self.shared.level.load(Ordering::Acquire);
        if level > 0 {
            precede(level)?;
            self.shared.level.store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Reads what a host has sent.
    fn read(&mut self, from: usize) -> Result<usize> {
        let mut read = 0;
        while read < BURST
            && let Some(&place) = self.free.last()
        {
            let at = place as usize * FRAME_BYTES;
            let len = match rustix::io::read(&self.taps[from], &mut self.frames[at..at + FRAME_BYTES]) {
                Ok(len) => len,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                // The interface is down.
                Err(Errno::IO | Errno::BADFD) => break,
                Err(error) => return Err(error).context("cannot read from a TAP interface"),
            };
            ensure!(
                len < FRAME_BYTES,
                "a frame of {len} bytes or more came: are offloads on, or is the MTU above 2000?"
            );
            read += 1;
            if len < 14 {
                continue;
            }
            if from > 0 {
                self.hear(at, from);
            }
            let direction = &mut self.directions[if from == 0 { UP } else { DOWN }];
            let now_ns = self.started.elapsed().as_nanos() as u64;
            if let Fate::Arrives(arrives_ns) = direction.send(now_ns, len) {
                direction.mark(&mut self.frames[at..at + len]);
                self.free.pop();
                self.order += 1;
                let frame =
                    Travelling { arrives_ns, order: self.order, place, len: len as u16, from: from as u8 };
                self.on_their_way.push(Reverse(frame));
            }
        }
        ensure!(
            !self.free.is_empty(),
            "more than {FRAMES} frames are on their way: lower the rate, delay or queue"
        );
        Ok(read)
    }

    /// Notes where a server is.
    fn hear(&mut self, at: usize, from: usize) {
        let source = self.frames[at + 6..at + 12].try_into().expect("six bytes");
        match self.heard.iter_mut().find(|(_, server)| *server == from) {
            Some((address, _)) => *address = source,
            None => self.heard.push((source, from)),
        }
    }

    /// Hands over what has arrived.
    fn deliver(&mut self) -> Result<()> {
        let now_ns = self.now_ns();
        while let Some(next) = self.on_their_way.peek_mut()
            && next.0.arrives_ns <= now_ns
        {
            let Reverse(Travelling { place, len, from, .. }) =
                std::collections::binary_heap::PeekMut::pop(next);
            let at = place as usize * FRAME_BYTES;
            let frame = &self.frames[at..at + usize::from(len)];
            if from > 0 {
                write(&self.taps[0], frame)?;
            } else {
                let known =
                    self.heard.iter().find(|(address, _)| *address == frame[..6]).map(|&(_, server)| server);
                for server in (1..self.taps.len()).filter(|&server| known.is_none_or(|known| known == server))
                {
                    write(&self.taps[server], frame)?;
                }
            }
            self.free.push(place);
        }
        Ok(())
    }

    /// Waits for the next arrival, or where nothing is on its way, for the next frame.
    fn rest(&mut self) -> Result<()> {
        let time =
            |ns: u64| Timespec { tv_sec: (ns / 1_000_000_000) as _, tv_nsec: (ns % 1_000_000_000) as _ };
        if let Some(Reverse(next)) = self.on_their_way.peek() {
            let left_ns = next.arrives_ns.saturating_sub(self.now_ns());
            // The frames that come meanwhile are read together.
            if left_ns > 0 {
                std::thread::sleep(Duration::from_nanos(left_ns.min(LOOK_NS)));
            }
            return Ok(());
        }
        let mut taps: Vec<_> = self.taps.iter().map(|tap| PollFd::new(tap, PollFlags::IN)).collect();
        match poll(&mut taps, Some(&time(REST_NS))) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for frames"),
        }
    }
}

fn write(tap: &OwnedFd, frame: &[u8]) -> Result<()> {
    match rustix::io::write(tap, frame) {
        // An interface that is down, or gone elsewhere, or has no room, loses what comes, as a card does.
        Ok(_) | Err(Errno::IO | Errno::AGAIN | Errno::NOBUFS | Errno::BADFD) => Ok(()),
        Err(error) => Err(error).context("cannot write to a TAP interface"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{isolated, noise, wire};

    /// A stream of the kernel's to itself over a link that loses frames both ways: it arrives whole, and the link lost
    /// about as many frames as it was told.
    #[test]
    fn a_stream_crosses_a_link_that_loses() {
        isolated(|lab| {
            let path = Path::clean(1_000_000_000, Duration::from_millis(4));
            let mut link = Link::new("c0", &["s0"], path, 1)?;
            let namespace = lab.path("server");
            wire::link_to_kernel("c0", "s0", &namespace)?;
            let ping = run("ping", ["-n", "-c", "3", "-i", "0.2", "-w", "10", "10.0.0.2"])?;
            let fastest: f64 = ping
                .rsplit_once(" = ")
                .and_then(|(_, times)| times.split('/').next())
                .context("no times")?
                .parse()?;
            ensure!(fastest >= 4.0, "{ping}");

            link.change(Path { loss: 0.02, ..path }, 2)?;
            let body = noise(1, 4 << 20);
            let server = wire::call_in(&namespace, || TcpListener::bind(("10.0.0.2", 80)))??;
            let before = link.counters()?;
            let received = std::thread::scope(|scope| {
                let reader = scope.spawn(|| -> Result<Vec<u8>> {
                    let mut received = Vec::new();
                    server.accept()?.0.read_to_end(&mut received)?;
                    Ok(received)
                });
                TcpStream::connect(("10.0.0.2", 80))?.write_all(&body)?;
                reader.join().expect("the reader does not panic")
            })?;
            ensure!(received == body, "what arrived differs");
            let after = link.counters()?;
            let (sent, lost) = (after[UP].sent - before[UP].sent, after[UP].lost - before[UP].lost);
            ensure!(sent >= 2_900 && (sent / 100..sent / 25).contains(&lost), "{lost} of {sent}");
            Ok(())
        });
    }
}
