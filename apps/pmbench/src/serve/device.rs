//! A DPDK port, and the store's buffers within its reach.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;

use anyhow::{Context as _, Result, anyhow};
use dpdk::{Eal, Pool, Port, PortId};
use pmem::{RegionInfo, Shard};
use smoltcp::wire::IpCidr;
use stack::Config;
use stack::transport::OverEndpoint as _;
use stack::transport::dpdk::{DpdkConfig, DpdkTransport, Reach};

use super::ServeArgs;
use super::ledger::{self, Meter};
use crate::nic::Nic;

/// The device that was asked for, not started yet.
pub(crate) struct Device {
    pub(super) eal: Eal,
    pub(super) id: PortId,
    pub(super) mac: [u8; 6],
    /// Where the port's receive pool goes to once it is started, if a thread of this process stands behind the port.
    hardware: Option<Sender<Pool>>,
}

impl Device {
    pub(super) fn find(args: &ServeArgs) -> Result<Self> {
        let device = args.dev.as_deref().context("the mode runs on a DPDK device; name one with --dev")?;
        Ok(Self::new(Nic::find(device, &args.eal, args.mac)?, None))
    }

    /// The port of `nic`, whose `hardware` is to be told the port's receive pool if it is a thread of this process.
    pub(crate) fn new(nic: Nic, hardware: Option<Sender<Pool>>) -> Self {
        let Nic { eal, id, mac } = nic;
        Self { eal, id, mac, hardware }
    }

    /// Gives the port's hardware the buffers to receive into, as a driver gives it descriptors.
    pub(super) fn started(&self, port: &Port) {
        if let Some((hardware, pool)) = self.hardware.as_ref().zip(port.pool(0)) {
            // A thread that has gone has said why.
            let _ = hardware.send(pool.clone());
        }
    }

    /// Opens the store, and the stack on the port over it, which has the address for itself and goes by `meter`'s time.
    pub(super) fn open(&self, args: &ServeArgs, meter: &Meter) -> Result<(RegionInfo, Shard, DpdkTransport)> {
        let (info, seed) = ledger::open(args)?;
        let reach = Reach::new(self.eal, &info, &seed, &[self.id])?;
        let shard = seed.open()?;
        let config = Config {
            max_connections: args.max_connections.get() as usize,
            congestion: args.congestion,
            ..Config::new(self.mac, vec![IpCidr::Ipv4(args.ip)])?
        };
        let (rings, arena) = (DpdkConfig::default(), shard.arena().clone());
        let now = || meter.instant(meter.raw());
        let mut transport = DpdkTransport::new(self.eal, self.id, config, rings, reach, arena, now())?;
        let address = SocketAddr::new(IpAddr::V4(args.ip.address()), args.port);
        transport.endpoint_mut().listen(address, args.max_connections.get() as usize)?;
        // At the ends of a wire of this process is nobody else.
        if self.hardware.is_none() {
            transport.claim_addresses(now).map_err(|error| anyhow!("{error} (--ip)"))?;
        }
        self.started(transport.port());
        Ok((info, shard, transport))
    }
}
