//! One NIC with several queues, and a core with a shard of its own at each.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, bail, ensure};
use lab::Connection;

use crate::vm::client::{Acknowledged, Tag, append_each, fetch_each, server, wait_for_server};
use crate::vm::evidence::find_all;
use crate::vm::fixture::{Fixture, START_LIMIT, end_sound, ended, lengths, prepared, recognisable};
use crate::vm::qemu::Nic;

/// Connections at a time. That a hash puts all of them on one of two queues happens once in 32,768 runs.
const CONNECTIONS: u64 = 16;
/// Appends of each, while all others append too.
const ROUNDS: u64 = 30;
const BODY_BYTES: usize = 1024;

/// The device hashes each connection to a queue, and so to a core, in whose shard its records are then.
pub(super) fn two(fixture: &Fixture<'_>) -> Result<String> {
    let (machine, mut guest) = prepared(fixture, Nic::VirtioTwoQueues)?;
    (fixture.tell)("starting pmlog");
    guest.must("serve /dev/dax0.0 --cores 0,1 --json")?;
    wait_for_server(&mut guest, START_LIMIT)?;

    (fixture.tell)("appending");
    let mut connections = (0..CONNECTIONS).map(|_| Connection::open(server())).collect::<Result<Vec<_>>>()?;
    let mut records = Vec::new();
    let mut served = [0; 2];
    for round in 0..ROUNDS {
        let tag = |at: usize| {
            let seed = fixture.chance(0).wrapping_add(round * CONNECTIONS + at as u64);
            Tag { seed, len: BODY_BYTES }
        };
        for (at, connection) in connections.iter_mut().enumerate() {
            connection.send_append(&tag(at).body())?;
        }
        for (at, connection) in connections.iter_mut().enumerate() {
            let record = Acknowledged::await_append(connection, tag(at))?;
            let client = connection.stream().local_addr()?;
            let queue = queue_of(client, server())?;
            ensure!(
                record.shard == Some(queue as u64),
                "the hash puts {client} on queue {queue}, and its record is in shard {:?}",
                record.shard
            );
            served[queue] += u32::from(round == 0);
            records.push(record);
        }
    }
    ensure!(!served.contains(&0), "the cores have served {served:?} of {CONNECTIONS} connections");
    records.extend(append_each(lengths(), fixture.chance(1))?);
    // Over one connection, so that the other core's are asked of it.
    fetch_each(&records)?;

    guest.must("stop")?;
    let ended = ended(&mut guest)?;
    let told = |name: &str| ended[name].as_u64().with_context(|| format!("pmlog's end tells no {name}"));
    // What a client still says to an aborted connection belongs to none, and both cores are asked.
    let (crossed, late) = (told("frames_crossed")?, told("aborted")?);
    ensure!(crossed <= late, "{crossed} frames came to another core than their connection's: {ended}");
    end_sound(guest)?;
    (fixture.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    Ok(format!(
        "{} and {} connections on cores 0 and 1, as their hashes say; {} appends by DMA into two shards, {bytes} \
         payload bytes found, 0 IOMMU faults",
        served[0],
        served[1],
        records.len()
    ))
}

/// The queue to which the device brings a client's segments, if it was told to hash addresses and ports with DPDK's
/// usual key, and to take its two queues by turns in the order of the hashes.
fn queue_of(client: SocketAddr, server: SocketAddr) -> Result<usize> {
    let (SocketAddr::V4(client), SocketAddr::V4(server)) = (client, server) else {
        bail!("{client} and {server} are not both of IPv4");
    };
    Ok(hash(client, server) as usize % 2)
}

/// The hash of receive-side scaling over TCP's connections (VIRTIO 1.2, section 5.1.6.4.3), with the key that DPDK's
/// virtio driver takes unless told otherwise: that of Microsoft's test vectors.
fn hash(source: SocketAddrV4, destination: SocketAddrV4) -> u32 {
    // As many bits as this input makes use of.
    const KEY: u128 = 0x6d5a_56da_255b_0ec2_4167_253d_43a3_8fb0;
    let addresses = [source.ip().octets(), destination.ip().octets()].concat();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let input = addresses.into_iter().chain(ports);
    let bits = input.flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1));
    // Each bit that is set adds the 32 bits of the key which begin at its place.
    let windows = (0..=96).rev().map(|place| (KEY >> place) as u32);
    bits.zip(windows).filter(|(is_set, _)| *is_set).fold(0, |hash, (_, window)| hash ^ window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_microsofts_vectors() {
        // "Verifying the RSS Hash Calculation": IPv4 with TCP.
        for (source, destination, expected) in [
            ("66.9.149.187:2794", "161.142.100.80:1766", 0x51cc_c178),
            ("199.92.111.2:14230", "65.69.140.83:4739", 0xc626_b0ea),
        ] {
            assert_eq!(hash(source.parse().unwrap(), destination.parse().unwrap()), expected);
        }
    }
}
