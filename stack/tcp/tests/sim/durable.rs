//! The whole way, cut off at any point: segments arrive in a model of persistent memory, records are made of
//! them where they lie, answers leave, and the power goes. What was answered is there afterwards.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pmem::{CommitError, Draft, Durable, Extent, LineModel, Options, Pending, Region, Shard};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::iface::SocketHandle;
use stack::net::{ConnId, Event, Net, Service};
use stack::server::Server;
use stack::sim::{Clock, Host, Link, Path, Peer, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::talk::{Stream, Version, addresses, for_each_seed, ip, link, mac};

const REGION_BYTES: usize = 4 << 20;
const HEAD_BYTES: usize = 12;

/// Stores what it is sent: before each record come its number (8 bytes) and its length (4). It is answered with
/// its number and its place in the log once it is durable.
#[derive(Default)]
struct Journal {
    incoming: BTreeMap<ConnId, Incoming>,
    pending: VecDeque<(ConnId, u64, Pending)>,
}

#[derive(Default)]
struct Incoming {
    head: Vec<u8>,
    draft: Option<(u64, usize, Draft)>,
}

impl Journal {
    fn piece<N: Net>(&mut self, conn: ConnId, net: &mut N, shard: &mut Shard, mut piece: Extent) {
        let incoming = self.incoming.entry(conn).or_default();
        while !piece.is_empty() {
            let Some((number, missing, draft)) = &mut incoming.draft else {
                let len = (HEAD_BYTES - incoming.head.len()).min(piece.len());
                incoming.head.extend_from_slice(&piece.bytes()[..len]);
                let rest = piece.len() - len;
                piece = piece.slice(len, rest).expect("the rest lies in the piece");
                if incoming.head.len() == HEAD_BYTES {
                    let number = u64::from_be_bytes(incoming.head[..8].try_into().expect("8 bytes"));
                    let len = u32::from_be_bytes(incoming.head[8..].try_into().expect("4 bytes"));
                    incoming.draft = Some((number, len as usize, shard.draft()));
                    incoming.head.clear();
                }
                continue;
            };
            let len = piece.len().min(*missing);
            let rest = piece.clone().slice(len, piece.len() - len).expect("the rest lies in the piece");
            let record = piece.slice(0, len).expect("the record's part lies in the piece");
            piece = rest;
            *missing -= len;
            if shard.push(draft, record).is_err() {
                return net.abort(conn);
            }
            if *missing == 0 {
                let number = *number;
                let Some((.., draft)) = incoming.draft.take() else {
                    unreachable!("it is under construction")
                };
                match shard.append(draft) {
                    Ok(pending) => self.pending.push_back((conn, number, pending)),
                    Err(_) => return net.abort(conn),
                }
            }
        }
    }
}

impl Service for Journal {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        match event {
            Event::Readable { conn } => {
                while let Some(slot) = net.recv(conn) {
                    self.piece(conn, net, shard, slot.keep());
                }
            }
            Event::Closed { conn, .. } => {
                self.incoming.remove(&conn);
            }
            _ => {}
        }
    }

    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, _shard: &mut Shard) {
        for (conn, number, pending) in self.pending.drain(..) {
            let receipt = durable.confirm(pending).expect("the commit came after the append");
            let answer = [number.to_be_bytes(), receipt.seq.to_be_bytes()].concat();
            // A client that does not read its answers goes without.
            let _ = net.send(conn, &answer);
        }
    }

    fn commit_failed<N: Net>(&mut self, error: &CommitError, _net: &mut N, _shard: &mut Shard) {
        panic!("the model's fences do not fail: {error}");
    }
}

struct JournalHost(Server<SimTransport, Journal>);

impl Host for JournalHost {
    fn poll(&mut self, now: Instant) -> bool {
        let Ok(step) = self.0.step(now);
        !step.is_idle()
    }

    fn deadline(&mut self) -> Option<Instant> {
        use stack::net::Transport;
        self.0.transport().next_deadline()
    }
}

/// Submits records, several at a time, and notes the answers.
struct Client {
    peer: Peer,
    socket: SocketHandle,
    rng: ChaCha8Rng,
    next_number: u64,
    unsent: VecDeque<u8>,
    answers: Vec<u8>,
    /// Record number to length, of all whose sending was at least begun.
    submitted: BTreeMap<u64, usize>,
    /// Record number to place in the log.
    acknowledged: BTreeMap<u64, u64>,
}

/// Record `number`, which begins with its number.
fn record(number: u64, bytes: usize) -> Vec<u8> {
    let mut record = vec![0; bytes];
    Stream { number, bytes: bytes as u64 }.read(0, &mut record);
    record[..8].copy_from_slice(&number.to_be_bytes());
    record
}

impl Host for Client {
    fn poll(&mut self, now: Instant) -> bool {
        let mut acted = self.peer.poll(now);
        if self.unsent.is_empty() && self.submitted.len() < self.acknowledged.len() + 8 {
            let number = self.next_number;
            self.next_number += 1;
            let bytes =
                [8, 33, 700, 1_448, 6_000][self.rng.random_range(0..5)] + self.rng.random_range(0..32);
            self.submitted.insert(number, bytes);
            self.unsent.extend(number.to_be_bytes());
            self.unsent.extend((bytes as u32).to_be_bytes());
            self.unsent.extend(record(number, bytes));
            acted = true;
        }
        let socket = self.peer.socket(self.socket);
        if socket.may_send() {
            let sent = socket.send_slice(self.unsent.make_contiguous()).expect("the connection sends");
            self.unsent.drain(..sent);
            acted |= sent > 0;
        }
        while socket.can_recv() {
            let answers = &mut self.answers;
            let len = socket.recv(|bytes| {
                answers.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            acted |= len.is_ok_and(|len| len > 0);
        }
        let whole = self.answers.len() / 16 * 16;
        for answer in self.answers.drain(..whole).collect::<Vec<_>>().chunks(16) {
            let part = |at: usize| u64::from_be_bytes(answer[at..at + 8].try_into().expect("8 bytes"));
            self.acknowledged.insert(part(0), part(8));
        }
        acted | self.peer.poll(now)
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.peer.deadline()
    }
}

fn options() -> Options {
    Options { size: Some(REGION_BYTES as u64), ..Options::default() }
}

fn shard_on(model: &Arc<LineModel>) -> Shard {
    let region = Region::over(model.clone(), &options()).expect("the region is sound");
    region.into_shard().expect("the shard is sound")
}

fn host(link: &Link, path: Path, model: &Arc<LineModel>) -> JournalHost {
    let shard = shard_on(model);
    let arena = shard.arena().clone();
    let mut transport =
        SimTransport::new(link.port(path), config(1), SimConfig::default(), arena, Instant::ZERO)
            .expect("the configuration is right");
    transport
        .endpoint_mut()
        .listen((ip(Version::V4, 1), 80).into(), 16)
        .expect("the address is ours and free");
    JournalHost(Server::new(transport, Journal::default(), shard))
}

fn client(link: &Link, path: Path, n: u8, seed: u64) -> Client {
    let mut peer = Peer::new(link.port(path), mac(n), &addresses(n), Instant::ZERO);
    let socket = peer.add_socket(20_000, 20_000);
    peer.connect(socket, (ip(Version::V4, 1), 80).into(), 40_000).expect("the socket is new");
    Client {
        peer,
        socket,
        rng: ChaCha8Rng::seed_from_u64(seed ^ u64::from(n)),
        next_number: u64::from(n) << 32,
        unsent: VecDeque::new(),
        answers: vec![],
        submitted: BTreeMap::new(),
        acknowledged: BTreeMap::new(),
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_point() {
    let total = Rc::new(RefCell::new((0, 0)));
    let totals = total.clone();
    for_each_seed(60, move |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let path = Path { loss: 0.01, reordering: 0.05, duplication: 0.02, ..Path::default() };
        let (link, mut clock) = link(seed);
        let model = LineModel::new(REGION_BYTES);
        let mut server = host(&link, path, &model);
        // Nothing leaves the host once the power is gone.
        let power = model.clone();
        let seen = std::cell::Cell::new(false);
        server.0.transport().port().set_filter(move |_| {
            seen.set(seen.get() || power.has_crashed());
            !seen.get()
        });
        let mut dice = ChaCha8Rng::seed_from_u64(seed + 1_000);
        model.crash_at(model.operations() + rng.random_range(1..3_000), move || dice.next_u64());
        let (mut a, mut b) = (client(&link, path, 2, seed), client(&link, path, 3, seed));
        let end = Instant::from_secs(100);
        while !model.has_crashed() {
            let more = clock.step(&mut [&mut a, &mut b, &mut server], end);
            assert!(more || model.has_crashed(), "the power never went");
        }
        hear_the_last(&mut clock, &mut a, &mut b);
        let image = model.crashed().expect("the power went");
        drop(server);
        let recovered = check(&LineModel::from_image(image), &[&a, &b]);
        let mut totals = totals.borrow_mut();
        totals.0 += a.acknowledged.len() + b.acknowledged.len();
        totals.1 += recovered;
    });
    let (acknowledged, recovered) = *total.borrow();
    assert!(
        acknowledged > 500 || std::env::var_os("SIM_SEED").is_some(),
        "only {acknowledged} were acknowledged"
    );
    assert!(recovered >= acknowledged);
}

/// What left the host before the power went still arrives.
fn hear_the_last(clock: &mut Clock, a: &mut Client, b: &mut Client) {
    let until = clock.now() + Duration::from_secs(1);
    clock.run_until(&mut [a, b], until);
}

/// Acknowledged ⊆ recovered ⊆ submitted, byte for byte, and in order for each client; returns the number of
/// records recovered.
fn check(model: &Arc<LineModel>, clients: &[&Client]) -> usize {
    let shard = shard_on(model);
    let mut recovered = BTreeMap::new();
    let mut last = BTreeMap::new();
    for info in shard.records(shard.head_seq()) {
        let bytes = shard.record(info.seq).expect("it was just listed").to_vec();
        let number = u64::from_be_bytes(bytes[..8].try_into().expect("records begin with their number"));
        let len = clients.iter().find_map(|client| client.submitted.get(&number));
        assert_eq!(len, Some(&bytes.len()), "record {number:#x} at {} is not what was submitted", info.seq);
        assert!(bytes == record(number, bytes.len()), "record {number:#x} at {} is damaged", info.seq);
        let before = last.insert(number >> 32, number);
        assert!(before < Some(number), "record {number:#x} comes after {before:#x?}");
        recovered.insert(number, info.seq);
    }
    for (number, seq) in clients.iter().flat_map(|client| &client.acknowledged) {
        assert_eq!(recovered.get(number), Some(seq), "record {number:#x} was acknowledged");
    }
    recovered.len()
}
