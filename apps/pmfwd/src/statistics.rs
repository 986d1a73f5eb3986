//! What ports and streams have counted, as testpmd prints it, and as JSON.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use dpdk::{PortError, Statistics};
use serde::Serialize;

use crate::forward::Forwarder;

/// Bits of a byte.
const BITS: u128 = 8;

/// Shows the ports' counters, with the rates since they were last shown.
#[derive(Debug, Default)]
pub struct Shown {
    last: Vec<Option<(Instant, Statistics)>>,
}

/// A port's counters at some time, and its rates since an earlier one.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatistics {
    /// Its number.
    pub port: usize,
    /// DPDK's name for it.
    pub name: String,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames lost for want of descriptors, or of room in a ring; none if nobody counts them.
    pub rx_missed: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received in error.
    pub rx_errors: u64,
    /// Frames lost for want of mbufs.
    pub rx_no_mbuf: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames that failed to be sent.
    pub tx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames received in a second.
    pub rx_pps: u64,
    /// Bits received in a second.
    pub rx_bps: u64,
    /// Frames sent in a second.
    pub tx_pps: u64,
    /// Bits sent in a second.
    pub tx_bps: u64,
}

/// What was forwarded from the start to the stop, at one port or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ForwardStatistics {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames that the device lost; none if nobody counts them.
    pub rx_dropped: Option<u64>,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames that the device did not take.
    pub tx_dropped: u64,
}

/// What the streams have done from the start to the stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamTotals {
    /// Packets received.
    pub received: u64,
    /// Packets that the sending device took.
    pub sent: u64,
    /// Packets that it did not take.
    pub dropped: u64,
    /// Packets that ended here.
    pub consumed: u64,
    /// Packets that are durable records.
    pub logged: u64,
    /// Packets that did not go on since the store did not take them.
    pub not_logged: u64,
    /// Payload bytes that were copied on their way into or out of the store.
    pub copied_bytes: u64,
}

impl Shown {
    /// A port's counters, with its rates since the last call for it.
    ///
    /// # Errors
    /// The driver does not count.
    pub fn port(&mut self, forwarder: &Forwarder, number: usize) -> Result<PortStatistics, PortError> {
        let port = &forwarder.ports()[number].port;
        let (now, statistics) = (Instant::now(), port.statistics()?);
        if self.last.len() <= number {
            self.last.resize(number + 1, None);
        }
        let (then, before) = self.last[number].replace((now, statistics)).unwrap_or((now, statistics));
        let elapsed_ns = (now - then).as_nanos();
        // A reset of the counters makes them smaller.
        let rate = |after: u64, before: u64, times: u128| {
            let more = u128::from(after.saturating_sub(before));
            (more * times * 1_000_000_000).checked_div(elapsed_ns).unwrap_or(0) as u64
        };
        Ok(PortStatistics {
            port: number,
            name: port.info().name.clone(),
            rx_packets: statistics.rx_packets,
            rx_missed: statistics.rx_missed,
            rx_bytes: statistics.rx_bytes,
            rx_errors: statistics.rx_errors,
            rx_no_mbuf: statistics.rx_no_mbuf,
            tx_packets: statistics.tx_packets,
            tx_errors: statistics.tx_errors,
            tx_bytes: statistics.tx_bytes,
            rx_pps: rate(statistics.rx_packets, before.rx_packets, 1),
            rx_bps: rate(statistics.rx_bytes, before.rx_bytes, BITS),
            tx_pps: rate(statistics.tx_packets, before.tx_packets, 1),
            tx_bps: rate(statistics.tx_bytes, before.tx_bytes, BITS),
        })
    }

    /// All ports' counters, as [`port`](Self::port) has them.
    ///
    /// # Errors
    /// A driver does not count.
    pub fn all(&mut self, forwarder: &Forwarder) -> Result<Vec<PortStatistics>, PortError> {
        (0..forwarder.ports().len()).map(|number| self.port(forwarder, number)).collect()
    }

    /// The counters were set to zero.
    pub fn cleared(&mut self) {
        let now = Instant::now();
        self.last.iter_mut().flatten().for_each(|last| *last = (now, Statistics::default()));
    }
}

impl PortStatistics {
    /// The block that testpmd prints.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        let edge = "#".repeat(24);
        writeln!(out, "\n  {edge} NIC statistics for port {:<2} {edge}", self.port)?;
        writeln!(
            out,
            "  RX-packets: {:<10} RX-missed: {:<10} RX-bytes:  {}",
            self.rx_packets,
            counted(self.rx_missed),
            self.rx_bytes
        )?;
        writeln!(out, "  RX-errors: {}", self.rx_errors)?;
        writeln!(out, "  RX-nombuf:  {:<10}", self.rx_no_mbuf)?;
        writeln!(
            out,
            "  TX-packets: {:<10} TX-errors: {:<10} TX-bytes:  {}",
            self.tx_packets, self.tx_errors, self.tx_bytes
        )?;
        writeln!(out, "\n  Throughput (since last show)")?;
        writeln!(out, "  Rx-pps: {:>12}          Rx-bps: {:>12}", self.rx_pps, self.rx_bps)?;
        writeln!(out, "  Tx-pps: {:>12}          Tx-bps: {:>12}", self.tx_pps, self.tx_bps)?;
        writeln!(out, "  {}", "#".repeat(76))?;
        Ok(())
    }
}

impl ForwardStatistics {
    /// One more port.
    fn add(&mut self, other: &Self) {
        self.rx_packets += other.rx_packets;
        // A sum of which a part is not known is not known.
        self.rx_dropped = self.rx_dropped.zip(other.rx_dropped).map(|(sum, more)| sum + more);
        self.tx_packets += other.tx_packets;
        self.tx_dropped += other.tx_dropped;
    }

    /// The sum over ports.
    pub fn total(ports: &[Self]) -> Self {
        let mut total = Self { rx_dropped: Some(0), ..Self::default() };
        ports.iter().for_each(|port| total.add(port));
        total
    }

    fn print_lines(&self, out: &mut impl Write) -> Result<()> {
        let Self { rx_packets, rx_dropped, tx_packets, tx_dropped } = *self;
        let rx_total = rx_dropped.map(|dropped| rx_packets + dropped);
        let (rx_dropped, rx_total) = (counted(rx_dropped), counted(rx_total));
        let tx_total = tx_packets + tx_dropped;
        writeln!(out, "  RX-packets: {rx_packets:<14} RX-dropped: {rx_dropped:<13} RX-total: {rx_total}")?;
        writeln!(out, "  TX-packets: {tx_packets:<14} TX-dropped: {tx_dropped:<13} TX-total: {tx_total}")?;
        Ok(())
    }
}

/// A counter, or that there is none.
fn counted(count: Option<u64>) -> String {
    count.map_or_else(|| "not counted".to_owned(), |count| count.to_string())
}

/// The blocks that testpmd prints when it has stopped: one for each port, and their sum.
///
/// # Errors
/// Nobody reads them.
pub fn print_forwarded(ports: &[ForwardStatistics], out: &mut impl Write) -> Result<()> {
    let edge = "-".repeat(22);
    for (number, port) in ports.iter().enumerate() {
        writeln!(out, "\n  {edge} Forward statistics for port {number:<2} {edge}")?;
        port.print_lines(out)?;
        writeln!(out, "  {}", "-".repeat(76))?;
    }
    let edge = "+".repeat(15);
    writeln!(out, "\n  {edge} Accumulated forward statistics for all ports{edge}")?;
    ForwardStatistics::total(ports).print_lines(out)?;
    writeln!(out, "  {}", "+".repeat(76))?;
    Ok(())
}

/// What the ports have counted since `before`, with what the streams could not send.
///
/// # Errors
/// A driver does not count.
pub fn forwarded(forwarder: &Forwarder, before: &[Statistics]) -> Result<Vec<ForwardStatistics>, PortError> {
    let mut ports = Vec::with_capacity(before.len());
    for (port, before) in forwarder.ports().iter().zip(before) {
        let now = port.port.statistics()?;
        ports.push(ForwardStatistics {
            rx_packets: now.rx_packets.saturating_sub(before.rx_packets),
            rx_dropped: now.rx_missed.zip(before.rx_missed).map(|(now, before)| now.saturating_sub(before)),
            tx_packets: now.tx_packets.saturating_sub(before.tx_packets),
            tx_dropped: 0,
        });
    }
    for ((rx_port, _), counters) in forwarder.counters() {
        ports[forwarder.sends_for(rx_port)].tx_dropped += counters.dropped.value();
    }
    Ok(ports)
}

/// What the streams have done since the last start.
pub fn stream_totals(forwarder: &Forwarder) -> StreamTotals {
    let mut total = StreamTotals::default();
    for (_, counters) in forwarder.counters() {
        total.received += counters.received.value();
        total.sent += counters.sent.value();
        total.dropped += counters.dropped.value();
        total.consumed += counters.consumed.value();
        total.logged += counters.logged.value();
        total.not_logged += counters.not_logged.value();
        total.copied_bytes += counters.copied_bytes.value();
    }
    total
}

/// What mode log has to tell on top of testpmd's statistics.
///
/// # Errors
/// Nobody reads it.
pub fn print_logged(totals: &StreamTotals, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "\n  Log: {} packets durable before they were sent, {} held back (store full), {} bytes copied",
        totals.logged, totals.not_logged, totals.copied_bytes
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_testpmds_layout() {
        let port = PortStatistics {
            port: 0,
            name: "net_ring0".to_owned(),
            rx_packets: 1_043_055_840,
            rx_missed: Some(0),
            rx_bytes: 0,
            rx_errors: 0,
            rx_no_mbuf: 0,
            tx_packets: 1_043_055_840,
            tx_errors: 0,
            tx_bytes: 0,
            rx_pps: 1_153_927_225,
            rx_bps: 0,
            tx_pps: 1_153_927_190,
            tx_bps: 0,
        };
        let mut text = Vec::new();
        port.print(&mut text).unwrap();
        let forwarded = ForwardStatistics {
            rx_packets: 1_043_435_328,
            rx_dropped: Some(0),
            tx_packets: 1_043_435_360,
            tx_dropped: 0,
        };
        print_forwarded(&[forwarded], &mut text).unwrap();
        insta::assert_snapshot!("blocks", String::from_utf8(text).unwrap());
    }

    #[test]
    fn the_sum_is_that_of_the_ports() {
        let port = |n| ForwardStatistics {
            rx_packets: n,
            rx_dropped: Some(2 * n),
            tx_packets: 3 * n,
            tx_dropped: 4 * n,
        };
        assert_eq!(ForwardStatistics::total(&[port(1), port(10), port(100)]), port(111));
        let uncounted = ForwardStatistics { rx_dropped: None, ..port(1) };
        assert_eq!(ForwardStatistics::total(&[port(1), uncounted]).rx_dropped, None);
    }
}
