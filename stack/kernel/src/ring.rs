//! io_uring behind a safe interface: multishot accept and receive into provided buffers, batched sends, datagrams.
//!
//! The ring owns all memory that the kernel reads or writes: provided buffers until their completion hands them
//! out, and what is being sent until the kernel has given its last notice of it.
#![allow(unsafe_code)]

mod buffers;
mod datagrams;
mod send;
mod setup;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use pmem::Extent;

use super::KernelError;
use buffers::ProvidedBuffers;
use datagrams::{Form, Sending};
pub(super) use datagrams::{
    Outgoing as OutgoingDatagram, PAYLOAD_AT, Received as ReceivedDatagram, ask_for_destinations,
};
use send::Send;
pub(super) use send::{MAX_PIECES, Piece, ZERO_COPY_BYTES};
pub(super) use setup::probe;
use setup::{GROUP, SUBMISSIONS, features, register, uring};

/// Sends of one connection that may be pinned at a time. Pages stay pinned until the peer has acknowledged them, so
/// a slow peer's further sends are copied: it must not take the places of others.
const PINNED_SENDS: u8 = 4;

const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const CANCEL: u64 = 4 << 56;
const WAKE: u64 = 5 << 56;
const DATAGRAM: u64 = 6 << 56;
const SEND_DATAGRAM: u64 = 7 << 56;
const KIND: u64 = 0xff << 56;

/// What has happened.
#[derive(Debug)]
pub(super) enum Completion {
    /// A listener has a connection, or an error. It goes on accepting while `more`.
    Accepted { token: u32, result: io::Result<OwnedFd>, more: bool },
    /// A connection's payload, in a buffer that is no longer the ring's; none at the end of the stream. It goes
    /// on receiving while `more`.
    Received { token: u32, result: io::Result<Option<(&'static mut [u8], usize)>>, more: bool },
    /// All of a send went out, or the connection failed.
    Sent { token: u32, result: io::Result<()> },
    /// A socket's datagram; none if it did not fit a buffer. It goes on receiving while `more`.
    Datagram { token: u32, result: io::Result<Option<ReceivedDatagram>>, more: bool },
}

/// A ring and its provided buffers.
pub(super) struct Ring {
    uring: IoUring,
    buffers: ProvidedBuffers,
    /// They never move, since the kernel has their addresses.
    sends: Box<[Send]>,
    free_sends: Vec<u32>,
    /// How datagrams are received. It stays where it is: the kernel has its address.
    form: Box<Form>,
    /// None before a socket is bound. They never move.
    datagrams: Box<[Sending]>,
    free_datagrams: Vec<u32>,
    /// Sends of each connection that are pinned.
    pinned: Box<[u8]>,
    sends_zero_copy: bool,
    /// The kernel has worked since the last completion was taken, and has nothing to say that is not here.
    is_fresh: bool,
    /// What other threads end a wait by.
    event: Option<Arc<OwnedFd>>,
    pub(super) counters: Counters,
}

/// What the ring has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub zero_copy_bytes: u64,
    pub copied_bytes: u64,
    pub calls: u64,
    pub datagrams_not_sent: u64,
}

impl Ring {
    /// A ring with room for `buffers` provided buffers (a power of two) and `connections`, which are the tokens below
    /// that number. Long sends are not copied where that `may_pin`, and the kernel can do without.
    pub(super) fn new(buffers: u16, connections: usize, may_pin: bool) -> Result<Self, KernelError> {
        let uring = uring(&SUBMISSIONS)?;
        let sends_zero_copy = features(&uring)? && may_pin;
        let buffers = ProvidedBuffers::new(buffers).map_err(KernelError::Ring)?;
        register(&uring, &buffers)?;
        // Each has one send on its way, and others whose pages are still pinned.
        let sends = (usize::from(PINNED_SENDS) + 1) * connections;
        Ok(Self {
            uring,
            buffers,
            pinned: vec![0; connections].into(),
            sends: (0..sends).map(|_| Send::default()).collect(),
            free_sends: (0..sends as u32).rev().collect(),
            form: Box::new(Form::new()),
            datagrams: Box::default(),
            free_datagrams: Vec::new(),
            sends_zero_copy,
            is_fresh: false,
            event: None,
            counters: Counters::default(),
        })
    }

    /// Places without a buffer.
    pub(super) fn missing_buffers(&self) -> usize {
        self.buffers.empty.len()
    }

    /// Places with a buffer.
    pub(super) fn provided_buffers(&self) -> usize {
        usize::from(self.buffers.entries) - self.missing_buffers()
    }

    /// Gives a buffer to the kernel; gives it back if all places are taken.
    pub(super) fn provide(&mut self, buffer: &'static mut [u8]) -> Result<(), &'static mut [u8]> {
        self.buffers.provide(buffer)
    }

    /// Lets the kernel see the buffers provided since the last time.
    pub(super) fn publish(&mut self) {
        self.buffers.publish();
    }

    /// Accepts connections until it is cancelled or fails.
    pub(super) fn accept(&mut self, listener: &impl AsFd, token: u32) -> io::Result<()> {
        let fd = Fd(listener.as_fd().as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(ACCEPT | u64::from(token)))
    }

    /// Receives into provided buffers until the stream ends, buffers run out, or it is cancelled.
    pub(super) fn receive(&mut self, socket: &impl AsFd, token: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(socket.as_fd().as_raw_fd()), GROUP).build();
        self.push(entry.user_data(RECEIVE | u64::from(token)))
    }

    /// Takes memory for so many datagrams on their way out, if there is none yet.
    pub(super) fn make_places_for_datagrams(&mut self, places: usize) {
        if self.datagrams.is_empty() {
            self.datagrams = (0..places).map(|_| Sending::default()).collect();
            self.free_datagrams = (0..places as u32).rev().collect();
        }
    }

    /// Receives datagrams into provided buffers until these run out.
    pub(super) fn receive_datagrams(&mut self, socket: &impl AsFd, token: u32) -> io::Result<()> {
        let entry = opcode::RecvMsgMulti::new(Fd(socket.as_fd().as_raw_fd()), self.form.header(), GROUP);
        self.push(entry.build().user_data(DATAGRAM | u64::from(token)))
    }

    /// Sends a datagram by a socket that stays open for as long as the ring; false if too many are on their way.
    pub(super) fn send_datagram(
        &mut self,
        socket: &impl AsFd,
        outgoing: &OutgoingDatagram<'_>,
    ) -> io::Result<bool> {
        let Some(index) = self.free_datagrams.pop() else { return Ok(false) };
        let sending = &mut self.datagrams[index as usize];
        self.counters.copied_bytes += sending.fill(outgoing) as u64;
        let entry = sending.entry(socket, SEND_DATAGRAM | u64::from(index));
        self.push(entry)?;
        Ok(true)
    }

    /// Has waits end whenever `event` is written to. It stays open for as long as the ring.
    pub(super) fn wake_by(&mut self, event: Arc<OwnedFd>) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(event.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.event = Some(event);
        self.push(entry.user_data(WAKE))
    }

    /// What ends waits when it is written to, if anything does.
    pub(super) fn event(&self) -> Option<Arc<OwnedFd>> {
        self.event.clone()
    }

    /// Ends the receiving and sending of a socket; their completions still come.
    pub(super) fn cancel(&mut self, socket: &impl AsFd) -> io::Result<()> {
        let socket = CancelBuilder::fd(Fd(socket.as_fd().as_raw_fd())).all();
        self.push(opcode::AsyncCancel2::new(socket).build().user_data(CANCEL))
    }

    /// Ends the receiving of `token`; its last completion still comes.
    pub(super) fn cancel_receive(&mut self, token: u32) -> io::Result<()> {
        let receive = CancelBuilder::user_data(RECEIVE | u64::from(token));
        self.push(opcode::AsyncCancel2::new(receive).build().user_data(CANCEL))
    }

    /// Sends pieces, at most [`MAX_PIECES`], in order and completely. One at a time for each socket, whose
    /// descriptor stays open until the completion.
    pub(super) fn send<'a>(
        &mut self,
        socket: &impl AsFd,
        token: u32,
        pieces: impl Iterator<Item = Piece<'a>>,
    ) -> io::Result<()> {
        let Some(index) = self.free_sends.pop() else {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy));
        };
        let pinned = &mut self.pinned[token as usize];
        let send = &mut self.sends[index as usize];
        let may_pin = self.sends_zero_copy && *pinned < PINNED_SENDS;
        let extent_bytes = send.fill(token, socket.as_fd().as_raw_fd(), pieces, may_pin) as u64;
        if send.zero_copy {
            *pinned += 1;
            self.counters.zero_copy_bytes += extent_bytes;
        } else {
            self.counters.copied_bytes += extent_bytes;
        }
        let entry = send.entry(SEND | u64::from(index));
        self.push(entry)
    }

    /// Whether long sends of named buffers are not copied.
    pub(super) fn sends_without_copying(&self) -> bool {
        self.sends_zero_copy
    }

    /// Makes sure that what the kernel has completed can be taken. Without a call if it has just been asked.
    pub(super) fn look(&mut self) -> io::Result<()> {
        if self.is_fresh { Ok(()) } else { self.enter() }
    }

    /// Submits what was asked for, if anything was.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.uring.submission().is_empty() { Ok(()) } else { self.enter() }
    }

    /// Submits what was asked for, and waits for a completion, a signal, or the end of `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> io::Result<()> {
        if !self.uring.completion().is_empty() {
            return Ok(());
        }
        self.counters.calls += 1;
        let limit = Timespec::from(limit);
        let entered = self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit));
        self.entered(entered)
    }

    /// Submits what was asked for and lets the kernel work; never waits.
    fn enter(&mut self) -> io::Result<()> {
        self.counters.calls += 1;
        self.uring.submission().sync();
        let waiting = self.uring.submission().len() as u32;
        // SAFETY: all memory that the entries name is owned by this ring or by sockets that outlive them.
        let entered = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(waiting, 0, EnterFlags::GETEVENTS.bits(), None)
        };
        self.entered(entered)
    }

    fn entered(&mut self, entered: io::Result<usize>) -> io::Result<()> {
        if let Err(error) = entered {
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => {}
                _ => return Err(error),
            }
        }
        self.is_fresh = true;
        Ok(())
    }

    /// The next completion.
    pub(super) fn next(&mut self) -> io::Result<Option<Completion>> {
        loop {
            let Some(entry) = self.uring.completion().next() else {
                self.is_fresh = false;
                return Ok(None);
            };
            let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            let token = data as u32;
            let outcome = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            let more = cqueue::more(flags);
            match data & KIND {
                ACCEPT => {
                    // SAFETY: the kernel has just made this descriptor for us.
                    let result = outcome.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) });
                    return Ok(Some(Completion::Accepted { token, result, more }));
                }
                RECEIVE => {
                    let buffer = cqueue::buffer_select(flags).and_then(|place| self.buffers.take(place));
                    let result = match (outcome, buffer) {
                        (Ok(len), Some(buffer)) if len > 0 => Ok(Some((buffer, len))),
                        (outcome, unused) => {
                            // Its place has just become empty.
                            unused.map(|buffer| self.buffers.provide(buffer));
                            outcome.map(|_| None)
                        }
                    };
                    return Ok(Some(Completion::Received { token, result, more }));
                }
                DATAGRAM => {
                    let buffer = cqueue::buffer_select(flags).and_then(|place| self.buffers.take(place));
                    let result = match (outcome, buffer) {
                        (Ok(len), Some(buffer)) => match self.form.read(buffer, len) {
                            Ok(received) => Ok(Some(received)),
                            Err(unused) => {
                                // Its place has just become empty.
                                let _ = self.buffers.provide(unused);
                                self.buffers.publish();
                                Ok(None)
                            }
                        },
                        (outcome, unused) => {
                            unused.map(|buffer| self.buffers.provide(buffer));
                            outcome.map(|_| None)
                        }
                    };
                    return Ok(Some(Completion::Datagram { token, result, more }));
                }
                SEND_DATAGRAM => {
                    self.counters.datagrams_not_sent += u64::from(outcome.is_err());
                    self.datagrams[token as usize].clear();
                    self.free_datagrams.push(token);
                }
                SEND => {
                    if let Some(completion) = self.sent(token, outcome, flags)? {
                        return Ok(Some(completion));
                    }
                }
                WAKE if !more => {
                    if let Some(event) = self.event.take() {
                        self.wake_by(event)?;
                    }
                }
                _ => {}
            }
        }
    }

    /// One completion of a send: what went out, or the notice that its pages are no longer read.
    fn sent(&mut self, index: u32, outcome: io::Result<usize>, flags: u32) -> io::Result<Option<Completion>> {
        let send = &mut self.sends[index as usize];
        let mut completion = None;
        let mut again = None;
        if cqueue::notif(flags) {
            send.notices -= 1;
        } else {
            send.notices += u32::from(cqueue::more(flags));
            let done = outcome.map(|count| send.advance(count));
            match done {
                Ok(false) => again = Some(send.entry(SEND | u64::from(index))),
                Err(error) if send.zero_copy && cannot_pin(&error) => {
                    // Some sockets and some memory can never be pinned; the right to pin comes and goes (ulimit -l).
                    self.sends_zero_copy &= error.raw_os_error() != Some(libc::EOPNOTSUPP);
                    let copied = send.extents.iter().map(Extent::len).sum::<usize>().min(send.left) as u64;
                    self.counters.zero_copy_bytes -= copied;
                    self.counters.copied_bytes += copied;
                    self.pinned[send.token as usize] -= 1;
                    send.zero_copy = false;
                    again = Some(send.entry(SEND | u64::from(index)));
                }
                Ok(true) => {
                    send.finished = true;
                    completion = Some(Completion::Sent { token: send.token, result: Ok(()) });
                }
                Err(error) => {
                    send.finished = true;
                    completion = Some(Completion::Sent { token: send.token, result: Err(error) });
                }
            }
        }
        if send.finished && send.notices == 0 {
            if send.zero_copy {
                self.pinned[send.token as usize] -= 1;
            }
            send.clear();
            self.free_sends.push(index);
        }
        if let Some(entry) = again {
            self.push(entry)?;
        }
        Ok(completion)
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry names stays until its completion: see the module's comment.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.enter()?;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may read what is still being sent after the ring is closed.
        if self.free_sends.len() < self.sends.len() {
            std::mem::forget(std::mem::take(&mut self.sends));
        }
        if self.free_datagrams.len() < self.datagrams.len() {
            std::mem::forget(std::mem::take(&mut self.datagrams));
        }
    }
}

/// Whether the same would go out if it were copied.
fn cannot_pin(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS))
}
