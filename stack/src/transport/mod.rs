//! What carries frames to and from the stack, or payload to and from the kernel's.

#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod kernel;

use pmem::Extent;

use crate::Endpoint;
use crate::net::{ConnId, Net, SendError, SendSpace, Slot};

/// A transport whose connections are those of an [`Endpoint`], and which is therefore a [`Net`].
pub trait OverEndpoint {
    /// The stack.
    fn endpoint(&self) -> &Endpoint;

    /// The stack, to listen and to connect.
    fn endpoint_mut(&mut self) -> &mut Endpoint;
}

impl<T: OverEndpoint> Net for T {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        self.endpoint_mut().recv(conn)
    }

    fn send_space(&self, conn: ConnId) -> SendSpace {
        self.endpoint().send_space(conn)
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        self.endpoint_mut().send(conn, bytes)
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        self.endpoint_mut().send_extent(conn, extent)
    }

    fn finish(&mut self, conn: ConnId) {
        self.endpoint_mut().finish(conn);
    }

    fn abort(&mut self, conn: ConnId) {
        self.endpoint_mut().abort(conn);
    }
}
