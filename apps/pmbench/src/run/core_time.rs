//! What a processor was busy with, as the kernel counts it.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Nanoseconds of one of the kernel's ticks of accounting (`USER_HZ` is 100 on every Linux).
const TICK_NS: u64 = 10_000_000;

/// What one processor had done at some moment.
#[derive(Clone, Copy, Debug)]
pub struct CoreTime {
    at: Instant,
    ticks: Ticks,
    packets: u64,
}

/// Times of a processor, of /proc/stat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    user: u64,
    system: u64,
    irq: u64,
    softirq: u64,
}

/// What one processor did between two moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreUse {
    /// How long that was.
    pub elapsed_ns: u64,
    /// Programs.
    pub user_ns: u64,
    /// The kernel on behalf of programs.
    pub system_ns: u64,
    /// Interrupts and softirqs: what the kernel does with received packets, among others.
    pub softirq_ns: u64,
    /// Packets that its softirqs processed.
    pub packets: u64,
}

impl CoreTime {
    /// Reads the counters of a processor.
    pub fn read(core: usize) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let softnet =
            fs::read_to_string("/proc/net/softnet_stat").context("cannot read /proc/net/softnet_stat")?;
        Ok(Self {
            at: Instant::now(),
            ticks: ticks(&stat, core).with_context(|| format!("/proc/stat has no CPU {core}"))?,
            packets: packets(&softnet, core).with_context(|| format!("softnet_stat has no CPU {core}"))?,
        })
    }

    /// What the processor did since `earlier`.
    pub fn since(&self, earlier: &Self) -> CoreUse {
        let (now, then) = (&self.ticks, &earlier.ticks);
        CoreUse {
            elapsed_ns: (self.at - earlier.at).as_nanos() as u64,
            user_ns: (now.user - then.user) * TICK_NS,
            system_ns: (now.system - then.system) * TICK_NS,
            softirq_ns: (now.irq - then.irq + now.softirq - then.softirq) * TICK_NS,
            packets: self.packets.wrapping_sub(earlier.packets) & u64::from(u32::MAX),
        }
    }
}

impl CoreUse {
    /// All but idling.
    pub fn busy_ns(&self) -> u64 {
        self.user_ns + self.system_ns + self.softirq_ns
    }
}

/// A processor's line in /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, and more.
fn ticks(stat: &str, core: usize) -> Option<Ticks> {
    let name = format!("cpu{core}");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '))?;
    let times: Vec<u64> = line.split_whitespace().map_while(|time| time.parse().ok()).collect();
    let at = |place: usize| times.get(place).copied();
    Some(Ticks { user: at(0)? + at(1)?, system: at(2)?, irq: at(5)?, softirq: at(6)? })
}

/// Packets that a processor has processed: the first column of its line. Its number is the 13th column, since lines
/// of processors that are off are missing (net/core/net-procfs.c).
fn packets(softnet: &str, core: usize) -> Option<u64> {
    softnet.lines().enumerate().find_map(|(place, line)| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number =
            columns.get(12).and_then(|number| usize::from_str_radix(number, 16).ok()).unwrap_or(place);
        (number == core).then(|| u64::from_str_radix(columns.first()?, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  30 3 30 300 30 30 30 0 0 0\n\
                        cpu1 1 2 3 4 5 6 7 8 9 10\n\
                        cpu10 10 20 30 40 50 60 70 80 90 100\n";

    #[test]
    fn a_processor_has_its_own_line() {
        assert_eq!(ticks(STAT, 1), Some(Ticks { user: 3, system: 3, irq: 6, softirq: 7 }));
        assert_eq!(ticks(STAT, 10), Some(Ticks { user: 30, system: 30, irq: 60, softirq: 70 }));
        assert_eq!(ticks(STAT, 0), None);
    }

    #[test]
    fn packets_are_found_by_the_processors_number() {
        let line = |packets: &str, core: &str| format!("{packets} {} {core} 00000000\n", ["0"; 11].join(" "));
        let softnet = line("0000000a", "00000000") + &line("000000ff", "00000002");
        assert_eq!(packets(&softnet, 0), Some(10));
        assert_eq!(packets(&softnet, 2), Some(255));
        assert_eq!(packets(&softnet, 1), None);
    }

    #[test]
    fn this_machines_counters_are_understood() {
        let before = CoreTime::read(0).expect("there is a CPU 0");
        let used = CoreTime::read(0).expect("there is a CPU 0").since(&before);
        assert!(used.busy_ns() <= used.elapsed_ns + 4 * TICK_NS, "{used:?}");
    }
}
