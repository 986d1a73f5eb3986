//! A log for senders that wait for no reply, such as `nc`: TCP's own acknowledgement waits until what it is of is durable,
//! so that what a sender's socket no longer queues (`ss -t`, Send-Q) is in the store. A record is what came on a connection
//! in one burst, where it arrived, behind the name of its peer.
use std::collections::HashMap;
use std::net::SocketAddr;

use pmem::{AppendError, CommitError, Durable, Extent, Pending, Shard};
use stack::net::{ConnId, Event, Net, Service};
mod common;

#[derive(Default)]
struct RawLog {
    peers: HashMap<ConnId, Extent>,
    pending: Vec<(ConnId, usize, Pending)>,
}
impl RawLog {
    fn meet(&mut self, conn: ConnId, peer: SocketAddr, shard: &Shard) -> Option<()> {
        let (name, mut buffer) = (format!("{peer} "), shard.arena().take()?);
        let is_named = buffer.arrive(0, name.as_bytes());
        let name = buffer.into_extent(0, name.len() as u16).filter(|_| is_named)?;
        self.peers.insert(conn, name);
        Some(())
    }
    /// Whatever comes has to become durable: it is not acknowledged, and comes again and again, until it is.
    fn keep<N: Net>(&mut self, conn: ConnId, net: &mut N, shard: &mut Shard) -> Result<(), AppendError> {
        let Some(peer) = self.peers.get(&conn) else { return Ok(()) };
        let (mut record, mut bytes) = (shard.draft(), 0);
        shard.push(&mut record, peer.clone())?;
        while let Some(slot) = net.recv(conn) {
            bytes += slot.bytes().len();
            shard.push(&mut record, slot.keep())?;
        }
        self.pending.push((conn, bytes, shard.append(record)?));
        Ok(())
    }
}
impl Service for RawLog {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        match event {
            Event::Opened { conn, peer } if self.meet(conn, peer, shard).is_none() => net.abort(conn),
            Event::Readable { conn } if self.keep(conn, net, shard).is_err() => net.abort(conn),
            // Told when all before it is durable.
            Event::PeerFinished { conn } => net.finish(conn),
            Event::Closed { conn, .. } => drop(self.peers.remove(&conn)),
            _ => {}
        }
    }
    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
        for (conn, bytes, record) in self.pending.drain(..) {
            if durable.confirm(record).is_ok() {
                net.acknowledge(conn, bytes, durable);
            }
        }
        shard.keep_room().expect("the log forgets its oldest records");
    }
    fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
        panic!("{error}");
    }
}
fn main() -> common::Result {
    common::serve(
        RawLog::default(),
        common::Listen { tcp: Some(common::Acknowledge::WhenDurable), udp: false },
    )
}
