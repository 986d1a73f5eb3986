//! How the parts of a reply get to the network.

use pmem::{Extent, Quarantine};
use stack::net::{ConnId, Net, SendError};

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
}

impl<'a, N> Out<'a, N> {
    pub(super) fn new(net: &'a mut N, conn: ConnId) -> Self {
        Self { net, conn, sent: Sent { bytes: 0, copied_bytes: 0, damage: None } }
    }

    pub(super) fn sent(self) -> Sent {
        self.sent
    }

    pub(super) fn conn(&self) -> ConnId {
        self.conn
    }
}

impl<N: Net> Out<'_, N> {
    /// What would come next has changed under the server.
    pub(super) fn break_off(&mut self, shard: u32, damage: Quarantine) -> Progress {
        self.sent.damage = Some((shard, damage));
        Progress::Broken
    }

    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        self.net.send(self.conn, bytes)?;
        self.sent.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Part of a record that another core has copied.
    pub(super) fn copied(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        self.text(bytes)?;
        self.sent.copied_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn extent(&mut self, extent: &Extent) -> Result<(), Progress> {
        self.net.send_extent(self.conn, extent.clone())?;
        self.sent.bytes += extent.len() as u64;
        Ok(())
    }
}
