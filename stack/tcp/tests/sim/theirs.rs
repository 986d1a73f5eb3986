//! A host of smoltcp's that talks.

use std::net::SocketAddr;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, State};
use stack::sim::{Host, Link, Path, Peer};
use stack::time::Instant;

use crate::talk::{Talk, Talker, addresses, mac};

pub struct Theirs {
    pub peer: Peer,
    pub conns: Vec<TheirConn>,
    pub ring_bytes: usize,
}

pub struct TheirConn {
    pub socket: SocketHandle,
    talk: Talk,
    said: u64,
    heard: u64,
    heard_end: bool,
}

impl Theirs {
    /// The host number `n`.
    pub fn new(link: &Link, path: Path, n: u8, ring_bytes: usize) -> Self {
        let peer = Peer::new(link.port(path), mac(n), &addresses(n), Instant::ZERO);
        Self { peer, conns: vec![], ring_bytes }
    }

    pub fn listen(&mut self, port: u16, talk: Talk) -> usize {
        let index = self.add(talk);
        let socket = self.conns[index].socket;
        self.peer.socket(socket).listen(port).expect("the socket is new");
        index
    }

    pub fn connect(&mut self, remote: SocketAddr, local_port: u16, talk: Talk) -> usize {
        let index = self.add(talk);
        self.peer.connect(self.conns[index].socket, remote, local_port).expect("the socket is new");
        index
    }

    fn add(&mut self, talk: Talk) -> usize {
        let socket = self.peer.add_socket(self.ring_bytes, self.ring_bytes);
        self.conns.push(TheirConn { socket, talk, said: 0, heard: 0, heard_end: false });
        self.conns.len() - 1
    }
}

impl Talker for Theirs {
    fn done(&mut self) -> bool {
        let Self { peer, conns, .. } = self;
        conns.iter().all(|conn| {
            conn.said == conn.talk.says.bytes
                && conn.heard_end
                && matches!(peer.socket(conn.socket).state(), State::Closed | State::TimeWait)
        })
    }

    fn report(&mut self) -> String {
        let Self { peer, conns, .. } = self;
        let states = conns.iter().map(|conn| (peer.socket(conn.socket).state(), conn.said, conn.heard));
        format!("{:?}", states.collect::<Vec<_>>())
    }
}

impl Host for Theirs {
    fn poll(&mut self, now: Instant) -> bool {
        let mut acted = self.peer.poll(now);
        for conn in &mut self.conns {
            acted |= conn.work(&mut self.peer);
        }
        acted | self.peer.poll(now)
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.peer.deadline()
    }
}

impl TheirConn {
    fn work(&mut self, peer: &mut Peer) -> bool {
        let Talk { says, hears } = self.talk;
        let socket = peer.socket(self.socket);
        let before = (self.said, self.heard, self.heard_end);
        loop {
            let heard = socket.recv(|bytes| {
                hears.check(self.heard, bytes);
                (bytes.len(), bytes.len())
            });
            match heard {
                Ok(0) | Err(RecvError::InvalidState) => break,
                Ok(len) => self.heard += len as u64,
                Err(RecvError::Finished) => {
                    assert_eq!(self.heard, hears.bytes, "FIN came too early or too late");
                    self.heard_end = true;
                    break;
                }
            }
        }
        if socket.may_send() {
            while self.said < says.bytes {
                let said = socket.send(|room| {
                    let len = says.read(self.said, room);
                    (len, len)
                });
                match said.expect("the connection still sends") {
                    0 => break,
                    len => self.said += len as u64,
                }
            }
            if self.said == says.bytes {
                socket.close();
            }
        }
        before != (self.said, self.heard, self.heard_end)
    }
}
