//! A transport in a process without descriptors to spare. The limit is the whole process's, so this test is alone.

use std::net::SocketAddr;
use std::time::Duration;

use pmem::{Options, Region};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stack::net::{Event, Transport};
use stack::time::Instant;
use stack::transport::kernel::{KernelConfig, KernelTransport};

/// One burst at `now`; the events it brought.
fn burst(transport: &mut KernelTransport, now: Instant) -> Vec<Event> {
    transport.receive(now).unwrap();
    let events = std::iter::from_fn(|| transport.next_event()).collect();
    transport.transmit(now).unwrap();
    events
}

#[test]
fn a_listener_without_descriptors_rests_and_accepts_later() {
    let options = Options { size: Some(8 << 20), ..Options::default() };
    let shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    let config = KernelConfig { max_connections: 4, rx_buffers: 64, ..KernelConfig::default() };
    let mut transport = KernelTransport::new(config, shard.arena().clone()).unwrap();
    let address: SocketAddr = transport.listen("127.0.0.1:0".parse().unwrap(), 8).unwrap();
    let client = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
    let mut now = Instant::ZERO;
    burst(&mut transport, now);
    connect(&client, &address).unwrap();
    while transport.counters().not_accepted == 0 {
        assert_eq!(burst(&mut transport, now), []);
    }
    // Not asked again at once, however often there is a burst.
    for _ in 0..1000 {
        assert_eq!(burst(&mut transport, now), []);
    }
    assert_eq!(transport.counters().not_accepted, 1);
    for failures in 2..=3 {
        now = transport.next_deadline().expect("the listener is asked again");
        while transport.counters().not_accepted < failures {
            assert_eq!(burst(&mut transport, now), []);
        }
    }

    setrlimit(Resource::Nofile, limit).unwrap();
    now = transport.next_deadline().expect("the listener is asked again");
    let opened = loop {
        if let Some(event) = burst(&mut transport, now).pop() {
            break event;
        }
    };
    assert!(matches!(opened, Event::Opened { .. }), "{opened:?}");
    assert_eq!(transport.next_deadline(), None);
    assert!(transport.wait(Duration::from_millis(1)).is_ok());
}
