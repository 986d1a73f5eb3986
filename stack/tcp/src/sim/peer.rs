//! A host made of smoltcp's own interface and TCP sockets: another's TCP to test against.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use stack_net::time::Instant;

use super::{Host, Port, smoltcp_time};

/// A host of smoltcp's. Its sockets are used directly.
pub struct Peer {
    device: PortDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    now: Instant,
}

impl Peer {
    /// A host with at most eight `addresses` on `port`.
    ///
    /// # Panics
    /// With more addresses than smoltcp has room for.
    pub fn new(port: Port, mac: EthernetAddress, addresses: &[IpCidr], now: Instant) -> Self {
        let mut device = PortDevice { port, handled: 0 };
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed =
            u64::from_be_bytes([0, 0, mac.0[0], mac.0[1], mac.0[2], mac.0[3], mac.0[4], mac.0[5]]);
        let mut interface = Interface::new(config, &mut device, smoltcp_time(now));
        interface.update_ip_addrs(|own| {
            own.extend_from_slice(addresses).expect("at most eight addresses are given");
        });
        Self { device, interface, sockets: SocketSet::new(Vec::new()), now }
    }

    /// Sends what is not for a neighbour through `gateway`.
    ///
    /// # Panics
    /// With more than one gateway of each IP version.
    pub fn set_gateway(&mut self, gateway: IpAddress) {
        let routes = self.interface.routes_mut();
        match gateway {
            IpAddress::Ipv4(gateway) => routes.add_default_ipv4_route(gateway),
            IpAddress::Ipv6(gateway) => routes.add_default_ipv6_route(gateway),
        }
        .expect("one gateway of each IP version is given");
    }

    /// A socket with rings of these sizes that uses timestamps, acknowledges at once and sends small
    /// segments at once.
    pub fn add_socket(&mut self, rx_bytes: usize, tx_bytes: usize) -> SocketHandle {
        let ring = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(ring(rx_bytes), ring(tx_bytes));
        socket.set_tsval_generator(Some(|| VIRTUAL_MS.get()));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    /// Opens a connection on `socket`.
    ///
    /// # Errors
    /// The socket is open already, or an address is unusable.
    pub fn connect(
        &mut self,
        socket: SocketHandle,
        remote: SocketAddr,
        local_port: u16,
    ) -> Result<(), tcp::ConnectError> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(socket);
        socket.connect(self.interface.context(), remote, local_port)
    }

    /// A socket, to listen, send, receive and close.
    pub fn socket(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    /// Removes a socket.
    pub fn remove_socket(&mut self, socket: SocketHandle) {
        self.sockets.remove(socket);
    }

    /// The host's place on the link.
    pub fn port(&self) -> &Port {
        &self.device.port
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("port", &self.device.port)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Host for Peer {
    fn poll(&mut self, now: Instant) -> bool {
        self.now = now;
        VIRTUAL_MS.set(now.as_millis() as u32);
        let handled = self.device.handled;
        self.interface.poll(smoltcp_time(now), &mut self.device, &mut self.sockets);
        self.device.handled > handled
    }

    fn deadline(&mut self) -> Option<Instant> {
        // At times smoltcp asks for a moment that has passed although it has nothing to do yet.
        let patience = Duration::from_millis(1);
        self.interface
            .poll_at(smoltcp_time(self.now), &self.sockets)
            .map(|at| Instant::from_micros(at.total_micros()))
            .map(|at| if at > self.now { at } else { self.now + patience })
    }
}

thread_local! {
    /// What smoltcp's sockets put into their timestamps: they take a plain function, without any context.
    static VIRTUAL_MS: Cell<u32> = const { Cell::new(0) };
}

struct PortDevice {
    port: Port,
    /// Frames received and sent.
    handled: u64,
}

impl Device for PortDevice {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, now: smoltcp::time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        let now = Instant::from_micros(now.total_micros());
        let frame = self.port.receive(now)?;
        self.handled += 1;
        Some((RxToken(frame), TxToken { device: self, now }))
    }

    fn transmit(&mut self, now: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        let now = Instant::from_micros(now.total_micros());
        Some(TxToken { device: self, now })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.port.path().mtu + 14;
        capabilities
    }
}

struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct TxToken<'a> {
    device: &'a mut PortDevice,
    now: Instant,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.device.handled += 1;
        self.device.port.send(self.now, frame);
        result
    }
}
