//! Each mode's bytes.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, ensure};
use lab::{isolated, run, wire};
use smoltcp::wire::{EthernetAddress, EthernetFrame, IpAddress, Ipv4Packet, UdpPacket};

use crate::peer::{MACS, Peer, connect, devices, frames};
use crate::program::Pmfwd;

/// Fewer than the rings between the processes hold.
const COUNT: usize = 200;
/// The address of what is behind the second port.
const BEHIND: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn started(folder: &Path, more: &[&str]) -> Result<(Pmfwd, [Peer; 2])> {
    let [first, second] = devices(folder);
    let words = ["-i", "--dev", &first, "--dev", &second, "--eth-peer", "1,02:00:00:00:00:99"];
    let mut pmfwd = Pmfwd::start(&[&words, more].concat())?;
    pmfwd.wait_for("2 ports are ready")?;
    Ok((pmfwd, connect(folder)?))
}

/// `io`, `mac` and `macswap` in both directions, one after the other.
fn forwards(folder: &Path, more: &[&str]) -> Result<()> {
    let (mut pmfwd, [mut near, mut far]) = started(folder, more)?;
    let sent = frames(COUNT);
    for mode in ["io", "mac", "macswap"] {
        pmfwd.tell(&format!("set fwd {mode}"))?;
        pmfwd.tell("start")?;
        near.send(&sent)?;
        let arrived = far.receive(COUNT)?;
        for (sent, arrived) in sent.iter().zip(&arrived) {
            let addresses = match mode {
                "io" => sent[..12].to_vec(),
                "mac" => [BEHIND, MACS[1]].concat(),
                _ => [&sent[6..12], &sent[..6]].concat(),
            };
            ensure!(arrived[..12] == addresses, "{mode}: {:x?}", &arrived[..12]);
            ensure!(arrived[12..] == sent[12..], "{mode} changes what lies behind the addresses");
        }
        far.send(&arrived)?;
        ensure!(near.receive(COUNT)?.len() == COUNT, "{mode} on the way back");
        ensure!(pmfwd.stop()? == [2 * COUNT as u64, 2 * COUNT as u64, 0], "{mode}: not all was counted");
    }
    pmfwd.tell("quit")?;
    let (status, said) = pmfwd.end()?;
    ensure!(status.success(), "{status}: {}", said.join("\n"));
    Ok(())
}

#[test]
fn frames_go_on_as_their_mode_says() {
    isolated(|lab| forwards(lab.directory(), &[]));
}

#[test]
fn frames_go_on_from_persistent_memory_too() {
    isolated(|lab| {
        let store = lab.path("store.pm").display().to_string();
        forwards(lab.directory(), &["--pool", "pm", "--pm", &store, "--pm-size", "64MiB"])
    });
}

#[test]
fn counting_sends_nothing() {
    isolated(|lab| {
        let (mut pmfwd, [mut near, mut far]) = started(lab.directory(), &["--forward-mode", "rxonly"])?;
        pmfwd.tell("start")?;
        near.send(&frames(COUNT))?;
        pmfwd.wait_until_received(0, COUNT as u64)?;
        ensure!(pmfwd.stop()? == [COUNT as u64, 0, 0]);
        ensure!(near.arrived().is_empty() && far.arrived().is_empty(), "something was sent");
        Ok(())
    });
}

/// Checks a datagram that pmfwd made; returns its destination.
fn datagram(frame: &[u8]) -> Result<IpAddress> {
    let ethernet = EthernetFrame::new_checked(frame)?;
    ensure!(
        ethernet.src_addr() == EthernetAddress(MACS[1]) && ethernet.dst_addr() == EthernetAddress(BEHIND)
    );
    let ip = Ipv4Packet::new_checked(ethernet.payload())?;
    let (source, destination) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    let udp = UdpPacket::new_checked(ip.payload())?;
    ensure!(ip.verify_checksum() && udp.verify_checksum(&source, &destination), "a wrong checksum");
    Ok(destination)
}

#[test]
fn made_frames_have_the_segments_and_flows_asked_for() {
    isolated(|lab| {
        let more = ["--forward-mode", "txonly", "--txpkts", "64,100,836", "--flowgen-flows", "7"];
        let (mut pmfwd, [_near, mut far]) = started(lab.directory(), &more)?;
        pmfwd.tell("start")?;
        let made = far.receive(COUNT)?;
        let destinations = made.iter().map(|frame| datagram(frame)).collect::<Result<HashSet<_>>>()?;
        ensure!(made.iter().all(|frame| frame.len() == 1000) && destinations.len() == 1);
        pmfwd.stop()?;
        while !far.arrived().is_empty() {}
        pmfwd.tell("set txpkts 64")?;
        pmfwd.tell("set fwd flowgen")?;
        pmfwd.tell("start")?;
        let made = far.receive(COUNT)?;
        let destinations = made.iter().map(|frame| datagram(frame)).collect::<Result<HashSet<_>>>()?;
        ensure!(made.iter().all(|frame| frame.len() == 64) && destinations.len() == 7, "{destinations:?}");
        Ok(())
    });
}

#[test]
fn the_kernels_ping_is_answered() {
    isolated(|_| {
        wire::veth()?;
        let words = ["--forward-mode", "icmpecho", "--dev", wire::VETH_DEVICE];
        let mut pmfwd = Pmfwd::start(&words)?;
        pmfwd.wait_for("icmpecho packet forwarding")?;
        // ARP and echo, for an address that nobody has given anybody.
        for size in ["56", "1400"] {
            let said = run("ping", ["-c", "5", "-i", "0.05", "-w", "20", "-s", size, "10.0.0.77"])?;
            ensure!(said.contains("5 received"), "{said}");
        }
        Ok(())
    });
}
