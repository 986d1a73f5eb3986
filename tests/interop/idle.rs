//! Servers that sleep until a receive interrupt, over TAP, whose driver has them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wire::{SERVER_V4, TAP_DEVICE};
use lab::{Connection, Lab, Pmlog, PmlogOptions, isolated, noise, run, wire};
use rustix::process::Signal;
use serde_json::Value;

use crate::arguments::ensure_refused;
use crate::cores::one_for_each_shard;
use crate::{Over, connect, options, two_cpus, wait_until};

/// How long a server is left alone to see what it does meanwhile.
const SILENCE: Duration = Duration::from_secs(1);

fn over_tap(lab: &Lab, mode: &str) -> Result<PmlogOptions> {
    Ok(options(lab, Over::Dpdk, "64MiB")?.device(TAP_DEVICE).option("--idle", mode))
}

fn start(options: &PmlogOptions) -> Result<Pmlog> {
    let mut server = options.spawn()?;
    wire::tap()?;
    server.wait_for_answer()?;
    Ok(server)
}

/// CPU time that an idle server takes while it is left alone.
fn cpu_time_in_silence(server: &Pmlog) -> Result<Duration> {
    let before = server.cpu_time()?;
    std::thread::sleep(SILENCE);
    Ok(server.cpu_time()? - before)
}

/// How many frames the kernel has sent to the server, and received from it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Frames {
    sent: u64,
    received: u64,
}

impl Frames {
    fn count() -> Result<Self> {
        let told: Value =
            serde_json::from_str(&run("ip", ["-json", "-statistics", "link", "show", "tap0"])?)?;
        let number = |direction: &str| {
            let number = told[0]["stats64"][direction]["packets"].as_u64();
            number.with_context(|| format!("no {direction} packets in {told}"))
        };
        Ok(Self { sent: number("tx")?, received: number("rx")? })
    }
}

#[test]
fn a_server_that_sleeps_takes_next_to_no_cpu_time_and_answers() {
    isolated(|lab| {
        let sleeper = start(&over_tap(lab, "interrupt")?)?;
        let asleep = cpu_time_in_silence(&sleeper)?;
        let mut connection = connect()?;
        for number in 0..20 {
            std::thread::sleep(Duration::from_millis(20));
            let bytes = noise(number, 1000);
            let seq = connection.append(&bytes)?.seq()?;
            ensure!(connection.get(&format!("/records/{seq}"))?.body == bytes, "record {seq} differs");
        }
        ensure!(sleeper.interrupt()?.success(), "no clean end");

        let spinner = start(&over_tap(lab, "spin")?)?;
        let awake = cpu_time_in_silence(&spinner)?;
        ensure!(asleep * 5 < awake, "asleep the server took {asleep:?} of CPU time, spinning {awake:?}");
        Ok(())
    });
}

#[test]
fn timers_run_while_a_server_sleeps() {
    isolated(|lab| {
        let _server = start(&over_tap(lab, "interrupt")?)?;
        let bytes = noise(1, 4 << 20);
        let mut connection = connect()?;
        let seq = connection.append(&bytes)?.seq()?;
        // More than this client's window takes, and it does not read.
        connection.send_get(&format!("/records/{seq}"))?;
        wait_until("the window is full", || {
            let before = Frames::count()?;
            std::thread::sleep(Duration::from_millis(50));
            Ok(Frames::count()? == before)
        })?;
        // From now on the server hears of TCP no more, and says the last again and again.
        run("ip", ["route", "add", "blackhole", &format!("{SERVER_V4}/32")])?;
        let before = Frames::count()?;
        // One may be an answer: the kernel looks once whether the neighbour is still there.
        wait_until("the server sends by itself", || Ok(Frames::count()?.received >= before.received + 2))?;
        run("ip", ["route", "del", "blackhole", &format!("{SERVER_V4}/32")])?;
        ensure!(connection.reply()?.body == bytes, "the record differs");
        Ok(())
    });
}

#[test]
fn two_cores_that_sleep_give_each_others_records() {
    isolated(|lab| {
        let options = options(lab, Over::Dpdk, "128MiB")?.device(TAP_DEVICE);
        let server = start(&options.option("--idle", "interrupt").option("--cores", &two_cpus()?))?;
        let mut connections: [Connection; 2] = one_for_each_shard()?;
        let bytes = noise(3, 500_000);
        for number in 0..4 {
            let name = connections[number % 2].append(&bytes)?.record()?;
            for connection in &mut connections {
                std::thread::sleep(Duration::from_millis(20));
                let reply = connection.get(&format!("/records/{name}"))?;
                ensure!(reply.status == 200 && reply.body == bytes, "{name}: status {}", reply.status);
            }
        }
        let asleep = cpu_time_in_silence(&server)?;
        ensure!(asleep < SILENCE / 5, "two cores that sleep took {asleep:?} in {SILENCE:?}");
        ensure!(server.interrupt()?.success(), "no clean end");
        Ok(())
    });
}

#[test]
fn a_server_that_sleeps_ends_when_it_is_told_to() {
    isolated(|lab| {
        for signal in [Signal::TERM, Signal::INT] {
            let server = start(&over_tap(lab, "interrupt")?)?;
            std::thread::sleep(SILENCE / 4);
            ensure!(server.signal(signal)?.success(), "no clean end on {signal:?}");
        }
        Ok(())
    });
}

#[test]
fn a_device_without_interrupts_is_refused() {
    isolated(|lab| {
        wire::veth()?;
        let memif =
            format!("net_memif0,role=server,socket={},socket-abstract=no", lab.path("memif").display());
        for device in [wire::VETH_DEVICE, &memif] {
            let options = options(lab, Over::Dpdk, "64MiB")?.device(device).option("--idle", "interrupt");
            let options = options.option("--mac", "02:00:00:00:00:02");
            ensure_refused(&options.refusal()?, &["no receive interrupts", "--idle nap"])?;
            ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        }
        Ok(())
    });
}
