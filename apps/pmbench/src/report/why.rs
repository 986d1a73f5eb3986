//! Why a target was missed, as far as the parts of a request's time tell.

use super::breakdown::{Breakdown, Kind};
use super::stats::{Server, Spread, of_details, spread};
use super::targets::{Measure, Target, Wanted};
use super::{number, whole};
use crate::results::Results;

/// Smaller parts of a time are not worth a word.
const WORTH_A_WORD: f64 = 0.03;
/// A client that is busy for this part of the time sets the pace.
const SETS_THE_PACE: f64 = 0.9;

/// A paragraph on a target that was missed; without the parts of the servers' times, if these stand elsewhere.
pub fn explanation(results: &Results, target: &Target, measured: Spread, with_parts: bool) -> String {
    let link = target.link().map(|link| format!(" on {link}")).unwrap_or_default();
    let mut text = format!(
        "**{}**{link}, {}, {}: {} where {} was wanted.",
        target.compared(),
        target.load(),
        target.figure(),
        number(measured.median),
        target.wanted()
    );
    let (one, other) = target.servers();
    let of = |server: Server| Breakdown::of(results, server, target.load());
    match of(one).zip(of(other)) {
        Some((one, other)) => {
            let two = Two { results, target, one, other };
            let parts = with_parts.then(|| two.parts()).flatten();
            let sentences = [two.totals(), parts, two.persists(), two.client()].into_iter().flatten();
            sentences.for_each(|sentence| text += &format!(" {sentence}"));
        }
        None => text += " There is no profile of it.",
    }
    text
}

/// Two servers that a target compares.
struct Two<'a> {
    results: &'a Results,
    target: &'a Target,
    one: Breakdown,
    other: Breakdown,
}

impl Two<'_> {
    /// The time that the target speaks of.
    fn total(&self, of: &Breakdown) -> f64 {
        match self.target.measure() {
            Measure::PerCpuSecond => of.cpu_ns,
            Measure::Rate => of.period_ns,
            Measure::Latency | Measure::LatencyDifference => of.p50_ns,
        }
    }

    /// The longest time with which the target would be met.
    fn allowed(&self) -> f64 {
        let other = self.total(&self.other);
        match (self.target.measure(), self.target.wanted()) {
            (Measure::LatencyDifference, Wanted::AtLeast(us) | Wanted::AtMost(us)) => other + us * 1e3,
            (_, Wanted::AtLeast(ratio)) => other / ratio,
            (_, Wanted::AtMost(ratio)) => other * ratio,
        }
    }

    fn totals(&self) -> Option<String> {
        let (one, other) = self.target.names();
        let (ones, others) = (self.total(&self.one), self.total(&self.other));
        let allowed = self.allowed();
        let (ns, of_other) = (whole(ones), whole(others));
        let mut text = match self.target.measure() {
            Measure::PerCpuSecond => {
                format!("Profiled, a request takes {ns} ns of {one}'s core, and {of_other} of {other}'s")
            }
            Measure::Rate => {
                format!("Profiled, {one} answers a request every {ns} ns, and {other} every {of_other}")
            }
            Measure::Latency | Measure::LatencyDifference => {
                format!("Profiled, the median latency is {ns} ns with {one}, and {of_other} with {other}")
            }
        };
        if self.other.server.mode.is_kernel() {
            text += " (the rounds' median)";
        }
        text += &format!("; the target leaves {one} {}", whole(allowed));
        text += &match ones - allowed {
            excess if excess > 0.0 => format!(", {} less than it takes.", whole(excess)),
            _ => ", which the profiled run kept to: from run to run more changes than the target asks for."
                .to_owned(),
        };
        Some(text)
    }

    fn parts(&self) -> Option<String> {
        if self.other.server.mode.is_kernel() { self.parts_of_each() } else { self.differences() }
    }

    /// What the one spends more and less in the same parts.
    fn differences(&self) -> Option<String> {
        let (ones, others) = (self.total(&self.one), self.total(&self.other));
        let of_other = self.other.parts_of(others);
        let difference = |(kind, ns): (Kind, f64)| {
            let of_other = of_other.iter().find(|(other, _)| *other == kind).map_or(0.0, |(_, ns)| *ns);
            (kind, ns - of_other, format!("{} ({} against {})", kind, whole(ns), whole(of_other)))
        };
        let mut found: Vec<_> = self.one.parts_of(ones).into_iter().map(difference).collect();
        found.retain(|(_, more, _)| more.abs() >= WORTH_A_WORD * ones);
        found.sort_by(|(_, one, _), (_, other, _)| other.total_cmp(one));
        let list = |is_more: bool| {
            let of_sign = found.iter().filter(|(_, more, _)| (*more > 0.0) == is_more);
            let texts = of_sign.map(|(_, more, text)| format!("{} ns in {text}", whole(more.abs())));
            texts.collect::<Vec<_>>().join(", ")
        };
        let ((more, less), (one, _)) = ((list(true), list(false)), self.target.names());
        let mut text = match (more.is_empty(), less.is_empty()) {
            (true, true) => return None,
            (false, true) => format!("{one} spends more: {more}."),
            (true, false) => format!("{one} spends less: {less}."),
            (false, false) => format!("{one} spends more: {more}; and less: {less}."),
        };
        if let Some((kind, ..)) = found.first().filter(|(_, more, _)| *more > 0.0) {
            text += &format!(" The largest difference, {kind}: {}.", kind.meaning(self.one.server));
        }
        Some(text)
    }

    /// Where there are no parts that both have.
    fn parts_of_each(&self) -> Option<String> {
        let (one, other) = self.target.names();
        let list = |of: &Breakdown| {
            let total = self.total(of);
            let mut parts = of.parts_of(total);
            parts.retain(|(_, ns)| *ns >= WORTH_A_WORD * total);
            parts.sort_by(|(_, one), (_, other)| other.total_cmp(one));
            let texts = parts.iter().map(|(kind, ns)| format!("{} in {kind}", whole(*ns)));
            (parts.first().map(|(kind, _)| *kind), texts.collect::<Vec<_>>().join(", "))
        };
        let ((largest, ones), (_, others)) = (list(&self.one), list(&self.other));
        let largest = largest?;
        let mut text = format!(
            "{one}: {ones}. {other}: {others}. The largest of {one}'s, {largest}: {}.",
            largest.meaning(self.one.server)
        );
        if let (Measure::PerCpuSecond | Measure::Rate, Wanted::AtLeast(_)) =
            (self.target.measure(), self.target.wanted())
        {
            let total = self.total(&self.one);
            let parts = self.one.parts_of(total).into_iter();
            let of_port: f64 = parts.filter(|(kind, _)| kind.is_of_the_port()).map(|(_, ns)| ns).sum();
            text += &format!(
                " If all but rx, tx and what lies outside of bursts cost nothing, the ratio would be {}.",
                number(self.total(&self.other) / of_port)
            );
        }
        Some(text)
    }

    /// What a longer persist makes of it.
    fn persists(&self) -> Option<String> {
        let load = self.target.load();
        if load.persist_delay_us == 0 {
            return None;
        }
        let of = |server: Server| {
            let fences = spread(&self.results.cells, server, load, |cell| cell.fences_per_request)?.median;
            Some((fences, fences * load.persist_delay_us as f64 * 1e3))
        };
        let ((one, other), ones, others) =
            (self.target.names(), of(self.one.server)?, of(self.other.server)?);
        Some(format!(
            "The delay of {} fences a request is {} ns of {one}'s time, that of {} is {} ns of {other}'s.",
            number(ones.0),
            whole(ones.1),
            number(others.0),
            whole(others.1)
        ))
    }

    /// Whether the client had time to spare.
    fn client(&self) -> Option<String> {
        if self.target.measure() != Measure::Rate {
            return None;
        }
        let busy = |of: &Breakdown| {
            of_details(self.results, of.server, of.load, |detail| detail.client_busy).map(|busy| busy.median)
        };
        let ((one, other), ones, others) = (self.target.names(), busy(&self.one)?, busy(&self.other)?);
        let limits = if ones >= SETS_THE_PACE { ", so that it and not the server sets the pace" } else { "" };
        Some(format!(
            "The client was busy for {:.0} % of the time with {one}, and for {:.0} % with {other}{limits}.",
            ones * 100.0,
            others * 100.0
        ))
    }
}
