//! What is compared: cells of round trip, faults, direction and congestion control.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use lab::Path;
use serde::{Deserialize, Serialize};

/// Who sends most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Linux, to a server.
    Upload,
    /// A server, to Linux.
    Download,
}

/// How senders find their rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// What its Internet draft says; Linux has the first version of it.
    Bbr,
}

impl Congestion {
    /// Its name, here and at Linux.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// One comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub rtt_ms: u64,
    /// Share of frames lost, 0 to 1.
    pub loss: f64,
    /// Frames lost at a time.
    pub burst: u32,
    /// Share of frames that come late, 0 to 1.
    pub reorder: f64,
    pub direction: Direction,
    pub congestion: Congestion,
}

/// What the targets speak of, in one order: the matrix without round trips.
const FAULTS: [(f64, u32, f64); 8] = [
    (0.0, 1, 0.0),
    (0.001, 1, 0.0),
    (0.01, 1, 0.0),
    (0.05, 1, 0.0),
    (0.001, 4, 0.0),
    (0.01, 4, 0.0),
    (0.05, 4, 0.0),
    (0.0, 1, 0.01),
];

impl Cell {
    /// All cells with these round trips.
    pub fn all(round_trips_ms: &[u64]) -> Vec<Self> {
        let mut cells = Vec::new();
        for &rtt_ms in round_trips_ms {
            for (loss, burst, reorder) in FAULTS {
                for direction in [Direction::Upload, Direction::Download] {
                    for congestion in [Congestion::Cubic, Congestion::Bbr] {
                        cells.push(Self { rtt_ms, loss, burst, reorder, direction, congestion });
                    }
                }
            }
        }
        cells
    }

    /// Whether the cell's name has all words of the filter.
    pub fn matches(&self, filter: &str) -> bool {
        let name = self.to_string();
        filter.split_whitespace().all(|wanted| name.split(' ').any(|word| word == wanted))
    }

    /// The path between the hosts, before anything is lost on it.
    pub fn clean_path(&self, bits_per_second: u64) -> Path {
        Path::clean(bits_per_second, Duration::from_millis(self.rtt_ms))
    }

    /// The path between the hosts.
    pub fn path(&self, bits_per_second: u64) -> Path {
        let Self { loss, burst, reorder, .. } = *self;
        Path { loss, burst, reorder, ..self.clean_path(bits_per_second) }
    }

    /// The least share of Linux' rate that ours shall reach.
    pub fn target(&self) -> f64 {
        match self.congestion {
            _ if self.loss == 0.0 && self.reorder == 0.0 => 1.0,
            Congestion::Cubic => 0.95,
            Congestion::Bbr => 0.9,
        }
    }
}

/// Words that a filter may name: `10ms 1% x4 download bbr`. Cells in which frames come late lose none.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.rtt_ms)?;
        if self.reorder > 0.0 {
            write!(f, " late{}%", self.reorder * 100.0)?;
        } else {
            write!(f, " {}%", self.loss * 100.0)?;
        }
        if self.loss > 0.0 {
            write!(f, " x{}", self.burst)?;
        }
        let direction = match self.direction {
            Direction::Upload => "upload",
            Direction::Download => "download",
        };
        write!(f, " {direction} {}", self.congestion.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_each_cell_once() {
        let names: Vec<String> = Cell::all(&[1, 10, 100]).iter().map(Cell::to_string).collect();
        assert_eq!(names.len(), 3 * 8 * 2 * 2);
        for name in [
            "1ms 0% upload cubic",
            "10ms 0.1% x1 download bbr",
            "100ms 5% x4 upload bbr",
            "1ms late1% download cubic",
        ] {
            assert_eq!(names.iter().filter(|&other| other == name).count(), 1, "{name} in {names:?}");
        }
    }

    #[test]
    fn a_filter_means_whole_words() {
        let chosen = |filter: &str| Cell::all(&[1, 10]).iter().filter(|cell| cell.matches(filter)).count();
        assert_eq!(chosen(""), 64);
        assert_eq!(chosen("1%"), 2 * 2 * 4, "1 % and not 0.1 %");
        assert_eq!(chosen("10ms 1% x4 download bbr"), 1);
        assert_eq!(chosen("10ms 2%"), 0);
    }

    #[test]
    fn what_is_lost_decides_what_is_asked() {
        let target = |filter: &str| {
            Cell::all(&[10])
                .iter()
                .find(|cell| cell.matches(filter))
                .map(Cell::target)
                .expect("there is such a cell")
        };
        assert_eq!(target("0% bbr"), 1.0);
        assert_eq!(target("late1% cubic"), 0.95);
        assert_eq!(target("1% cubic"), 0.95);
        assert_eq!(target("x4 bbr"), 0.9);
    }
}
