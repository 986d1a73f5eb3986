//! What a service is run on: a store, and Linux' own TCP and UDP or, with feature `dpdk`, the stack's on a DPDK port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use pmem::{Options, Region, Shard};
use stack::net::{Service, Transport};
use stack::server::{Rest, Server};
use stack::time::Clock;
use stack::transport::kernel::{KernelConfig, KernelTransport};

/// Any error ends the program.
pub type Result = std::result::Result<(), Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Args {
    /// The store: a path, or `memory:` for one that does not last.
    #[arg(long)]
    pm: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:7000")]
    listen: SocketAddr,
    /// A DPDK device to serve on, with the address of --listen for its own.
    #[cfg(feature = "dpdk")]
    #[arg(long)]
    dev: Option<String>,
}

impl Args {
    /// Whether connections are the stack's own, and not Linux'.
    fn has_own_tcp(&self) -> bool {
        #[cfg(feature = "dpdk")]
        return self.dev.is_some();
        #[cfg(not(feature = "dpdk"))]
        false
    }
}

/// When TCP acknowledges what clients send.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each example is one of them")]
pub enum Acknowledge {
    /// When it arrives.
    OnArrival,
    /// When the service says that it is durable.
    WhenDurable,
}

/// What a service listens for at its address.
#[derive(Clone, Copy)]
pub struct Listen {
    /// Connections.
    pub tcp: Option<Acknowledge>,
    /// Datagrams.
    pub udp: bool,
}

/// Serves until the program is killed; what was acknowledged is found again.
pub fn serve(service: impl Service, listen: Listen) -> Result {
    let args = Args::parse();
    if listen.tcp == Some(Acknowledge::WhenDurable) && !args.has_own_tcp() {
        return Err("Linux' TCP acknowledges what arrives before it is durable, and nothing can have it wait: serve on a \
                    DPDK device with --dev, which an example built with `--features dpdk` takes"
            .into());
    }
    let region = Region::open(&args.pm, &Options { size: Some(64 << 20), ..Options::default() })?;
    #[cfg(feature = "dpdk")]
    if let Some(device) = &args.dev {
        use stack::ConnectionOptions;
        use stack::transport::{OverEndpoint as _, dpdk::DpdkTransport};
        let clock = Clock::start();
        let (mut transport, shard) = DpdkTransport::open_host(device, args.listen.ip(), region, &clock)?;
        let endpoint = transport.endpoint_mut();
        if let Some(acknowledge) = listen.tcp {
            let durable_ack = acknowledge == Acknowledge::WhenDurable;
            let options = ConnectionOptions { durable_ack, ..ConnectionOptions::default() };
            endpoint.listen_with(args.listen, 128, &options)?;
        }
        if listen.udp {
            endpoint.bind_udp(args.listen)?;
        }
        println!("listening on {}", args.listen);
        return run(transport, service, shard, &clock, Rest::Spin);
    }
    let shard = region.into_shard()?;
    let mut transport = KernelTransport::new(KernelConfig::default(), shard.arena().clone())?;
    let mut address = args.listen;
    if listen.tcp.is_some() {
        address = transport.listen(address, 128)?;
    }
    if listen.udp {
        (_, address) = transport.bind_udp(address)?;
    }
    println!("listening on {address}");
    run(transport, service, shard, &Clock::start(), Rest::UNTIL_WOKEN)
}

fn run<T: Transport>(transport: T, service: impl Service, shard: Shard, clock: &Clock, rest: Rest) -> Result {
    Ok(Server::new(transport, service, shard).run(clock, &AtomicBool::new(false), rest)?)
}
