//! Who would be cut off if an interface went away: the default route, and people logged in over ssh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::system::System;

/// What goes through one of `interfaces`, in words for an error; none if nothing of importance does.
pub fn use_of(system: &System, interfaces: &[String]) -> Option<String> {
    let routes = routes(system);
    let through = |interface: &str| interfaces.iter().any(|name| name == interface);
    if let Some(route) = routes.iter().find(|route| route.prefix_len == 0 && through(&route.interface)) {
        let version = if route.destination.is_ipv4() { "IPv4" } else { "IPv6" };
        return Some(format!("this machine's default {version} route goes through {}", route.interface));
    }
    ssh_peers(system).into_iter().find_map(|peer| {
        let interface = best_route(&routes, peer)?;
        through(interface).then(|| format!("an ssh connection with {peer} goes through {interface}"))
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    destination: IpAddr,
    prefix_len: u32,
    interface: String,
}

const ROUTE_UP: u32 = 1;
const ROUTE_REJECT: u32 = 0x200;

fn routes(system: &System) -> Vec<Route> {
    let v4 = system.text("proc/net/route").unwrap_or_default();
    let v6 = system.text("proc/net/ipv6_route").unwrap_or_default();
    v4.lines().skip(1).filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).collect()
}

/// A line of /proc/net/route; its numbers are in the byte order of the machine.
fn route_v4(line: &str) -> Option<Route> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let usable = hex(3)? & (ROUTE_UP | ROUTE_REJECT) == ROUTE_UP;
    usable.then_some(Route {
        destination: Ipv4Addr::from(hex(1)?.to_ne_bytes()).into(),
        prefix_len: hex(7)?.count_ones(),
        interface: (*fields.first()?).to_owned(),
    })
}

/// A line of /proc/net/ipv6_route.
fn route_v6(line: &str) -> Option<Route> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let usable = flags & (ROUTE_UP | ROUTE_REJECT) == ROUTE_UP;
    usable.then_some(Route {
        destination: Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?).into(),
        prefix_len: u32::from_str_radix(fields.get(1)?, 16).ok()?,
        interface: (*fields.get(9)?).to_owned(),
    })
}

/// The interface over which packets to `peer` leave.
fn best_route(routes: &[Route], peer: IpAddr) -> Option<&str> {
    let matching = routes.iter().filter(|route| match (route.destination, peer) {
        (IpAddr::V4(net), IpAddr::V4(peer)) => {
            same_prefix(net.to_bits().into(), peer.to_bits().into(), route.prefix_len, 32)
        }
        (IpAddr::V6(net), IpAddr::V6(peer)) => {
            same_prefix(net.to_bits(), peer.to_bits(), route.prefix_len, 128)
        }
        _ => false,
    });
    matching.max_by_key(|route| route.prefix_len).map(|route| route.interface.as_str())
}

fn same_prefix(a: u128, b: u128, prefix_len: u32, width: u32) -> bool {
    (a ^ b).checked_shr(width.saturating_sub(prefix_len)).unwrap_or(0) == 0
}

/// The far ends of established connections with an ssh server, on either side.
fn ssh_peers(system: &System) -> Vec<IpAddr> {
    const SSH: u16 = 22;
    let v4 = system.text("proc/net/tcp").unwrap_or_default();
    let v6 = system.text("proc/net/tcp6").unwrap_or_default();
    let connections = v4.lines().chain(v6.lines()).filter_map(established);
    // A server on another port tells those it serves, in their environment: client, its port, server, its port.
    let mine = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let own_port: Option<u16> = mine.split(' ').nth(3).and_then(|port| port.parse().ok());
    let is_ssh = |port: u16| port == SSH || Some(port) == own_port;
    connections
        .filter(|(local_port, _, remote_port)| is_ssh(*local_port) || *remote_port == SSH)
        .map(|(_, remote, _)| remote)
        .filter(|remote| !remote.is_loopback())
        .collect()
}

/// Local port, remote address and remote port of a line of /proc/net/tcp or tcp6 that is an established connection.
fn established(line: &str) -> Option<(u16, IpAddr, u16)> {
    const ESTABLISHED: &str = "01";
    let fields: Vec<_> = line.split_whitespace().collect();
    if *fields.get(3)? != ESTABLISHED {
        return None;
    }
    let (_, local_port) = fields.get(1)?.split_once(':')?;
    let (remote, remote_port) = fields.get(2)?.split_once(':')?;
    Some((
        u16::from_str_radix(local_port, 16).ok()?,
        address(remote)?,
        u16::from_str_radix(remote_port, 16).ok()?,
    ))
}

/// An address as /proc/net/tcp has it: words of 32 bits, each in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    if !hex.is_ascii() {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            // A server that listens on both has its IPv4 clients in the IPv6 table.
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("proc/net").join(name), text).unwrap();
        }
        let system = System::new(folder.path());
        (folder, system)
    }

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";

    fn tcp(local_port: u16, remote: &str, remote_port: u16, state: &str) -> String {
        format!(
            "  sl  local_address rem_address   st\n   0: 0200000A:{local_port:04X} {remote}:{remote_port:04X} {state} 0:0\n"
        )
    }

    #[test]
    fn the_default_route_is_seen() {
        let (_folder, system) = system(&[("route", ROUTES)]);
        assert!(use_of(&system, &["eth0".into()]).unwrap().contains("default IPv4 route"));
        assert_eq!(use_of(&system, &["eth1".into()]), None);
        assert_eq!(use_of(&system, &[]), None);
    }

    #[test]
    fn the_default_route_of_ipv6_is_seen_but_not_the_kernels_reject_route() {
        let zeros = "0".repeat(32);
        let line = |flags: &str, interface: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 {flags} {interface}\n")
        };
        let (_folder, system) =
            system(&[("ipv6_route", &(line("00000003", "eth1") + &line("00200200", "lo")))]);
        assert!(use_of(&system, &["eth1".into()]).unwrap().contains("default IPv6 route"));
        assert_eq!(use_of(&system, &["lo".into()]), None);
    }

    #[test]
    fn an_ssh_connection_is_seen_on_the_interface_its_packets_leave_by() {
        let (_folder, system) = system(&[("route", ROUTES), ("tcp", &tcp(22, "0300000A", 40000, "01"))]);
        let reason = use_of(&system, &["eth1".into()]).unwrap();
        assert!(reason.contains("ssh connection with 10.0.0.3") && reason.contains("eth1"), "{reason}");
    }

    #[test]
    fn an_ipv4_client_in_the_ipv6_table_is_seen() {
        let remote = "0000000000000000FFFF00000300000A";
        let (_folder, system) = system(&[("route", ROUTES), ("tcp6", &tcp(22, remote, 40000, "01"))]);
        assert!(use_of(&system, &["eth1".into()]).unwrap().contains("10.0.0.3"));
    }

    #[test]
    fn other_connections_and_closed_ones_are_nobodys_login() {
        let text = tcp(80, "0300000A", 40000, "01")
            + &tcp(22, "0300000A", 40000, "06")
            + &tcp(22, "0100007F", 40000, "01");
        let (_folder, system) = system(&[("route", ROUTES), ("tcp", &text)]);
        assert_eq!(use_of(&system, &["eth1".into()]), None);
    }

    #[test]
    fn lines_of_any_other_form_are_passed_over() {
        for line in ["", "x", "eth0 zz zz", "eth0 00000000 0 0003 0 0 0", "0: 1:2 3 01", "0: é:1 éééé:1 01"]
        {
            assert_eq!(route_v4(line), None);
            assert_eq!(route_v6(line), None);
            assert_eq!(established(line), None);
        }
    }
}
