//! `pmkv serve`: a store, a network, and the loop between them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use pmem::{Contents, Options, Region, RegionInfo, Shard};
use stack::net::Transport;
use stack::server::{Rest, Server};
use stack::time::{Clock, Instant};
use stack::transport::dpdk::DpdkTransport;
use stack::transport::kernel::{KernelConfig, KernelError, KernelTransport, Listener, Stacks};
use stack::{ConnectionOptions, Keepalive};

use crate::cli::ServeArgs;
use crate::server::Config;
use crate::service::{KvService, SPARE_PLACES, wall_ms};
use crate::users::Users;

/// Finished handshakes that wait for the service.
const BACKLOG: u16 = 1024;
/// How long an address may still belong to a server that was killed.
const PREDECESSOR: Duration = Duration::from_secs(2);
/// Descriptors of this process that are no client's: the store, the ring, standard streams, and some to spare.
const OWN_DESCRIPTORS: u64 = 64;
/// A client that is silent for so long is asked whether it is still there, and one that acknowledges nothing for as long is
/// disconnected.
const SILENCE: Duration = Duration::from_secs(120);
/// Time without a commit after which the log's end is noted in the store, so that later losses show as what they are.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(500);
/// How long clients are given at the end to take what is owed to them.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves until SIGINT or SIGTERM, and reports on `out`.
///
/// # Errors
/// The store or the network cannot be had, or the store failed on the way. Everything that was acknowledged is in the
/// store.
pub fn serve(args: &ServeArgs, out: &mut impl Write) -> Result<()> {
    let stop = program::stop_signal().context("signals cannot be handled")?;
    let clock = Clock::start();
    let users = users(args)?;
    let Some(device) = &args.dev else {
        // The network comes first: a mistake in its name should not leave a new store behind.
        let listeners = listen(args)?;
        let region = open(args, &stop)?;
        let info = region.info().clone();
        let config = KernelConfig {
            max_connections: places(args),
            rx_buffers: receive_buffers(info.geometry.buffers),
            ..KernelConfig::default()
        };
        config.check(info.geometry.buffers as usize)?;
        let shard = region.into_shard()?;
        let mut transport = KernelTransport::new(config, shard.arena().clone())?;
        for listener in listeners {
            listener.keep_alive(SILENCE, Duration::from_secs(15), 4)?;
            listener.user_timeout(SILENCE)?;
            transport.accept(listener)?;
        }
        let addresses: Vec<_> =
            transport.listeners().iter().map(|socket| socket.address().to_string()).collect();
        let found = format!("{} (sockets of Linux)", addresses.join(" and "));
        return run(
            transport,
            Rest::UNTIL_WOKEN,
            shard,
            &Setting { args, info, users, clock, stop, found },
            out,
        );
    };
    let region = open(args, &stop)?;
    let info = region.info().clone();
    let options = ConnectionOptions {
        keepalive: Some(Keepalive { idle: SILENCE, interval: Duration::from_secs(15), count: 4 }),
        user_timeout: SILENCE,
        ..ConnectionOptions::default()
    };
    let address = args.listen[0];
    let (transport, shard) = DpdkTransport::open_with(device, address, &options, region, &clock)
        .with_context(|| format!("{device} cannot be served on"))?;
    let found = format!("{address} (DPDK device {device})");
    run(transport, Rest::Spin, shard, &Setting { args, info, users, clock, stop, found }, out)
}

/// What a server is started with.
struct Setting<'a> {
    args: &'a ServeArgs,
    info: RegionInfo,
    users: Users,
    clock: Clock,
    stop: Arc<AtomicBool>,
    /// Where it serves, in words.
    found: String,
}

fn run<T: Transport>(
    transport: T,
    rest: Rest,
    shard: Shard,
    setting: &Setting<'_>,
    out: &mut impl Write,
) -> Result<()> {
    let Setting { args, info, users, clock, stop, found } = setting;
    let config = Config {
        max_clients: args.max_connections.get(),
        max_memory_bytes: args.max_memory.map_or(0, |size| size.as_u64() as usize),
        max_value_bytes: args.max_value.as_u64(),
        users: users.clone(),
        domain: info.domain.to_string(),
        port: args.listen[0].port(),
        ..Config::default()
    };
    let service = KvService::open(config, &shard, args.accept_damage, wall_ms)?;
    writeln!(out, "store     {info}")?;
    let (keys, records) = (service.store().len(), shard.recovery().records);
    writeln!(out, "keys      {keys}, from {records} records of the log")?;
    let damaged = service.stats().damaged_records;
    if damaged > 0 {
        writeln!(out, "damaged   {damaged} records, which are passed over")?;
    }
    writeln!(out, "serving   {found}")?;
    out.flush()?;
    let mut server = Server::new(transport, service, shard);
    let served = serve_until(&mut server, clock, stop, rest);
    let ended = end(&mut server, clock, rest);
    let stats = server.service().stats();
    writeln!(out, "ended     {} commands of {} connections", stats.commands, stats.connections)?;
    served.and(ended)
}

fn serve_until<T: Transport>(
    server: &mut Server<T, KvService>,
    clock: &Clock,
    stop: &AtomicBool,
    rest: Rest,
) -> Result<()> {
    // Since when the last commit is not noted.
    let mut unnoted_since: Option<Instant> = None;
    server.run_with(clock, stop, rest, |server, now, turn| {
        check(server)?;
        if turn.step.committed {
            unnoted_since = Some(now);
        }
        if unnoted_since.is_some_and(|since| now - since >= CHECKPOINT_AFTER) {
            let (_, _, shard) = server.parts();
            shard.checkpoint()?;
            unnoted_since = None;
        }
        anyhow::Ok(())
    })
}

/// Says why the server cannot go on, if it cannot.
fn check<T: Transport>(server: &Server<T, KvService>) -> Result<()> {
    match server.service().failure() {
        Some(why) => {
            bail!("the store failed while serving ({why}); acknowledged changes are safe, check the medium")
        }
        None => Ok(()),
    }
}

/// Answers what was asked, says goodbye, and leaves the store in order.
fn end<T: Transport>(server: &mut Server<T, KvService>, clock: &Clock, rest: Rest) -> Result<()> {
    check(server)?;
    let (transport, service, shard) = server.parts();
    service.close(transport, shard);
    let end = clock.now() + FAREWELL;
    while server.service().connected() > 0 && clock.now() < end {
        server.step(clock.now())?;
        server.rest(rest, clock.now(), Duration::ZERO)?;
    }
    let (transport, service, _) = server.parts();
    service.abort(transport);
    server.step(clock.now())?;
    check(server)?;
    let (_, _, shard) = server.parts();
    shard.checkpoint().context("the store's end could not be noted; acknowledged changes are safe")
}

fn places(args: &ServeArgs) -> usize {
    args.max_connections.get() as usize + SPARE_PLACES as usize
}

/// Buffers to receive into: an eighth, within what rings usually have, and a power of two.
fn receive_buffers(buffers: u32) -> u16 {
    1 << (buffers / 8).clamp(64, 1024).ilog2()
}

/// Sockets that listen, and whose connections nobody accepts yet.
fn listen(args: &ServeArgs) -> Result<Vec<Listener>> {
    KernelTransport::probe()?;
    let others = OWN_DESCRIPTORS + args.listen.len() as u64 + u64::from(SPARE_PLACES);
    program::allow_descriptors(args.max_connections.get().into(), 1, others)?;
    let is_v4_elsewhere = |port| args.listen.iter().any(|other| other.is_ipv4() && other.port() == port);
    let bind = |&address: &std::net::SocketAddr| {
        let stacks = if is_v4_elsewhere(address.port()) { Stacks::V6Only } else { Stacks::Dual };
        let begun = std::time::Instant::now();
        loop {
            // Of a process that was killed, the kernel ends the ring a moment later than the process, and with it the
            // listener.
            match Listener::bind(address, stacks, BACKLOG) {
                Err(KernelError::Listen { reason, .. })
                    if reason.kind() == ErrorKind::AddrInUse && begun.elapsed() < PREDECESSOR =>
                {
                    std::thread::sleep(PREDECESSOR / 100);
                }
                outcome => return Ok(outcome?),
            }
        }
    };
    args.listen.iter().map(bind).collect()
}

/// Opens or makes the store that was asked for.
fn open(args: &ServeArgs, stop: &Arc<AtomicBool>) -> Result<Region> {
    let options = Options {
        size: args.pm_size.map(|size| size.as_u64()),
        shards: Some(1),
        contents: Contents::Changes,
        max_record_bytes: u32::MAX,
        volatile: args.volatile,
        force: args.force,
        populate: true,
        watch: program::watch_opening("pmkv", false, stop),
        ..Options::default()
    };
    Region::open(&args.pm, &options).map_err(|error| {
        match program::option_for(&error, "--pm-size, --force") {
            Some(option) => anyhow!("{error} (here: {option})"),
            None => error.into(),
        }
    })
}

/// Who may do what: the password is in a file or in the environment, and never on the command line, which others can read.
fn users(args: &ServeArgs) -> Result<Users> {
    let text = match &args.password_file {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("the password file {} cannot be read", path.display()))?,
        None => std::env::var("PMKV_PASSWORD").unwrap_or_default(),
    };
    let password = text.lines().next().unwrap_or_default();
    match (password, &args.password_file) {
        ("", Some(path)) => bail!("the first line of {} is empty; put the password there", path.display()),
        ("", None) => Ok(Users::default()),
        _ => Ok(Users::with_password(password.as_bytes())),
    }
}
