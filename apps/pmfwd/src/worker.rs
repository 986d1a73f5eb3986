//! A core: its thread, its packets' memory, and its streams while it forwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};
use dpdk::{Eal, ExternalPoolConfig, Pool, PoolConfig, PortId};
use pmem::ShardSeed;
use stack::transport::dpdk::{NamedBuffers, Reach};

use crate::capture::{Capture, NoTap, Tap};
use crate::cli::{Mode, WhenFull};
use crate::engine::{Engine, Flowgen, Icmpecho, Io, Mac, Macswap, Rxonly, Txonly};
use crate::log::Logger;
use crate::packet::Template;
use crate::stream::{Intake, Stream};

/// What a core needs from the start.
pub struct WorkerConfig {
    /// Its place among the cores that forward.
    pub index: usize,
    /// The CPU that it runs on.
    pub cpu: usize,
    /// How many mbufs its pool has.
    pub mbufs: u32,
    /// How many of them it keeps at hand.
    pub cache: u32,
    /// How many frames devices may be sending for it at a time.
    pub in_flight: u32,
    /// Its part of the store, and the memory that devices know it by; none for packets in DRAM.
    pub store: Option<(ShardSeed, Reach)>,
    /// The ports that packets come from and go to.
    pub ports: Vec<PortId>,
    /// What mode log does when the store is full.
    pub when_full: WhenFull,
    /// Where frames that pass are written.
    pub capture: Option<Capture>,
}

/// What a core is to do until it is stopped.
pub struct Run {
    /// The mode.
    pub mode: Mode,
    /// Packets in a burst at most.
    pub burst: usize,
    /// How many bursts to send first.
    pub tx_first: u32,
    /// Frames to send, one for each port.
    pub templates: Arc<[Template]>,
    /// Flows that flowgen goes through.
    pub flows: u32,
    /// What it forwards; comes back when it has stopped.
    pub streams: Vec<Stream>,
    /// Set when it is to stop.
    pub stop: Arc<AtomicBool>,
}

/// What a core gives back when it has stopped.
pub struct Stopped {
    /// What it forwarded.
    pub streams: Vec<Stream>,
    /// Why it stopped, if nobody told it to.
    pub outcome: Result<()>,
}

/// A thread that forwards, and waits in between.
pub struct Worker {
    commands: Option<Sender<Run>>,
    stopped: Receiver<Stopped>,
    thread: Option<JoinHandle<Result<()>>>,
    pool: Pool,
}

impl Worker {
    /// Starts a thread on its CPU and takes its memory. `failed` is told when it ends a run by itself.
    ///
    /// # Errors
    /// The CPU is not to be had, the store cannot be opened, or memory is short.
    pub fn start(eal: Eal, config: WorkerConfig, failed: impl Fn() + Send + 'static) -> Result<Self> {
        let (commands, inbox) = channel();
        let (outbox, stopped) = channel();
        let (ready, readiness) = sync_channel(1);
        let name = format!("pmfwd{}", config.index);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let core = match Core::new(eal, config) {
                Ok((core, pool)) => {
                    send(&ready, Ok(pool));
                    core
                }
                Err(error) => {
                    send(&ready, Err(error));
                    return Ok(());
                }
            };
            core.serve(eal, &inbox, &outbox, failed)
        })?;
        let pool = readiness.recv().map_err(|_| anyhow!("a core's thread ended before it was ready"))??;
        Ok(Self { commands: Some(commands), stopped, thread: Some(thread), pool })
    }

    /// Where its packets come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Sets it to work.
    ///
    /// # Errors
    /// Its thread is gone.
    pub fn run(&self, run: Run) -> Result<()> {
        let commands = self.commands.as_ref().context("the core was told to end")?;
        commands.send(run).map_err(|_| anyhow!("a core's thread has ended"))
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// Its thread is gone.
    pub fn wait(&self) -> Result<Stopped> {
        self.stopped.recv().context("a core's thread has ended")
    }

    /// Ends its thread.
    ///
    /// # Errors
    /// The store's end could not be noted.
    pub fn end(mut self) -> Result<()> {
        self.commands = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

fn send<T>(ready: &SyncSender<T>, message: T) {
    // Only a process that is ending has nobody waiting.
    let _ = ready.send(message);
}

/// What lives in the thread.
struct Core {
    pool: Pool,
    logger: Option<Logger>,
    capture: Option<Capture>,
}

impl Core {
    fn new(eal: Eal, config: WorkerConfig) -> Result<(Self, Pool)> {
        program::pin(config.cpu)?;
        let name = config.index.to_string();
        let cache = config.cache.min(config.mbufs / 2);
        let (pool, logger) = match config.store {
            None => {
                let pool = PoolConfig { mbufs: config.mbufs, cache, ..PoolConfig::default() };
                (Pool::dram(eal, &format!("pool{name}"), &pool)?, None)
            }
            Some((seed, reach)) => {
                let area = reach.area();
                let shard = seed.open()?;
                let arena = shard.arena();
                ensure_room(config.mbufs, arena.free_buffers(), arena.buffers())?;
                let mut named = NamedBuffers::new(arena.clone(), reach);
                let settings = ExternalPoolConfig { cache, socket: None };
                let pool = named.lend(eal, &format!("pool{name}"), config.mbufs as usize, &settings)?;
                if pool.go_without_flag(&config.ports)? {
                    tracing::debug!("no driver here needs the flag for external memory");
                }
                let pool = Pool::clone(pool);
                let logger = Logger::new(eal, &name, shard, named, area, config.in_flight, config.when_full)?;
                (pool, Some(logger))
            }
        };
        let core = Self { pool: pool.clone(), logger, capture: config.capture };
        Ok((core, pool))
    }

    fn serve(
        mut self,
        eal: Eal,
        inbox: &Receiver<Run>,
        outbox: &Sender<Stopped>,
        failed: impl Fn(),
    ) -> Result<()> {
        let _lcore = eal.register_thread()?;
        while let Ok(mut run) = inbox.recv() {
            let outcome = self.forward(&mut run);
            let has_failed = outcome.is_err();
            let _ = outbox.send(Stopped { streams: run.streams, outcome });
            if has_failed {
                failed();
            }
        }
        self.logger.as_mut().map_or(Ok(()), Logger::checkpoint)
    }

    fn forward(&mut self, run: &mut Run) -> Result<()> {
        match self.capture.clone() {
            Some(capture) => self.forward_seen_by(run, &capture),
            None => self.forward_seen_by(run, NoTap),
        }
    }

    fn forward_seen_by<T: Tap>(&mut self, run: &mut Run, tap: T) -> Result<()> {
        let pool = &self.pool;
        let templates = &*Arc::clone(&run.templates);
        let mut intake = Intake { limit: run.burst, tap };
        for _ in 0..run.tx_first {
            for stream in &mut run.streams {
                Txonly { pool, templates }.step(stream, &mut intake)?;
            }
        }
        match run.mode {
            Mode::Io => poll(run, &mut Io, intake),
            Mode::Mac => poll(run, &mut Mac, intake),
            Mode::Macswap => poll(run, &mut Macswap, intake),
            Mode::Rxonly => poll(run, &mut Rxonly, intake),
            Mode::Icmpecho => poll(run, &mut Icmpecho, intake),
            Mode::Txonly => poll(run, &mut Txonly { pool, templates }, intake),
            Mode::Flowgen => {
                let flows = run.flows;
                poll(run, &mut Flowgen { pool, templates, flows, next: 0 }, intake)
            }
            Mode::Log => {
                let logger = self.logger.as_mut().context("mode log needs a store: start with --pm PATH")?;
                poll(run, logger, intake)
            }
        }
    }
}

/// The loop: each stream in turn, a burst at a time.
fn poll<E: Engine, T: Tap>(run: &mut Run, engine: &mut E, mut intake: Intake<T>) -> Result<()> {
    while !run.stop.load(Ordering::Relaxed) {
        for stream in &mut run.streams {
            engine.step(stream, &mut intake)?;
        }
    }
    Ok(())
}

/// Checks that a core's part of the store is not taken up by its queues.
pub(crate) fn ensure_room(needed: u32, free: usize, buffers: usize) -> Result<()> {
    ensure!(
        free > needed as usize,
        "a core's queues need {needed} buffers, and of the {buffers} of its part of the store only {free} are free; \
         make a larger store (--pm-size), shorter queues (--rxd, --txd) or a smaller pool (--total-num-mbufs)"
    );
    Ok(())
}
