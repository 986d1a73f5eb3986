//! The second client: wrk over the kernel's own TCP, to see whether it finds the modes in the same order.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::run;

use super::measure::{Moment, Server, ServerAddress, Started, Window};
use super::testbed::{PORT, PREFIX, Pair, Testbed};
use crate::child::Child;
use crate::protocol::Mode;
use crate::results::{Confirmation, Failure, Link, Load, Results};
use crate::run::cli::RunArgs;

/// The wire of the second client, whose end lies in another network namespace.
const PAIR: Pair = Pair { server: "wrk0", client: "wrk1" };
/// The server's address on it.
const SERVER: &str = "10.0.1.1";
/// The client's.
const CLIENT: &str = "10.0.1.2";
/// How long wrk has to start and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// wrk counts whole seconds.
const SECONDS: u64 = 2;

/// What wrk does in its own network, once it is told that its end of the wire is there: $1 to $4 are the interface,
/// its address, the CPU and the server's URL; the rest is wrk's.
const SCRIPT: &str = "\
    echo ready && read -r _ && ip link set lo up && ip link set $1 arp on && ip address add $2 dev $1 && \
    ip link set $1 up && echo begins && cpu=$3 && shift 3 && exec taskset --cpu-list $cpu wrk \"$@\"";

/// Loads each mode that was compared on veth, with a load that was among those.
pub fn confirm(args: &RunArgs, testbed: &Testbed, stop: &AtomicBool, results: &mut Results) -> Result<()> {
    let size = if args.sizes.contains(&1024) { 1024 } else { args.sizes[0] };
    let connections = if args.connections.contains(&50) { 50 } else { args.connections[0] };
    let load = Load::requests(size, connections);
    let ran = |mode: Mode| {
        let mut cells = results.cells.iter();
        cells.any(|cell| cell.link == Link::Veth && cell.mode == mode && cell.skipped.is_none())
    };
    // What only sends frames back does not speak HTTP.
    let modes: Vec<Mode> =
        args.modes.iter().copied().filter(|&mode| mode != Mode::Limit && ran(mode)).collect();
    for mode in modes {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted; nothing was written");
        match confirm_mode(args, testbed, mode, load) {
            Ok(confirmation) => results.run.confirmation.push(confirmation),
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("FAILED  wrk with {mode} {load}: {why}");
                let during = "wrk".to_owned();
                results.run.failures.push(Failure { link: Link::Veth, mode, load, during, why });
            }
        }
    }
    Ok(())
}

fn confirm_mode(args: &RunArgs, testbed: &Testbed, mode: Mode, load: Load) -> Result<Confirmation> {
    // The wire of the mode before went with its client's namespace, which the kernel clears away in its own time.
    let is_there = || run("ip", ["link", "show", PAIR.server]).is_ok();
    if is_there() {
        let deleted = run("ip", ["link", "delete", PAIR.server]);
        // It may have been the kernel's turn in between.
        if is_there() {
            deleted?;
        }
    }
    testbed.wire(PAIR)?;
    if mode.is_kernel() {
        testbed.give_to_kernel(PAIR.server, &format!("{SERVER}/{PREFIX}"))?;
    }
    let mut client = Child::start("wrk", &mut client(testbed, load)?, testbed.directory())?;
    ensure!(client.line(PATIENCE)? == "ready", "the second client's network is not ready");
    run("ip", ["link", "set", PAIR.client, "netns", &client.id().to_string()])?;
    let address =
        ServerAddress { ip: SERVER.to_owned(), device: format!("net_af_packet0,iface={}", PAIR.server) };
    let Started::Serving(mut server) = Server::start(testbed, args, mode, load, &address, &[])? else {
        anyhow::bail!("the mode ran before, and is skipped now");
    };
    let core = testbed.cores().server;
    client.say("go")?;
    ensure!(client.line(PATIENCE)? == "begins", "the second client has no network");
    let from = Moment::now(&mut server, core)?;
    let output = client.wait(PATIENCE)?.join("\n");
    let to = Moment::now(&mut server, core)?;
    server.stop()?;
    let window = Window::between(&from, &to);
    ensure!(window.mark.requests > 0, "wrk had no reply: {output}");
    Ok(Confirmation {
        mode,
        load,
        requests_per_s: requests_per_s(&output)?,
        server_cpu_ns_per_request: window.cpu_ns(window.mark.requests),
    })
}

fn client(testbed: &Testbed, load: Load) -> Result<Command> {
    let script = testbed.directory().join("append.lua");
    let lua = format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {})\n", load.size);
    fs::write(&script, lua).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", SCRIPT, "sh", PAIR.client, &format!("{CLIENT}/{PREFIX}")]);
    command.arg(testbed.cores().client.to_string());
    command.args(["--threads", "1", "--connections", &load.connections.to_string()]);
    command.args(["--duration", &format!("{SECONDS}s"), "--script"]).arg(script);
    command.arg(format!("http://{SERVER}:{PORT}/append"));
    Ok(command)
}

/// The rate that wrk reports, if no request failed.
fn requests_per_s(output: &str) -> Result<f64> {
    for failure in ["Non-2xx or 3xx responses", "Socket errors"] {
        let complaint = output.lines().find(|line| line.contains(failure));
        ensure!(complaint.is_none(), "wrk met errors: {}", complaint.unwrap_or_default().trim());
    }
    let rate = output.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = rate.with_context(|| format!("wrk reports no rate: {output}"))?;
    rate.trim().parse().with_context(|| format!("wrk reports the rate {rate}"))
}

#[cfg(test)]
mod tests {
    use super::requests_per_s;

    const OUTPUT: &str = "Running 1s test @ http://10.0.1.1:8080/append\n  1 threads and 50 connections\n\
                          \x20 12345 requests in 1.00s, 1.00MB read\nRequests/sec:  12345.67\nTransfer/sec: 1.0MB\n";

    #[test]
    fn the_rate_is_wrks_own() {
        assert_eq!(requests_per_s(OUTPUT).expect("a good run"), 12345.67);
        assert!(requests_per_s("").is_err());
    }

    #[test]
    fn a_rate_with_errors_is_none() {
        for error in
            ["  Non-2xx or 3xx responses: 7\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"]
        {
            let error = requests_per_s(&format!("{OUTPUT}{error}")).expect_err("errors");
            assert!(format!("{error:#}").contains("wrk met errors"), "{error:#}");
        }
    }
}
