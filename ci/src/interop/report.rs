//! What was measured, as rows, and held against the targets.

use serde::Serialize;

use super::cell::{Cell, Direction};

/// The least of Jain's index that a fair sharing has.
const FAIR: f64 = 0.9;

/// A cell's outcome, as target/interop/loss.json holds it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub rtt_ms: u64,
    pub loss: f64,
    pub burst: u32,
    pub reorder: f64,
    pub direction: Direction,
    pub linux_cc: String,
    /// Median of the seeds.
    pub linux_mbit: f64,
    pub ours_cc: String,
    /// Median of the seeds.
    pub ours_mbit: f64,
    pub ratio: f64,
    pub target: f64,
    /// Whether the ratio, rounded to hundredths, is the target or above.
    pub is_met: bool,
    /// One of Linux to Linux and one of Linux to ours, for each seed.
    pub mbit_of_seeds: Vec<(f64, f64)>,
}

impl Row {
    pub fn new(cell: &Cell, ours_cc: &str, mbit_of_seeds: Vec<(f64, f64)>) -> Self {
        let linux_mbit = median(mbit_of_seeds.iter().map(|&(linux, _)| linux));
        let ours_mbit = median(mbit_of_seeds.iter().map(|&(_, ours)| ours));
        let ratio = if linux_mbit > 0.0 { ours_mbit / linux_mbit } else { 0.0 };
        Self {
            rtt_ms: cell.rtt_ms,
            loss: cell.loss,
            burst: cell.burst,
            reorder: cell.reorder,
            direction: cell.direction,
            linux_cc: cell.congestion.name().to_owned(),
            linux_mbit,
            ours_cc: ours_cc.to_owned(),
            ours_mbit,
            ratio,
            target: cell.target(),
            is_met: (ratio * 100.0).round() >= cell.target() * 100.0,
            mbit_of_seeds,
        }
    }
}

/// Flows of Linux and of ours through one bottleneck.
#[derive(Clone, Debug, Serialize)]
pub struct Sharing {
    pub congestion: String,
    pub ours_cc: String,
    pub linux_mbit: Vec<f64>,
    pub ours_mbit: Vec<f64>,
    /// Jain's index of all flows.
    pub jain: f64,
    pub is_fair: bool,
}

impl Sharing {
    pub fn new(congestion: &str, ours_cc: &str, linux_mbit: Vec<f64>, ours_mbit: Vec<f64>) -> Self {
        let all: Vec<f64> = linux_mbit.iter().chain(&ours_mbit).copied().collect();
        let jain = jain(&all);
        let is_fair = jain >= FAIR;
        Self {
            congestion: congestion.to_owned(),
            ours_cc: ours_cc.to_owned(),
            linux_mbit,
            ours_mbit,
            jain,
            is_fair,
        }
    }
}

/// The table's head.
pub fn head() -> String {
    format!("{:<32} {:>12} {:>12} {:>7}", "cell", "Linux Mbit/s", "ours Mbit/s", "ratio")
}

/// A row of the table.
pub fn line(cell: &Cell, row: &Row) -> String {
    let verdict = if row.is_met { String::new() } else { format!("  below {:.2}", row.target) };
    format!(
        "{:<32} {:>12.1} {:>12.1} {:>7.2}{verdict}",
        cell.to_string(),
        row.linux_mbit,
        row.ours_mbit,
        row.ratio
    )
}

/// A line for a bottleneck that was shared.
pub fn sharing_line(sharing: &Sharing) -> String {
    let rates = |rates: &[f64]| rates.iter().map(|rate| format!("{rate:.1}")).collect::<Vec<_>>().join(" + ");
    let verdict = if sharing.is_fair { String::new() } else { format!("  below {FAIR}") };
    format!(
        "fairness {:<23} {:>12} {:>12} {:>7.2}{verdict}",
        sharing.congestion,
        rates(&sharing.linux_mbit),
        rates(&sharing.ours_mbit),
        sharing.jain
    )
}

/// How many cells reach their target, by what the targets are.
pub fn verdicts(rows: &[Row], sharings: &[Sharing]) -> Vec<String> {
    let mut verdicts = Vec::new();
    for (target, what) in
        [(1.0, "without loss"), (0.95, "with CUBIC and faults"), (0.9, "with BBR and faults")]
    {
        let of_it: Vec<&Row> = rows.iter().filter(|row| row.target == target).collect();
        if !of_it.is_empty() {
            let met = of_it.iter().filter(|row| row.is_met).count();
            let worst = of_it.iter().map(|row| row.ratio).fold(f64::INFINITY, f64::min);
            verdicts.push(format!(
                "{met} of {} cells {what} reach {target:.2} of Linux; the least is {worst:.2}",
                of_it.len()
            ));
        }
    }
    if !sharings.is_empty() {
        let fair = sharings.iter().filter(|sharing| sharing.is_fair).count();
        verdicts.push(format!(
            "{fair} of {} bottlenecks are shared with a Jain index of {FAIR} or more",
            sharings.len()
        ));
    }
    verdicts
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    f64::midpoint(values[last / 2], values[last.div_ceil(2)])
}

/// 1 where all are equal, down to `1 / n` where one has everything.
fn jain(rates: &[f64]) -> f64 {
    let (sum, squares) =
        rates.iter().fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
    if squares == 0.0 { 0.0 } else { sum * sum / (rates.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_medians_and_says_whether_the_target_is_met() {
        let cell = Cell::all(&[10])[0];
        let row = Row::new(&cell, "cubic", vec![(100.0, 99.6), (90.0, 90.0), (110.0, 200.0)]);
        assert_eq!((row.linux_mbit, row.ours_mbit), (100.0, 99.6));
        assert!(row.is_met, "0.996 rounds to the target of 1.00");
        assert!(!Row::new(&cell, "cubic", vec![(100.0, 99.4)]).is_met);
        assert_eq!(Row::new(&cell, "cubic", vec![(1.0, 1.0), (3.0, 2.0)]).linux_mbit, 2.0);
        let json = serde_json::to_value(&row).expect("a row is JSON");
        for key in [
            "rtt_ms",
            "loss",
            "burst",
            "reorder",
            "direction",
            "linux_cc",
            "linux_mbit",
            "ours_cc",
            "ours_mbit",
            "ratio",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn fair_is_what_is_nearly_equal() {
        assert_eq!(jain(&[5.0; 4]), 1.0);
        assert_eq!(jain(&[8.0, 0.0, 0.0, 0.0]), 0.25);
        assert!(Sharing::new("cubic", "cubic", vec![50.0, 60.0], vec![40.0, 50.0]).is_fair);
        assert!(!Sharing::new("cubic", "cubic", vec![90.0, 90.0], vec![10.0, 10.0]).is_fair);
    }

    #[test]
    fn verdicts_count_by_target() {
        let cells = Cell::all(&[10]);
        let rows: Vec<Row> = cells.iter().map(|cell| Row::new(cell, "cubic", vec![(100.0, 93.0)])).collect();
        let verdicts = verdicts(&rows, &[]);
        assert_eq!(verdicts.len(), 3);
        assert!(verdicts[0].starts_with("0 of 4 cells without loss"), "{verdicts:?}");
        assert!(verdicts[1].starts_with("0 of 14 cells with CUBIC"), "{verdicts:?}");
        assert!(verdicts[2].starts_with("14 of 14 cells with BBR"), "{verdicts:?}");
    }
}
