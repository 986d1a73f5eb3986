//! `If-Next`: an append that names its number is done once, however often its client has to try.

mod common;

use std::sync::Arc;

use common::{Lab, body, post};
use pmem::{LineModel, Medium, Options, Region, Shard};
use pmlog::service::ServiceConfig;
use stack::net::{CloseReason, ConnId};

/// An append that is to get this number.
fn append_as(next: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /append HTTP/1.1\r\nHost: log\r\nIf-Next: {next}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn an_append_that_names_the_next_number_is_done_and_told_the_one_after_it() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let mut next = 1;
    // Of one log entry, of two, and none but the entry itself.
    for (seed, len) in [(1, 5), (2, 9000), (3, 0), (4, 1448)] {
        let sent = body(seed, len);
        let reply = lab.ask(conn, &append_as(&next.to_string(), &sent));
        assert_eq!((reply.status, reply.json()["seq"].as_u64()), (200, Some(next)), "{reply:?}");
        assert_eq!(reply.json()["length"], len);
        assert_eq!(lab.shard.record(next).map(|record| record.to_vec()), Some(sent));
        next = reply.json()["next"].as_u64().expect("a number");
        assert_eq!(next, lab.shard.next_seq());
    }
    assert!(next > 5, "a long record takes several numbers");
    // Others need no condition, and one that is not known yet gets nobody into its way.
    assert_eq!(lab.append(conn, b"plain"), next);
}

#[test]
fn another_number_is_refused_with_the_next_one_and_nothing_is_appended() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.append(conn, b"first");
    for wrong in ["1", "3", "18446744073709551615"] {
        let reply = lab.ask(conn, &append_as(wrong, &body(7, 3000)));
        assert_eq!((reply.status, reply.field("log-next")), (412, Some("2")), "{reply:?}");
        assert_eq!(reply.json()["next"], 2);
        assert!(reply.reason().contains("number 2"), "{}", reply.reason());
        assert_eq!(lab.shard.next_seq(), 2);
    }
    for malformed in ["", "x", "0", "-1", "1, 2", "0-0"] {
        let reply = lab.ask(conn, &append_as(malformed, b"lost"));
        assert_eq!(reply.status, 400, "{malformed:?}: {reply:?}");
    }
    let reply = lab.ask(conn, &append_as("1-2", b"lost"));
    assert_eq!(reply.status, 404, "there is one shard: {reply:?}");
    // The only shard may be named, and the connection is good for more.
    let reply = lab.ask(conn, &append_as("0-2", b"second"));
    assert_eq!((reply.status, reply.json()["seq"].as_u64()), (200, Some(2)), "{reply:?}");
}

#[test]
fn appends_that_are_sent_without_waiting_each_go_by_the_one_before() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let all = [1, 2, 2, 3, 9, 4].map(|next: u64| append_as(&next.to_string(), &body(next, 40))).concat();
    lab.send(conn, &all);
    let replies = lab.replies(conn);
    let said: Vec<_> = replies.iter().map(|reply| (reply.status, reply.json()["next"].as_u64())).collect();
    let next = |status, next| (status, Some(next));
    assert_eq!(said, [next(200, 2), next(200, 3), next(412, 3), next(200, 4), next(412, 4), next(200, 5)]);
    assert_eq!(lab.shard.records(0).count(), 4);
}

/// What a refusal says is that a record is there: it is not said before that is durable.
#[test]
fn a_refusal_waits_for_the_commit_of_what_it_goes_by() {
    let mut lab = Lab::roomy();
    let (first, second) = (lab.connect(), lab.connect());
    lab.send_in(first, &post(b"not durable yet"), 1448);
    lab.send_in(second, &append_as("1", b"again"), 1448);
    assert!(lab.client(second).sent.is_empty(), "it is refused by a record that is not durable");
    lab.commit();
    let reply = lab.replies(second).remove(0);
    assert_eq!((reply.status, reply.field("log-next")), (412, Some("2")));
    assert_eq!(lab.replies(first).remove(0).status, 200);
}

/// A client that writes a list of bodies, and its luck.
struct Client {
    lab: Lab,
    model: Arc<LineModel>,
    conn: ConnId,
    state: u64,
    lost: u32,
    cuts: u32,
}

impl Client {
    fn over(model: Arc<LineModel>, state: u64) -> Self {
        let mut lab = Lab::over(shard(&model), ServiceConfig::default());
        let conn = lab.connect();
        Self { lab, model, conn, state, lost: 0, cuts: 0 }
    }

    fn draw(&mut self) -> u64 {
        let state = &mut self.state;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn luck(&mut self, of: u64) -> bool {
        (self.draw() >> 20).is_multiple_of(of)
    }

    /// The connection breaks, with all that is on its way.
    fn lose_connection(&mut self) {
        self.lost += 1;
        let conn = self.conn;
        self.lab.close(conn, CloseReason::Reset);
        self.conn = self.lab.connect();
    }

    /// The server ends in the midst of whatever it does: by a power cut, or it is killed and the memory stays.
    fn lose_server(&mut self) {
        self.cuts += 1;
        let is_cut = self.luck(2);
        let mut bits = self.draw();
        let image = self.model.crash(|| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits
        });
        // The old server lets go of its memory before the next one has it.
        self.lab = Lab::over(shard(&LineModel::new(1 << 20)), ServiceConfig::default());
        if is_cut {
            self.model = LineModel::from_image(image);
        }
        self.lab = Lab::over(shard(&self.model), ServiceConfig::default());
        self.conn = self.lab.connect();
    }

    /// Sends a request until there is a reply to it.
    fn insist(&mut self, request: &[u8]) -> common::Response {
        loop {
            let conn = self.conn;
            let sent = if self.luck(8) { request.len() / 2 } else { request.len() };
            self.lab.send_in(conn, &request[..sent], 700);
            if self.luck(3) {
                self.lab.commit();
            }
            match () {
                () if self.luck(6) => self.lose_connection(),
                () if self.luck(9) => self.lose_server(),
                () if sent < request.len() => self.lose_connection(),
                () => {
                    if self.luck(2) {
                        self.lab.commit();
                    }
                    let mut replies = self.lab.replies(conn);
                    match replies.pop() {
                        Some(reply) => return reply,
                        // It does not wait for long.
                        None => self.lose_connection(),
                    }
                }
            }
        }
    }
}

fn shard(model: &Arc<LineModel>) -> Shard {
    let medium: Arc<dyn Medium> = model.clone();
    Region::over(medium, &Options::default()).expect("a store").into_shard().expect("it opens")
}

#[test]
fn clients_that_lose_replies_and_servers_that_lose_power_store_everything_once() {
    let (mut lost, mut cuts, mut refused) = (0, 0, 0);
    for seed in 1..=40_u64 {
        let mut client = Client::over(LineModel::new(1 << 20), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bodies: Vec<_> = (0..25)
            .map(|number| body(seed << 8 | number, [20, 400, 900, 7000][number as usize % 4]))
            .collect();
        let mut next = 1;
        for sent in &bodies {
            let reply = client.insist(&append_as(&next.to_string(), sent));
            let told = reply.json()["next"].as_u64().expect("the next number");
            match reply.status {
                200 => assert_eq!(reply.json()["seq"].as_u64(), Some(next), "seed {seed}"),
                // It was done before: nobody else writes.
                412 => refused += 1,
                _ => panic!("seed {seed}: {reply:?}"),
            }
            assert!(told > next, "seed {seed}: record {next} was said to be stored, and is gone");
            next = told;
        }
        client.lose_server();
        let shard = &client.lab.shard;
        let stored: Vec<_> =
            shard.records(0).map(|info| shard.record(info.seq).expect("it is listed").to_vec()).collect();
        assert!(stored == bodies, "seed {seed}: {} records of {}", stored.len(), bodies.len());
        (lost, cuts) = (lost + client.lost, cuts + client.cuts);
    }
    println!("{lost} lost connections, {cuts} lost servers, {refused} appends found done");
    assert!(lost > 100 && cuts > 50 && refused > 50);
}
