//! SIGKILL in mid-load, several times on one store.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, PmlogOptions, noise};

use crate::{Over, cable, connect, health_of, options, over_each_transport, two_cpus, wait_until};

over_each_transport! {
    acknowledged_records_survive_a_kill,
    acknowledged_records_of_two_cores_survive_a_kill,
    acknowledged_records_on_a_disk_survive_a_kill,
}

const CLIENTS: u64 = 6;

/// Bodies of all kinds: inline, packed, one segment, several.
fn body(seed: u64) -> Vec<u8> {
    const LENGTHS: [usize; 6] = [20, 200, 1024, 1400, 5000, 40_000];
    noise(seed, LENGTHS[seed as usize % LENGTHS.len()])
}

fn acknowledged_records_survive_a_kill(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    survive(&options(lab, over, "256MiB")?)
}

fn acknowledged_records_of_two_cores_survive_a_kill(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    survive(&options(lab, over, "256MiB")?.option("--cores", &two_cpus()?))
}

fn acknowledged_records_on_a_disk_survive_a_kill(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    survive(&options(lab, over, "256MiB")?.option("--domain", "disk").option("--cores", &two_cpus()?))
}

fn survive(options: &PmlogOptions) -> Result<()> {
    let acknowledged = Mutex::new(BTreeMap::new());
    let seeds = AtomicU64::new(0);
    for round in 1..=4 {
        let server = options.start()?;
        let before = acknowledged.lock().expect("no client panics").len();
        // Later rounds die earlier, one of them hardly after the first commit.
        let enough = before + [1500, 700, 1, 300][round - 1];
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    // Ends with the connection, when the server is gone.
                    let Ok(mut connection) = connect() else { return };
                    connection.set_patience(Duration::from_secs(3)).expect("a good duration");
                    loop {
                        let seed = seeds.fetch_add(1, Ordering::Relaxed);
                        let Ok(reply) = connection.append(&body(seed)) else { return };
                        let name = reply.record().expect("a good append");
                        let twice = acknowledged.lock().expect("no client panics").insert(name, seed);
                        assert!(twice.is_none(), "record of seed {seed} has another's name");
                    }
                });
            }
            let killed = wait_until("enough is acknowledged", || {
                Ok(acknowledged.lock().expect("no client panics").len() >= enough)
            });
            server.kill().and(killed)
        })?;

        let server = options.start()?;
        let acknowledged = acknowledged.lock().expect("no client panics");
        let (records, known) = (health_of(&server, "records")?, acknowledged.len() as u64);
        // Each kill leaves at most one unanswered request of each client.
        let most = known + round as u64 * CLIENTS;
        ensure!((known..=most).contains(&records), "{records} records, {known} acknowledged");
        let mut connection = connect()?;
        for (name, seed) in acknowledged.iter() {
            let reply = connection.get(&format!("/records/{name}"))?;
            ensure!(reply.status == 200, "round {round}: record {name} is lost: status {}", reply.status);
            ensure!(reply.body == body(*seed), "round {round}: record {name} differs");
        }
        if round % 2 == 0 {
            ensure!(server.interrupt()?.success(), "no clean end");
        } else {
            server.kill()?;
        }
    }
    Ok(())
}
