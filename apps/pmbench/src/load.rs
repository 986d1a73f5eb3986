//! `pmbench load`: appends over many connections from one core, by our own stack.
//!
//! The generator is a DPDK program like the servers it measures. Its requests lie in named buffers and are sent
//! from there, so that a request costs it less than it costs any server.

pub mod cli;
mod client;
pub(crate) mod device;
mod frames;
mod pace;
mod reply;
mod request;
mod summary;
mod wired;

use std::io::{Write, stdin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::load::cli::LoadArgs;
use crate::load::client::Client;
use crate::load::device::Device;
use crate::load::frames::Frames;
use crate::load::pace::Pace;
use crate::load::request::{read, request};
pub use crate::load::summary::{LoadEvent, Summary};

/// How long connections have to open: all of them, and each.
const HANDSHAKES: Duration = Duration::from_secs(15);
const HANDSHAKE: Duration = Duration::from_millis(1);

/// How long a server may take for the last replies: for a slow disk, one fdatasync for each connection.
const OWED: Duration = Duration::from_secs(10);
/// How long connections have to close.
const FAREWELL: Duration = Duration::from_millis(300);
/// How long a signal may go unseen by a generator that lingers.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Loads the server as `args` say, and writes the result to `out`.
///
/// # Errors
/// The device or the connections cannot be had; or there was an error among the replies, or no reply at all. The
/// result is written in the latter case too.
pub fn load(args: &LoadArgs, out: &mut impl Write) -> Result<()> {
    let stop = program::stop_signal().context("signals cannot be handled")?;
    if let Some(core) = args.core {
        program::pin(core)?;
    }
    load_over(Device::find(args)?, args, &stop, out)
}

/// Loads the server over `device`.
pub(crate) fn load_over(
    device: Device,
    args: &LoadArgs,
    stop: &AtomicBool,
    out: &mut impl Write,
) -> Result<()> {
    let send = if args.frames { send_frames } else { send_requests };
    send(device, args, stop, out)?.check()
}

fn send_requests(
    mut device: Device,
    args: &LoadArgs,
    stop: &AtomicBool,
    out: &mut impl Write,
) -> Result<Summary> {
    let request = request(args);
    let transport = device.stack(args, request.len())?;
    let request = device.in_buffers(&request)?;
    let mut client =
        Client::new(transport, request, args.connections.get() as usize, device.clock(), args.nap());
    let own = device::own_addresses(args)?;
    client.open(args.target, &own, HANDSHAKES + HANDSHAKE * args.connections.get(), stop)?;
    if let Some(records) = args.read {
        let numbers = client.append_some(records, OWED, stop)?;
        let reads = numbers.into_iter().map(|seq| device.in_buffers(&read(args, seq)));
        client.send_these(reads.collect::<Result<_>>()?);
    }
    let pace = || args.rate.map_or(Pace::Closed, |rate| Pace::open(rate.get()));
    client.run(args.warmup(), pace(), stop)?;
    client.reset();
    measuring(args, out)?;
    client.run(args.seconds(), pace(), stop)?;
    measured(args, out)?;
    client.settle(OWED, stop)?;
    let summary = client.summary();
    client.close(FAREWELL)?;
    finished(args, &summary, stop, out)?;
    Ok(summary)
}

fn send_frames(
    mut device: Device,
    args: &LoadArgs,
    stop: &AtomicBool,
    out: &mut impl Write,
) -> Result<Summary> {
    let mut frames = Frames::new(&mut device, args, request(args).len())?;
    frames.run(args.warmup(), stop);
    frames.reset();
    measuring(args, out)?;
    frames.run(args.seconds(), stop);
    let summary = frames.summary();
    measured(args, out)?;
    finished(args, &summary, stop, out)?;
    Ok(summary)
}

fn measuring(args: &LoadArgs, out: &mut impl Write) -> Result<()> {
    if args.json { LoadEvent::Measuring.write(out) } else { Ok(()) }
}

fn measured(args: &LoadArgs, out: &mut impl Write) -> Result<()> {
    if args.json { LoadEvent::Measured.write(out) } else { Ok(()) }
}

/// Reports, and lingers if it is to; the device is still open, and is not polled any more.
fn finished(args: &LoadArgs, summary: &Summary, stop: &AtomicBool, out: &mut impl Write) -> Result<()> {
    if args.json {
        LoadEvent::Finished(summary.clone()).write(out)?;
    } else {
        write!(out, "{summary}")?;
        out.flush()?;
    }
    if args.linger { wait_for_end_of_input(stop) } else { Ok(()) }
}

fn wait_for_end_of_input(stop: &AtomicBool) -> Result<()> {
    let input = stdin();
    while !stop.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if rustix::io::read(&input, &mut [0; 256])? == 0 => break,
            Ok(_) => {}
            Err(error) => return Err(error).context("standard input cannot be waited for"),
        }
    }
    Ok(())
}
