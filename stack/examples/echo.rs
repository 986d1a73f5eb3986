//! Sends back what comes over TCP and UDP, from where it lies: nothing is kept, and nothing is copied.

use std::collections::HashMap;

use pmem::{CommitError, Durable, Extent, Shard};
use stack::net::{ConnId, Event, Net, Service};

mod common;

/// What the network had no room for yet, and whether more may come.
#[derive(Default)]
struct Talk {
    unsent: Option<Extent>,
    peer_finished: bool,
}

#[derive(Default)]
struct Echo(HashMap<ConnId, Talk>);

impl Service for Echo {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, _: &mut Shard) {
        let conn = match event {
            Event::Datagrams { port } => {
                while let Some(datagram) = net.recv_datagram(port) {
                    // It may be lost on the way, and so it may be here.
                    let _ = net.send_datagram(port, datagram.from(), b"", &[datagram.keep()]);
                }
                return;
            }
            Event::Opened { conn, .. } | Event::Readable { conn } | Event::Writable { conn } => conn,
            Event::PeerFinished { conn } => {
                self.0.entry(conn).or_default().peer_finished = true;
                conn
            }
            Event::Closed { conn, .. } => {
                self.0.remove(&conn);
                return;
            }
        };
        let talk = self.0.entry(conn).or_default();
        // What is not taken stays in the receive queue, and the peer has to wait.
        while let Some(piece) = talk.unsent.take().or_else(|| net.recv(conn).map(|slot| slot.keep())) {
            if net.send_extent(conn, piece.clone()).is_err() {
                talk.unsent = Some(piece);
                return;
            }
        }
        if talk.peer_finished {
            net.finish(conn);
        }
    }

    fn committed<N: Net>(&mut self, _: &Durable, _: &mut N, _: &mut Shard) {}

    fn commit_failed<N: Net>(&mut self, _: &CommitError, _: &mut N, _: &mut Shard) {}
}

fn main() -> common::Result {
    common::serve(Echo::default(), common::Listen { tcp: Some(common::Acknowledge::OnArrival), udp: true })
}
