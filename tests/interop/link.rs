//! What happens around TCP on the link: pings of any length, hosts that move, addresses that two hosts have.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context as _, Result, bail, ensure};
use io::{Read as _, Write as _};
use lab::wire::{SERVER_V4, SERVER_V6, TAP_DEVICE};
use lab::{Curl, Frames, Lab, isolated, noise, run, wire};

use crate::{Over, compare, options, post, serve, wait_until};

const V4: IpAddr = IpAddr::V4(SERVER_V4);
const V6: IpAddr = IpAddr::V6(SERVER_V6);

/// Whether one ping of this length is answered.
fn is_answered(address: &str, payload_bytes: &str) -> bool {
    run("ping", ["-n", "-c", "1", "-w", "5", "-s", payload_bytes, address]).is_ok()
}

#[test]
fn pings_of_any_length_are_answered() {
    isolated(|lab| {
        let mut server = options(lab, Over::Dpdk, "64MiB")?.device(TAP_DEVICE).spawn()?;
        wire::tap()?;
        server.wait_for_answer()?;
        for payload_bytes in ["1472", "1473", "2000", "20000", "65507"] {
            for address in [V4, V6] {
                ensure!(
                    is_answered(&address.to_string(), payload_bytes),
                    "{payload_bytes} bytes to {address}"
                );
            }
        }
        Ok(())
    });
}

/// A packet socket gets IPv4 packets that the kernel has put together, and the driver's ring those of up to 1,968
/// bytes.
#[test]
fn pings_in_fragments_are_answered_over_a_packet_socket() {
    isolated(|lab| {
        let _server = serve(lab, Over::Dpdk, "64MiB")?;
        ensure!(is_answered("10.0.0.2", "1900"), "IPv4");
        for payload_bytes in ["2000", "65507"] {
            ensure!(is_answered("fd00::2", payload_bytes), "{payload_bytes} bytes by IPv6");
        }
        Ok(())
    });
}

#[test]
fn the_first_ping_after_a_restart_is_answered() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "64MiB")?;
        ensure!(is_answered("10.0.0.2", "56") && is_answered("fd00::2", "56"), "the first server is there");
        server.kill()?;
        let _server = options(lab, Over::Dpdk, "64MiB")?.start()?;
        ensure!(is_answered("10.0.0.2", "56"), "IPv4");
        ensure!(is_answered("fd00::2", "56"), "IPv6");
        Ok(())
    });
}

#[test]
fn a_ping_to_all_is_not_answered() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "64MiB")?;
        for address in ["10.0.0.255", "255.255.255.255", "224.0.0.1"] {
            let answered = run("ping", ["-n", "-b", "-c", "2", "-w", "2", "-I", "veth0", address]);
            ensure!(answered.is_err(), "{answered:?}");
        }
        ensure!(run("ping", ["-n", "-c", "1", "-w", "5", "10.0.0.2"]).is_ok(), "{}", server.output());
        Ok(())
    });
}

/// Fetches a record while the client's Ethernet address changes in the middle. The client gets nothing from then on,
/// and so says nothing, unless it announces itself.
fn moves_while_it_reads(lab: &Lab, server_ip: IpAddr, announces: bool) -> Result<()> {
    wire::veth()?;
    let _server = options(lab, Over::Dpdk, "256MiB")?.option("--max-record", "128MiB").start()?;
    for announcement in ["ipv4/conf/veth0/arp_notify", "ipv6/conf/veth0/ndisc_notify"] {
        fs::write(format!("/proc/sys/net/{announcement}"), if announces { "1" } else { "0" })?;
    }
    let body = noise(3, 100_000_000);
    let seq = post(server_ip, lab, "body", &body)?;
    let mut client = std::net::TcpStream::connect(SocketAddr::new(server_ip, 80))?;
    client.set_read_timeout(Some(Duration::from_secs(40)))?;
    write!(client, "GET /records/{seq} HTTP/1.1\r\nHost: pmlog\r\nConnection: close\r\n\r\n")?;
    let read = AtomicU64::new(0);
    let (bytes, moved_at, read_when_moved) = thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(Vec<u8>, Instant)> {
            let mut bytes = Vec::with_capacity(body.len() + 1_000);
            let mut part = vec![0; 64 << 10];
            loop {
                let len = client.read(&mut part).context("nothing came for 40 s")?;
                if len == 0 {
                    return Ok((bytes, Instant::now()));
                }
                bytes.extend_from_slice(&part[..len]);
                read.store(bytes.len() as u64, Ordering::Relaxed);
            }
        });
        wait_until("something was read", || Ok(read.load(Ordering::Relaxed) > 1_000_000))?;
        run("ip", ["link", "set", "veth0", "address", "02:00:00:00:00:77"])?;
        let (moved_at, read_when_moved) = (Instant::now(), read.load(Ordering::Relaxed));
        match reader.join() {
            Ok(read) => read.map(|(bytes, ended)| (bytes, ended - moved_at, read_when_moved)),
            Err(_) => bail!("the reader panicked"),
        }
    })?;
    ensure!(read_when_moved < body.len() as u64, "all was read before the client moved");
    ensure!(bytes.ends_with(&body), "the record differs");
    ensure!(moved_at < Duration::from_secs(30), "the rest took {moved_at:?}");
    Ok(())
}

#[test]
fn a_client_that_moves_unannounced_is_followed_over_ipv4() {
    isolated(|lab| moves_while_it_reads(lab, V4, false));
}

#[test]
fn a_client_that_moves_unannounced_is_followed_over_ipv6() {
    isolated(|lab| moves_while_it_reads(lab, V6, false));
}

#[test]
fn a_client_that_announces_where_it_moves_is_followed() {
    isolated(|lab| moves_while_it_reads(lab, V4, true));
}

/// Routers see on each packet of a connection how it is to be served.
#[test]
fn what_is_sent_has_the_codepoint_that_was_asked_for() {
    isolated(|lab| {
        wire::veth()?;
        let _server = options(lab, Over::Dpdk, "64MiB")?.option("--dscp", "46").start()?;
        let mut frames = Frames::on("veth0")?;
        for address in [V4, V6] {
            let body = noise(7, 30_000);
            let seq = post(address, lab, "body", &body)?;
            compare(address, seq, &body)?;
            let mut seen = Vec::new();
            // The end of a connection is the last of what there is to see.
            frames.wait_for(Duration::from_secs(10), |frame| {
                let (traffic_class, is_last) = traffic_class(frame.get(12..)?, address)?;
                seen.push(traffic_class);
                (is_last && seen.len() > 20).then_some(())
            });
            ensure!(seen.len() > 20 && seen.iter().all(|&class| class == 46 << 2), "{address}: {seen:?}");
        }
        Ok(())
    });
}

/// The traffic class of a segment of the server's, from the EtherType on, and whether it has FIN.
fn traffic_class(packet: &[u8], server: IpAddr) -> Option<(u8, bool)> {
    let (class, protocol, source, tcp) = match (packet.get(..2)?, server) {
        ([0x08, 0x00], IpAddr::V4(_)) => (packet[3], packet.get(11)?, packet.get(14..18)?, 22),
        ([0x86, 0xdd], IpAddr::V6(_)) => {
            (packet[2] << 4 | packet[3] >> 4, packet.get(8)?, packet.get(10..26)?, 42)
        }
        _ => return None,
    };
    let is_from_server = match server {
        IpAddr::V4(v4) => v4.octets() == *source,
        IpAddr::V6(v6) => v6.octets() == *source,
    };
    (is_from_server && *protocol == 6).then_some((class, packet.get(tcp + 13)? & 1 != 0))
}

#[test]
fn a_second_host_with_the_servers_address_is_told_of() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "64MiB")?;
        ensure!(!server.output().contains("says that it has"), "{}", server.output());
        run("ip", ["address", "add", "10.0.0.2/24", "dev", "veth0"])?;
        // It asks for somebody, and says from where.
        let _ = run("ping", ["-n", "-c", "1", "-w", "1", "-I", "10.0.0.2", "10.0.0.9"]);
        wait_until("the server tells of the other", || {
            let said = server.output();
            Ok(said.contains("says that it has this server's address 10.0.0.2"))
        })?;
        // Its address is the client's by now; over IPv6 the server answers.
        wait_until("the server's health tells of it", || {
            let health = Curl::get(&wire::url(V6, "/health")).json()?;
            Ok(health["address_conflicts"].as_u64() > Some(0))
        })?;
        let log = lab.path("store.log");
        ensure!(server.interrupt()?.success(), "no clean end");
        let said = fs::read_to_string(log)?;
        ensure!(said.contains("of other hosts that say they have this server's address"), "{said}");
        Ok(())
    });
}

/// RFC 5227, section 2.3: who knew another Ethernet address for the server's learns the new one at once.
#[test]
fn neighbors_learn_at_the_start_where_the_address_is_now() {
    isolated(|lab| {
        wire::veth()?;
        for address in ["10.0.0.2", "fd00::2"] {
            run(
                "ip",
                ["neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "veth0", "nud", "stale"],
            )?;
        }
        let _server = options(lab, Over::Dpdk, "64MiB")?.spawn()?;
        wait_until("the neighbor's entries are new", || {
            let known = run("ip", ["neigh", "show", "dev", "veth0"])?;
            let is_new = |address: &str| {
                known.lines().any(|line| line.starts_with(address) && !line.contains("02:00:00:00:00:99"))
            };
            Ok(is_new("10.0.0.2 ") && is_new("fd00::2 "))
        })
    });
}
