//! The stack's examples on a DPDK port, and clients that know nothing of it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
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
