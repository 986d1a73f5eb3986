//! report.md.

use std::fmt::{Arguments, Write as _};

use bytesize::ByteSize;
use clap::ValueEnum as _;

use super::breakdown::{Breakdown, Kind};
use super::numbers::{number, whole};
use super::plots::Plot;
use super::stats::{Figure, Server, of_details, paired, reference, servers, spread, stream_loads};
use super::targets::{TARGETS, Target};
use super::text::COLUMNS;
use crate::protocol::Mode;
use crate::results::{Link, Load, QUIET, Results};
use crate::spread::Spread;

/// What a reader must know who compares two of the figures.
const COMPARABLE: &str = "\
- **Requests per CPU second, and CPU per request**, across all modes and links. For kernel sockets it is all that
  the server's core did not idle (user, system, interrupts, softirqs, of /proc/stat, in steps of 10 ms a window). For
  polling loops it is the time, by the time stamp counter, in steps that found something to do and in those that took
  longer than 1 us all the same: the kernel has interrupted them, on veth with the softirqs that feed the packet
  socket. Polls that find nothing are not counted: such a loop takes its whole core at any load, and that is the price
  of its latency.
- **Requests per second and latency on veth**: the same link, the same client, one core for the server. Receive
  packet steering has the server's core do the kernel's receive work in all modes, and each cell is refused whose
  packets went elsewhere. Where the client was busy nearly all of the time, it and not the server was the limit: the
  column says so.
- **Requests per second and latency on memif, and on ring**: among the DPDK modes on the same link. The kernel's sockets
  have neither.
- **memif beside ring**: what the link costs the server. On memif its core copies each frame into the buffer where it
  is received, which takes longest where that buffer is in no cache, and so for servers that keep what they received
  where it is. On ring that is the other core's work, as it is a card's.
- **Copies, flushed lines, fences and PM per payload**: across all modes; each server counts its own. The copies that
  the kernel or the link makes are not among them.
- **Not comparable**: requests per second on one link with those on another; absolute figures with those of other machines,
  since client, server and the virtual link share one machine and its caches; latencies under a longer persist with
  those without; `limit` with anything as an HTTP server, since it parses nothing and returns the request's frames.
- `paste-echo` and `limit` make nothing durable: they are bounds, not alternatives.
- There is no persistent memory in a tmpfs file: the flushes and fences are executed, and cost what they cost for
  DRAM. `--persist-delay-us` adds to each persist, as PASTE's evaluation does.";

/// What lies between client and server.
const LINKS: &str = "\
On **veth**, a pair of virtual Ethernet interfaces, all modes: Linux itself at the server's end, or a DPDK port on a
packet socket (net_af_packet). On **memif**, shared memory between two DPDK ports, the DPDK modes. On **ring**, those
again, with the client in a thread of the server's process. The client is the same program for all: a DPDK port, our own
stack, a core of its own.

**ring** does as a network card does. The server's port is two rings of pointers (net_ring). Behind them the client's
thread keeps up to 1023 empty buffers of the server's own receive pool, copies frames into them in the order in which they
were posted, and hands them over; it reads what the server has sent where that lies, headers in DRAM and payload in the
store, and frees it then. All of that is the other core's time.

- What it models: the server touches no byte of a frame before it looks at it. Frames lie in buffers that were last used a
  whole queue ago, or long before that if the server kept those in between; they come by way of a cache, as by DDIO.
  Completions of what is sent come later, from elsewhere.
- What it does not: frames come from another core's cache, and not from the last level. There is no PCIe, no descriptor
  to be read and written back, no doorbell, and no latency of a card's own. Buffers are posted, and sent ones freed, by
  the other core, where a driver does both on the server's, some ten ns a frame each, in all modes alike. No offload:
  checksums are the CPU's work.";

/// What the parts of a request's time are.
const STAGES: &str = "\
Nanoseconds of the server's core for each request, of one run more of each server that the targets speak of, after the
rounds. It is half as long as a cell, and the server reads the time stamp counter between the stages of each burst.
The cells know nothing of it: they were measured without.

- **rx**: frames out of the device, and their mbufs back into the pool. On memif the driver copies each frame into its
  buffer here; on veth it copies it out of the packet socket's ring; on ring it is given pointers.
- **stack in**: headers, checksums, connections, queues; for `dpdk-copy` with the copy into the socket's ring.
- **app**: HTTP, checksum and log entry of the record, reply; for `dpdk-copy` with the copy into the store.
- Where the driver copies, `paste` and `paste-echo` also have the next spare buffers fetched into the caches: between
  frames, which is part of **stack in**, and between events, which is part of **app**.
- **flush**, **fence**: the lines of payload and log entries, and one wait for each burst. While it is measured, a fence
  waits until the flushed lines have arrived; without, the core runs on meanwhile.
- **stack out**: timers; headers and checksums of what is sent.
- **tx**: frames into the device, and freeing what it has sent. On veth it is a system call, in which the kernel
  delivers the frames; on ring the other core frees them.
- **between**: between bursts: the log's trim, and polls that the kernel interrupted.

A processor works ahead: what a stage leaves in flight, such as stores on their way to memory, is charged to the stage
that waits for it. That blurs app and flush above all; their sum is sound.

For the modes on kernel sockets: time of the server's core as /proc/stat has it, medians over the rounds. **softirq** is
what the kernel does with packets that arrive.";

/// What a stream is.
const STREAM: &str = "\
One connection with one request on its way: up, an append of such a record; down, a read of one of the records that were
appended before, which all modes check against its checksums as they send it. Gbit of records, for a second of the server's
core and for a second.";

/// The whole report.
pub fn report(results: &Results, plots: &[Plot]) -> String {
    let mut page = String::new();
    about(&mut page, results);
    modes(&mut page, results);
    targets(&mut page, results);
    stages(&mut page, results);
    if let Some(load) = reference(results) {
        reference_table(&mut page, results, load);
        matrix(&mut page, results, "Requests per second", |cell| cell.requests_per_s);
        matrix(&mut page, results, "Server CPU per request, ns", |cell| cell.server_cpu_ns_per_request);
        matrix(&mut page, results, "Median latency, us", |cell| cell.p50_us);
        matrix(&mut page, results, "Latency at 99 %, us", |cell| cell.p99_us);
    }
    streams(&mut page, results);
    text(&mut page, format_args!("\n## What can be compared and what cannot\n\n{COMPARABLE}"));
    confirmation(&mut page, results);
    if !plots.is_empty() {
        text(&mut page, format_args!("\n## Plots"));
        for Plot { name, title } in plots {
            text(&mut page, format_args!("\n![{title}]({name}.svg)"));
        }
    }
    page
}

fn about(page: &mut String, results: &Results) {
    let run = &results.run;
    text(page, format_args!("# Durable appends over every kind of network stack\n"));
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let facts = [
        ("date", known(&run.date)),
        (
            "processor",
            format!(
                "{}, {} cores{}",
                known(&run.cpu),
                run.cores,
                if run.is_virtual { " of a virtual machine" } else { "" }
            ),
        ),
        ("kernel", known(&run.kernel)),
        ("commit", known(&run.commit)),
        ("cores", format!("server on {}, client on {}", run.server_core, run.client_core)),
        (
            "stores",
            format!(
                "{} each, in tmpfs, which is DRAM in the place of persistent memory; status-quo-fsync has a file on a disk",
                ByteSize(run.store_bytes)
            ),
        ),
        ("rounds", format!("{}, of {} s for each cell", run.rounds, run.seconds)),
    ];
    table_head(page, &["", ""]);
    for (name, fact) in facts {
        text(page, format_args!("| {name} | {fact} |"));
    }
    text(
        page,
        format_args!(
            "\nA request is `POST /append` with a body of so many bytes; a server keeps it as a record and answers with \
             the record's number. Each cell is a fresh server and a fresh client, a core for each, one request on its \
             way for each connection. The modes take turns within a round. Figures are medians over the rounds, with \
             the smallest and the largest in brackets; ratios are taken within a round before their median is."
        ),
    );
    if run.rounds == 1 {
        text(
            page,
            format_args!(
                "\n**One round**: nothing here says how far figures lie apart from one time to the next."
            ),
        );
    }
    if run.busy_before > QUIET {
        text(
            page,
            format_args!(
                "\n**Not a quiet machine**: before the run its CPUs were {:.0} % busy with something else.",
                run.busy_before * 100.0
            ),
        );
    }
    if !run.steered {
        text(
            page,
            format_args!(
                "\n**Unsteered**: the kernel received the servers' packets on the client's core, where it is not counted. \
                 The kernel's modes look cheaper on veth than they are."
            ),
        );
    }
}

fn targets(page: &mut String, results: &Results) {
    text(page, format_args!("\n## Targets\n"));
    table_head(page, &["compared", "link", "load", "figure", "wanted", "measured", "verdict"]);
    for target in &TARGETS {
        let measured = target.measured(&results.cells);
        let link = target.link().map_or("both".to_owned(), |link| link.to_string());
        text(
            page,
            format_args!(
                "| {} | {link} | {} | {} | {} | {} | {} |",
                target.compared(),
                target.load(),
                target.figure(),
                target.wanted(),
                ranged(measured),
                verdict(target, measured)
            ),
        );
    }
}

/// The verdict on a target's median, and whether each round agrees.
fn verdict(target: &Target, measured: Option<Spread>) -> String {
    let verdict = target.verdict(measured);
    let of_round = |value| target.verdict(Some(Spread { min: value, median: value, max: value }));
    let agree = measured.is_none_or(|Spread { min, max, .. }| of_round(min) == of_round(max));
    if agree { verdict.to_string() } else { format!("{verdict}, but not in each round") }
}

/// The parts of a request's time in the servers that the targets speak of.
fn stages(page: &mut String, results: &Results) {
    let mut loads: Vec<Load> = results.run.profiles.iter().map(|profile| profile.load).collect();
    loads.sort_by_key(|load| (load.persist_delay_us, load.size, load.connections));
    loads.dedup();
    if loads.is_empty() {
        return;
    }
    text(page, format_args!("\n## Where a request's time goes\n\n{STAGES}"));
    for load in loads {
        text(page, format_args!("\n### Stages: {load}\n"));
        let names = Kind::STAGES.map(|kind| kind.to_string());
        let titles = ["link", "mode"].into_iter().chain(names.iter().map(String::as_str));
        table_head(page, &titles.chain(["all, ns", "of it measuring", "unprofiled"]).collect::<Vec<_>>());
        let of_load = |kernel: bool| {
            let servers =
                servers(results).into_iter().filter(move |server| server.mode.is_kernel() == kernel);
            servers.filter_map(move |server| Breakdown::of(results, server, load))
        };
        for Breakdown { server, parts, cpu_ns, measuring_ns, .. } in of_load(false) {
            let parts: String = parts.iter().map(|(_, ns)| format!(" {} |", whole(*ns))).collect();
            let unprofiled = spread(&results.cells, server, load, |cell| cell.server_cpu_ns_per_request);
            text(
                page,
                format_args!(
                    "| {} | {} |{parts} {} | {} | {} |",
                    server.link,
                    server.mode,
                    whole(cpu_ns),
                    whole(measuring_ns),
                    ranged(unprofiled)
                ),
            );
        }
        let mut of_kernel = of_load(true).peekable();
        if of_kernel.peek().is_none() {
            continue;
        }
        text(page, format_args!(""));
        table_head(page, &["mode", "user", "system", "softirq", "all, ns"]);
        for Breakdown { server, parts, cpu_ns, .. } in of_kernel {
            let parts: String = parts.iter().map(|(_, ns)| format!(" {} |", whole(*ns))).collect();
            text(page, format_args!("| {} |{parts} {} |", server.mode, whole(cpu_ns)));
        }
    }
}

fn reference_table(page: &mut String, results: &Results, load: Load) {
    text(
        page,
        format_args!(
            "\n## {load}\n\nAll but the rates are per request; the last but two columns are ratios.\n"
        ),
    );
    let titles = COLUMNS.iter().map(|(title, _)| *title);
    let more = ["client busy", "requests/s to status-quo", "per CPU second to status-quo"];
    table_head(page, &["link", "mode"].into_iter().chain(titles).chain(more).collect::<Vec<_>>());
    let status_quo = Server::veth(Mode::StatusQuo);
    for server in servers(results) {
        if let Some(reason) = skipped(results, server) {
            text(page, format_args!("| {} | {} | skipped: {reason} |", server.link, server.mode));
            continue;
        }
        let mut row = format!("| {} | {} |", server.link, server.mode);
        for (_, figure) in COLUMNS {
            write(&mut row, format_args!(" {} |", ranged(spread(&results.cells, server, load, figure))));
        }
        let busy = of_details(results, server, load, |detail| detail.client_busy);
        let busy = busy.map(|busy| format!("{:.0} %", busy.median * 100.0));
        let rate = paired(
            &results.cells,
            (server, status_quo),
            load,
            |cell| cell.requests_per_s,
            |one, other| one / other,
        );
        // A rate on another link says nothing.
        let rate = rate.filter(|_| server.link == Link::Veth);
        let cpu: Figure = |cell| cell.server_cpu_ns_per_request;
        let cpu = paired(&results.cells, (server, status_quo), load, cpu, |one, other| other / one);
        text(
            page,
            format_args!("{row} {} | {} | {} |", busy.unwrap_or_else(none), ranged(rate), ranged(cpu)),
        );
    }
}

/// Large records over one connection, each way.
fn streams(page: &mut String, results: &Results) {
    for load in stream_loads(results) {
        text(page, format_args!("\n## Large records: {load}\n\n{STREAM}\n"));
        table_head(page, &["link", "mode", "Gbit per CPU second", "Gbit/s", "copied B/B", "client busy"]);
        for server in servers(results) {
            let of = |figure: Figure| spread(&results.cells, server, load, figure);
            let Some(per_cpu) = of(|cell| cell.gbit_per_cpu_s) else { continue };
            let copied = of(|cell| cell.copied_bytes_per_request)
                .map(|copied| format!("{:.2}", copied.median / f64::from(load.size)));
            let busy = of_details(results, server, load, |detail| detail.client_busy);
            let busy = busy.map(|busy| format!("{:.0} %", busy.median * 100.0));
            text(
                page,
                format_args!(
                    "| {} | {} | {} | {} | {} | {} |",
                    server.link,
                    server.mode,
                    ranged(Some(per_cpu)),
                    ranged(of(|cell| cell.gbit_per_s)),
                    copied.unwrap_or_else(none),
                    busy.unwrap_or_else(none)
                ),
            );
        }
    }
}

/// A figure of all servers under all loads.
fn matrix(page: &mut String, results: &Results, title: &str, figure: Figure) {
    let mut loads: Vec<Load> = results.cells.iter().map(|cell| cell.load).collect();
    loads.sort_by_key(|load| (load.persist_delay_us, load.size, load.connections));
    loads.dedup();
    loads.retain(|load| !load.is_stream());
    text(page, format_args!("\n## {title}\n"));
    let name = |load: &Load| {
        let delay =
            if load.persist_delay_us > 0 { format!(", {} us", load.persist_delay_us) } else { String::new() };
        format!("{} B x {}{delay}", load.size, load.connections)
    };
    let names: Vec<String> = loads.iter().map(name).collect();
    table_head(
        page,
        &["link", "mode"].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>(),
    );
    for server in servers(results) {
        let median = |load: &Load| {
            spread(&results.cells, server, *load, figure).map_or_else(none, |spread| number(spread.median))
        };
        let row: String = loads.iter().map(|load| format!(" {} |", median(load))).collect();
        text(page, format_args!("| {} | {} |{row}", server.link, server.mode));
    }
}

fn confirmation(page: &mut String, results: &Results) {
    let confirmation = &results.run.confirmation;
    let Some(first) = confirmation.first() else { return };
    let load = first.load;
    text(
        page,
        format_args!(
            "\n## The second client\n\nwrk, over the kernel's own TCP in a network namespace of its own, at the other end of \
         a veth pair: {load}. It takes several times as long for a request as our client, so that it bounds the rate of \
         fast servers; the time of the server's core tells them apart.\n"
        ),
    );
    table_head(page, &["mode", "requests/s by wrk", "by our client", "CPU ns by wrk", "by our client"]);
    let ours =
        |mode, figure| spread(&results.cells, Server::veth(mode), load, figure).map(|spread| spread.median);
    let mut by_cpu: Vec<(Mode, f64, f64)> = Vec::new();
    for found in confirmation {
        let cpu = ours(found.mode, |cell| cell.server_cpu_ns_per_request);
        if let Some(cpu) = cpu {
            by_cpu.push((found.mode, found.server_cpu_ns_per_request, cpu));
        }
        let shown = |value: Option<f64>| value.map_or_else(none, number);
        text(
            page,
            format_args!(
                "| {} | {} | {} | {} | {} |",
                found.mode,
                number(found.requests_per_s),
                shown(ours(found.mode, |cell| cell.requests_per_s)),
                number(found.server_cpu_ns_per_request),
                shown(cpu)
            ),
        );
    }
    let order = |key: fn(&(Mode, f64, f64)) -> f64| {
        let mut sorted = by_cpu.clone();
        sorted.sort_by(|one, other| key(one).total_cmp(&key(other)));
        sorted.iter().map(|(mode, ..)| mode.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (wrks, ours) = (order(|found| found.1), order(|found| found.2));
    if wrks == ours {
        text(page, format_args!("\nBoth find the same order of CPU per request: {ours}."));
    } else {
        text(
            page,
            format_args!("\nThe order of CPU per request differs: by wrk {wrks}; by our client {ours}."),
        );
    }
}

/// What was compared, and what of it did not run.
fn modes(page: &mut String, results: &Results) {
    text(page, format_args!("\n## What was compared\n"));
    table_head(page, &["mode", "what a server of it does", "durable by", "notes"]);
    let mut modes: Vec<Mode> = results.cells.iter().map(|cell| cell.mode).collect();
    modes.sort();
    modes.dedup();
    for mode in modes {
        let help = mode.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        let known = results.run.modes.iter().find(|known| known.mode == mode);
        let domain = known.and_then(|known| known.domain.clone()).unwrap_or_else(none);
        let notes = known.map_or_else(none, |known| known.notes.join("; "));
        text(page, format_args!("| {mode} | {} | {domain} | {notes} |", help.unwrap_or_default()));
    }
    text(page, format_args!("\n{LINKS}"));
    for server in servers(results) {
        if let Some(reason) = skipped(results, server) {
            text(page, format_args!("\n`{}` was skipped: {reason}.", server.mode));
        }
    }
    for failure in &results.run.failures {
        text(
            page,
            format_args!(
                "\n**Failed**: `{}` on {}, {}, {}: {}",
                failure.mode, failure.link, failure.load, failure.during, failure.why
            ),
        );
    }
}

fn skipped(results: &Results, server: Server) -> Option<&str> {
    let mut cells = results.cells.iter();
    cells.find_map(|cell| {
        cell.skipped.as_deref().filter(|_| (cell.link, cell.mode) == (server.link, server.mode))
    })
}

/// A median and, if there was more than one round, what lies around it.
fn ranged(spread: Option<Spread>) -> String {
    match spread {
        None => none(),
        Some(Spread { min, median, max }) if min == max => number(median),
        Some(Spread { min, median, max }) => {
            format!("{} ({} to {})", number(median), number(min), number(max))
        }
    }
}

/// What stands where nothing was measured.
fn none() -> String {
    "–".to_owned()
}

fn table_head(page: &mut String, titles: &[&str]) {
    text(page, format_args!("| {} |", titles.join(" | ")));
    text(page, format_args!("|{}", "---|".repeat(titles.len())));
}

fn text(page: &mut String, line: Arguments<'_>) {
    writeln!(page, "{line}").expect("writing to a string does not fail");
}

fn write(row: &mut String, piece: Arguments<'_>) {
    row.write_fmt(piece).expect("writing to a string does not fail");
}
