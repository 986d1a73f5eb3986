//! `pmlog`, and the stack's examples, against the Linux kernel's TCP and real clients, each test in a network of its own.

mod archives;
mod arguments;
mod cores;
mod crash;
mod damage;
mod device;
mod disk;
mod early;
mod exactly_once;
mod examples;
mod feeds;
mod full;
mod http;
mod idle;
mod kernel;
mod link;
mod loss;
mod room;
mod silent;
mod tools;
mod transfer;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Connection, Curl, Lab, Pmlog, PmlogOptions, wire};
use rustix::thread::CpuSet;

/// Whose TCP the server uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Its own, on a DPDK port.
    Dpdk,
    /// The kernel's.
    Kernel,
}

/// Makes two tests of each scenario, a function of the laboratory and of [`Over`]: one for each transport.
macro_rules! over_each_transport {
    ($($scenario:ident),+ $(,)?) => {
        mod over_dpdk {
            $(#[test] fn $scenario() { lab::isolated(|lab| super::$scenario(lab, crate::Over::Dpdk)) })+
        }
        mod over_kernel {
            $(#[test] fn $scenario() { lab::isolated(|lab| super::$scenario(lab, crate::Over::Kernel)) })+
        }
    };
}
pub(crate) use over_each_transport;

/// A server on a new store of some size, on the far end of a new wire.
fn serve(lab: &Lab, over: Over, size: &str) -> Result<Pmlog> {
    cable(lab, over)?;
    options(lab, over, size)?.start()
}

fn cable(lab: &Lab, over: Over) -> Result<()> {
    match over {
        Over::Dpdk => wire::veth(),
        Over::Kernel => wire::kernel_veth(&lab.path("server.net")),
    }
}

fn options(lab: &Lab, over: Over, size: &str) -> Result<PmlogOptions> {
    let options = PmlogOptions::new(&lab.path("store.pm"))?.option("--pm-size", size);
    Ok(match over {
        Over::Dpdk => options,
        Over::Kernel => options.kernel(&lab.path("server.net")),
    })
}

/// Two CPUs that this test may run on, as `--cores` takes them.
fn two_cpus() -> Result<String> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let cpus: Vec<String> =
        (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(2).map(|cpu| cpu.to_string()).collect();
    ensure!(cpus.len() == 2, "this test needs two CPUs, and may run on {} only", cpus.join(", "));
    Ok(cpus.join(","))
}

fn connect() -> Result<Connection> {
    Connection::open(SocketAddr::new(IpAddr::V4(wire::SERVER_V4), 80))
}

/// A number out of what `/health` says.
fn health_of(server: &Pmlog, what: &str) -> Result<u64> {
    let health = server.health()?;
    health[what].as_u64().with_context(|| format!("no {what} in {health}"))
}

/// Posts a file with curl, and returns the record's number.
fn post(server: IpAddr, lab: &Lab, name: &str, bytes: &[u8]) -> Result<u64> {
    let file = lab.write(name, bytes)?;
    let reply = Curl::post(&wire::url(server, "/append"), &file).json()?;
    ensure!(reply["length"].as_u64() == Some(bytes.len() as u64), "{reply}");
    reply["seq"].as_u64().with_context(|| format!("no seq in {reply}"))
}

/// Fetches a record with curl, and compares it.
fn compare(server: IpAddr, seq: u64, expected: &[u8]) -> Result<()> {
    let body = Curl::get(&wire::url(server, &format!("/records/{seq}"))).body()?;
    ensure!(body.len() == expected.len(), "record {seq}: {} bytes of {}", body.len(), expected.len());
    let wrong = body.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(wrong.is_none(), "record {seq} differs at byte {}", wrong.unwrap_or(0));
    Ok(())
}

/// Waits for a condition.
fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds()? {
        ensure!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
