//! The stack's examples on a DPDK port, and clients that know nothing of it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, ensure};
use lab::{Lab, built, isolated, noise, wire};
use pmem::{Options, Region};

use crate::wait_until;

/// A running example; killed when dropped.
struct Example(Child);

impl Example {
    fn start(lab: &Lab, name: &str, device: &str) -> Result<Self> {
        let arguments = "-p stack --examples --features dpdk";
        let mut command = Command::new(built(&format!("examples/{name}"), arguments)?);
        command.arg("--pm").arg(lab.path("lines.pm"));
        command.args(["--listen", &SERVER.to_string(), "--dev", device]);
        let log = lab.path(&format!("{name}.log"));
        let output = File::create(&log)?;
        let mut example = Self(command.stdout(output.try_clone()?).stderr(output).spawn()?);
        if device == wire::TAP_DEVICE {
            wire::tap()?;
        }
        wait_until("the example listens", || {
            let said = std::fs::read_to_string(&log)?;
            ensure!(
                example.0.try_wait()?.is_none(),
                "{name} has ended; `cargo build {arguments}` builds it for a device\n{said}"
            );
            Ok(said.contains(&format!("listening on {SERVER}")))
        })?;
        Ok(example)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(wire::SERVER_V4), 7000);

/// What comes back for `bytes`, until the other side has finished too.
fn ask(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut client = TcpStream::connect(SERVER)?;
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut writer = client.try_clone()?;
    std::thread::scope(|scope| {
        let written =
            scope.spawn(move || writer.write_all(bytes).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer)?;
        written.join().expect("it does not panic")?;
        Ok(answer)
    })
}

#[test]
fn logger_on_a_dpdk_port_numbers_lines_and_has_them_after_a_crash() {
    isolated(|lab| {
        wire::veth()?;
        let logger = Example::start(lab, "logger", wire::VETH_DEVICE)?;
        let long = [&[b'x'; 5000][..], b"\n"].concat();
        let answer = ask(&[b"one line\n", &long[..], b"no line"].concat())?;
        ensure!(answer == b"1\n2\n", "{}", answer.escape_ascii());
        drop(logger);

        let logger = Example::start(lab, "logger", wire::VETH_DEVICE)?;
        let answer = ask(b"after the crash\n")?;
        ensure!(answer == b"3\n", "{}", answer.escape_ascii());
        drop(logger);
        let shard = Region::open(lab.path("lines.pm"), &Options::default())?.into_shard()?;
        for (seq, line) in (1..).zip([b"one line\n", &long[..], b"after the crash\n"]) {
            let record = shard.record(seq).with_context(|| format!("line {seq} was acknowledged"))?;
            ensure!(record.to_vec() == line, "line {seq} is another");
        }
        Ok(())
    });
}

#[test]
fn echo_on_a_dpdk_port_sends_back_what_comes() {
    isolated(|lab| {
        let _echo = Example::start(lab, "echo", wire::TAP_DEVICE)?;
        let bytes = noise(1, 3_000_000);
        ensure!(ask(&bytes)? == bytes, "other bytes came back");
        Ok(())
    });
}

#[test]
fn echo_on_a_dpdk_port_sends_back_datagrams() {
    isolated(|lab| {
        wire::veth()?;
        let _echo = Example::start(lab, "echo", wire::VETH_DEVICE)?;
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.connect(SERVER)?;
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        // Up to the longest that goes back in a frame.
        for len in [0, 1, 1_472] {
            let bytes = noise(len as u64, len);
            client.send(&bytes)?;
            let mut answer = [0; 3_000];
            let got = client.recv(&mut answer)?;
            ensure!(answer[..got] == bytes, "{len} bytes came back as {got} others");
        }
        Ok(())
    });
}

/// The messages in syslog's store.
fn messages(lab: &Lab) -> Result<Vec<String>> {
    let shard = Region::open(lab.path("lines.pm"), &Options::default())?.into_shard()?;
    let records = shard.records(shard.head_seq());
    records.map(|info| Ok(String::from_utf8(shard.record(info.seq).context("a record")?.to_vec())?)).collect()
}

/// How many messages syslog has last said are durable.
fn said_durable(lab: &Lab) -> Result<usize> {
    let said = std::fs::read_to_string(lab.path("syslog.log"))?;
    let whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut numbers = whole.filter_map(|line| line.split_once(" durable")?.0.parse().ok());
    Ok(numbers.next_back().unwrap_or(0))
}

/// Linux' own `logger` in both forms of messages, and then more of them than are waited for until syslog is killed.
#[test]
fn syslog_on_a_dpdk_port_has_after_a_crash_what_it_said_is_durable() {
    isolated(|lab| {
        wire::veth()?;
        let syslog = Example::start(lab, "syslog", wire::VETH_DEVICE)?;
        // Longer than a frame, which the kernel has put together where it comes out of the packet socket.
        let long = "x".repeat(1_700);
        for (form, text) in [("--rfc5424", "modern"), ("--rfc3164", "old"), ("--rfc5424", &long)] {
            let server = SERVER.ip().to_string();
            let status = Command::new("logger")
                .args(["--udp", "--server", &server, "--port", "7000", "--size", "4096", form, text])
                .status()?;
            ensure!(status.success(), "logger {form} failed");
        }
        wait_until("three are durable", || Ok(said_durable(lab)? == 3))?;
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.connect(SERVER)?;
        let mut sent = 0;
        wait_until("many are durable", || {
            for _ in 0..100 {
                client.send(format!("<13>message {sent}").as_bytes())?;
                sent += 1;
            }
            Ok(said_durable(lab)? >= 1_000)
        })?;
        drop(syslog);
        let (durable, messages) = (said_durable(lab)?, messages(lab)?);
        ensure!(messages.len() >= durable, "{} of {durable} are there", messages.len());
        for (message, text) in messages.iter().zip(["modern", "old", &long]) {
            ensure!(message.starts_with("<13>") && message.ends_with(text), "{message}");
        }
        let number = |text: &String| text.strip_prefix("<13>message ").and_then(|number| number.parse().ok());
        let numbers: Option<Vec<u32>> = messages[3..].iter().map(number).collect();
        let numbers = numbers.context("each is a message")?;
        ensure!(numbers.is_sorted_by(|one, next| one < next), "each is there once, in order");
        Ok(())
    });
}

/// What a client's socket queues: sent and not acknowledged, or not sent.
fn unacknowledged(client: &TcpStream) -> Result<usize> {
    let (local, peer) = (client.local_addr()?, client.peer_addr()?);
    let ports = [local, peer].map(|address| format!(":{:04X}", address.port()));
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    let mut lines = table.lines().map(|line| line.split_whitespace().skip(1).take(4).collect::<Vec<_>>());
    let found = lines.find(|words| ports.iter().zip(words).all(|(port, word)| word.ends_with(port.as_str())));
    let queues = found.with_context(|| format!("no connection of {local} in\n{table}"))?;
    let queue = queues[3].split(':').next().context("two queues")?;
    Ok(usize::from_str_radix(queue, 16)?)
}

/// What the log holds of a client.
fn logged(lab: &Lab, client: SocketAddr) -> Result<Vec<u8>> {
    let shard = Region::open(lab.path("lines.pm"), &Options::default())?.into_shard()?;
    let name = format!("{client} ");
    let records = shard.records(shard.head_seq()).filter_map(|info| Some(shard.record(info.seq)?.to_vec()));
    let of_client = records.filter_map(|record| record.strip_prefix(name.as_bytes()).map(<[u8]>::to_vec));
    Ok(of_client.collect::<Vec<_>>().concat())
}

/// A client that waits for no reply knows by its socket's queue alone what is durable.
#[test]
fn raw_log_has_what_the_socket_no_longer_queues() {
    isolated(|lab| {
        wire::veth()?;
        let raw_log = Example::start(lab, "raw_log", wire::VETH_DEVICE)?;
        let mut client = TcpStream::connect(SERVER)?;
        let bytes = noise(1, 300_001);
        client.write_all(&bytes)?;
        wait_until("all is acknowledged", || Ok(unacknowledged(&client)? == 0))?;
        drop(raw_log);
        ensure!(logged(lab, client.local_addr()?)? == bytes, "the log has other bytes");

        let raw_log = Example::start(lab, "raw_log", wire::VETH_DEVICE)?;
        let mut client = TcpStream::connect(SERVER)?;
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        client.write_all(b"last words")?;
        client.shutdown(Shutdown::Write)?;
        ensure!(client.read(&mut [0])? == 0, "it finishes when all is durable");
        drop(raw_log);
        let client = client.local_addr()?;
        ensure!(logged(lab, client)? == b"last words", "the log has other bytes");
        Ok(())
    });
}

/// Killed at any moment: the log has a part of the stream from its beginning, and all of it that was acknowledged.
#[test]
fn raw_log_killed_at_any_moment_has_what_was_acknowledged() {
    isolated(|lab| {
        wire::veth()?;
        let bytes = noise(2, 16 << 20);
        for round in 0..4 {
            let _ = std::fs::remove_file(lab.path("lines.pm"));
            let raw_log = Example::start(lab, "raw_log", wire::VETH_DEVICE)?;
            let client = TcpStream::connect(SERVER)?;
            let name = client.local_addr()?;
            client.set_write_timeout(Some(Duration::from_secs(1)))?;
            let mut writer = client.try_clone()?;
            let (bytes, written) = (&bytes, &AtomicUsize::new(0));
            let acknowledged =
                || Ok::<_, Error>(written.load(Ordering::SeqCst).saturating_sub(unacknowledged(&client)?));
            let log = std::thread::scope(|scope| -> Result<_> {
                let writing = scope.spawn(move || {
                    for chunk in bytes.chunks(10_000) {
                        let Ok(count) = writer.write(chunk) else { return };
                        written.fetch_add(count, Ordering::SeqCst);
                        if count < chunk.len() {
                            return;
                        }
                    }
                });
                wait_until("so much is acknowledged", || Ok(acknowledged()? >= 300_000 * round))?;
                drop(raw_log);
                writing.join().expect("it does not panic");
                logged(lab, name)
            })?;
            let acknowledged = acknowledged()?;
            ensure!(bytes.starts_with(&log), "round {round}: the log is no part of what was sent");
            ensure!(log.len() >= acknowledged, "round {round}: {} of {acknowledged} are there", log.len());
        }
        Ok(())
    });
}
