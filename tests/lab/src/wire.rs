//! The cable between the Linux kernel and a DPDK port, or another network of the kernel's.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{run, run_for};

/// The kernel's address on the wire.
pub const KERNEL_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The kernel's IPv6 address on the wire.
pub const KERNEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// The server's address on the wire.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The server's IPv6 address on the wire.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// DPDK's name for the far end of a [`veth`] pair.
pub const VETH_DEVICE: &str = "net_af_packet0,iface=veth1";
/// DPDK's name for a TAP interface, which exists as soon as the server runs; then comes [`tap`].
pub const TAP_DEVICE: &str = "net_tap0,iface=tap0";

/// Makes a pair of virtual Ethernet interfaces: `veth0` is the kernel's, `veth1` is left to a DPDK port
/// over a packet socket.
///
/// # Errors
/// What `ip`, `sysctl` or `ethtool` say.
pub fn veth() -> Result<()> {
    stock_veth()?;
    // A packet socket sees frames before a card would have cut and summed them: with the offloads on, they
    // are longer than the MTU and their checksums are partial.
    for side in ["veth0", "veth1"] {
        run("ethtool", ["-K", side, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
    }
    Ok(())
}

/// As [`veth`], just as the kernel makes the pair: checksums and the cutting of long segments are left to devices that
/// are not there.
///
/// # Errors
/// What `ip` or `sysctl` say.
pub fn stock_veth() -> Result<()> {
    run("ip", ["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"])?;
    // The kernel must not answer on the server's side.
    silence("veth1")?;
    run("ip", ["link", "set", "veth1", "up"])?;
    address("veth0")
}

/// Makes a pair of virtual Ethernet interfaces: `veth0` is this network's, `veth1` that of another network
/// namespace, which is made for it and gets the server's addresses. `namespace` is a file to be made, which then
/// names it.
///
/// # Errors
/// What `ip` or `mount` say.
pub fn kernel_veth(namespace: &Path) -> Result<()> {
    make_namespace(namespace)?;
    run("ip", ["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"])?;
    address("veth0")?;
    move_into(namespace, "veth1", SERVER_V4, SERVER_V6)
}

/// Gives the interface `client` of a [`Link`](crate::Link) to this network, and leaves that of a server to a DPDK port.
///
/// # Errors
/// What `ip` or `sysctl` say.
pub fn link_to_device(client: &str, server: &str) -> Result<()> {
    silence(server)?;
    run("ip", ["link", "set", server, "up"])?;
    address(client)
}

/// Gives the interface `client` of a [`Link`](crate::Link) to this network, and that of a server, with the server's
/// addresses, to another network namespace, which is made for it. `namespace` is a file to be made, which then names it.
///
/// # Errors
/// What `ip` or `mount` say.
pub fn link_to_kernel(client: &str, server: &str, namespace: &Path) -> Result<()> {
    make_namespace(namespace)?;
    address(client)?;
    move_into(namespace, server, SERVER_V4, SERVER_V6)
}

/// Makes a network namespace, which the file `namespace`, made for it, then names.
///
/// # Errors
/// What `mount` says.
pub fn make_namespace(namespace: &Path) -> Result<()> {
    let name = namespace.to_str().context("a path in UTF-8")?;
    File::create(namespace)?;
    // From inside, since the numbers in /proc may be those of an outer namespace of processes.
    run("unshare", ["--net", "mount", "--bind", "/proc/self/ns/net", name]).map(drop)
}

/// Gives an interface to another network namespace, with these addresses.
///
/// # Errors
/// What `ip` says.
pub fn move_into(namespace: &Path, interface: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    run("ip", ["link", "set", interface, "netns", namespace.to_str().context("a path in UTF-8")?])?;
    run_in(namespace, "ip", &["link", "set", "lo", "up"])?;
    run_in(namespace, "ip", &["address", "add", &format!("{v4}/24"), "dev", interface])?;
    run_in(namespace, "ip", &["address", "add", &format!("{v6}/64"), "dev", interface, "nodad"])?;
    run_in(namespace, "ip", &["link", "set", interface, "up"])
}

/// Runs a program in another network namespace.
///
/// # Errors
/// As [`run`].
pub fn run_in(namespace: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let [enter, network] = enter(namespace);
    let mut command = Command::new(enter);
    run_for(command.arg(network).arg(program).args(arguments), Duration::from_secs(20)).map(drop)
}

/// Calls a function in another network namespace, in a thread of its own: the sockets that it makes belong there.
///
/// # Errors
/// There is no such namespace, or it may not be entered.
pub fn call_in<T: Send>(namespace: &Path, call: impl FnOnce() -> T + Send) -> Result<T> {
    let network = File::open(namespace)?;
    std::thread::scope(|scope| {
        let called = scope.spawn(|| {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(call())
        });
        called.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What goes in front of a command line to run it in another network namespace.
pub(crate) fn enter(namespace: &Path) -> [OsString; 2] {
    let mut network = OsString::from("--net=");
    network.push(namespace);
    ["nsenter".into(), network]
}

/// Gives the kernel's side of a TAP interface its addresses, once a server has made it.
///
/// # Errors
/// The interface does not appear within 20 s, or what `ip` says.
pub fn tap() -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while run("ip", ["link", "show", "tap0"]).is_err() {
        if Instant::now() > end {
            bail!("the server made no interface tap0");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    address("tap0")
}

fn address(interface: &str) -> Result<()> {
    run("ip", ["address", "add", &format!("{KERNEL_V4}/24"), "dev", interface])?;
    run("ip", ["address", "add", &format!("{KERNEL_V6}/64"), "dev", interface, "nodad"])?;
    run("ip", ["link", "set", interface, "up"])?;
    Ok(())
}

/// An interface without any protocol of the kernel's.
fn silence(interface: &str) -> Result<()> {
    // A kernel without IPv6 has nothing to silence.
    let disable = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if Path::new(&disable).exists() {
        std::fs::write(disable, "1")?;
    }
    run("ip", ["link", "set", interface, "arp", "off"])?;
    Ok(())
}

/// The server's URL for a path, by its address.
pub fn url(server: IpAddr, path: &str) -> String {
    match server {
        IpAddr::V4(address) => format!("http://{address}{path}"),
        IpAddr::V6(address) => format!("http://[{address}]{path}"),
    }
}
