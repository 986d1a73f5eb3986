//! Records over paths that lose, burst and reorder, with Linux as the other end: whole.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::wire::{SERVER_V4, SERVER_V6};
use lab::{Connection, Lab, Link, Path, PmlogOptions, isolated, noise, wire};

const RECORD_BYTES: usize = 2 << 20;
/// What a record takes at least, in frames of Ethernet.
const FRAMES: u64 = (RECORD_BYTES / 1448) as u64;

/// Posts a record and gets it back over `path`, by the address of `server`.
fn there_and_back(lab: &Lab, server: IpAddr, path: Path) -> Result<()> {
    let mut link = Link::new("c0", &["s0"], Path { loss: 0.0, reorder: 0.0, ..path }, 7)?;
    wire::link_to_device("c0", "s0")?;
    let options = PmlogOptions::new(&lab.path("store.pm"))?.option("--pm-size", "64MiB");
    let pmlog = options.device("net_af_packet0,iface=s0").start()?;
    link.change(path, 7)?;
    let body = noise(1, RECORD_BYTES);
    let mut connection = Connection::open(SocketAddr::new(server, 80))?;
    connection.set_patience(Duration::from_secs(60))?;
    let seq = connection.append(&body)?.seq()?;
    let reply = connection.get(&format!("/records/{seq}"))?;
    ensure!(reply.body == body, "the record differs\n{}", pmlog.output());
    let [up, down] = link.counters()?;
    let lost = up.lost + up.overflowed + down.lost + down.overflowed;
    ensure!(path.loss == 0.0 || lost > FRAMES / 100, "the link has lost {lost} of {up:?} and {down:?}");
    ensure!(path.reorder == 0.0 || up.reordered + down.reordered > FRAMES / 100, "{up:?} and {down:?}");
    Ok(())
}

/// Linux asks for it, and is answered: routers mark packets both ways, of which each would be lost otherwise.
fn there_and_back_by_marks(lab: &Lab, server: IpAddr) -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1")?;
    let mut link = Link::new("c0", &["s0"], path(), 7)?;
    wire::link_to_device("c0", "s0")?;
    let options = PmlogOptions::new(&lab.path("store.pm"))?.option("--pm-size", "64MiB");
    let pmlog = options.device("net_af_packet0,iface=s0").start()?;
    link.change(Path { mark: 0.02, ..path() }, 7)?;
    let body = noise(1, RECORD_BYTES);
    let mut connection = Connection::open(SocketAddr::new(server, 80))?;
    connection.set_patience(Duration::from_secs(60))?;
    let seq = connection.append(&body)?.seq()?;
    let reply = connection.get(&format!("/records/{seq}"))?;
    ensure!(reply.body == body, "the record differs\n{}", pmlog.output());
    let [up, down] = link.counters()?;
    ensure!(up.marked > FRAMES / 100 && down.marked > FRAMES / 100, "{up:?} and {down:?}");
    Ok(())
}

#[test]
fn linux_and_the_stack_heed_marks_of_congestion() {
    isolated(|lab| there_and_back_by_marks(lab, IpAddr::V4(SERVER_V4)));
}

#[test]
fn linux_and_the_stack_heed_marks_of_congestion_over_ipv6() {
    isolated(|lab| there_and_back_by_marks(lab, IpAddr::V6(SERVER_V6)));
}

fn path() -> Path {
    Path::clean(500_000_000, Duration::from_millis(4))
}

#[test]
fn a_record_is_whole_where_one_frame_in_fifty_is_lost() {
    isolated(|lab| there_and_back(lab, IpAddr::V4(SERVER_V4), Path { loss: 0.02, ..path() }));
}

#[test]
fn a_record_is_whole_where_frames_are_lost_in_fours() {
    isolated(|lab| there_and_back(lab, IpAddr::V6(SERVER_V6), Path { loss: 0.02, burst: 4, ..path() }));
}

#[test]
fn a_record_is_whole_where_one_frame_in_fifty_is_late() {
    isolated(|lab| there_and_back(lab, IpAddr::V4(SERVER_V4), Path { reorder: 0.02, ..path() }));
}
