//! A syslog server (RFC 5424 and RFC 3164, over UDP by RFC 5426): each message is a record in the buffer where it arrived.
//! Syslog acknowledges nothing, so that how many messages are durable is told on standard output.
use pmem::{CommitError, Durable, Extent, Pending, Shard};
use stack::net::{Event, Net, Service};
mod common;

#[derive(Default)]
struct Syslog {
    pending: Vec<Pending>,
    durable: u64,
    refused: u64,
}
impl Syslog {
    fn keep(&mut self, message: Extent, shard: &mut Shard) {
        let mut record = shard.draft();
        let appended = shard.push(&mut record, message).and_then(|()| shard.append(record));
        match appended {
            Ok(pending) => self.pending.push(pending),
            Err(_) => self.refused += 1,
        }
    }
}
/// Whether a message begins as each does: with a number of facility and severity, at most 191, in brackets.
fn has_priority(message: &[u8]) -> bool {
    let end = message.iter().take(5).position(|byte| *byte == b'>');
    let digits = end.and_then(|end| message.strip_prefix(b"<")?.get(..end - 1));
    let number = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse::<u8>().ok());
    number.is_some_and(|number| number <= 191)
}
impl Service for Syslog {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        let Event::Datagrams { port } = event else { return };
        while let Some(datagram) = net.recv_datagram(port) {
            match has_priority(datagram.bytes()) {
                true => self.keep(datagram.keep(), shard),
                false => self.refused += 1,
            }
        }
    }
    fn committed<N: Net>(&mut self, durable: &Durable, _: &mut N, shard: &mut Shard) {
        let confirmed = self.pending.drain(..).filter_map(|pending| durable.confirm(pending).ok());
        self.durable += confirmed.count() as u64;
        println!("{} durable, {} refused", self.durable, self.refused);
        shard.keep_room().expect("the log forgets its oldest messages");
    }
    fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
        panic!("{error}");
    }
}
fn main() -> common::Result {
    common::serve(Syslog::default(), common::Listen { tcp: None, udp: true })
}
