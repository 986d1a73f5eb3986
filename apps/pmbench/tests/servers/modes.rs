//! Every mode serves, and keeps what it says it keeps.

use anyhow::{Result, ensure};
use lab::{Lab, isolated, noise, run, wire};
use pmbench::protocol::Mode;

use crate::bench::Bench;

/// Lengths around those of segments, buffers, short records and records that lie in the log itself.
const LENGTHS: [usize; 10] = [0, 1, 32, 33, 511, 512, 1024, 1448, 8192, 60_000];

/// What a client sends over several connections is answered, and lies on the medium.
fn keeps(lab: &Lab, mode: Mode) -> Result<()> {
    wire::veth()?;
    let (mut bench, ready) = Bench::start(lab, mode, &[])?;
    ensure!(ready.domain.is_some_and(|domain| domain.starts_with("volatile")), "tmpfs is not kept");
    let mut connections = (0..3).map(|_| bench.connect()).collect::<Result<Vec<_>>>()?;
    let before = bench.mark()?;
    let mut sent = Vec::new();
    for (number, len) in LENGTHS.into_iter().cycle().take(60).enumerate() {
        let body = noise(number as u64, len);
        let seq = connections[number % 3].append(&body)?.seq()?;
        sent.push((seq, body));
    }
    let window = bench.mark()?.since(&before);
    ensure!(window.requests == 60 && window.errors == 0, "{window:?}");
    ensure!(
        window.payload_bytes == sent.iter().map(|(_, body)| body.len() as u64).sum::<u64>(),
        "{window:?}"
    );
    drop(connections);
    ensure!(bench.stop()?.records()? == sent, "the medium holds something else");
    Ok(())
}

/// The log goes round: far more than the store holds is taken, and the newest records are there.
fn goes_round(lab: &Lab, mode: Mode) -> Result<()> {
    wire::veth()?;
    let (mut bench, _) = Bench::start(lab, mode, &[])?;
    let mut connection = bench.connect()?;
    let before = bench.mark()?;
    let mut last = Vec::new();
    for number in 0..5000 {
        let body = noise(number, 8000);
        last.push((connection.append(&body)?.seq()?, body));
        last.drain(..last.len().saturating_sub(200));
    }
    let window = bench.mark()?.since(&before);
    ensure!(window.requests == 5000 && window.errors == 0, "{window:?}");
    let amplification = window.pm_bytes as f64 / window.payload_bytes as f64;
    ensure!((1.0..2.5).contains(&amplification), "{amplification} bytes of memory for each of payload");
    let records = bench.stop()?.records()?;
    ensure!(records.ends_with(&last), "the newest records are not there");
    Ok(())
}

/// Requests that come all at once are answered in order.
fn pipelines(lab: &Lab, mode: Mode) -> Result<()> {
    wire::veth()?;
    let (bench, _) = Bench::start(lab, mode, &[])?;
    let mut connection = bench.connect()?;
    let bodies: Vec<Vec<u8>> = (0..200).map(|number| noise(number, 1 + number as usize * 7)).collect();
    for body in &bodies {
        connection.send_append(body)?;
    }
    let numbers = bodies.iter().map(|_| connection.reply()?.seq()).collect::<Result<Vec<_>>>()?;
    ensure!(numbers.is_sorted_by(|a, b| a < b), "not in order: {numbers:?}");
    Ok(())
}

/// Records of any length are given back, and in the order of the requests.
fn gives(lab: &Lab, mode: Mode) -> Result<()> {
    wire::veth()?;
    let (mut bench, _) = Bench::start(lab, mode, &["--max-record", "1MiB"])?;
    let mut connection = bench.connect()?;
    let mut records = Vec::new();
    // The last is longer than what any ring or window holds.
    for (number, len) in [0, 1, 33, 1448, 65_536, 65_537, 1 << 20].into_iter().enumerate() {
        let body = noise(number as u64, len);
        records.push((connection.append(&body)?.seq()?, body));
    }
    for (seq, body) in &records {
        let reply = connection.get(&format!("/records/{seq}"))?;
        ensure!(reply.status == 200 && reply.body == *body, "record {seq} of {} bytes", body.len());
    }
    // All at once, with appends between them.
    for (seq, _) in &records {
        connection.send_get(&format!("/records/{seq}"))?;
        connection.send_append(b"between")?;
    }
    for (seq, body) in &records {
        ensure!(connection.reply()?.body == *body, "record {seq} of {} bytes", body.len());
        connection.reply()?.seq()?;
    }
    let mark = bench.mark()?;
    ensure!((mark.requests, mark.errors) == (4 * records.len() as u64, 0), "{mark:?}");
    let mut other = bench.connect()?;
    ensure!(other.get("/records/100000")?.status == 404, "there is no such record");
    drop((connection, other));
    let kept = bench.stop()?.records()?;
    ensure!(kept.starts_with(&records), "the medium holds something else");
    Ok(())
}

/// What is no append is refused, the connection ends, and others go on.
fn refuses(lab: &Lab, mode: Mode) -> Result<()> {
    wire::veth()?;
    let (mut bench, _) = Bench::start(lab, mode, &[])?;
    let mut good = bench.connect()?;
    good.append(b"before")?.seq()?;
    let too_long = "POST /append HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n";
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
        (too_long, 413),
        ("x\r\n\r\n", 400),
    ] {
        let mut bad = bench.connect()?;
        bad.send(request.as_bytes())?;
        ensure!(bad.reply()?.status == status, "{request}");
        bad.expect_end()?;
    }
    good.append(b"after")?.seq()?;
    let mark = bench.mark()?;
    ensure!(mark.requests == 2 && mark.errors == 3, "{mark:?}");
    Ok(())
}

/// The tests of a mode that keeps records in the log.
macro_rules! log_modes {
    ($($name:ident: $mode:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn what_is_acknowledged_lies_on_the_medium() {
                isolated(|lab| keeps(lab, $mode));
            }

            #[test]
            fn the_log_goes_round() {
                isolated(|lab| goes_round(lab, $mode));
            }

            #[test]
            fn pipelined_requests_are_answered_in_order() {
                isolated(|lab| pipelines(lab, $mode));
            }

            #[test]
            fn records_are_given_back() {
                isolated(|lab| gives(lab, $mode));
            }

            #[test]
            fn what_is_no_append_is_refused() {
                isolated(|lab| refuses(lab, $mode));
            }
        }
    )*};
}

log_modes! {
    status_quo: Mode::StatusQuo;
    msg_zerocopy: Mode::MsgZerocopy;
    kernel_paste: Mode::KernelPaste;
    dpdk_copy: Mode::DpdkCopy;
    paste: Mode::Paste;
}

#[test]
fn status_quo_fsync_writes_a_file_that_goes_round() {
    /// More than fit into the file.
    const REQUESTS: u64 = 300;
    isolated(|lab| {
        wire::veth()?;
        let (mut bench, ready) = Bench::start(lab, Mode::StatusQuoFsync, &[])?;
        ensure!(ready.domain.as_deref() == Some("fdatasync"), "{ready:?}");
        let mut connection = bench.connect()?;
        let mut last = (0, Vec::new());
        for number in 0..REQUESTS {
            let body = noise(number, 60_000);
            last = (connection.append(&body)?.seq()?, body);
        }
        let mark = bench.mark()?;
        ensure!((mark.requests, mark.fences, mark.errors) == (REQUESTS, REQUESTS, 0), "{mark:?}");
        ensure!(mark.pm_bytes > mark.payload_bytes && mark.copied_bytes == 0, "{mark:?}");
        let stopped = bench.stop()?;
        let file = std::fs::read(stopped.path())?;
        ensure!(file.len() == 16 << 20, "the file has {} bytes", file.len());
        let (seq, body) = last;
        let header =
            [&seq.to_le_bytes()[..], &60_000_u32.to_le_bytes(), &crc32c::crc32c(&body).to_le_bytes()]
                .concat();
        let record = [header, body].concat();
        let place = (REQUESTS as usize - 1) % (file.len() / record.len());
        ensure!(file[place * record.len()..].starts_with(&record), "the last record is not there");
        Ok(())
    });
}

#[test]
fn status_quo_fsync_makes_what_came_together_durable_together() {
    const CLIENTS: u64 = 40;
    isolated(|lab| {
        wire::veth()?;
        // While one burst is made durable, the requests of all others come.
        let (mut bench, _) = Bench::start(lab, Mode::StatusQuoFsync, &["--persist-delay-us", "200000"])?;
        let mut connections = (0..CLIENTS).map(|_| bench.connect()).collect::<Result<Vec<_>>>()?;
        for (connection, number) in connections.iter_mut().zip(0..) {
            connection.send_append(&noise(number, 1000))?;
        }
        let mut seqs =
            connections.iter_mut().map(|connection| connection.reply()?.seq()).collect::<Result<Vec<_>>>()?;
        seqs.sort_unstable();
        ensure!(seqs == (1..=CLIENTS).collect::<Vec<_>>(), "{seqs:?}");
        let mark = bench.mark()?;
        ensure!((mark.requests, mark.errors) == (CLIENTS, 0), "{mark:?}");
        ensure!(mark.fences > 0 && mark.fences * 4 <= CLIENTS, "{mark:?}");
        Ok(())
    });
}

#[test]
fn paste_and_kernel_paste_are_pmlogs_own_service() {
    isolated(|lab| {
        wire::veth()?;
        for mode in [Mode::Paste, Mode::KernelPaste] {
            let (bench, _) = Bench::start(lab, mode, &[])?;
            let mut connection = bench.connect()?;
            let body = noise(1, 5000);
            let reply = connection.append(&body)?;
            ensure!(reply.json()?["crc32c"] == format!("{:08x}", crc32c::crc32c(&body)), "{mode}: {reply:?}");
            let record = connection.get(&format!("/records/{}", reply.seq()?))?;
            ensure!(record.body == body, "{mode} gives another record");
        }
        Ok(())
    });
}

#[test]
fn paste_echo_answers_and_keeps_nothing() {
    isolated(|lab| {
        wire::veth()?;
        let (mut bench, ready) = Bench::start(lab, Mode::PasteEcho, &[])?;
        ensure!(ready.domain.is_none(), "{ready:?}");
        let mut connection = bench.connect()?;
        for (number, len) in LENGTHS.into_iter().enumerate() {
            ensure!(connection.append(&noise(1, len))?.seq()? == number as u64 + 1, "numbers count requests");
        }
        let mark = bench.mark()?;
        ensure!(mark.requests == LENGTHS.len() as u64 && mark.errors == 0, "{mark:?}");
        ensure!((mark.flushed_lines, mark.fences, mark.pm_bytes) == (0, 0, 0), "{mark:?}");
        drop(connection);
        ensure!(bench.stop()?.records()?.is_empty(), "something was kept");
        Ok(())
    });
}

#[test]
fn limit_sends_frames_back() {
    isolated(|lab| {
        wire::veth()?;
        let (mut bench, _) = Bench::start(lab, Mode::Limit, &[])?;
        // A datagram to a closed port would bring an error; one that comes back looks like the other side's.
        let socket = std::net::UdpSocket::bind((wire::KERNEL_V4, 5000))?;
        socket.connect((wire::SERVER_V4, 5000))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        let mut back = [0; 2000];
        for len in [1, 100, 1400] {
            let datagram = noise(1, len);
            socket.send(&datagram)?;
            let count = socket.recv(&mut back)?;
            ensure!(back[..count] == datagram, "{len} bytes came back as {count} others");
        }
        let mark = bench.mark()?;
        ensure!(mark.requests == 3 && mark.busy_ns > Some(0), "{mark:?}");
        Ok(())
    });
}

#[test]
fn a_server_does_not_start_with_an_address_that_another_host_has() {
    isolated(|lab| {
        wire::veth()?;
        run("ip", ["address", "add", &format!("{}/24", wire::SERVER_V4), "dev", "veth0"])?;
        for mode in [Mode::Paste, Mode::PasteEcho] {
            let (status, said) = Bench::refused(lab, mode)?;
            ensure!(status.code() == Some(1), "{mode} ended with {status}: {said}");
            ensure!(said.contains("the address 10.0.0.2 is in use by the host "), "{mode}: {said}");
            ensure!(said.contains("(--ip)"), "{mode}: {said}");
        }
        Ok(())
    });
}

#[test]
fn a_mode_that_cannot_run_says_why() {
    isolated(|lab| {
        let Err(error) = Bench::start(lab, Mode::Kcm, &[]) else {
            anyhow::bail!("kcm runs: test it like the others")
        };
        let text = error.to_string();
        ensure!(text.contains("Skipped") && text.contains("AF_KCM"), "{text}");
        Ok(())
    });
}
