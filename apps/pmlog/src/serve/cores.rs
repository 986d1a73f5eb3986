//! The threads of a server: one for each core, with a shard, a transport and a service of its own, and this one,
//! which reports.

use std::io;
use std::ops::AddAssign;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use pmem::{RegionInfo, ShardSeed};
use signal_hook::consts::SIGUSR1;
use stack::net::Transport as _;
use stack::profile::Profile;
use stack::server::Server;
use stack::time::Clock;
use stack::transport::dpdk::DpdkError;

use super::access::{Access, Served, Traffic};
use super::report::{Report, Started};
use super::run::{self, LogServer, Spent, Surroundings};
use super::store;
use super::totals::{ShardStart, Totals};
use super::watch::Watch;
use crate::cli::ServeArgs;
use crate::service::{
    Exchange, LogService, NetworkState, SPARE_PLACES, ServiceConfig, SharedNetworkState, WallClock,
};

/// Between two lines of rates.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What all cores are told.
pub(super) struct Setting<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) info: &'a RegionInfo,
    pub(super) clock: &'a Clock,
    pub(super) stop: &'a AtomicBool,
    /// The CPUs to run on; none for wherever the system likes.
    pub(super) cpus: &'a [Option<usize>],
}

/// How a server went.
pub(super) struct Ended {
    /// Whether it served at all.
    pub(super) has_served: bool,
    pub(super) result: Result<()>,
}

/// What a core tells the thread that reports.
enum News<F> {
    /// It is ready, or will never be.
    Ready(Option<Ready<F>>),
    /// Where its time has gone so far.
    Profile { core: usize, profile: Box<Profile>, is_last: bool },
}

/// What a core that is ready tells: its shards, and what the network turned out to be.
struct Ready<F> {
    shards: Vec<ShardStart>,
    found: F,
}

/// One core's thread, before it serves.
struct Core<'a, A: Access> {
    index: usize,
    access: &'a A,
    port: A::CorePort,
    seeds: Vec<ShardSeed>,
    exchange: Arc<Exchange>,
    setting: &'a Setting<'a>,
    /// Whether all cores are ready, and shall serve.
    go: &'a OnceLock<bool>,
    totals: &'a Mutex<Vec<Totals<<A::Transport as Served>::Totals>>>,
    /// How the network is, which the first core tells all.
    network: SharedNetworkState,
    /// Set when somebody wants to see the profile; none without one.
    profile_asked: Option<Arc<AtomicBool>>,
}

/// Serves with a core for each port until a signal says stop, and reports.
pub(super) fn serve<A: Access>(
    access: &A,
    ports: Vec<A::CorePort>,
    seeds: Vec<ShardSeed>,
    setting: &Setting<'_>,
    report: &mut Report<'_, impl io::Write>,
) -> Ended {
    let (cores, shards) = (ports.len(), seeds.len());
    let profile_asked = match setting.args.profile.then(|| profile_signals(cores)).transpose() {
        Ok(flags) => flags.unwrap_or_default(),
        Err(error) => {
            let error = anyhow!(error).context("SIGUSR1 cannot be handled");
            return Ended { has_served: false, result: Err(error) };
        }
    };
    let exchange = Exchange::new(shards as u32, cores as u32);
    let totals = Mutex::new(vec![Totals::default(); cores]);
    let network = SharedNetworkState::default();
    let go = OnceLock::new();
    let mut seeds: Vec<_> = seeds.into_iter().map(Some).collect();
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        let threads = ports.into_iter().enumerate().map(|(index, port)| {
            let seeds = seeds.iter_mut().skip(index).step_by(cores).filter_map(Option::take).collect();
            let (exchange, sender) = (exchange.clone(), sender.clone());
            let profile_asked = profile_asked.get(index).cloned();
            let (go, totals, network) = (&go, &totals, network.clone());
            let core =
                Core { index, access, port, seeds, exchange, setting, go, totals, network, profile_asked };
            thread::Builder::new().name(format!("core {index}")).spawn_scoped(scope, move || {
                let result = core.run(&sender);
                // The others are of no use without this one.
                if result.is_err() {
                    setting.stop.store(true, Ordering::Relaxed);
                }
                result
            })
        });
        let threads: Vec<_> = threads.collect();
        drop(sender);
        let all_there = threads.iter().all(Result::is_ok);
        let mut reported = begin(&receiver, setting, report, cores).and_then(|ready| {
            anyhow::ensure!(all_there, "threads cannot be started; raise the limit on processes (ulimit -u)");
            Ok(ready)
        });
        let has_served = matches!(reported, Ok(true));
        let mut profiles = vec![None; cores];
        // Set here and nowhere else.
        let _ = go.set(has_served);
        if has_served {
            reported = follow(&receiver, report, &totals, &mut profiles).map(|()| true);
        }
        if reported.is_err() {
            setting.stop.store(true, Ordering::Relaxed);
        }
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(error) => Err(error.into()),
            })
            .collect();
        let result = first_error(results).and(reported).and_then(|_| match has_served {
            true => report.ended(&sum(&totals)).and_then(|()| report.profiles(&mut profiles)),
            false => Ok(()),
        });
        Ended { has_served, result }
    })
}

/// A flag for each core, all set by SIGUSR1.
fn profile_signals(cores: usize) -> io::Result<Vec<Arc<AtomicBool>>> {
    (0..cores)
        .map(|_| {
            let asked = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(SIGUSR1, Arc::clone(&asked))?;
            Ok(asked)
        })
        .collect()
}

/// Waits until all cores are ready and says so; false if one is not, which then has said why.
fn begin<F: serde::Serialize + std::fmt::Display>(
    receiver: &Receiver<News<F>>,
    setting: &Setting<'_>,
    report: &mut Report<'_, impl io::Write>,
    cores: usize,
) -> Result<bool> {
    let mut all = Vec::new();
    for _ in 0..cores {
        match receiver.recv() {
            Ok(News::Ready(Some(ready))) => all.push(ready),
            // Nobody has a profile before all are ready.
            Ok(_) | Err(_) => return Ok(false),
        }
    }
    let mut shards: Vec<_> = all.iter().flat_map(|ready| ready.shards.iter().cloned()).collect();
    shards.sort_unstable_by_key(|shard| shard.index);
    let network = &all.swap_remove(0).found;
    report.started(&Started {
        info: setting.info,
        shards: &shards,
        cpus: setting.cpus,
        retain: setting.args.retained(),
        network,
    })?;
    Ok(true)
}

/// Reports until all cores have ended. What is left in `profiles` then are their last ones.
fn follow<F, N: Traffic + Clone + Default + AddAssign + serde::Serialize>(
    receiver: &Receiver<News<F>>,
    report: &mut Report<'_, impl io::Write>,
    totals: &Mutex<Vec<Totals<N>>>,
    profiles: &mut [Option<Box<Profile>>],
) -> Result<()> {
    let mut reported = Instant::now();
    let mut watch = Watch::start(reported);
    loop {
        match receiver.recv_timeout(REPORT_EVERY.saturating_sub(reported.elapsed())) {
            Err(RecvTimeoutError::Timeout) => {
                let sum = sum(totals);
                report.rates(&sum, reported.elapsed())?;
                reported = Instant::now();
                watch.look(&sum.network, reported);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(News::Ready(_)) => {}
            Ok(News::Profile { core, profile, is_last }) => {
                profiles[core] = Some(profile);
                if !is_last && profiles.iter().all(Option::is_some) {
                    report.profiles(profiles)?;
                }
            }
        }
    }
}

fn sum<N: Clone + Default + AddAssign>(totals: &Mutex<Vec<Totals<N>>>) -> Totals<N> {
    let mut sum = Totals::default();
    for core in &*totals.lock().unwrap_or_else(PoisonError::into_inner) {
        sum += core.clone();
    }
    sum
}

/// Of several errors the one that is not only about another core, or about a signal.
fn first_error(results: Vec<Result<()>>) -> Result<()> {
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    let is_own =
        |error: &anyhow::Error| !matches!(error.downcast_ref::<DpdkError>(), Some(DpdkError::Abandoned));
    errors.sort_by_key(|error| (!is_own(error), program::is_interrupted(error)));
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Says that a core is not ready, unless it has said that it is.
struct Announcement<'a, F>(Option<&'a Sender<News<F>>>);

impl<F> Announcement<'_, F> {
    fn ready(mut self, ready: Ready<F>) {
        if let Some(sender) = self.0.take() {
            // Who does not listen any more does not wait either.
            let _ = sender.send(News::Ready(Some(ready)));
        }
    }
}

impl<F> Drop for Announcement<'_, F> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(News::Ready(None));
        }
    }
}

impl<A: Access> Core<'_, A> {
    fn run(self, sender: &Sender<News<A::Found>>) -> Result<()> {
        let Self { index, access, port, seeds, exchange, setting, go, totals, network, profile_asked } = self;
        let announcement = Announcement(Some(sender));
        let Setting { args, clock, .. } = *setting;
        if let Some(cpu) = setting.cpus[index] {
            program::pin(cpu)?;
        }
        let _presence = access.enter()?;
        let mut shards = Vec::new();
        for seed in seeds {
            let number = seed.index();
            shards.push((number, store::open_shard(seed)?));
        }
        anyhow::ensure!(!shards.is_empty(), "a core has no shard");
        exchange.publish(shards.iter().map(|(number, shard)| (*number, shard)));
        let starts = shards.iter().map(|(number, shard)| ShardStart::of(*number, shard)).collect();
        let (_, mut shard) = shards.remove(0);
        let mut transport = access.start(port, args, &shard, clock)?;
        if exchange.cores() > 1
            && let Some(waker) = transport.waker()?
        {
            exchange.wake_by(index, waker);
        }
        announcement.ready(Ready { shards: starts, found: access.found(&transport) });
        if !*go.wait() {
            return Ok(());
        }
        let config = ServiceConfig {
            max_record_bytes: args.max_record.as_u64(),
            max_connections: args.max_connections.get(),
            spare_places: SPARE_PLACES,
            max_followers: args.max_followers,
            store: setting.info.uuid.to_string(),
            domain: setting.info.domain.to_string(),
            network: network.clone(),
            scrub_bytes_per_s: args.scrub_rate.as_u64(),
            retain: args.retained(),
            wall: WallClock::system(),
            ..ServiceConfig::default()
        };
        shard.set_time(config.wall.now_s());
        let service = LogService::among(config, exchange.clone(), index, shards, clock.now());
        let mut server = Server::new(transport, service, shard);
        if args.profile {
            server.profile();
        }
        let tell_profile = |server: &LogServer<A::Transport>, is_last| {
            if let Some(profile) = server.profiled() {
                // Who does not listen any more has an error of his own to tell.
                let _ =
                    sender.send(News::Profile { core: index, profile: Box::new(profile.clone()), is_last });
            }
        };
        let put = |server: &LogServer<A::Transport>, spent: Spent| {
            totals.lock().unwrap_or_else(PoisonError::into_inner)[index] = Totals::of(server, spent);
            if index == 0 {
                let traffic = sum(totals).network;
                network.put(NetworkState {
                    link_up: traffic.link_up(),
                    address_conflicts: traffic.address_conflicts(),
                    drops: traffic.drops().clone(),
                });
            }
            if profile_asked.as_ref().is_some_and(|asked| asked.swap(false, Ordering::Relaxed)) {
                tell_profile(server, false);
            }
        };
        let around = Surroundings {
            clock,
            stop: setting.stop,
            rest: access.rest(),
            exchange: &exchange,
            core: index,
            put: &put,
        };
        put(&server, Spent::default());
        let served = run::run(&mut server, &around);
        // However it went, the others are to end as well, and replies that are owed go out.
        setting.stop.store(true, Ordering::Relaxed);
        let ended = run::end(&mut server, &around);
        put(&server, *served.as_ref().unwrap_or(&Spent::default()));
        tell_profile(&server, true);
        served.and(ended)
    }
}
