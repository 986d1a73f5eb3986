//! A log: each line that a client sends is made durable where it arrived, and answered with its number.
use std::collections::HashMap;

use pmem::{AppendError, CommitError, Draft, Durable, Extent, Pending, Shard};
use stack::net::{ConnId, Event, Net, Service};
mod common;

#[derive(Default)]
struct Logger {
    lines: HashMap<ConnId, Draft>,
    pending: Vec<(ConnId, Pending)>,
    finished: Vec<ConnId>,
}
impl Logger {
    fn keep(&mut self, conn: ConnId, mut piece: Extent, shard: &mut Shard) -> Result<(), AppendError> {
        while !piece.is_empty() {
            let end = piece.bytes().iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let (line, rest) = piece.split_at(end.unwrap_or(usize::MAX));
            shard.push(self.lines.entry(conn).or_insert_with(|| shard.draft()), line)?;
            if let Some(line) = end.and_then(|_| self.lines.remove(&conn)) {
                self.pending.push((conn, shard.append(line)?));
            }
            piece = rest;
        }
        Ok(())
    }
}
impl Service for Logger {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        match event {
            Event::Readable { conn } => {
                while let Some(slot) = net.recv(conn) {
                    if self.keep(conn, slot.keep(), shard).is_err() {
                        return net.abort(conn);
                    }
                }
            }
            Event::PeerFinished { conn } if self.pending.is_empty() => net.finish(conn),
            Event::PeerFinished { conn } => self.finished.push(conn),
            Event::Closed { conn, .. } => drop(self.lines.remove(&conn)),
            _ => {}
        }
    }
    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
        for (conn, line) in self.pending.drain(..) {
            let answer = durable.confirm(line).map(|receipt| format!("{}\n", receipt.seq));
            if !answer.is_ok_and(|answer| net.send(conn, answer.as_bytes()).is_ok()) {
                net.abort(conn);
            }
        }
        self.finished.drain(..).for_each(|conn| net.finish(conn));
        shard.keep_room().expect("the log forgets its oldest lines");
    }
    fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
        panic!("{error}");
    }
}
fn main() -> common::Result {
    common::serve(Logger::default(), common::Listen { tcp: Some(common::Acknowledge::OnArrival), udp: false })
}
