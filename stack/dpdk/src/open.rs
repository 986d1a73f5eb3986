//! A device, a store and an address in one step, with nothing forgotten on the way.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dpdk::{AttachError, Eal, EalError, PortError};
use pmem::{OpenError, Region, Shard};
use stack_net::net::{OverEndpoint as _, Transport as _};
use stack_net::time::{Clock, Instant};
use stack_tcp::{AddressConflict, Config, ConnectionOptions, EthernetAddress, IpCidr, ListenError};

use super::{DpdkConfig, DpdkError, DpdkTransport, Reach, ReachError};

/// How long other hosts have to say that an address is theirs: three probes, and a moment for the answer.
const PROBING: Duration = Duration::from_millis(300);

/// Connections that may wait to be accepted.
const BACKLOG: usize = 1024;

/// Why nothing is served on a device.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The EAL does not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// There is no such device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The device is gone.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The device must not have the store.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// The store is not to be had.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// There are no random numbers for the secrets.
    #[error("no random numbers for the stack's secrets: {0}")]
    Random(String),
    /// The stack does not run on the port.
    #[error(transparent)]
    Transport(#[from] DpdkError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Somebody else has the address.
    #[error(transparent)]
    Taken(#[from] AddressTaken),
}

/// Another host has one of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address {} is in use by the host {}; take another one", .0.ip, EthernetAddress(.0.mac))]
pub struct AddressTaken(pub AddressConflict);

impl DpdkTransport {
    /// Serves `listen` on `device` as [`open_host`](Self::open_host) does, and listens there.
    ///
    /// # Errors
    /// [`ServeError`]; until the shard was opened the store is as it was.
    pub fn open(
        device: &str,
        listen: SocketAddr,
        store: Region,
        clock: &Clock,
    ) -> Result<(Self, Shard), ServeError> {
        Self::open_with(device, listen, &ConnectionOptions::default(), store, clock)
    }

    /// As [`open`](Self::open), for connections that go by `options`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        device: &str,
        listen: SocketAddr,
        options: &ConnectionOptions,
        store: Region,
        clock: &Clock,
    ) -> Result<(Self, Shard), ServeError> {
        let (mut transport, shard) = Self::open_host(device, listen.ip(), store, clock)?;
        transport.endpoint_mut().listen_with(listen, BACKLOG, options)?;
        Ok((transport, shard))
    }

    /// Is the host `ip` on `device` with one core, in a network of 24 bits, or of 64 with IPv6: starts the EAL, lets the
    /// device reach the store's first shard, and only then opens that, and claims the address. Nothing is listened for
    /// yet. What else there is to choose goes by [`PortShare`](super::PortShare).
    ///
    /// # Errors
    /// [`ServeError`]; until the shard was opened the store is as it was.
    pub fn open_host(
        device: &str,
        ip: IpAddr,
        store: Region,
        clock: &Clock,
    ) -> Result<(Self, Shard), ServeError> {
        let eal = Eal::init(dpdk::arguments_for(&[device], &[]))?;
        let id = eal.attach(device)?;
        let info = store.info().clone();
        let seed = store.into_seeds().swap_remove(0);
        let reach = Reach::new(eal, &info, &seed, &[id])?;
        let address = IpCidr::new(ip.into(), if ip.is_ipv4() { 24 } else { 64 });
        let config = Config::new(id.info()?.host_mac(), vec![address])
            .map_err(|error| ServeError::Random(error.to_string()))?;
        let shard = seed.open()?;
        let arena = shard.arena().clone();
        let rings = DpdkConfig::default();
        let mut transport = Self::new(eal, id, config, rings, reach, arena, clock.now())?;
        transport.claim_addresses(|| clock.now())?;
        Ok((transport, shard))
    }

    /// Asks the network for 300 ms whether somebody else has one of the host's addresses. Of several cores the first one
    /// asks, and all hear the answer: each calls this. `now` reads the clock that the transport goes by from here on.
    ///
    /// # Errors
    /// [`AddressTaken`]: it must not be served.
    pub fn claim_addresses(&mut self, now: impl Fn() -> Instant) -> Result<(), AddressTaken> {
        if self.core == 0 {
            self.endpoint.claim_addresses(now());
        }
        let end = now() + PROBING;
        while now() < end {
            // Neither fails: only waiting can.
            let _ = self.receive(now());
            let _ = self.transmit(now());
            if let Some(conflict) = self.endpoint.address_conflict() {
                return Err(AddressTaken(conflict));
            }
        }
        Ok(())
    }
}
