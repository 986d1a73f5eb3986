//! What was promised, and whether it was kept.

use std::fmt;

use crate::protocol::Mode;
use crate::report::stats::{Figure, Server, paired};
use crate::results::{Cell, Kind, Link, Load};
use crate::spread::Spread;

/// The load that most targets speak of.
pub const REFERENCE: Load = Load::requests(1024, 50);
const KIB_50: Load = REFERENCE;
const KIB_1: Load = Load { connections: 1, ..KIB_50 };
const B64_50: Load = Load { size: 64, ..KIB_50 };
const B64_1: Load = Load { size: 64, ..KIB_1 };
const KIB8_50: Load = Load { size: 8192, ..KIB_50 };
const KIB8_1: Load = Load { size: 8192, ..KIB_1 };
const SLOW_PERSISTS_100: Load = Load { persist_delay_us: 10, ..Load::requests(1024, 100) };
const STREAM_UP: Load = Load::stream(Kind::StreamUp, 1 << 20);
const STREAM_DOWN: Load = Load::stream(Kind::StreamDown, 1 << 20);

/// Something that was promised.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    servers: (Server, Server),
    load: Load,
    measure: Measure,
    wanted: Wanted,
}

/// How two servers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// How many times as many requests the one answers in a second of its CPU.
    PerCpuSecond,
    /// How many times as many requests the one answers in a second.
    Rate,
    /// The one's median latency as a part of the other's.
    Latency,
    /// How many microseconds longer the one's median latency is.
    LatencyDifference,
}

/// Which side of a number is the good one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

const fn target(one: Server, other: Server, load: Load, measure: Measure, wanted: Wanted) -> Target {
    Target { servers: (one, other), load, measure, wanted }
}

/// All targets. Where the same ratio can be taken by time of the server's CPU and by requests a second, both are
/// there: the second is bounded by the client too.
pub const TARGETS: [Target; 36] = {
    use Measure::{Latency, LatencyDifference, PerCpuSecond, Rate};
    use Mode::{DpdkCopy, Limit, Paste, PasteEcho, StatusQuo};
    use Wanted::{AtLeast, AtMost};
    const fn ring(mode: Mode) -> Server {
        Server::ring(mode)
    }
    const fn memif(mode: Mode) -> Server {
        Server::memif(mode)
    }
    const fn veth(mode: Mode) -> Server {
        Server::veth(mode)
    }
    [
        target(memif(Paste), memif(DpdkCopy), B64_50, PerCpuSecond, AtLeast(1.4)),
        target(memif(Paste), memif(DpdkCopy), KIB_50, PerCpuSecond, AtLeast(1.6)),
        target(memif(Paste), memif(DpdkCopy), KIB8_50, PerCpuSecond, AtLeast(1.5)),
        target(ring(Paste), ring(DpdkCopy), B64_50, PerCpuSecond, AtLeast(1.6)),
        target(ring(Paste), ring(DpdkCopy), KIB_50, PerCpuSecond, AtLeast(2.0)),
        target(ring(Paste), ring(DpdkCopy), KIB8_50, PerCpuSecond, AtLeast(2.5)),
        target(memif(Paste), memif(DpdkCopy), B64_1, Latency, AtMost(1.0)),
        target(memif(Paste), memif(DpdkCopy), KIB_1, Latency, AtMost(1.0)),
        target(memif(Paste), memif(DpdkCopy), KIB8_1, Latency, AtMost(1.0)),
        target(memif(Paste), memif(Limit), KIB_50, PerCpuSecond, AtLeast(0.4)),
        target(ring(Paste), ring(Limit), KIB_50, PerCpuSecond, AtLeast(0.4)),
        target(memif(Paste), memif(PasteEcho), KIB_50, PerCpuSecond, AtLeast(0.75)),
        target(ring(Paste), ring(PasteEcho), KIB_50, PerCpuSecond, AtLeast(0.75)),
        target(memif(Paste), veth(StatusQuo), KIB_50, PerCpuSecond, AtLeast(10.0)),
        target(veth(Paste), veth(StatusQuo), KIB_50, PerCpuSecond, AtLeast(2.0)),
        target(memif(Paste), memif(DpdkCopy), KIB_50, Rate, AtLeast(1.2)),
        target(memif(Paste), memif(DpdkCopy), KIB8_50, Rate, AtLeast(1.5)),
        target(memif(Paste), memif(PasteEcho), KIB_50, Rate, AtLeast(0.7)),
        target(veth(Paste), veth(PasteEcho), KIB_50, PerCpuSecond, AtLeast(0.7)),
        target(veth(Paste), veth(PasteEcho), KIB_50, Rate, AtLeast(0.7)),
        target(memif(Paste), memif(Limit), KIB_50, Rate, AtLeast(0.4)),
        target(veth(Paste), veth(Limit), KIB_50, PerCpuSecond, AtLeast(0.4)),
        target(veth(Paste), veth(Limit), KIB_50, Rate, AtLeast(0.4)),
        target(veth(Paste), veth(StatusQuo), KIB_1, Latency, AtMost(1.0)),
        target(memif(Paste), memif(PasteEcho), KIB_1, LatencyDifference, AtMost(1.0)),
        target(veth(Paste), veth(PasteEcho), KIB_1, LatencyDifference, AtMost(1.0)),
        target(veth(Paste), veth(StatusQuo), SLOW_PERSISTS_100, Rate, AtLeast(6.4)),
        target(memif(Paste), veth(StatusQuo), SLOW_PERSISTS_100, Rate, AtLeast(6.4)),
        target(memif(Paste), memif(DpdkCopy), STREAM_UP, PerCpuSecond, AtLeast(2.0)),
        target(memif(Paste), veth(StatusQuo), STREAM_UP, PerCpuSecond, AtLeast(2.0)),
        target(ring(Paste), ring(DpdkCopy), STREAM_UP, PerCpuSecond, AtLeast(2.0)),
        target(ring(Paste), veth(StatusQuo), STREAM_UP, PerCpuSecond, AtLeast(2.0)),
        target(memif(Paste), memif(DpdkCopy), STREAM_DOWN, PerCpuSecond, AtLeast(2.0)),
        target(memif(Paste), veth(StatusQuo), STREAM_DOWN, PerCpuSecond, AtLeast(2.0)),
        target(ring(Paste), ring(DpdkCopy), STREAM_DOWN, PerCpuSecond, AtLeast(2.0)),
        target(ring(Paste), veth(StatusQuo), STREAM_DOWN, PerCpuSecond, AtLeast(2.0)),
    ]
};

impl Target {
    /// What was measured, over the rounds.
    pub fn measured(&self, cells: &[Cell]) -> Option<Spread> {
        let (figure, combine): (Figure, fn(f64, f64) -> f64) = match self.measure {
            // Less time for a request is more requests for the time.
            Measure::PerCpuSecond => (|cell| cell.server_cpu_ns_per_request, |one, other| other / one),
            Measure::Rate => (|cell| cell.requests_per_s, |one, other| one / other),
            Measure::Latency => (|cell| cell.p50_us, |one, other| one / other),
            Measure::LatencyDifference => (|cell| cell.p50_us, |one, other| one - other),
        };
        paired(cells, self.servers, self.load, figure, combine)
    }

    /// Whether what was measured is what was wanted.
    pub fn verdict(&self, measured: Option<Spread>) -> Verdict {
        match (measured, self.wanted) {
            (None, _) => Verdict::NotMeasured,
            (Some(measured), Wanted::AtLeast(least)) if measured.median >= least => Verdict::Met,
            (Some(measured), Wanted::AtMost(most)) if measured.median <= most => Verdict::Met,
            _ => Verdict::Missed,
        }
    }

    /// The two that are compared.
    pub fn servers(&self) -> (Server, Server) {
        self.servers
    }

    /// The names of the two, with their links where these differ.
    pub fn compared(&self) -> String {
        let (one, other) = self.servers;
        let name = |server: Server| {
            if one.link == other.link {
                server.mode.to_string()
            } else {
                format!("{} on {}", server.mode, server.link)
            }
        };
        let sign = if self.measure == Measure::LatencyDifference { "less" } else { "/" };
        format!("{} {sign} {}", name(one), name(other))
    }

    /// The link that both are on, if it is one.
    pub fn link(&self) -> Option<Link> {
        let (one, other) = self.servers;
        (one.link == other.link).then_some(one.link)
    }

    /// The load.
    pub fn load(&self) -> Load {
        self.load
    }

    /// What is compared of the two.
    pub fn figure(&self) -> &'static str {
        match self.measure {
            // All requests have the same length.
            Measure::PerCpuSecond if self.load.is_stream() => "Gbit per CPU second",
            Measure::PerCpuSecond => "requests per CPU second",
            Measure::Rate => "requests per second",
            Measure::Latency => "p50 latency",
            Measure::LatencyDifference => "p50 latency, us",
        }
    }

    /// What was wanted.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotMeasured => "not measured",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(server: Server, load: Load, cpu_ns: f64, rate: f64, p50_us: f64) -> Cell {
        Cell {
            server_cpu_ns_per_request: Some(cpu_ns),
            requests_per_s: Some(rate),
            p50_us: Some(p50_us),
            skipped: None,
            ..Cell::skipped(server.link, server.mode, load, 1, String::new())
        }
    }

    fn of(cells: &[Cell], measure: Measure, wanted: Wanted) -> (f64, Verdict) {
        let (one, other) = (Server::veth(Mode::Paste), Server::veth(Mode::StatusQuo));
        let target = target(one, other, KIB_50, measure, wanted);
        let measured = target.measured(cells);
        (measured.expect("both were measured").median, target.verdict(measured))
    }

    #[test]
    fn more_is_better_of_rates_and_less_of_latencies() {
        let cells = [
            cell(Server::veth(Mode::Paste), KIB_50, 500.0, 300.0, 12.0),
            cell(Server::veth(Mode::StatusQuo), KIB_50, 2000.0, 100.0, 10.0),
        ];
        use Wanted::{AtLeast, AtMost};
        assert_eq!(of(&cells, Measure::PerCpuSecond, AtLeast(4.0)), (4.0, Verdict::Met));
        assert_eq!(of(&cells, Measure::PerCpuSecond, AtLeast(4.1)), (4.0, Verdict::Missed));
        assert_eq!(of(&cells, Measure::Rate, AtLeast(3.0)), (3.0, Verdict::Met));
        assert_eq!(of(&cells, Measure::Latency, AtMost(1.0)), (1.2, Verdict::Missed));
        assert_eq!(of(&cells, Measure::LatencyDifference, AtMost(2.0)), (2.0, Verdict::Met));
    }

    #[test]
    fn each_target_compares_what_no_other_does() {
        for (at, target) in TARGETS.iter().enumerate() {
            let same = |other: &Target| {
                (other.servers, other.load, other.measure) == (target.servers, target.load, target.measure)
            };
            assert!(!TARGETS[..at].iter().any(same), "{} under {} twice", target.compared(), target.load);
        }
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        for target in TARGETS {
            assert_eq!(target.verdict(target.measured(&[])), Verdict::NotMeasured, "{}", target.compared());
        }
    }
}
