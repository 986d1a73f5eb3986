//! What is different over the kernel's TCP: its addresses, its limits, and its refusals.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::wire::{SERVER_V4, SERVER_V6};
use lab::{Connection, Pmlog, PmlogOptions, isolated, noise};
use rustix::process::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::arguments::ensure_refused;
use crate::{Over, cable, compare, connect, health_of, options, post, serve, wait_until};

const V4: IpAddr = IpAddr::V4(SERVER_V4);
const V6: IpAddr = IpAddr::V6(SERVER_V6);
/// System calls' numbers are the same on all architectures since Linux 5.0.
const IO_URING_SETUP: i64 = 425;
const IO_URING_REGISTER: i64 = 427;
/// `IORING_REGISTER_PBUF_RING` of linux/io_uring.h.
const REGISTER_PBUF_RING: u64 = 22;

/// What the server has said so far, line by line.
fn reported(server: &Pmlog) -> Vec<serde_json::Value> {
    server.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A number in the newest report of a server with `--json`.
fn total(server: &Pmlog, what: &str) -> Option<u64> {
    reported(server).iter().rev().find_map(|line| line[what].as_u64())
}

/// Makes a system call of this process and of its children fail, as a container's profile may.
fn forbid(call: i64, rules: Vec<SeccompRule>, errno: rustix::io::Errno) -> Result<()> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error().unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?)
}

#[test]
fn io_uring_that_is_forbidden() {
    isolated(|lab| {
        serve(lab, Over::Kernel, "16MiB")?.interrupt()?;
        let image = fs::read(lab.path("store.pm"))?;
        forbid(IO_URING_SETUP, Vec::new(), rustix::io::Errno::PERM)?;
        let refused = options(lab, Over::Kernel, "16MiB")?.refusal()?;
        ensure_refused(&refused, &["io_uring", "not permitted", "seccomp", "io_uring_disabled", "dpdk"])?;
        ensure!(fs::read(lab.path("store.pm"))? == image, "a store that is not served was changed");
        Ok(())
    });
}

#[test]
fn a_kernel_that_is_too_old() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        // As Linux 5.18 answers.
        let operation =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, REGISTER_PBUF_RING)?;
        forbid(IO_URING_REGISTER, vec![SeccompRule::new(vec![operation])?], rustix::io::Errno::INVAL)?;
        let refused = options(lab, Over::Kernel, "16MiB")?.refusal()?;
        ensure_refused(&refused, &["provided-buffer rings", "linux 5.19", "dpdk"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}

#[test]
fn an_address_that_cannot_be_listened_on() {
    isolated(|lab| {
        let first = serve(lab, Over::Kernel, "16MiB")?;
        let second = PmlogOptions::new(&lab.path("second.pm"))?.option("--pm-size", "16MiB");
        let second = second.kernel(&lab.path("server.net"));
        ensure_refused(&second.refusal()?, &["[::]:80", "in use"])?;
        let elsewhere = second.option("--listen", "192.0.2.1:80");
        first.interrupt()?;
        ensure_refused(&elsewhere.refusal()?, &["192.0.2.1:80", "cannot"])?;
        ensure!(!lab.path("second.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}

#[test]
fn a_store_that_is_too_small() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        ensure_refused(&options(lab, Over::Kernel, "64KiB")?.refusal()?, &["larger store"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}

#[test]
fn several_addresses_are_served() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        // IPv4 has addresses of its own here, so [::] is IPv6's alone.
        let more = options(lab, Over::Kernel, "16MiB")?;
        let more = more.option("--listen", "10.0.0.2:80").option("--listen", "0.0.0.0:81").start()?;
        for (address, port) in [(V4, 80), (V6, 80), (V4, 81)] {
            let mut connection = Connection::open(SocketAddr::new(address, port))?;
            ensure!(connection.get("/health")?.status == 200, "{address} port {port} does not serve");
        }
        let there = Connection::open(SocketAddr::new(V6, 81));
        ensure!(there.is_err(), "an address was served that was not asked for");
        more.interrupt()?;
        Ok(())
    });
}

#[test]
fn an_idle_server_sleeps() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        let server = options(lab, Over::Kernel, "16MiB")?.flag("--json").start()?;
        connect()?.append(b"busy once")?.seq()?;
        let calls = || -> Vec<u64> {
            let reports = reported(&server).into_iter().filter(|line| line["connections"] == 0);
            reports.filter_map(|line| line["kernel_calls"].as_u64()).collect()
        };
        let before = calls().len();
        wait_until("idle seconds are reported", || Ok(calls().len() >= before + 4))?;
        // It wakes up now and then; one that looked for work all the time would do so thousands of times a second.
        let idle = &calls()[before + 1..];
        ensure!(idle.windows(2).all(|pair| pair[1] - pair[0] <= 20), "calls in idle seconds: {idle:?}");
        Ok(())
    });
}

#[test]
fn memory_that_may_not_be_pinned_is_copied() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        let body = noise(1, 4 << 20);
        let sent = |server: &Pmlog, what| -> Result<u64> {
            let before = total(server, what).unwrap_or(0);
            let sent = total(server, "sent_bytes").unwrap_or(0) + (16 << 20);
            let seq = post(V4, lab, "body", &body)?;
            for _ in 0..4 {
                compare(V4, seq, &body)?;
            }
            wait_until("the reads are reported", || Ok(total(server, "sent_bytes") >= Some(sent)))?;
            Ok(total(server, what).context("not reported")? - before)
        };
        let server = options(lab, Over::Kernel, "64MiB")?.flag("--json").start()?;
        ensure!(sent(&server, "sent_in_place_bytes")? > 8 << 20, "long sends are copied");
        let pid = server.pid().to_string();
        lab::run("prlimit", ["--pid", &pid, "--memlock=0"])?;
        let copied = sent(&server, "kernel_copied_bytes")?;
        ensure!(copied >= 20 << 20, "{copied} bytes were copied: {:?}", reported(&server).last());
        Ok(())
    });
}

#[test]
fn descriptors_are_enough_for_all_clients_or_the_server_says_so() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        let hard = options(lab, Over::Kernel, "16MiB")?.under(&["prlimit", "--nofile=256:256"]);
        ensure_refused(&hard.refusal()?, &["1024 clients", "256", "--max-connections", "ulimit -hn"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        let fewer = hard.option("--max-connections", "100").start()?;
        fewer.interrupt()?;

        let soft = options(lab, Over::Kernel, "16MiB")?.under(&["prlimit", "--nofile=64:4096"]);
        let _server = soft.start()?;
        let mut connections: Vec<Connection> = (0..200).map(|_| connect()).collect::<Result<_>>()?;
        for connection in &mut connections {
            connection.append(b"one of many")?.seq()?;
        }
        Ok(())
    });
}

#[test]
fn a_full_table_refuses_and_serves_on() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        let server = options(lab, Over::Kernel, "16MiB")?.option("--max-connections", "4").start()?;
        // A client that is refused may be reset before it has asked for anything.
        let served = || -> Option<Connection> {
            let mut connection = connect().ok()?;
            connection.append(b"held").and_then(|reply| reply.seq()).ok().map(|_| connection)
        };
        let mut held = Vec::new();
        wait_until("four clients are served", || {
            // The one that found the server ready may still have a place.
            held.extend(served());
            Ok(held.len() == 4)
        })?;
        ensure!(served().is_none(), "more clients than asked for are served");
        held.pop();
        wait_until("there is a place again", || Ok(served().is_some()))?;
        drop(held);
        server.interrupt()?;
        Ok(())
    });
}

#[test]
fn reports_say_what_the_kernel_does() {
    isolated(|lab| {
        cable(lab, Over::Kernel)?;
        let server = options(lab, Over::Kernel, "16MiB")?.flag("--json").start()?;
        let start = reported(&server).into_iter().next().context("no report")?;
        ensure!(start["event"] == "start" && start["transport"] == "kernel", "{start}");
        ensure!(start["listen"][0] == "[::]:80" && start["dual_stack"] == true, "{start}");
        ensure!(start["sends_without_copying"].is_boolean(), "{start}");
        let memory = &start["memory"];
        ensure!(memory["resident_bytes"].as_u64() >= Some(1 << 20), "{start}");
        ensure!(memory["huge_page_bytes"].as_u64() <= memory["resident_bytes"].as_u64(), "{start}");
        post(V6, lab, "body", &noise(1, 100_000))?;
        ensure!(server.signal(Signal::TERM)?.success(), "no clean end");
        let text = fs::read_to_string(lab.path("store.log"))?;
        let end: serde_json::Value = serde_json::from_str(text.lines().last().context("no report")?)?;
        ensure!(end["event"] == "end" && end["appended_records"] == 1, "{end}");
        let commits = &end["commits"];
        ensure!(commits["count"] == 1 && commits["max_us"].as_u64() >= Some(1), "{end}");
        ensure!(end["altered_records"] == 0, "{end}");
        ensure!(end["kernel_copied_bytes"].as_u64() >= Some(100_000), "{end}");

        let server = options(lab, Over::Kernel, "16MiB")?.start()?;
        ensure!(health_of(&server, "records")? == 1, "{}", server.health()?);
        ensure!(server.output().contains("[::] is IPv4's as well"), "{}", server.output());
        ensure!(server.signal(Signal::INT)?.success(), "no clean end");
        Ok(())
    });
}
