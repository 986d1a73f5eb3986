//! The load generator against servers on the kernel's sockets that behave, and that do not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{isolated, output_within, run, wire};
use serde_json::Value;

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const FULL: &str = "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n";

/// Answers each connection's requests with what `reply` says of their number; it ends the connection by saying nothing.
fn serve(reply: impl Fn(usize) -> Option<&'static str> + Copy + Send + 'static) -> Result<()> {
    let listener = TcpListener::bind((wire::KERNEL_V4, 8080))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream, reply));
        }
    });
    Ok(())
}

/// Takes its time for each reply.
fn serve_late(delay: Duration) -> Result<()> {
    serve(move |_| {
        thread::sleep(delay);
        Some(GOOD)
    })
}

fn answer(stream: TcpStream, reply: impl Fn(usize) -> Option<&'static str>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    for number in 0.. {
        let mut length = Some(0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = Some(value.trim().parse().ok()?);
            }
            if line == "Transfer-Encoding: chunked\r\n" {
                length = None;
            }
            if line == "\r\n" {
                break;
            }
        }
        match length {
            Some(length) => reader.read_exact(&mut vec![0; length]).ok()?,
            None => while take_chunk(&mut reader)? > 0 {},
        }
        writer.write_all(reply(number)?.as_bytes()).ok()?;
    }
    Some(())
}

/// The length of the next chunk, which is read to its end.
fn take_chunk(reader: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let length = usize::from_str_radix(line.strip_suffix("\r\n")?, 16).ok()?;
    let mut data = vec![0; length + 2];
    reader.read_exact(&mut data).ok()?;
    data.ends_with(b"\r\n").then_some(length)
}

fn load(more: &[&str]) -> Result<Output> {
    output_within(&mut command(more), Duration::from_secs(60))
}

fn command(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args(["load", "--json", "--dev", wire::VETH_DEVICE, "--ip", &format!("{}/24", wire::SERVER_V4)]);
    command.args(["--target", &format!("{}:8080", wire::KERNEL_V4), "--warmup", "0"]).args(more);
    command
}

/// The result of a load that is expected to go well.
fn summary(more: &[&str]) -> Result<Value> {
    let output = load(more)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(names == ["measuring", "measured", "finished"], "{text}");
    events.into_iter().last().context("three events")
}

fn number(summary: &Value, name: &str) -> Result<f64> {
    summary[name].as_f64().with_context(|| format!("no {name} in {summary}"))
}

/// What a load that is expected to fail complains of.
fn complaint(more: &[&str]) -> Result<String> {
    let output = load(more)?;
    ensure!(output.status.code() == Some(1), "it ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn requests_of_any_size_are_answered() {
    isolated(|_| {
        wire::veth()?;
        serve(|_| Some(GOOD))?;
        for size in ["1", "1024", "65536"] {
            let found = summary(&["--size", size, "--connections", "8", "--seconds", "0.2"])?;
            ensure!(number(&found, "requests")? > 8.0, "{found}");
            ensure!(number(&found, "p50_us")? > 0.0 && number(&found, "busy")? > 0.0, "{found}");
        }
        Ok(())
    });
}

/// More connections than one address has ports for come from several, each of which has its share.
#[test]
fn connections_come_from_as_many_addresses_as_asked() {
    isolated(|_| {
        wire::veth()?;
        let listener = TcpListener::bind((wire::KERNEL_V4, 8080))?;
        let (sender, peers) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = sender.send(stream.peer_addr().map(|peer| peer.ip()));
                thread::spawn(move || answer(stream, |_| Some(GOOD)));
            }
        });
        summary(&["--addresses", "3", "--connections", "9", "--seconds", "0.2"])?;
        let mut seen = BTreeMap::new();
        for peer in peers.try_iter() {
            *seen.entry(peer?).or_insert(0) += 1;
        }
        let first = wire::SERVER_V4.to_bits();
        let wanted = (first..first + 3).map(|own| (IpAddr::from(Ipv4Addr::from_bits(own)), 3)).collect();
        ensure!(seen == wanted, "{seen:?}");
        let complaint = complaint(&["--addresses", "3", "--connections", "45001", "--seconds", "0.2"])?;
        ensure!(complaint.contains("raise --addresses"), "{complaint}");
        Ok(())
    });
}

#[test]
fn chunked_requests_are_answered() {
    isolated(|_| {
        wire::veth()?;
        serve(|_| Some(GOOD))?;
        for (size, chunk) in [("1", "1"), ("1024", "2"), ("4000", "1000"), ("20000", "1")] {
            let more = ["--size", size, "--chunk", chunk, "--connections", "8", "--seconds", "0.2"];
            let found = summary(&more)?;
            ensure!(number(&found, "requests")? > 8.0, "{found}");
        }
        Ok(())
    });
}

#[test]
fn a_generator_naps_while_it_waits() {
    isolated(|_| {
        wire::veth()?;
        serve_late(Duration::from_millis(10))?;
        // Each reply comes during a nap, unless the machine keeps the generator from looking before.
        let found = summary(&["--connections", "1", "--seconds", "0.5", "--nap-us", "100000"])?;
        let requests = number(&found, "requests")?;
        ensure!((1.0..=12.0).contains(&requests), "{found}");
        Ok(())
    });
}

#[test]
fn errors_are_failures() {
    isolated(|_| {
        wire::veth()?;
        let few = ["--connections", "3", "--seconds", "0.2"];
        let refused = complaint(&few)?;
        ensure!(refused.contains("Refused") && refused.contains("does it serve?"), "{refused}");
        serve(|number| Some(if number == 5 { FULL } else { GOOD }))?;
        let status = complaint(&few)?;
        ensure!(
            status.contains(
                "3 with another status than 200 (the last was 507), 0 malformed, 0 connections closed"
            ),
            "{status}"
        );
        Ok(())
    });
}

#[test]
fn connections_that_the_server_ends_are_failures() {
    isolated(|_| {
        wire::veth()?;
        serve(|number| (number < 5).then_some(GOOD))?;
        let ended = complaint(&["--connections", "3", "--seconds", "0.2"])?;
        ensure!(ended.contains("3 connections closed"), "{ended}");
        Ok(())
    });
}

#[test]
fn a_measurement_has_a_reply_in_it() {
    isolated(|_| {
        wire::veth()?;
        serve_late(Duration::from_millis(300))?;
        let found = summary(&["--connections", "1", "--seconds", "0"])?;
        ensure!(number(&found, "requests")? >= 1.0 && number(&found, "seconds")? > 0.2, "{found}");
        Ok(())
    });
}

#[test]
fn a_request_that_is_never_answered_is_a_failure() {
    isolated(|_| {
        wire::veth()?;
        serve(|number| {
            if number == 5 {
                thread::park();
            }
            Some(GOOD)
        })?;
        let silent = complaint(&["--connections", "3", "--seconds", "0.2"])?;
        ensure!(silent.contains("3 without a reply"), "{silent}");
        Ok(())
    });
}

#[test]
fn in_an_open_loop_a_stall_counts_for_every_request_that_it_held_up() {
    /// The server answers nothing for so long, once for each connection.
    const STALL: Duration = Duration::from_millis(400);
    isolated(|_| {
        wire::veth()?;
        serve(|number| {
            if number == 20 {
                thread::sleep(STALL);
            }
            Some(GOOD)
        })?;
        let one = ["--connections", "1", "--size", "64", "--seconds", "1"];
        // A closed loop sends nothing meanwhile: one request of thousands was slow.
        let closed = summary(&one)?;
        ensure!(number(&closed, "max_us")? >= 400_000.0, "{closed}");
        // Two in five requests were due while nothing was answered, and waited for 200 ms on average.
        let open = summary(&[&one[..], &["--rate", "500"]].concat())?;
        ensure!(number(&open, "mean_us")? >= 50_000.0, "{open}");
        ensure!(number(&open, "p99_us")? >= 350_000.0, "{open}");
        Ok(())
    });
}

#[test]
fn a_generator_that_lingers_leaves_when_its_input_ends() {
    isolated(|_| {
        wire::veth()?;
        serve(|_| Some(GOOD))?;
        let mut command = command(&["--connections", "1", "--seconds", "0.1", "--linger"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("piped")?;
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().context("piped")?);
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut line = String::new();
        while !line.contains("finished") {
            line = lines.recv_timeout(Duration::from_secs(60))?;
        }
        // Its output ends when it does.
        let more = lines.recv_timeout(Duration::from_millis(300));
        ensure!(more == Err(RecvTimeoutError::Timeout), "{more:?}");
        drop(input);
        ensure!(child.wait()?.success());
        Ok(())
    });
}

#[test]
fn a_generator_does_not_start_with_an_address_that_another_host_has() {
    isolated(|_| {
        wire::veth()?;
        serve(|_| Some(GOOD))?;
        run("ip", ["address", "add", &format!("{}/24", wire::SERVER_V4), "dev", "veth0"])?;
        let refused = complaint(&["--seconds", "0.2"])?;
        ensure!(refused.contains("the address 10.0.0.2 is in use by the host "), "{refused}");
        ensure!(refused.contains("(--ip)"), "{refused}");
        Ok(())
    });
}

#[test]
fn without_a_server_on_the_link_the_user_is_told() {
    isolated(|_| {
        wire::veth()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
        command.args(["load", "--dev", "net_af_packet0,iface=nothing", "--ip", "10.0.0.2/24"]);
        command.args(["--target", "10.0.0.1:8080"]);
        let output = output_within(&mut command, Duration::from_secs(60))?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && text.contains("nothing"), "{text}");
        Ok(())
    });
}
