//! Two endpoints on a cable. What TCP does on it is tested in `tests/sim`, over a link with faults.

use std::collections::VecDeque;
use std::time::Duration;

use pmem::Arena;
use stack_net::time::Instant;

use super::{AddressConflict, Endpoint};
use crate::config::Config;
use crate::frame::{FrameSink, SinkFull, TxFrame};
use crate::net::{ConnId, Event, Net};
use crate::testing::{Arrived, arena};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// Takes a number of frames, then is full.
struct Cable {
    frames: VecDeque<Vec<u8>>,
    room: usize,
}

impl FrameSink for Cable {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        if self.room == 0 {
            return Err(SinkFull);
        }
        self.room -= 1;
        let mut bytes = frame.head.to_vec();
        frame.payload.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        self.frames.push_back(bytes);
        Ok(())
    }
}

/// Carries frames both ways until there are none, a few at a time.
fn exchange(hosts: &mut [Endpoint; 2], arenas: &[Arena; 2], now: Instant, room: usize) {
    loop {
        let mut quiet = true;
        for from in [0, 1] {
            let mut cable = Cable { frames: VecDeque::new(), room };
            hosts[from].transmit(now, &mut cable);
            for frame in cable.frames {
                quiet = false;
                hosts[1 - from].receive(now, &mut Arrived(frame, &arenas[1 - from]));
            }
        }
        if quiet {
            return;
        }
    }
}

fn hosts(addresses: [&str; 2]) -> ([Endpoint; 2], [Arena; 2]) {
    let arenas = [arena(256), arena(256)];
    let endpoints = std::array::from_fn(|host| {
        let config = Config {
            max_connections: 8,
            ..Config::with_secret(MACS[host], vec![addresses[host].parse().unwrap()], [host as u8; 16])
        };
        Endpoint::new(config, arenas[host].clone(), Instant::ZERO).unwrap()
    });
    (endpoints, arenas)
}

fn connection(host: &mut Endpoint) -> ConnId {
    match host.next_event() {
        Some(Event::Opened { conn, .. }) => conn,
        event => panic!("{event:?}"),
    }
}

/// A sink that takes one frame at a time changes nothing but the pace.
#[test]
fn a_full_sink_loses_nothing() {
    for (client, server) in [("10.0.0.1/24", "10.0.0.2/24"), ("fd00::1/64", "fd00::2/64")] {
        for room in [1, 3, 1000] {
            let (mut hosts, arenas) = hosts([client, server]);
            let free = arenas[1].free_buffers();
            let now = Instant::from_secs(1);
            let at = std::net::SocketAddr::new(server.split('/').next().unwrap().parse().unwrap(), 80);
            hosts[1].listen(at, 4).unwrap();
            hosts[0].connect(now, at, None).unwrap();
            exchange(&mut hosts, &arenas, now, room);
            let (client, server) = (connection(&mut hosts[0]), connection(&mut hosts[1]));
            let text: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
            hosts[0].send(client, &text).unwrap();
            exchange(&mut hosts, &arenas, now, room);
            let mut got = Vec::new();
            while let Some(slot) = hosts[1].recv(server) {
                got.extend_from_slice(slot.bytes());
            }
            assert_eq!(got, text);
            assert_eq!(hosts[0].counters().retransmits, 0);
            assert_eq!(arenas[1].free_buffers(), free);
        }
    }
}

#[test]
fn an_address_that_another_host_has_is_found_out() {
    for same in ["10.0.0.7/24", "fd00::7/64"] {
        let (mut hosts, arenas) = hosts([same, same]);
        hosts[0].claim_addresses(Instant::ZERO);
        exchange(&mut hosts, &arenas, Instant::ZERO, 100);
        let ip = same.split('/').next().unwrap().parse().unwrap();
        assert_eq!(hosts[0].address_conflict(), Some(AddressConflict { ip, mac: MACS[1] }));
        assert_eq!(hosts[1].address_conflict(), None);
    }
}

#[test]
fn three_probes_and_two_announcements_are_sent_for_a_free_address() {
    let (mut hosts, arenas) = hosts(["10.0.0.1/24", "10.0.0.2/24"]);
    let mut now = Instant::ZERO;
    hosts[0].claim_addresses(now);
    while let Some(deadline) = hosts[0].next_deadline() {
        now = now.max(deadline);
        exchange(&mut hosts, &arenas, now, 100);
    }
    assert_eq!(hosts[0].counters().frames_out, 5);
    assert_eq!(now, Instant::ZERO + Duration::from_millis(2_300));
    assert_eq!(hosts[0].address_conflict(), None);
}
