//! What clients do with connections, in order and out of order.

use std::io::Read;
use std::net::{IpAddr, Shutdown};

use anyhow::{Context, Result, ensure};
use lab::wire::SERVER_V4;
use lab::{Connection, Curl, Lab, Pmlog, noise};

use crate::{Over, compare, connect, over_each_transport, serve};

over_each_transport! {
    a_connection_serves_many_requests,
    pipelined_requests_are_answered_in_order,
    a_request_may_come_byte_by_byte,
    curl_sends_chunks_and_waits_to_be_asked,
    head_tells_what_get_would,
    a_listing_has_all_records_in_order,
    wrong_requests_get_their_errors,
    broken_clients_harm_nobody,
    a_half_closed_connection_gets_its_reply,
    five_hundred_connections_live_side_by_side,
}

const V4: IpAddr = IpAddr::V4(SERVER_V4);

/// The status of a raw request on a connection of its own, and whether the server then closes.
fn status_of(request: &[u8]) -> Result<u16> {
    let mut connection = connect()?;
    connection.send(request)?;
    Ok(connection.reply()?.status)
}

fn a_connection_serves_many_requests(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let mut last = 0;
    for n in 0..500 {
        let body = noise(n, 1000);
        let seq = connection.append(&body)?.seq()?;
        ensure!(seq > last, "record {seq} after {last}");
        last = seq;
        ensure!(connection.get(&format!("/records/{seq}"))?.body == body, "record {seq} differs");
    }
    connection.finish()?;
    connection.expect_end()
}

fn pipelined_requests_are_answered_in_order(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let bodies: Vec<Vec<u8>> = (0..64).map(|n| noise(n, 100 + 97 * n as usize)).collect();
    for body in &bodies {
        connection.send_append(body)?;
    }
    connection.send_get("/health")?;
    connection.send_get("/nowhere")?;
    let mut numbers = Vec::new();
    for _ in &bodies {
        numbers.push(connection.reply()?.seq()?);
    }
    ensure!(numbers.is_sorted_by(|a, b| a < b), "not in order: {numbers:?}");
    // What stands behind the appends sees them.
    ensure!(connection.reply()?.json()?["records"].as_u64() == Some(64), "health was asked too early");
    ensure!(connection.reply()?.status == 404, "the last reply is not the last request's");
    for seq in &numbers {
        connection.send_get(&format!("/records/{seq}"))?;
    }
    for (seq, body) in numbers.iter().zip(&bodies) {
        ensure!(&connection.reply()?.body == body, "record {seq} differs");
    }
    Ok(())
}

fn a_request_may_come_byte_by_byte(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let request = b"POST /append HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n1;x=y\r\n \r\n5\r\nworld\r\n0\r\nTrailer: x\r\n\r\n";
    for byte in request {
        connection.send(&[*byte])?;
    }
    let seq = connection.reply()?.seq()?;
    ensure!(connection.get(&format!("/records/{seq}"))?.body == b"hello world", "record {seq} differs");
    Ok(())
}

fn curl_sends_chunks_and_waits_to_be_asked(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let body = noise(1, 3 << 20);
    let file = lab.write("body", &body)?;
    for header in ["Transfer-Encoding: chunked", "Expect: 100-continue"] {
        let reply = Curl::post(&Pmlog::url("/append"), &file).argument("--header").argument(header).json()?;
        compare(V4, reply["seq"].as_u64().context("no seq")?, &body)?;
    }
    // The body is asked for before it is sent, and not asked for when it would be refused.
    let mut connection = connect()?;
    connection
        .send(b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")?;
    ensure!(connection.reply()?.status == 100, "not asked to go on");
    connection.send(b"hello")?;
    connection.reply()?.seq()?;
    let too_long =
        b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n";
    ensure!(status_of(too_long)? == 413, "asked for a body that is too long");
    Ok(())
}

fn head_tells_what_get_would(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let seq = connect()?.append(&noise(1, 12_345))?.seq()?;
    let mut connection = connect()?;
    connection
        .send(format!("HEAD /records/{seq} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    connection.stream().read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n"), "{text}");
    ensure!(text.to_ascii_lowercase().contains("content-length: 12345\r\n"), "{text}");
    Ok(())
}

fn a_listing_has_all_records_in_order(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let mut expected = Vec::new();
    for n in 0..150 {
        expected.push((connection.append(&noise(n, n as usize))?.seq()?, n));
    }
    let listed = |list: serde_json::Value| -> Result<Vec<(u64, u64)>> {
        let list = list.as_array().context("no list")?.clone();
        let pair = |one: &serde_json::Value| Some((one["seq"].as_u64()?, one["length"].as_u64()?));
        list.iter().map(|one| pair(one).with_context(|| format!("no record: {one}"))).collect()
    };
    ensure!(listed(connection.get("/records?limit=1000")?.json()?)? == expected, "not all records");
    ensure!(listed(connection.get("/records")?.json()?)? == expected[..100], "not the first hundred");
    let from = format!("/records?from={}&limit=3", expected[120].0);
    ensure!(listed(connection.get(&from)?.json()?)? == expected[120..123], "not the three asked for");
    ensure!(listed(connection.get("/records?from=999999")?.json()?)?.is_empty(), "records of the future");
    Ok(())
}

fn wrong_requests_get_their_errors(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let long = format!("GET /health HTTP/1.1\r\nHost: lab\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let cases: [(&[u8], u16); 11] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 5, 6\r\n\r\nhello", 400),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n\r\n", 400),
        (b"GET /records/12345 HTTP/1.1\r\nHost: lab\r\n\r\n", 404),
        (b"GET /elsewhere HTTP/1.1\r\nHost: lab\r\n\r\n", 404),
        (b"PUT /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 0\r\n\r\n", 405),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\n\r\n", 411),
        (b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 16777217\r\n\r\n", 413),
        (long.as_bytes(), 431),
    ];
    for (request, status) in cases {
        let said = status_of(request)?;
        let start = String::from_utf8_lossy(&request[..request.len().min(120)]);
        ensure!(said == status, "{said} instead of {status} to {start:?}");
    }
    let mut connection = connect()?;
    connection.send(b"DELETE /health HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    ensure!(connection.reply()?.header("allow").is_some(), "a 405 without Allow");
    ensure!(crate::health_of(&server, "records")? == 0, "a refused request left a record");
    Ok(())
}

fn broken_clients_harm_nobody(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let free = crate::health_of(&server, "free_buffers")?;
    let mut other = connect()?;
    for n in 0..50 {
        // Goes away within a body: in order, or with a reset, since there are replies that it never reads.
        let mut broken = connect()?;
        if n % 2 == 0 {
            broken.send_get("/health")?;
        }
        broken.send(b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 100000\r\n\r\n")?;
        broken.send(&noise(n, 50_000))?;
        if n % 2 == 1 {
            broken.stream().shutdown(Shutdown::Both)?;
        }
        drop(broken);
        let body = noise(n, 5000);
        let seq = other.append(&body)?.seq()?;
        ensure!(other.get(&format!("/records/{seq}"))?.body == body, "record {seq} differs");
    }
    ensure!(crate::health_of(&server, "records")? == 50, "half a body became a record");
    // Once the whole records are trimmed, nothing is held by what was broken off.
    let next = crate::health_of(&server, "next")?;
    other.send(format!("DELETE /records?before={next} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
    ensure!(other.reply()?.status == 200, "no trim");
    drop(other);
    crate::wait_until("all buffers are free again", || Ok(crate::health_of(&server, "free_buffers")? >= free))
}

fn a_half_closed_connection_gets_its_reply(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let body = noise(1, 1 << 20);
    connection.send_append(&body)?;
    connection.finish()?;
    let seq = connection.reply()?.seq()?;
    connection.expect_end()?;
    compare(V4, seq, &body)
}

fn five_hundred_connections_live_side_by_side(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut connections: Vec<Connection> = (0..500).map(|_| connect()).collect::<Result<_>>()?;
    for round in 0..2 {
        for (n, connection) in connections.iter_mut().enumerate() {
            connection.send_append(&noise((round * 500 + n) as u64, 1500))?;
        }
        for (n, connection) in connections.iter_mut().enumerate() {
            let seq = connection.reply()?.seq()?;
            let body = connection.get(&format!("/records/{seq}"))?.body;
            ensure!(body == noise((round * 500 + n) as u64, 1500), "record {seq} differs");
        }
    }
    Ok(())
}
