//! The power is cut while clients append.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Connection;

use crate::vm::client::{Acknowledged, Load, Tag, fetch_each, server, wait_for_server};
use crate::vm::fixture::{Fixture, START_LIMIT, set_up};
use crate::vm::qemu::{Guest, Nic};

/// The plug pulled in mid-load.
pub fn cut(fixture: &Fixture<'_>) -> Result<String> {
    let serve = |guest: &mut Guest| {
        set_up(guest)?;
        guest.must("serve /dev/dax0.0")
    };
    cut_under_load(fixture, Nic::E1000e, fixture.cuts, serve)
}

/// Cuts the power so many times while clients append to what `serve` starts, and after each cut compares what is
/// there with what was acknowledged.
pub fn cut_under_load(
    fixture: &Fixture<'_>,
    nic: Nic,
    cuts: u32,
    serve: impl Fn(&mut Guest) -> Result<String>,
) -> Result<String> {
    let machine = fixture.machine(nic)?;
    // What must still be there, and all that may be.
    let mut kept: Vec<Acknowledged> = Vec::new();
    let (mut acknowledged_total, mut recovered_total) = (0, 0);
    for cut in 0..u64::from(cuts) {
        let mut guest = fixture.boot(&machine)?;
        serve(&mut guest)?;
        let health = wait_for_server(&mut guest, START_LIMIT)?;
        let next = compare(&kept, cut.checked_sub(1).map(|before| fixture.chance(before)), &health)
            .with_context(|| format!("after power cut {cut} (seed {})", fixture.seed))?;
        recovered_total += next.recovered;
        // The medium is not to fill up over the cuts, and a trim may be cut off like anything else.
        if next.next > 200 {
            let path = format!("/records?before={}", next.next - 100);
            let request = format!("DELETE {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
            let mut connection = Connection::open(server())?;
            connection.send(request.as_bytes())?;
            ensure!(connection.reply()?.status == 200, "DELETE {path} was refused");
            kept.retain(|record| record.seq >= next.next - 100);
        }

        let load = Load::start(8, fixture.chance(cut));
        let moment = Duration::from_millis(300 + fixture.chance(cut) % 3000);
        (fixture.tell)(&format!("cut {} of {} after {} ms of load", cut + 1, cuts, moment.as_millis()));
        let started = Instant::now();
        while started.elapsed() < moment || load.acknowledged() == 0 {
            ensure!(Instant::now() < guest.deadline(), "the load had no acknowledgement");
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.cut_power()?;
        let acknowledged = load.finish()?;
        acknowledged_total += acknowledged.len();
        kept.extend(acknowledged);
    }

    let mut guest = fixture.boot(&machine)?;
    serve(&mut guest)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let last = u64::from(cuts).checked_sub(1).map(|cut| fixture.chance(cut));
    recovered_total += compare(&kept, last, &health)
        .with_context(|| format!("after the last power cut (seed {})", fixture.seed))?
        .recovered;
    guest.must("stop")?;
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    guest.power_off()?;
    Ok(format!(
        "power cut {cuts} times: {acknowledged_total} records acknowledged, {recovered_total} recovered and compared, 0 lost"
    ))
}

struct Recovered {
    next: u64,
    recovered: usize,
}

/// Checks that every record of `kept` is there with its bytes, and that whatever else is there was sent by the load
/// that began with `load_seed` or by one before it.
fn compare(kept: &[Acknowledged], load_seed: Option<u64>, health: &serde_json::Value) -> Result<Recovered> {
    let number = |name: &str| health[name].as_u64().with_context(|| format!("/health tells no {name}"));
    let (head, next) = (number("head")?, number("next")?);
    fetch_each(kept)?;
    let known: HashSet<u64> = kept.iter().map(|record| record.seq).collect();
    let mut connection = Connection::open(server())?;
    let mut recovered = 0;
    for seq in head..next {
        if known.contains(&seq) {
            recovered += 1;
            continue;
        }
        // Submitted and never acknowledged: it may be there, but then it is one that was really sent.
        let reply = connection.get(&format!("/records/{seq}"))?;
        ensure!(
            reply.status == 200,
            "record {seq} of {head}..{next} cannot be read: status {}",
            reply.status
        );
        let tag = Tag::of(&reply.body).filter(|tag| tag.len == reply.body.len() && tag.body() == reply.body);
        ensure!(
            tag.is_some() && load_seed.is_some(),
            "record {seq} holds {} bytes that nobody sent",
            reply.body.len()
        );
        recovered += 1;
    }
    Ok(Recovered { next, recovered })
}
