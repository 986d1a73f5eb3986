//! One kernel socket: payload that waits for the application, and what waits to be sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use pmem::Extent;
use stack_net::net::{CloseReason, ConnId, SendError, SendSpace, Slot};

use super::KernelConfig;
use super::ring::{MAX_PIECES, Piece, Ring, ZERO_COPY_BYTES};

/// Pieces below this many bytes are copied together once a connection's queue is full of such.
const SMALL_BYTES: usize = 256;
/// Pieces that wait before small ones are copied together.
const UNPACKED_PIECES: usize = 4;
/// Average length of the pieces that wait, below which small ones are copied together.
const THIN_BYTES: usize = 512;

/// A place of the connection table.
pub(super) struct Connection {
    socket: Option<OwnedFd>,
    generation: u32,
    ready: VecDeque<Extent>,
    ready_bytes: usize,
    queue: VecDeque<Queued>,
    inline: VecDeque<u8>,
    extents: usize,
    dying: Option<CloseReason>,
    /// The kernel may still complete a receive, or a send.
    pub is_receiving: bool,
    pub is_sending: bool,
    pub is_cancelled: bool,
    /// Receiving stopped until the application takes slots.
    pub is_paused: bool,
    /// It waits for buffers in the list of those that do.
    pub is_starved: bool,
    pub is_active: bool,
    /// An event tells of the slots that wait.
    pub is_told: bool,
    pub wants_room: bool,
    pub peer_finished: bool,
    pub finishing: bool,
    pub finished: bool,
}

enum Queued {
    /// So many bytes of `inline`.
    Bytes(usize),
    Extent(Extent),
}

impl Connection {
    pub(super) fn vacant(config: &KernelConfig) -> Self {
        Self {
            socket: None,
            generation: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            queue: VecDeque::new(),
            inline: VecDeque::with_capacity(config.tx_bytes),
            extents: 0,
            dying: None,
            is_receiving: false,
            is_sending: false,
            is_cancelled: false,
            is_paused: false,
            is_starved: false,
            is_active: false,
            is_told: false,
            wants_room: false,
            peer_finished: false,
            finishing: false,
            finished: false,
        }
    }

    /// Takes over a socket that receives already.
    pub(super) fn open(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.is_receiving = true;
    }

    pub(super) fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.generation }
    }

    /// Whether the application's name for it is still good.
    pub(super) fn is(&self, conn: ConnId) -> bool {
        self.generation == conn.generation && self.socket.is_some() && self.dying.is_none()
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    pub(super) fn is_dying(&self) -> bool {
        self.dying.is_some()
    }

    /// From now on only completions are waited for; the first reason is the one that counts.
    pub(super) fn die(&mut self, reason: CloseReason) {
        self.dying.get_or_insert(reason);
        self.ready.clear();
        self.ready_bytes = 0;
        self.clear_queue();
    }

    /// Closes the socket and vacates the place.
    pub(super) fn close(&mut self) -> Option<CloseReason> {
        let reason = self.dying.take()?;
        self.socket = None;
        self.generation = self.generation.wrapping_add(1);
        self.is_cancelled = false;
        self.is_paused = false;
        self.is_told = false;
        self.wants_room = false;
        self.peer_finished = false;
        self.finishing = false;
        self.finished = false;
        Some(reason)
    }

    /// Queues payload; returns how many bytes of it were copied to the piece before it.
    pub(super) fn arrived(&mut self, extent: Extent) -> u64 {
        let len = extent.len();
        self.ready_bytes += len;
        let thin = self.ready.len() >= UNPACKED_PIECES && self.ready_bytes < self.ready.len() * THIN_BYTES;
        if len < SMALL_BYTES
            && thin
            && let Some(last) = self.ready.back_mut()
            && last.extend_by_copy(extent.bytes())
        {
            return len as u64;
        }
        self.ready.push_back(extent);
        0
    }

    /// Whether the application must be told of what waits; it then counts as told.
    pub(super) fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.is_told, true)
    }

    /// Whether so many buffers or more hold payload that the application has not taken.
    pub(super) fn holds(&self, buffers: usize) -> bool {
        self.ready.len() >= buffers
    }

    pub(super) fn take(&mut self) -> Option<Slot> {
        let extent = self.ready.pop_front()?;
        self.ready_bytes -= extent.len();
        Some(Slot::new(extent))
    }

    fn sends(&self) -> bool {
        !self.finishing && self.dying.is_none()
    }

    pub(super) fn space(&self, config: &KernelConfig) -> SendSpace {
        if !self.sends() {
            return SendSpace::default();
        }
        SendSpace {
            bytes: config.tx_bytes.saturating_sub(self.inline.len()),
            extents: config.tx_extents.saturating_sub(self.extents),
        }
    }

    /// Whether a good part of the queue is empty again.
    pub(super) fn is_roomy(&self, config: &KernelConfig) -> bool {
        let SendSpace { bytes, extents } = self.space(config);
        bytes >= config.tx_bytes / 2 && extents >= config.tx_extents / 2
    }

    pub(super) fn queue_bytes(&mut self, bytes: &[u8], config: &KernelConfig) -> Result<(), SendError> {
        if !self.sends() {
            return Err(SendError::Closed);
        }
        if bytes.len() > self.space(config).bytes {
            self.wants_room = true;
            return Err(SendError::Full);
        }
        self.inline.extend(bytes);
        match self.queue.back_mut() {
            Some(Queued::Bytes(len)) => *len += bytes.len(),
            _ if bytes.is_empty() => {}
            _ => self.queue.push_back(Queued::Bytes(bytes.len())),
        }
        Ok(())
    }

    pub(super) fn queue_extent(&mut self, extent: Extent, config: &KernelConfig) -> Result<(), SendError> {
        if !self.sends() {
            return Err(SendError::Closed);
        }
        if self.extents >= config.tx_extents {
            self.wants_room = true;
            return Err(SendError::Full);
        }
        if !extent.is_empty() {
            self.extents += 1;
            self.queue.push_back(Queued::Extent(extent));
        }
        Ok(())
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what waits, as far as one send takes it.
    pub(super) fn send(&mut self, index: u32, ring: &mut Ring) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let count = self.next_send(ring.sends_without_copying());
        let mut taken = 0;
        let bytes = self.inline.make_contiguous();
        let pieces = self.queue.drain(..count).map(|queued| match queued {
            Queued::Bytes(len) => {
                taken += len;
                Piece::Bytes(&bytes[taken - len..taken])
            }
            Queued::Extent(extent) => {
                self.extents -= 1;
                Piece::Extent(extent)
            }
        });
        ring.send(socket, index, pieces)?;
        self.inline.drain(..taken);
        self.is_sending = true;
        Ok(())
    }

    /// How many pieces the next send has. Text goes out apart from long runs of extents, which stay where they lie until
    /// their peer has them: text does not.
    fn next_send(&self, in_place: bool) -> usize {
        let most = self.queue.len().min(MAX_PIECES);
        // Extents in a row, and how many pieces are before them.
        let (mut run_bytes, mut before) = (0, 0);
        for (place, queued) in self.queue.iter().take(most).enumerate().filter(|_| in_place) {
            match queued {
                Queued::Bytes(_) if before == 0 && run_bytes >= ZERO_COPY_BYTES => return place,
                Queued::Bytes(_) => (run_bytes, before) = (0, place + 1),
                Queued::Extent(extent) => run_bytes += extent.len(),
            }
            if before > 0 && run_bytes >= ZERO_COPY_BYTES {
                return before;
            }
        }
        most
    }

    fn clear_queue(&mut self) {
        self.queue.clear();
        self.inline.clear();
        self.extents = 0;
    }
}
