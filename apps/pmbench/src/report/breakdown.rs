//! The time of a request, in parts.

use std::fmt;

use stack::profile::Stage;

use super::stats::{Server, of_details, spread};
use crate::protocol::Mode;
use crate::results::{Cell, Link, Load, Profiled, Results};

/// What a part of a request's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rx,
    StackIn,
    App,
    Flush,
    Fence,
    StackOut,
    Tx,
    Between,
    User,
    System,
    Softirq,
    /// Beside the time of the server's core.
    Outside,
}

impl Kind {
    /// The parts of a server whose loop is in user space.
    pub const STAGES: [Self; 8] = [
        Self::Rx,
        Self::StackIn,
        Self::App,
        Self::Flush,
        Self::Fence,
        Self::StackOut,
        Self::Tx,
        Self::Between,
    ];
    /// The parts of a server on the kernel's sockets.
    pub const OF_KERNEL: [Self; 3] = [Self::User, Self::System, Self::Softirq];

    /// Smoltcp's parsing cannot be told from its connections, so the two are one part for all.
    fn stages(self) -> &'static [Stage] {
        match self {
            Self::Rx => &[Stage::Rx],
            Self::StackIn => &[Stage::Parse, Stage::Tcp],
            Self::App => &[Stage::App],
            Self::Flush => &[Stage::Flush],
            Self::Fence => &[Stage::Fence],
            Self::StackOut => &[Stage::Emit],
            Self::Tx => &[Stage::Tx],
            Self::Between | Self::User | Self::System | Self::Softirq | Self::Outside => &[],
        }
    }

    /// Whether every server on the port has it, whatever it does with the frames.
    pub fn is_of_the_port(self) -> bool {
        matches!(self, Self::Rx | Self::Tx | Self::Between | Self::Outside)
    }

    /// What a server does in it.
    pub fn meaning(self, server: Server) -> &'static str {
        match (self, server.link, server.mode) {
            (Self::Rx, Link::Memif, Mode::Paste | Mode::PasteEcho) => {
                "the driver copies each frame into a named buffer, anywhere in the store, that is seldom in the \
                 processor's caches"
            }
            (Self::Rx, Link::Memif, _) => {
                "the driver copies each frame into a buffer of a pool that gives out first what came back last"
            }
            (Self::Rx, Link::Veth, _) => "the packet socket's ring, from which the driver copies each frame",
            (Self::StackIn, _, Mode::Paste | Mode::PasteEcho) => {
                "headers, checksums, connections, and a piece's way into its queue; and between frames the next spare \
                 buffers are fetched into the caches"
            }
            (Self::StackIn, _, _) => "headers, checksums, connections, and a piece's way into its queue",
            (Self::App, _, Mode::DpdkCopy) => "HTTP, the copy into the store and its checksum, replies",
            (Self::App, _, Mode::Limit) => "two addresses are swapped",
            (Self::App, _, Mode::Paste) => {
                "HTTP, the payload's checksum, log entries, replies; and between events the next spare buffers are \
                 fetched into the caches"
            }
            (Self::App, _, _) => "HTTP and replies",
            (Self::Flush, _, _) => "flushes of the payload's lines and of the log entry's",
            (Self::Fence, _, _) => "a wait, once for each burst, until what was flushed has arrived",
            (Self::StackOut, _, _) => "timers, and headers and checksums of what is sent",
            (Self::Tx, Link::Memif, _) => {
                "the driver copies each frame into shared memory, and frees its buffers"
            }
            (Self::Tx, Link::Veth, _) => {
                "the packet socket's system call, in which the kernel delivers the frames"
            }
            (Self::Between, _, _) => {
                "the log's trim, and interrupts of the kernel's while nothing is there to do"
            }
            (Self::User, _, _) => "the server itself",
            (Self::System, _, _) => "system calls: epoll, reads, writes",
            (Self::Softirq, _, _) => {
                "what the kernel does with packets that arrive, before the server is woken"
            }
            (Self::Outside, _, _) => "the client, the link, and waiting",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rx => "rx",
            Self::StackIn => "stack in",
            Self::App => "app",
            Self::Flush => "flush",
            Self::Fence => "fence",
            Self::StackOut => "stack out",
            Self::Tx => "tx",
            Self::Between => "between",
            Self::User => "user",
            Self::System => "system",
            Self::Softirq => "softirq",
            Self::Outside => "outside the core",
        })
    }
}

/// A request's time in one server under one load.
#[derive(Clone, Debug, PartialEq)]
pub struct Breakdown {
    pub server: Server,
    pub load: Load,
    /// All parts of the time of the server's core, in the order of a request.
    pub parts: Vec<(Kind, f64)>,
    /// The time of the server's core.
    pub cpu_ns: f64,
    /// The time from one reply to the next.
    pub period_ns: f64,
    /// The median latency.
    pub p50_ns: f64,
    /// What measuring took of the core's time.
    pub measuring_ns: f64,
}

impl Breakdown {
    /// What is known of a server: its profile, or what the kernel counted; none if neither.
    pub fn of(results: &Results, server: Server, load: Load) -> Option<Self> {
        let mut profiles = results.run.profiles.iter();
        let profile = profiles.find(|one| (one.link, one.mode, one.load) == (server.link, server.mode, load));
        match profile {
            Some(profile) => Some(Self::of_profile(profile)),
            None if server.mode.is_kernel() => Self::of_kernel(results, server, load),
            None => None,
        }
    }

    fn of_profile(profile: &Profiled) -> Self {
        let ns_of = |kind: Kind| -> f64 {
            let of_kind = profile.stages.iter().filter(|share| kind.stages().contains(&share.stage));
            of_kind.map(|share| share.ns_per_request).sum()
        };
        let in_bursts: f64 = profile.stages.iter().map(|share| share.ns_per_request).sum();
        let between = (profile.server_cpu_ns_per_request - in_bursts).max(0.0);
        let part = |kind| (kind, if kind == Kind::Between { between } else { ns_of(kind) });
        Self {
            server: Server { link: profile.link, mode: profile.mode },
            load: profile.load,
            parts: Kind::STAGES.map(part).to_vec(),
            cpu_ns: profile.server_cpu_ns_per_request,
            period_ns: 1e9 / profile.requests_per_s,
            p50_ns: profile.p50_us * 1e3,
            measuring_ns: profile.measuring_ns_per_request,
        }
    }

    /// Medians over the rounds.
    fn of_kernel(results: &Results, server: Server, load: Load) -> Option<Self> {
        let cells = |figure: fn(&Cell) -> Option<f64>| {
            spread(&results.cells, server, load, figure).map(|spread| spread.median)
        };
        let part = |kind: Kind| {
            let ns = of_details(results, server, load, |detail| match kind {
                Kind::User => detail.core.user_ns,
                Kind::System => detail.core.system_ns,
                _ => detail.core.softirq_ns,
            });
            Some((kind, ns?.median))
        };
        Some(Self {
            server,
            load,
            parts: Kind::OF_KERNEL.into_iter().map(part).collect::<Option<_>>()?,
            cpu_ns: cells(|cell| cell.server_cpu_ns_per_request)?,
            period_ns: 1e9 / cells(|cell| cell.requests_per_s)?,
            p50_ns: 1e3 * cells(|cell| cell.p50_us)?,
            measuring_ns: 0.0,
        })
    }

    /// The parts of a time that is more than that of the core.
    pub fn parts_of(&self, total_ns: f64) -> Vec<(Kind, f64)> {
        let outside = (total_ns - self.cpu_ns).max(0.0);
        self.parts.iter().copied().chain([(Kind::Outside, outside)]).collect()
    }
}
