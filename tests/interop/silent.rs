//! Clients that go without a word: their places are given to others.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lab::wire::{KERNEL_V4, SERVER_V6};
use lab::{Connection, Lab, noise, run};

use crate::{Over, cable, connect, options, over_each_transport, wait_until};

over_each_transport! {
    a_client_that_has_gone_without_a_word_is_noticed,
    a_client_that_has_gone_in_the_midst_of_a_reply_is_noticed,
}

fn connect_v6() -> Result<Connection> {
    Connection::open(SocketAddr::new(IpAddr::V6(SERVER_V6), 80))
}

/// How many connections the server has, as it tells over one of them.
fn connections(asking: &mut Connection) -> Result<Option<u64>> {
    Ok(asking.get("/health")?.json()?["connections"].as_u64())
}

/// From here on nobody answers to the address of clients that use IPv4, nor refuses what comes for it.
fn unplug() -> Result<()> {
    run("ip", ["address", "del", &format!("{KERNEL_V4}/24"), "dev", "veth0"]).map(drop)
}

fn a_client_that_has_gone_without_a_word_is_noticed(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let times = options(lab, over, "32MiB")?.option("--keep-alive", "1");
    let _server = match over {
        Over::Dpdk => times,
        // Linux waits for both.
        Over::Kernel => times.option("--user-timeout", "3"),
    }
    .start()?;
    let _gone = connect()?;
    let (mut idle, mut asking) = (connect_v6()?, connect_v6()?);
    wait_until("all three are there", || Ok(connections(&mut asking)? == Some(3)))?;
    unplug()?;
    wait_until("the one that has gone is noticed", || Ok(connections(&mut asking)? == Some(2)))?;
    ensure!(connections(&mut idle)? == Some(2), "who is silent and there stays");
    Ok(())
}

fn a_client_that_has_gone_in_the_midst_of_a_reply_is_noticed(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let times = options(lab, over, "64MiB")?.option("--keep-alive", "0").option("--user-timeout", "2");
    let _server = times.start()?;
    let mut asking = connect_v6()?;
    let seq = asking.append(&noise(1, 12 << 20))?.seq()?;
    let mut gone = connect()?;
    // It does not read, so that its window closes, and the rest of the reply has to wait.
    gone.send_get(&format!("/records/{seq}"))?;
    wait_until("both are there", || Ok(connections(&mut asking)? == Some(2)))?;
    unplug()?;
    wait_until("the one that has gone is noticed", || Ok(connections(&mut asking)? == Some(1)))
}
