//! Strangers that send what cannot be put in order yet: it costs the others nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Frames, isolated, noise, wire};

use crate::{Over, connect, health_of, serve};

/// A host that there is not, and its address.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const STRANGER_V4: [u8; 4] = [10, 0, 0, 0x77];
const ALL: [u8; 6] = [0xff; 6];

const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A frame of the stranger's.
fn frame(to: [u8; 6], kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&to[..], &STRANGER, &kind, packet].concat()
}

/// The Internet's checksum of some bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A segment from one of the stranger's ports to the server's.
fn segment(to: [u8; 6], port: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp =
        [&port.to_be_bytes()[..], &80_u16.to_be_bytes(), &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    let addresses = [STRANGER_V4, wire::SERVER_V4.octets()].concat();
    let len = (tcp.len() as u16).to_be_bytes();
    let sum = checksum(&[&addresses[..], &[0, 6], &len, &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + tcp.len() as u16).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 6, 0, 0]);
    ip.extend(addresses);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    ip.extend(tcp);
    let mut frame = frame(to, [8, 0], &ip);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Who has the server's address? Its answer, and that it knows the stranger from then on.
fn meet(frames: &mut Frames) -> Result<[u8; 6]> {
    let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
    question.extend(STRANGER);
    question.extend(STRANGER_V4);
    question.extend([0; 6]);
    question.extend(wire::SERVER_V4.octets());
    question.resize(46, 0);
    frames.send(&frame(ALL, [8, 6], &question))?;
    let answer = frames.wait_for(Duration::from_secs(10), |frame| {
        (frame.starts_with(&STRANGER) && frame[12..14] == [8, 6]).then(|| frame[6..12].to_vec())
    });
    Ok(answer.context("the server does not say where it is")?.as_slice().try_into()?)
}

/// Opens a connection from a port of the stranger's, and returns the server's next number.
fn open(frames: &mut Frames, server: [u8; 6], port: u16) -> Result<u32> {
    frames.send(&segment(server, port, SYN, 0, 0, &[]))?;
    let answer = frames.wait_for(Duration::from_secs(10), |frame| {
        let tcp = frame.get(34..).filter(|tcp| frame.starts_with(&STRANGER) && tcp.len() >= 20)?;
        let is_it = frame[12..14] == [8, 0] && tcp[2..4] == port.to_be_bytes() && tcp[13] == SYN | ACK;
        is_it.then(|| u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]))
    });
    Ok(answer.with_context(|| format!("port {port} gets no place"))?.wrapping_add(1))
}

/// Forty uploads, of each every second byte in a segment of its own: more segments than the store has buffers.
#[test]
fn early_bytes_of_a_stranger_keep_nobody_from_being_served() {
    const CONNECTIONS: u16 = 40;
    const EACH: u32 = 220;
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "16MiB")?;
        let buffers = health_of(&server, "buffers")?;
        ensure!(u64::from(CONNECTIONS) * u64::from(EACH) > buffers, "too few for {buffers} buffers");
        let mut frames = Frames::on("veth0")?;
        let there = meet(&mut frames)?;
        let head = b"POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: 60000\r\n\r\n";
        let body = 1 + head.len() as u32;
        let ports = 20_000..20_000 + CONNECTIONS;
        let mut acks = Vec::new();
        for port in ports.clone() {
            let ack = open(&mut frames, there, port)?;
            frames.send(&segment(there, port, ACK | PSH, 1, ack, head))?;
            acks.push(ack);
        }
        let free = health_of(&server, "free_buffers")?;
        let mut other = connect()?;
        other.set_patience(Duration::from_secs(10))?;
        for place in 0..EACH {
            for (port, &ack) in ports.clone().zip(&acks) {
                frames.send(&segment(there, port, ACK, body + 1 + 2 * place, ack, b"x"))?;
            }
            let health = other.get("/health").context("nobody else is served")?;
            ensure!(health.status == 200, "{health:?}");
        }
        let held = free.saturating_sub(health_of(&server, "free_buffers")?);
        ensure!(held < free / 4, "{held} of {free} buffers are held: {}", server.health()?);
        let bytes = noise(1, 1 << 20);
        let seq = other.append(&bytes)?.seq()?;
        let kept = other.get(&format!("/records/{seq}"))?;
        ensure!(kept.status == 200 && kept.body == bytes, "record {seq}: status {}", kept.status);
        Ok(())
    });
}
