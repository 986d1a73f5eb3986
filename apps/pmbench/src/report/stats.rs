//! Medians over rounds, and ratios inside them.

use super::targets::REFERENCE;
use crate::protocol::Mode;
use crate::results::{Cell, Detail, Link, Load, Results};
use crate::spread::Spread;

/// A figure of a cell.
pub type Figure = fn(&Cell) -> Option<f64>;

/// Who was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// The link it was on.
    pub link: Link,
    /// Its mode.
    pub mode: Mode,
}

impl Server {
    /// A mode on veth.
    pub const fn veth(mode: Mode) -> Self {
        Self { link: Link::Veth, mode }
    }

    /// A mode on memif.
    pub const fn memif(mode: Mode) -> Self {
        Self { link: Link::Memif, mode }
    }

    /// A mode on ring.
    pub const fn ring(mode: Mode) -> Self {
        Self { link: Link::Ring, mode }
    }

    fn is_of(self, cell: &Cell) -> bool {
        (self.link, self.mode) == (cell.link, cell.mode)
    }
}

/// The load that stands for all where one must: the targets' own, or else the first that was measured.
pub fn reference(results: &Results) -> Option<Load> {
    let is_usual = |load: &Load| load.persist_delay_us == 0 && !load.is_stream();
    let loads = || results.cells.iter().map(|cell| cell.load).filter(is_usual);
    loads().find(|load| *load == REFERENCE).or_else(|| loads().next())
}

/// The servers in the order of the modes, those on veth first.
pub fn servers(results: &Results) -> Vec<Server> {
    let all = results.cells.iter().map(|cell| Server { link: cell.link, mode: cell.mode });
    let mut servers: Vec<_> = all.collect();
    servers.sort();
    servers.dedup();
    servers
}

/// A server's figure under a load, over the rounds.
pub fn spread(cells: &[Cell], server: Server, load: Load, figure: Figure) -> Option<Spread> {
    let cells = cells.iter().filter(|cell| server.is_of(cell) && cell.load == load);
    Spread::of(cells.filter_map(figure).collect())
}

/// The streams that were measured, in order.
pub fn stream_loads(results: &Results) -> Vec<Load> {
    let mut loads: Vec<_> =
        results.cells.iter().map(|cell| cell.load).filter(|load| load.is_stream()).collect();
    loads.sort();
    loads.dedup();
    loads
}

/// The same of what is known beside a cell's results.
pub fn of_details(
    results: &Results,
    server: Server,
    load: Load,
    figure: impl Fn(&Detail) -> f64,
) -> Option<Spread> {
    let cells = results.cells.iter().zip(&results.run.details);
    let of = cells.filter(|(cell, _)| server.is_of(cell) && cell.load == load && cell.skipped.is_none());
    Spread::of(of.map(|(_, detail)| figure(detail)).collect())
}

/// What `combine` makes of two servers' figures under the same load, taken in the same round.
pub fn paired(
    cells: &[Cell],
    (one, other): (Server, Server),
    load: Load,
    figure: Figure,
    combine: impl Fn(f64, f64) -> f64,
) -> Option<Spread> {
    let of = |server: Server| cells.iter().filter(move |cell| server.is_of(cell) && cell.load == load);
    let pairs = of(one).filter_map(|cell| {
        let partner = of(other).find(|partner| partner.round == cell.round)?;
        Some(combine(figure(cell)?, figure(partner)?))
    });
    Spread::of(pairs.filter(|value| value.is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load::requests(1024, 50);

    fn cell(server: Server, round: u32, requests_per_s: Option<f64>) -> Cell {
        let Server { link, mode } = server;
        Cell { requests_per_s, skipped: None, ..Cell::skipped(link, mode, LOAD, round, String::new()) }
    }

    #[test]
    fn ratios_are_those_of_one_round() {
        let (paste, copy) = (Server::memif(Mode::Paste), Server::memif(Mode::DpdkCopy));
        // The machine is twice as slow in the second round, for both; and in the third one of them was not measured.
        let cells = [
            cell(paste, 1, Some(300.0)),
            cell(copy, 2, Some(100.0)),
            cell(copy, 1, Some(200.0)),
            cell(paste, 2, Some(150.0)),
            cell(paste, 3, Some(1000.0)),
            cell(copy, 3, None),
        ];
        let ratio = paired(&cells, (paste, copy), LOAD, |cell| cell.requests_per_s, |one, other| one / other);
        assert_eq!(ratio, Some(Spread { min: 1.5, median: 1.5, max: 1.5 }));
        let of_others =
            paired(&cells, (paste, Server::veth(Mode::Kcm)), LOAD, |cell| cell.requests_per_s, |a, b| a / b);
        assert_eq!(of_others, None);
        let elsewhere = Load { connections: 1, ..LOAD };
        assert_eq!(spread(&cells, paste, elsewhere, |cell| cell.requests_per_s), None);
        assert_eq!(
            spread(&cells, paste, LOAD, |cell| cell.requests_per_s).map(|spread| spread.median),
            Some(300.0)
        );
    }
}
