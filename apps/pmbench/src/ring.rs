//! `pmbench ring`: a server and its client in one process, over a link that does as a NIC does.
//!
//! On memif the server's driver copies each frame into its buffer, which a NIC would do by DMA: the server's CPU is
//! charged for that, and more where it receives into memory that no cache holds. Here the server's port is a pair of
//! rings, and the client's thread is the hardware behind it (`wire.rs`): all copying is done by its core.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use bytesize::ByteSize;
use clap::Args;
use dpdk::{Eal, Pool};
use program::parse_size;
use smoltcp::wire::{EthernetAddress, Ipv4Cidr};
use stack::CongestionControl;

use crate::load::cli::{LoadArgs, parse_connections, parse_seconds};
use crate::load::{self, device::Device as ClientDevice};
use crate::nic::Nic;
use crate::protocol::Mode;
use crate::serve::{self, Control, Device, ServeArgs};
use crate::wire::{Cable, Ends};

const EXAMPLES: &str = "\
Examples:
  Fifty connections with one request each on its way, for five seconds; a CPU for each side:
    pmbench ring --mode paste --pm /dev/shm/bench.pm --server-core 0 --client-core 1
  With --linger, standard input takes `mark NUMBER` and `stop`, as that of `pmbench serve` does.";

const SERVER: (Ipv4Addr, [u8; 6]) = (Ipv4Addr::new(10, 0, 0, 1), [2, 0, 0, 0, 0, 1]);
const CLIENT: (Ipv4Addr, [u8; 6]) = (Ipv4Addr::new(10, 0, 0, 2), [2, 0, 0, 0, 0, 2]);
const PREFIX: u8 = 24;
const PORT: u16 = 8080;
/// Connections that a server takes beyond those that it will have.
const SPARE_CONNECTIONS: u32 = 16;
/// The longest record, unless longer ones are sent.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// Which server, and what to load it with.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RingArgs {
    /// How the server does it: dpdk-copy, paste, paste-echo or limit.
    #[arg(long, value_parser = parse_mode)]
    pub mode: Mode,
    /// The CPU for the server; any, if not given.
    #[arg(long, value_name = "N")]
    pub server_core: Option<usize>,
    /// The CPU for the client, which is its server's hardware too; any, if not given.
    #[arg(long, value_name = "N")]
    pub client_core: Option<usize>,
    /// The store: a file, a device-DAX device, or `memory:`.
    #[arg(long, value_name = "PATH", default_value = pmem::MEMORY)]
    pub pm: PathBuf,
    /// How large to make a new store. Once half of it is used, the oldest records make room for new ones.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub pm_size: ByteSize,
    /// Measure where the time of the server's loop goes, stage by stage.
    #[arg(long)]
    pub profile: bool,
    /// Connections; each has one request on its way at a time.
    #[arg(long, value_name = "N", default_value = "50", value_parser = parse_connections)]
    pub connections: NonZeroU32,
    /// Length of each request's body in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub size: u32,
    /// Requests a second, due at even intervals (open loop); without it, a connection sends the next request
    /// when it has the reply to the last (closed loop).
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<NonZeroU64>,
    /// Read records instead: so many are appended first, of --size bytes each, and then read by turns.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub read: Option<u32>,
    /// How long to measure.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// How long to load before that.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = parse_seconds)]
    pub warmup: f64,
    /// Report as JSON lines instead of text.
    #[arg(long)]
    pub json: bool,
    /// Serve until standard input says `stop` or ends, and go on after the report. If that comes sooner, there is none.
    #[arg(long)]
    pub linger: bool,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = <Mode as clap::ValueEnum>::from_str(text, false)?;
    if mode.is_kernel() {
        return Err(
            "servers on the kernel's sockets have no port; choose dpdk-copy, paste, paste-echo or limit"
                .to_owned(),
        );
    }
    Ok(mode)
}

/// Serves and loads as `args` say, and writes what the client found to standard output, beside the server's events.
///
/// # Errors
/// The store, the cores or the memory cannot be had; or there was an error among the replies, or no reply at all.
pub fn run(args: &RingArgs) -> Result<()> {
    let control = Control::start(args.server_core)?;
    let interruption = control.interruption();
    let mut words = args.eal.clone();
    if !words.iter().any(|word| word == "--no-pci") {
        words.push("--no-pci".to_owned());
    }
    let eal = Eal::init(words)?;
    let Cable { server, client, ends } = Cable::new(eal)?;
    let (sender, pools) = channel();
    let device = Device::new(Nic { eal, id: server, mac: SERVER.1 }, Some(sender));
    let nic = Nic { eal, id: client, mac: CLIENT.1 };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("client".to_owned());
        let client = thread.spawn_scoped(scope, || {
            let mut end = EndOfServer { interruption: &interruption, is_due: true };
            load(args, nic, ends, pools, &interruption)?;
            end.is_due = !args.linger;
            Ok(())
        })?;
        let served = serve::serve_on(&device, &serve_args(args), &control);
        // A client that still measures, or waits for the port, has nobody to talk to any more.
        let is_interrupted = interruption.swap(true, Ordering::Relaxed);
        drop(device);
        let loaded = client.join().map_err(|_| anyhow!("the client panicked"));
        served?;
        if args.linger && !is_interrupted { Ok(()) } else { loaded? }
    })
}

/// Ends the server when the client is through, or has failed.
struct EndOfServer<'a> {
    interruption: &'a AtomicBool,
    is_due: bool,
}

impl Drop for EndOfServer<'_> {
    fn drop(&mut self) {
        if self.is_due {
            self.interruption.store(true, Ordering::Relaxed);
        }
    }
}

/// The client's part, in its own thread.
fn load(
    args: &RingArgs,
    nic: Nic,
    ends: Ends,
    pools: Receiver<Pool>,
    interruption: &AtomicBool,
) -> Result<()> {
    if let Some(core) = args.client_core {
        program::pin(core)?;
    }
    let _lcore = nic.eal.register_thread()?;
    let pool = pools.recv().context("the server did not start its port")?;
    let device = ClientDevice::new(nic, Some((ends, pool)));
    load::load_over(device, &load_args(args), interruption, &mut io::stdout())
}

fn serve_args(args: &RingArgs) -> ServeArgs {
    ServeArgs {
        mode: args.mode,
        core: args.server_core,
        pm: args.pm.clone(),
        pm_size: args.pm_size,
        persist_delay_us: 0,
        profile: args.profile,
        listen: SocketAddrV4::new(SERVER.0, PORT).into(),
        dev: None,
        ip: Ipv4Cidr::new(SERVER.0, PREFIX),
        mac: Some(EthernetAddress(SERVER.1)),
        port: PORT,
        congestion: CongestionControl::default(),
        max_connections: args.connections.saturating_add(SPARE_CONNECTIONS),
        max_record: ByteSize(MAX_RECORD_BYTES.max(args.size.into())),
        eal: Vec::new(),
    }
}

fn load_args(args: &RingArgs) -> LoadArgs {
    LoadArgs {
        addresses: 1,
        dev: String::new(),
        ip: Ipv4Cidr::new(CLIENT.0, PREFIX),
        mac: Some(EthernetAddress(CLIENT.1)),
        target: SocketAddrV4::new(SERVER.0, PORT),
        connections: args.connections,
        size: args.size,
        chunk: None,
        read: args.read,
        seconds: args.seconds,
        warmup: args.warmup,
        rate: args.rate,
        frames: args.mode == Mode::Limit,
        target_mac: EthernetAddress(SERVER.1),
        core: args.client_core,
        nap_us: None,
        json: args.json,
        linger: false,
        eal: Vec::new(),
    }
}
