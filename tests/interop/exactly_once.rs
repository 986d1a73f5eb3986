//! Clients that name the number of each record, over servers that are killed and connections that break: nothing is lost,
//! and nothing is there twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Connection, Lab, Reply, noise};

use crate::{Over, cable, connect, health_of, options, over_each_transport, wait_until};

over_each_transport! {
    what_is_sent_again_after_a_lost_reply_is_stored_once,
}

const RECORDS: u64 = 40;

/// An append that is to get this number.
fn append_as(next: u64, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /append HTTP/1.1\r\nHost: lab\r\nIf-Next: {next}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn ask(connection: &mut Connection, request: &[u8]) -> Result<Reply> {
    connection.send(request)?;
    connection.reply()
}

fn what_is_sent_again_after_a_lost_reply_is_stored_once(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let mut server = options(lab, over, "16MiB")?.start()?;
    let mut connection = connect()?;
    let bodies: Vec<_> =
        (0..RECORDS).map(|number| noise(number, [20, 700, 5000][number as usize % 3])).collect();
    let (mut next, mut refused) = (1, 0);
    for (number, body) in (0..RECORDS).zip(&bodies) {
        let request = append_as(next, body);
        // The first try is often in vain: the client goes away before it has all sent, or before the reply; or the server
        // is killed.
        match number % 5 {
            1 => {
                connection.send(&request[..request.len() - 1])?;
                connection = connect()?;
            }
            2 => {
                connection.send(&request)?;
                connection = connect()?;
            }
            3 if number % 2 == 0 => {
                connection.send(&request)?;
                // Sometimes it is stored by then, and sometimes not.
                std::thread::sleep(Duration::from_millis(number % 4));
                server.kill()?;
                server = options(lab, over, "16MiB")?.start()?;
                connection = connect()?;
            }
            4 => {
                let before = health_of(&server, "next")?;
                connection.send(&request)?;
                wait_until("it is stored", || Ok(health_of(&server, "next")? > before))?;
                connection = connect()?;
            }
            _ => {}
        }
        let reply = ask(&mut connection, &request)?;
        let said: serde_json::Value = serde_json::from_slice(&reply.body)?;
        match reply.status {
            200 => ensure!(said["seq"] == next, "{said} instead of {next}"),
            412 => refused += 1,
            status => anyhow::bail!("status {status}: {said}"),
        }
        let then = said["next"].as_u64().context("the next number")?;
        ensure!(then > next, "record {next} is said to be stored, and {then} comes next");
        next = then;
    }
    ensure!(refused >= RECORDS / 5, "{refused} appends were found done");
    server.kill()?;
    let server = options(lab, over, "16MiB")?.start()?;
    ensure!(health_of(&server, "records")? == RECORDS, "{}", server.health()?);
    let mut connection = connect()?;
    let listed: serde_json::Value = serde_json::from_slice(&connection.get("/records")?.body)?;
    let records = listed.as_array().context("a list")?;
    ensure!(records.len() == bodies.len(), "{listed}");
    for (record, body) in records.iter().zip(&bodies) {
        let stored = connection.get(&format!("/records/{}", record["seq"]))?;
        ensure!(stored.body == *body, "record {} is another one", record["seq"]);
    }
    Ok(())
}
