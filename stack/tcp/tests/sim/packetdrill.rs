//! Scripts in packetdrill's language (`tests/packetdrill/*.pkt` in the workspace), run in virtual time.
//!
//! Each runs over IPv4 and IPv6. Numbers count from each side's SYN and timestamps from the stack's first. Unlike in
//! packetdrill, payload is checked byte for byte, a time has to be met to within [`TOLERANCE`], all that is sent has to
//! be expected, and the order of options and PSH are not compared.

mod language;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use stack::Config;
use stack::net::{CloseReason, ConnId, Event, Net, SendError};
use stack::time::Instant;

use self::language::{Call, Packet, Step, What, parse};
use crate::attacks::{quote, too_big};
use crate::script::Script;
use crate::talk::Version;
use crate::wire::{ACK, FIN, PSH, RST, SYN, Seg};

/// How far from the written time a segment may leave.
const TOLERANCE: Duration = Duration::from_millis(4);

/// How long after the last line nothing more may be sent.
const REST: Duration = Duration::from_millis(10);

/// Each byte follows from its number.
fn bytes(seq: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (seq.wrapping_add(at) % 251) as u8).collect()
}

#[derive(Clone, Copy)]
enum Socket {
    New,
    Listening,
    Connected(ConnId),
}

/// What the application has of a connection.
#[derive(Default)]
struct Stream {
    opened: bool,
    received: Vec<u8>,
    /// How much was read and written before.
    read: u32,
    written: u32,
    finished: bool,
    closed: Option<CloseReason>,
    resets_on_close: bool,
}

struct Run {
    script: Script,
    start: Instant,
    sent: VecDeque<(Instant, Seg)>,
    sockets: HashMap<i64, Socket>,
    streams: HashMap<ConnId, Stream>,
    to_accept: VecDeque<ConnId>,
    /// The stack's timestamp that a script calls 0.
    clock: Option<u32>,
}

impl Run {
    fn new(version: Version) -> Self {
        // The larger header of IPv6 takes nothing from a segment, so that a script says the same for both.
        let mtu = if version == Version::V4 { 1_500 } else { 1_520 };
        // The shift of its windows stands in the scripts.
        let config = Config { mtu, rx_window_bytes: 256 * 1024, ..crate::ours::config(1) };
        let script = Script::with_config(version, config);
        let start = script.now();
        Self {
            start,
            script,
            sent: VecDeque::new(),
            sockets: HashMap::new(),
            streams: HashMap::new(),
            to_accept: VecDeque::new(),
            clock: None,
        }
    }

    /// Lets time pass, and notes what is sent and when.
    fn run_until(&mut self, until: Instant) {
        while let Some(sent) = self.script.next_until(until) {
            self.sent.push_back(sent);
        }
        while let Some(event) = self.script.event() {
            match event {
                Event::Opened { conn, .. } => {
                    let stream = self.streams.entry(conn).or_default();
                    if !std::mem::replace(&mut stream.opened, true)
                        && !self.sockets.values().any(|s| matches!(s, Socket::Connected(of) if *of == conn))
                    {
                        self.to_accept.push_back(conn);
                    }
                }
                Event::PeerFinished { conn } => self.stream(conn).finished = true,
                Event::Closed { conn, reason } => self.stream(conn).closed = Some(reason),
                Event::Readable { .. } | Event::Writable { .. } | Event::Datagrams { .. } => {}
            }
        }
    }

    fn stream(&mut self, conn: ConnId) -> &mut Stream {
        self.streams.entry(conn).or_default()
    }

    fn step(&mut self, at: Duration, what: &What) -> Result<(), String> {
        let at = self.start + at;
        match what {
            What::Out(packet) => return self.expect(at, packet),
            What::In(packet) => {
                self.run_until(at);
                let mut seg = packet.seg.clone();
                seg.payload = bytes(seg.seq, packet.len);
                if let (Some((_, echo)), Some(clock)) = (&mut seg.timestamps, self.clock) {
                    *echo = echo.wrapping_add(clock);
                }
                self.script.send(seg);
            }
            &What::TooBig { mtu, seq, len } => {
                self.run_until(at);
                let version = if self.script.local.at.is_ipv4() { Version::V4 } else { Version::V6 };
                // A script says what IPv4 has room for.
                let mtu = if version == Version::V4 { mtu } else { mtu + 20 };
                let quoted = quote(&self.script, seq, len);
                let message = too_big(&self.script, version, mtu, &quoted);
                self.script.inject(message);
            }
            What::Call(call) => {
                self.run_until(at);
                self.call(call)?;
                self.script.settle();
            }
        }
        self.run_until(self.script.now());
        Ok(())
    }

    /// The stack's next segment is this one, sent at about this time.
    fn expect(&mut self, at: Instant, packet: &Packet) -> Result<(), String> {
        if self.sent.is_empty() {
            self.sent.extend(self.script.next_until(at + TOLERANCE));
        }
        let (when, seen) = self.sent.pop_front().ok_or("nothing was sent")?;
        let mut expected = packet.seg.clone();
        expected.payload = bytes(expected.seq, packet.len);
        if packet.any_options {
            (expected.sack, expected.sack_permitted) = (None, None);
        } else {
            if (expected.mss, expected.scale) != (seen.mss, seen.scale) {
                return Err(format!("{} was sent, with other options", told(&seen)));
            }
            match (expected.timestamps.take(), seen.timestamps) {
                (None, None) => {}
                (Some((value, echo)), Some((seen_value, seen_echo))) => {
                    let clock = *self.clock.get_or_insert(seen_value.wrapping_sub(value));
                    let off = seen_value.wrapping_sub(clock).abs_diff(value);
                    if u128::from(off) > TOLERANCE.as_millis() || echo != seen_echo {
                        let value = seen_value.wrapping_sub(clock);
                        return Err(format!("the timestamp is {value}, and the echo {seen_echo}"));
                    }
                }
                (_, seen) => return Err(format!("the timestamps are {seen:?}")),
            }
        }
        if !expected.matches(&seen) || expected.has(PSH) && !seen.has(PSH) {
            return Err(format!("{} was sent", told(&seen)));
        }
        if when > at + TOLERANCE || when + TOLERANCE < at {
            return Err(format!("it was sent at {:.6}", (when - self.start).as_secs_f64()));
        }
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<(), String> {
        let (result, error) = match self.outcome(call)? {
            Ok(result) => (result, None),
            Err(error) => (-1, Some(error)),
        };
        if result != call.result || error != call.error.as_deref() {
            return Err(format!("the result is {result} {}", error.unwrap_or_default()));
        }
        Ok(())
    }

    /// What comes of a call: a number, or the name of an error. Fails where the call itself is not one.
    fn outcome(&mut self, call: &Call) -> Result<Result<i64, &'static str>, String> {
        let arguments: Vec<&str> = call.arguments.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<i64>().map_err(|_| format!("{text:?} is no number"));
        if call.name == "socket" {
            self.sockets.insert(call.result, Socket::New);
            return Ok(Ok(call.result));
        }
        let fd = number(arguments[0])?;
        let socket = *self.sockets.get(&fd).ok_or_else(|| format!("{fd} is no socket"))?;
        Ok(match (call.name.as_str(), socket, &arguments[1..]) {
            ("bind", Socket::New, [..]) => Ok(0),
            ("listen", Socket::New, [_]) => {
                self.script.listen();
                self.sockets.insert(fd, Socket::Listening);
                Ok(0)
            }
            ("accept", Socket::Listening, [..]) => match self.to_accept.pop_front() {
                Some(conn) => {
                    self.sockets.insert(call.result, Socket::Connected(conn));
                    Ok(call.result)
                }
                None => Err("EAGAIN"),
            },
            ("connect", Socket::New, [..]) => {
                let conn = self.script.connect();
                self.sockets.insert(fd, Socket::Connected(conn));
                Err("EINPROGRESS")
            }
            ("write", Socket::Connected(conn), [_, len]) => self.write(conn, number(len)? as usize),
            ("read", Socket::Connected(conn), [_, len]) => self.read(conn, number(len)? as usize)?,
            ("shutdown", Socket::Connected(conn), ["SHUT_WR"]) => {
                self.script.stack.finish(conn);
                Ok(0)
            }
            (
                "setsockopt",
                Socket::Connected(conn),
                ["SOL_SOCKET", "SO_LINGER", "{onoff=1", "linger=0}", "8"],
            ) => {
                self.stream(conn).resets_on_close = true;
                Ok(0)
            }
            ("close", Socket::Connected(conn), []) => {
                self.sockets.remove(&fd);
                if self.stream(conn).resets_on_close {
                    self.script.stack.abort(conn);
                } else {
                    self.script.stack.finish(conn);
                }
                Ok(0)
            }
            (name, ..) => return Err(format!("{name} with these arguments is no call of this runner")),
        })
    }

    fn write(&mut self, conn: ConnId, len: usize) -> Result<i64, &'static str> {
        let stream = self.streams.entry(conn).or_default();
        match self.script.stack.send(conn, &bytes(1 + stream.written, len)) {
            Ok(()) => {
                stream.written += len as u32;
                Ok(len as i64)
            }
            Err(SendError::Full) => Err("EAGAIN"),
            Err(SendError::Closed) => Err(match stream.closed {
                Some(CloseReason::Reset) => "ECONNRESET",
                _ => "EPIPE",
            }),
        }
    }

    fn read(&mut self, conn: ConnId, len: usize) -> Result<Result<i64, &'static str>, String> {
        let stream = self.streams.entry(conn).or_default();
        while stream.received.len() < len
            && let Some(slot) = self.script.stack.recv(conn)
        {
            stream.received.extend_from_slice(slot.bytes());
        }
        let read: Vec<u8> = stream.received.drain(..len.min(stream.received.len())).collect();
        if read != bytes(1 + stream.read, read.len()) {
            return Err("other bytes were read than were sent".into());
        }
        stream.read += read.len() as u32;
        Ok(match (read.len(), stream.closed) {
            (0, Some(CloseReason::Reset)) => Err("ECONNRESET"),
            (0, Some(CloseReason::Refused)) => Err("ECONNREFUSED"),
            (0, Some(CloseReason::TimedOut)) => Err("ETIMEDOUT"),
            (0, None) if !stream.finished => Err("EAGAIN"),
            (read, _) => Ok(read as i64),
        })
    }
}

/// A segment in the words of a script, as far as that is needed to tell it from another.
fn told(seg: &Seg) -> String {
    let flags: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, '.')]
        .iter()
        .filter(|(flag, _)| seg.has(*flag))
        .map(|(_, name)| *name)
        .collect();
    let len = seg.payload.len();
    let mut told = format!(
        "> {flags} {}:{}({len}) ack {} win {}",
        seg.seq,
        seg.seq.wrapping_add(len as u32),
        seg.ack,
        seg.window.unwrap_or_default()
    );
    let whole = seg.payload == bytes(seg.seq, len);
    if !whole {
        told += " with other bytes";
    }
    format!(
        "{told} <mss {:?}, wscale {:?}, sackOK {:?}, TS {:?}, sack {:?}>",
        seg.mss, seg.scale, seg.sack_permitted, seg.timestamps, seg.sack
    )
}

/// Runs a script over each version of IP that it is about.
fn play(text: &str) -> Result<(), String> {
    let program = parse(text)?;
    let over =
        |version| play_over(version, text, &program.steps).map_err(|error| format!("{version:?}, {error}"));
    program.versions.iter().copied().try_for_each(over)
}

fn play_over(version: Version, text: &str, steps: &[Step]) -> Result<(), String> {
    let mut run = Run::new(version);
    for step in steps {
        run.step(step.at, &step.what).map_err(|error| {
            let line = text.lines().nth(step.line - 1).unwrap_or_default();
            format!("line {}: {error}\n    {line}", step.line)
        })?;
    }
    run.run_until(run.script.now() + REST);
    match run.sent.pop_front() {
        Some((when, seen)) => {
            let at = (when - run.start).as_secs_f64();
            Err(format!("after the last line, at {at:.6}, {} was sent", told(&seen)))
        }
        None => Ok(()),
    }
}

#[test]
fn each_script_of_the_corpus_is_kept_to() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/packetdrill");
    let mut scripts: Vec<_> = std::fs::read_dir(&corpus)
        .expect("the corpus is in the workspace")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pkt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 20, "{} scripts are not all", scripts.len());
    let mut failed = String::new();
    for path in scripts {
        let text = std::fs::read_to_string(&path).expect("a script can be read");
        if let Err(error) = play(&text) {
            failed += &format!("\n{}: {error}", path.file_name().unwrap_or_default().display());
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

/// A script that asks for something else than what happens fails, and says where.
#[test]
fn a_script_that_is_not_kept_to_fails_at_its_line() {
    const OPEN: &str = "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n+0 listen(3, 1) = 0\n\
                        +0 < S 0:0(0) win 1000 <mss 1000>\n";
    for (rest, wrong) in [
        ("+0 > S. 0:0(0) ack 2 <...>", "V4, line 5: > "),
        ("+0 > S. 0:0(0) ack 1", "V4, line 5: > "),
        ("+.5 > S. 0:0(0) ack 1 <...>", "V4, line 5: it was sent at 0.0"),
        ("+0 > S. 0:0(0) ack 1 <...>\n+.1 > . 1:1(0) ack 1", "V4, line 6: nothing was sent"),
        ("+.1 accept(3, ..., ...) = 4", "V4, line 5: the result is -1 EAGAIN"),
        ("", "V4, after the last line"),
    ] {
        let error = play(&format!("--ip_version=ipv4\n{OPEN}{rest}")).expect_err(rest);
        assert!(error.starts_with(wrong), "{rest}: {error}");
    }
}
