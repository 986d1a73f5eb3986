//! How the parts of a reply get to the network.

use pmem::{Extent, Quarantine};
use stack::net::{ConnId, LEAST_SEND_BYTES, Net, SendError};

use super::stream::Prepared;

/// How far sending a reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The network has all of it.
    Whole,
    /// It waits: for durability, or for the connection to become writable.
    Blocked,
    /// It can no longer be sent to its end.
    Broken,
}

impl From<SendError> for Progress {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full => Self::Blocked,
            SendError::Closed => Self::Broken,
        }
    }
}

/// One connection's way out.
pub(super) struct Out<'a, N> {
    net: &'a mut N,
    conn: ConnId,
    sent: Sent,
}

/// What went out.
pub(super) struct Sent {
    pub(super) bytes: u64,
    /// Of them, those that another core has copied.
    pub(super) copied_bytes: u64,
    /// What has ended it, and in which shard.
    pub(super) damage: Option<(u32, Quarantine)>,
    /// The end of a text that the network did not take as a whole. It has to go out before anything else.
    pub(super) rest: Option<Prepared>,
}

impl<'a, N> Out<'a, N> {
    pub(super) fn new(net: &'a mut N, conn: ConnId) -> Self {
        Self { net, conn, sent: Sent { bytes: 0, copied_bytes: 0, damage: None, rest: None } }
    }

    pub(super) fn sent(self) -> Sent {
        self.sent
    }

    pub(super) fn conn(&self) -> ConnId {
        self.conn
    }

    /// Bytes that went out so far.
    pub(super) fn bytes(&self) -> u64 {
        self.sent.bytes
    }
}

impl<N: Net> Out<'_, N> {
    /// What would come next has changed under the server.
    pub(super) fn break_off(&mut self, shard: u32, damage: Quarantine) -> Progress {
        self.sent.damage = Some((shard, damage));
        Progress::Broken
    }

    /// Sends all of a text, now or, what the network has no room for, [later](Sent::rest).
    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        if self.sent.rest.is_some() {
            return Err(Progress::Blocked);
        }
        match self.net.send(self.conn, bytes) {
            Ok(()) => self.sent.bytes += bytes.len() as u64,
            Err(SendError::Full) if bytes.len() > LEAST_SEND_BYTES => return self.piecemeal(bytes),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// While others hold most of the memory for sending, there may never be room for a long text as a whole.
    #[cold]
    fn piecemeal(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        let mut text = Prepared::new(bytes.to_vec());
        match text.send(self) {
            Err(Progress::Blocked) => self.sent.rest = Some(text),
            other => return other,
        }
        Ok(())
    }

    /// Part of a record that another core has copied.
    pub(super) fn copied(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        self.text(bytes)?;
        self.sent.copied_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn extent(&mut self, extent: &Extent) -> Result<(), Progress> {
        if self.sent.rest.is_some() {
            return Err(Progress::Blocked);
        }
        self.net.send_extent(self.conn, extent.clone())?;
        self.sent.bytes += extent.len() as u64;
        Ok(())
    }
}
