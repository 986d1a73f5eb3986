//! What a service is run on: a store, and connections of Linux' or, with feature `dpdk`, those of a DPDK port.

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

/// Serves until the program is killed; what was acknowledged is found again.
pub fn serve(service: impl Service, acknowledge: Acknowledge) -> Result {
    let args = Args::parse();
    if acknowledge == Acknowledge::WhenDurable && !args.has_own_tcp() {
        return Err("Linux' TCP acknowledges what arrives before it is durable, and nothing can have it wait: serve on a \
                    DPDK device with --dev, which an example built with `--features dpdk` takes"
            .into());
    }
    let region = Region::open(&args.pm, &Options { size: Some(64 << 20), ..Options::default() })?;
    #[cfg(feature = "dpdk")]
    if let Some(device) = &args.dev {
        use stack::{ConnectionOptions, transport::dpdk::DpdkTransport};
        let clock = Clock::start();
        let durable_ack = acknowledge == Acknowledge::WhenDurable;
        let options = ConnectionOptions { durable_ack, ..ConnectionOptions::default() };
        let (transport, shard) = DpdkTransport::open_with(device, args.listen, &options, region, &clock)?;
        println!("listening on {}", args.listen);
        return run(transport, service, shard, &clock, Rest::Spin);
    }
    let shard = region.into_shard()?;
    let mut transport = KernelTransport::new(KernelConfig::default(), shard.arena().clone())?;
    println!("listening on {}", transport.listen(args.listen, 128)?);
    run(transport, service, shard, &Clock::start(), Rest::UNTIL_WOKEN)
}

fn run<T: Transport>(transport: T, service: impl Service, shard: Shard, clock: &Clock, rest: Rest) -> Result {
    Ok(Server::new(transport, service, shard).run(clock, &AtomicBool::new(false), rest)?)
}
