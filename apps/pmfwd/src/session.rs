//! A run without commands: forward until Ctrl-C or the end of the time, and say how it went.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dpdk::{PortError, Statistics};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{Cli, Mode};
use crate::forward::Forwarder;
use crate::packet::address_text;
use crate::statistics::{ForwardStatistics, Shown, forwarded, print_forwarded, print_logged, stream_totals};

/// What ends a run before its time.
enum Event {
    Signal,
    CoreFailed,
}

/// Forwards until SIGINT, SIGTERM or `--duration`, and reports on `out`.
///
/// # Errors
/// Something was not to be had, or failed on the way.
pub fn run(cli: &Cli, out: &mut impl Write) -> Result<()> {
    let (events, happened) = channel();
    let signals = events.clone();
    let stop = watch_signals(move || signals.send(Event::Signal).is_ok())?;
    let started = Forwarder::new(cli, &stop, move || drop(events.send(Event::CoreFailed)));
    let Some(mut forwarder) = unless_interrupted(started, cli.json, out)? else { return Ok(()) };
    let before = counted(&forwarder)?;
    forwarder.start(u32::from(cli.tx_first))?;
    let started = Instant::now();
    if cli.json {
        let ports: Vec<_> = forwarder.ports().iter().map(|port| port.port.info().name.clone()).collect();
        print_json(&json!({"event": "started", "mode": cli.forward_mode, "ports": ports}), out)?;
    } else {
        print_started(&forwarder, out)?;
    }
    let shown = watch(cli, &forwarder, &happened, started, out);
    let stopped = forwarder.stop();
    let elapsed = started.elapsed();
    let ports = forwarded(&forwarder, &before)?;
    let totals = stream_totals(&forwarder);
    let captured = forwarder.end()?;
    if cli.json {
        let captured = captured.map(|(written, missed)| json!({"written": written, "missed": missed}));
        let total = ForwardStatistics::total(&ports);
        let event = json!({"event": "stopped", "elapsed_s": elapsed.as_secs_f64(), "ports": ports, "total": total,
            "streams": totals, "captured": captured});
        print_json(&event, out)?;
    } else {
        print_forwarded(&ports, out)?;
        if cli.forward_mode == Mode::Log {
            print_logged(&totals, out)?;
        }
        print_captured(captured, out)?;
    }
    stopped.and(shown)
}

/// What was started; none, and a word about it, if a signal came while the store was still being opened.
///
/// # Errors
/// What kept it from starting, if it was not a signal.
pub(crate) fn unless_interrupted<T>(
    started: Result<T>,
    json: bool,
    out: &mut impl Write,
) -> Result<Option<T>> {
    match started {
        Err(error) if program::is_interrupted(&error) => {
            if json {
                print_json(&json!({"event": "interrupted"}), out)?;
            } else {
                writeln!(out, "Ended before anything was forwarded; the store is as it was")?;
                out.flush()?;
            }
            Ok(None)
        }
        started => started.map(Some),
    }
}

/// What the ports have counted so far.
///
/// # Errors
/// A driver does not count.
pub(crate) fn counted(forwarder: &Forwarder) -> Result<Vec<Statistics>, PortError> {
    forwarder.ports().iter().map(|port| port.port.statistics()).collect()
}

/// Says what is being forwarded, core by core.
pub(crate) fn print_started(forwarder: &Forwarder, out: &mut impl Write) -> Result<()> {
    let (settings, routes) = (forwarder.settings(), forwarder.routes());
    let mode = format!("{:?}", settings.mode).to_lowercase();
    let streams: usize = routes.iter().map(Vec::len).sum();
    let ports = forwarder.ports().len();
    writeln!(
        out,
        "{mode} packet forwarding - ports={ports} - cores={} - streams={streams} - packets/burst={}",
        routes.len(),
        settings.burst
    )?;
    if let Some(store) = forwarder.store() {
        writeln!(out, "Packets lie in {store}")?;
    }
    for (core, routes) in routes.iter().enumerate() {
        writeln!(out, "Core {core} forwards packets on {} streams:", routes.len())?;
        for route in routes {
            let peer = address_text(route.peer);
            writeln!(
                out,
                "  RX P={}/Q={queue} -> TX P={}/Q={queue} peer={peer}",
                route.rx_port,
                route.tx_port,
                queue = route.queue
            )?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Says what became of the capture file.
pub(crate) fn print_captured(captured: Option<(u64, u64)>, out: &mut impl Write) -> Result<()> {
    if let Some((written, missed)) = captured {
        writeln!(out, "\n  Capture: {written} frames written, {missed} missing (too fast for the file)")?;
    }
    out.flush()?;
    Ok(())
}

/// Shows statistics now and then, until something ends it.
fn watch(
    cli: &Cli,
    forwarder: &Forwarder,
    happened: &Receiver<Event>,
    started: Instant,
    out: &mut impl Write,
) -> Result<()> {
    let mut shown = Shown::default();
    shown.all(forwarder)?;
    let end = cli.duration.map(|seconds| started + Duration::from_secs(seconds.get()));
    let period = cli.stats_period.map(|seconds| Duration::from_secs(seconds.get()));
    let mut due = period.map(|period| started + period);
    loop {
        let event = match due.into_iter().chain(end).min() {
            Some(next) => happened.recv_timeout(next.saturating_duration_since(Instant::now())),
            None => happened.recv().map_err(RecvTimeoutError::from),
        };
        match event {
            // The reason comes when it is stopped.
            Ok(Event::Signal | Event::CoreFailed) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(());
        }
        if due.is_some_and(|due| now >= due) {
            let ports = shown.all(forwarder)?;
            if cli.json {
                let elapsed_s = started.elapsed().as_secs_f64();
                let event = json!({"event": "statistics", "elapsed_s": elapsed_s, "ports": ports,
                    "streams": stream_totals(forwarder)});
                print_json(&event, out)?;
            } else {
                writeln!(out, "\nPort statistics ====================================")?;
                ports.iter().try_for_each(|port| port.print(out))?;
                out.flush()?;
            }
            due = due.zip(period).map(|(due, period)| due + period);
        }
    }
}

fn print_json(event: &serde_json::Value, out: &mut impl Write) -> Result<()> {
    writeln!(out, "{event}")?;
    out.flush()?;
    Ok(())
}

/// Tells of SIGINT and SIGTERM for as long as that is wanted, and sets the flag; a second signal ends the process at once.
///
/// # Errors
/// What the kernel says against it.
pub(crate) fn watch_signals(tell: impl Fn() -> bool + Send + 'static) -> Result<Arc<AtomicBool>> {
    let watch = move || {
        let stop = program::stop_signal()?;
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || while signals.forever().next().is_some() && tell() {})?;
        Ok(stop)
    };
    watch().map_err(|error: io::Error| error).context("signals cannot be handled")
}
