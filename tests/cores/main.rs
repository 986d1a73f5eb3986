//! Several cores at one port: each with a stack, an arena and a log of its own.

mod echo;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dpdk::{Eal, QueueLimit, UnaskedSpread};
use lab::wire::{self, SERVER_V4, SERVER_V6};
use lab::{isolated, noise, run};
use stack::transport::dpdk::{DpdkConfig, DpdkError, PortShare};

use echo::{Echo, Outcome, Role};

const CONNECTIONS: usize = 24;
const BYTES: usize = 200_000;

fn eal() -> Result<Eal> {
    Ok(Eal::init(["--no-huge", "--no-shconf", "-m", "256", "--no-pci"])?)
}

/// Many connections at once: each sends bytes of its own and reads them back.
fn talk(server: IpAddr, connections: usize) -> Result<()> {
    let address = SocketAddr::new(server, echo::PORT);
    std::thread::scope(|scope| {
        let talks: Vec<_> =
            (0..connections).map(|number| scope.spawn(move || one_talk(address, number as u64))).collect();
        talks.into_iter().try_for_each(|talk| talk.join().expect("a talk does not panic"))
    })
}

fn one_talk(address: SocketAddr, number: u64) -> Result<()> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(20))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let bytes = noise(number, BYTES);
    let mut heard = Vec::new();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            (&stream).write_all(&bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        (&stream).read_to_end(&mut heard).context("the echo ended early")?;
        sender.join().expect("the sender does not panic").context("the server stopped reading")
    })?;
    ensure!(heard == bytes, "connection {number}: {} bytes came back, and not all are right", heard.len());
    Ok(())
}

/// All came to some core and into its own log, and no core was left out.
fn check(outcomes: &[Outcome], connections: usize) -> Result<()> {
    let opened: Vec<u64> = outcomes.iter().map(|outcome| outcome.opened).collect();
    ensure!(opened.iter().sum::<u64>() == connections as u64, "connections: {opened:?}");
    ensure!(opened.iter().all(|&count| count > 0), "a core was left out: {opened:?}");
    let logged: u64 = outcomes.iter().map(|outcome| outcome.logged_bytes).sum();
    ensure!(logged == (connections * BYTES) as u64, "{logged} bytes are in the logs");
    let lost: u64 = outcomes.iter().map(|outcome| outcome.port.crossing_lost).sum();
    ensure!(lost == 0, "{lost} frames were lost between cores");
    Ok(())
}

fn both_versions(server: &Echo) -> Result<()> {
    for address in [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)] {
        run("ping", ["-c", "2", "-i", "0.2", "-w", "20", &address.to_string()])?;
        talk(address, CONNECTIONS / 2)?;
    }
    ensure!(server.is_running(), "a core has stopped");
    Ok(())
}

#[test]
fn the_kernels_fanout_feeds_two_queues() {
    isolated(|lab| {
        wire::veth()?;
        let server = Echo::start(eal()?, lab, "net_af_packet0,iface=veth1,qpairs=2", 2, Role::Server)?;
        let plan = server.plan();
        ensure!(plan.queues.get() == 2 && plan.unasked == Some(UnaskedSpread::AllQueues), "{plan:?}");
        both_versions(&server)?;
        let outcomes = server.stop()?;
        check(&outcomes, CONNECTIONS)?;
        for Outcome { port, .. } in &outcomes {
            ensure!(port.received > 0 && port.sent > 0, "a queue was left out: {port:?}");
        }
        Ok(())
    });
}

#[test]
fn a_tap_interface_has_a_queue_for_each_core() {
    isolated(|lab| {
        let server = Echo::start(eal()?, lab, wire::TAP_DEVICE, 2, Role::Server)?;
        let plan = server.plan();
        ensure!(plan.queues.get() == 2 && plan.unasked == Some(UnaskedSpread::QueuesInUse), "{plan:?}");
        wire::tap()?;
        both_versions(&server)?;
        check(&server.stop()?, CONNECTIONS)
    });
}

#[test]
fn cores_that_sleep_are_woken_by_frames_and_by_each_other() {
    isolated(|lab| {
        let server = Echo::start(eal()?, lab, wire::TAP_DEVICE, 2, Role::SleepingServer)?;
        wire::tap()?;
        both_versions(&server)?;
        // Whatever the interface still says by itself, the cores are asleep by now, and then these come.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(20));
            run("ping", ["-c", "1", "-w", "20", &SERVER_V4.to_string()])?;
        }
        check(&server.stop()?, CONNECTIONS)
    });
}

#[test]
fn one_queue_is_dealt_out_to_two_cores() {
    isolated(|lab| {
        wire::veth()?;
        let server = Echo::start(eal()?, lab, wire::VETH_DEVICE, 2, Role::Server)?;
        let plan = server.plan();
        ensure!(plan.queues.get() == 1 && plan.limit == QueueLimit::RxQueues, "{plan:?}");
        both_versions(&server)?;
        let outcomes = server.stop()?;
        check(&outcomes, CONNECTIONS)?;
        let [first, second] = &outcomes[..] else { anyhow::bail!("two cores were started") };
        ensure!(first.port.crossed_bytes == 0, "{:?}", first.port);
        ensure!(second.port.received == 0 && second.port.sent == 0, "{:?}", second.port);
        // Each byte of its connections was copied into its arena, once. What came twice may not have been.
        let copied = second.port.crossed_bytes + second.packed_bytes;
        ensure!(copied >= second.logged_bytes, "{copied} of {} bytes", second.logged_bytes);
        Ok(())
    });
}

#[test]
fn two_queues_are_dealt_out_to_three_cores() {
    isolated(|lab| {
        wire::veth()?;
        let server = Echo::start(eal()?, lab, "net_af_packet0,iface=veth1,qpairs=2", 3, Role::Server)?;
        ensure!(server.plan().queues.get() == 2, "{:?}", server.plan());
        both_versions(&server)?;
        check(&server.stop()?, CONNECTIONS)
    });
}

#[test]
fn two_cores_talk_to_two_cores_over_memif() {
    isolated(|lab| {
        let eal = eal()?;
        let socket = lab.path("memif.sock");
        let device = |number, role| {
            format!("net_memif{number},role={role},id=0,socket={},socket-abstract=no", socket.display())
        };
        let server = Echo::start(eal, lab, &device(0, "server"), 2, Role::Server)?;
        ensure!(server.plan().unasked == Some(UnaskedSpread::Sender), "{:?}", server.plan());
        let client =
            Echo::start(eal, lab, &device(1, "client"), 2, Role::Client { connections: 8, bytes: BYTES })?;
        client.wait_until_done()?;
        server.rest()?;
        client.rest()?;
        let talked = client.stop()?;
        ensure!(talked.iter().all(|core| core.heard_bytes == (8 * BYTES) as u64), "{talked:?}");
        let outcomes = server.stop()?;
        check(&outcomes, 16)?;
        ensure!(outcomes.iter().all(|core| core.opened == 8 && core.port.crossed == 0), "{outcomes:?}");
        Ok(())
    });
}

#[test]
fn no_core_starts_with_an_address_that_another_host_has() {
    isolated(|lab| {
        wire::veth()?;
        run("ip", ["address", "add", &format!("{SERVER_V4}/24"), "dev", "veth0"])?;
        let Err(refused) = Echo::start(eal()?, lab, wire::VETH_DEVICE, 2, Role::Server) else {
            anyhow::bail!("it serves {SERVER_V4}")
        };
        ensure!(refused.to_string().contains("the address 10.0.0.2 is in use by the host "), "{refused}");
        Ok(())
    });
}

#[test]
fn queues_that_nobody_would_look_at_are_refused() {
    isolated(|_| {
        wire::veth()?;
        let eal = eal()?;
        let id = eal.attach("net_af_packet0,iface=veth1,qpairs=2")?;
        let refused = PortShare::at(eal, id, NonZeroU16::MIN, DpdkConfig::default());
        let Err(error @ DpdkError::UnseenQueues { queues: 2, seen: 1, .. }) = refused else {
            anyhow::bail!("{refused:?}")
        };
        ensure!(error.to_string().contains("qpairs=1"), "{error}");
        Ok(())
    });
}

#[test]
fn a_core_that_does_not_come_is_not_waited_for() {
    isolated(|lab| {
        let eal = eal()?;
        let (mut shares, mut parts, config) = echo::prepare(eal, lab, "net_ring0", 2, Role::Server)?;
        let (share, part) = (shares.swap_remove(0), parts.swap_remove(0));
        let waiting = std::thread::spawn(move || {
            let shard = part.seed.open().expect("the store is sound");
            let arena = shard.arena().clone();
            share.take(config, part.reach, arena, stack::time::Instant::ZERO).map(drop)
        });
        drop(shares);
        let refused = waiting.join().expect("it does not panic");
        ensure!(matches!(refused, Err(DpdkError::Abandoned)), "{refused:?}");
        Ok(())
    });
}
