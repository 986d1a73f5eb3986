//! The time of a request, in parts.

use std::fmt;

use stack::profile::Stage;

use super::stats::{Server, of_details, spread};
use crate::results::{Load, Profiled, Results};

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
            Self::Between | Self::User | Self::System | Self::Softirq => &[],
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
        })
    }
}

/// A request's time in one server under one load.
#[derive(Clone, Debug, PartialEq)]
pub struct Breakdown {
    pub server: Server,
    /// All parts of the time of the server's core, in the order of a request.
    pub parts: Vec<(Kind, f64)>,
    /// The time of the server's core.
    pub cpu_ns: f64,
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
            parts: Kind::STAGES.map(part).to_vec(),
            cpu_ns: profile.server_cpu_ns_per_request,
            measuring_ns: profile.measuring_ns_per_request,
        }
    }

    /// Medians over the rounds.
    fn of_kernel(results: &Results, server: Server, load: Load) -> Option<Self> {
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
            parts: Kind::OF_KERNEL.into_iter().map(part).collect::<Option<_>>()?,
            cpu_ns: spread(&results.cells, server, load, |cell| cell.server_cpu_ns_per_request)?.median,
            measuring_ns: 0.0,
        })
    }
}
