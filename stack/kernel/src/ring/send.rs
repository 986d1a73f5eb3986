//! What is being sent, and stays where it is until the kernel is done with it.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use pmem::Extent;

/// Pieces of one send.
pub(crate) const MAX_PIECES: usize = 64;
/// Extents in one send from which on it is worth pinning their pages instead of copying them.
pub(crate) const ZERO_COPY_BYTES: usize = 16 * 1024;

/// A send on its way: the pieces stay where they are until the kernel is done with them.
pub(super) struct Send {
    pub(super) token: u32,
    fd: i32,
    inline: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    pieces: Vec<libc::iovec>,
    header: libc::msghdr,
    /// The first piece that is not out as a whole.
    next: usize,
    pub(super) left: usize,
    pub(super) zero_copy: bool,
    pub(super) notices: u32,
    pub(super) finished: bool,
}

/// One piece of a send, in order.
pub(crate) enum Piece<'a> {
    Bytes(&'a [u8]),
    Extent(Extent),
}

impl Send {
    /// Takes the pieces of a send; returns how many of its bytes are of extents.
    pub(super) fn fill<'a>(
        &mut self,
        token: u32,
        fd: i32,
        pieces: impl Iterator<Item = Piece<'a>>,
        may_pin: bool,
    ) -> usize {
        self.clear();
        (self.token, self.fd) = (token, fd);
        for piece in pieces.take(MAX_PIECES) {
            let (base, len) = match piece {
                // The copied bytes may move while more are gathered: their address comes last.
                Piece::Bytes(bytes) => {
                    self.inline.extend_from_slice(bytes);
                    (std::ptr::null_mut(), bytes.len())
                }
                Piece::Extent(extent) => {
                    let place = (extent.bytes().as_ptr().cast_mut().cast(), extent.len());
                    self.extents.push(extent);
                    place
                }
            };
            self.pieces.push(libc::iovec { iov_base: base, iov_len: len });
            self.left += len;
        }
        let mut copied = self.inline.as_mut_ptr();
        for piece in self.pieces.iter_mut().filter(|piece| piece.iov_base.is_null()) {
            piece.iov_base = copied.cast();
            copied = copied.wrapping_add(piece.iov_len);
        }
        let extent_bytes = self.extents.iter().map(Extent::len).sum();
        // Copied bytes do not stay as they are: the next send writes over them.
        self.zero_copy = may_pin && self.inline.is_empty() && extent_bytes >= ZERO_COPY_BYTES;
        extent_bytes
    }

    /// The entry for what is left, whose completions bring `user_data`.
    pub(super) fn entry(&mut self, user_data: u64) -> squeue::Entry {
        let pieces = &mut self.pieces[self.next..];
        self.header.msg_iov = pieces.as_mut_ptr();
        self.header.msg_iovlen = pieces.len();
        let header = &raw const self.header;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = if self.zero_copy {
            opcode::SendMsgZc::new(Fd(self.fd), header).flags(flags).build()
        } else {
            opcode::SendMsg::new(Fd(self.fd), header).flags(flags).build()
        };
        entry.user_data(user_data)
    }

    /// Notes what went out; true when nothing is left.
    pub(super) fn advance(&mut self, mut count: usize) -> bool {
        self.left -= count.min(self.left);
        while let Some(piece) = self.pieces.get_mut(self.next)
            && count > 0
        {
            let taken = count.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(taken);
            piece.iov_len -= taken;
            count -= taken;
            self.next += usize::from(piece.iov_len == 0);
        }
        self.left == 0
    }

    pub(super) fn clear(&mut self) {
        self.inline.clear();
        self.extents.clear();
        self.pieces.clear();
        (self.next, self.left, self.notices, self.finished, self.zero_copy) = (0, 0, 0, false, false);
    }
}

impl Default for Send {
    fn default() -> Self {
        // SAFETY: an all-zero msghdr is the empty one.
        let header = unsafe { std::mem::zeroed() };
        Self {
            token: 0,
            fd: -1,
            inline: Vec::new(),
            extents: Vec::new(),
            pieces: Vec::new(),
            header,
            next: 0,
            left: 0,
            zero_copy: false,
            notices: 0,
            finished: false,
        }
    }
}
