//! What runs without commands: reports, capture files, and ends.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use lab::isolated;
use pcap_file::pcap::PcapReader;
use rustix::process::Signal;
use serde_json::Value;

use crate::peer::{connect, devices, frames};
use crate::program::{Pmfwd, number};

#[test]
fn statistics_add_up() {
    isolated(|lab| {
        let [first, second] = devices(lab.directory());
        let words = ["--json", "--stats-period", "1", "--nb-cores", "2", "--dev", &first, "--dev", &second];
        let mut pmfwd = Pmfwd::start(&words)?;
        pmfwd.wait_for(r#""event":"started""#)?;
        let [mut near, mut far] = connect(lab.directory())?;
        let sent = frames(200);
        let bytes: usize = sent.iter().map(Vec::len).sum();
        near.send(&sent)?;
        ensure!(far.receive(200)? == sent);
        far.send(&sent[..50])?;
        ensure!(near.receive(50)? == sent[..50]);
        // Of the lines that follow, the first may be older than the frames.
        pmfwd.wait_for(r#""event":"statistics""#)?;
        let line: Value = serde_json::from_str(&pmfwd.wait_for(r#""event":"statistics""#)?)?;
        let port = |number: usize, name: &str| line["ports"][number][name].as_u64().context("a counter");
        ensure!([port(0, "rx_packets")?, port(1, "tx_packets")?] == [200, 200], "{line}");
        ensure!([port(1, "rx_packets")?, port(0, "tx_packets")?] == [50, 50], "{line}");
        ensure!(port(0, "rx_bytes")? == bytes as u64 && port(1, "tx_bytes")? == bytes as u64, "{line}");
        pmfwd.signal(Signal::INT)?;
        let stopped: Value = serde_json::from_str(&pmfwd.wait_for(r#""event":"stopped""#)?)?;
        let total = &stopped["total"];
        ensure!(
            total["rx_packets"] == 250 && total["tx_packets"] == 250 && total["tx_dropped"] == 0,
            "{total}"
        );
        let streams = &stopped["streams"];
        ensure!(streams["received"] == 250 && streams["sent"] == 250 && streams["dropped"] == 0, "{streams}");
        ensure!(pmfwd.end()?.0.success());
        Ok(())
    });
}

#[test]
fn every_frame_is_sent_or_counted_as_dropped() {
    isolated(|lab| {
        let [first, second] = devices(lab.directory());
        let mut pmfwd = Pmfwd::start(&["-i", "--dev", &first, "--dev", &second])?;
        pmfwd.wait_for("2 ports are ready")?;
        let [mut near, mut far] = connect(lab.directory())?;
        pmfwd.tell("start")?;
        // More than there is room for on the way to a peer that takes none.
        near.send(&frames(3000))?;
        pmfwd.wait_until_received(0, 3000)?;
        let [received, sent, dropped] = pmfwd.stop()?;
        ensure!(
            dropped > 0 && sent + dropped == received && received == 3000,
            "{received}: {sent} + {dropped}"
        );
        far.receive(usize::try_from(sent)?)?;
        ensure!(far.arrived().is_empty(), "more was sent than was counted");
        Ok(())
    });
}

#[test]
fn the_capture_file_holds_the_frames() {
    isolated(|lab| {
        let [first, second] = devices(lab.directory());
        let file = lab.path("passed.pcap");
        let name = file.display().to_string();
        let mut pmfwd = Pmfwd::start(&[
            "--dev",
            &first,
            "--dev",
            &second,
            "--pcap-out",
            &name,
            "--forward-mode",
            "macswap",
        ])?;
        pmfwd.wait_for("macswap packet forwarding")?;
        let [mut near, mut far] = connect(lab.directory())?;
        let sent = frames(200);
        near.send(&sent)?;
        far.receive(200)?;
        pmfwd.signal(Signal::TERM)?;
        let line = pmfwd.wait_for("Capture:")?;
        ensure!(number(&line, "Capture:")? == 200 && line.contains(" 0 missing"), "{line}");
        ensure!(pmfwd.end()?.0.success());
        let mut reader = PcapReader::new(File::open(&file)?)?;
        let mut last = None;
        for frame in &sent {
            let packet = reader.next_packet().context("a frame is missing")??;
            ensure!(*packet.data == frame[..] && packet.orig_len as usize == frame.len());
            ensure!(last <= Some(packet.timestamp), "time goes back");
            last = Some(packet.timestamp);
        }
        ensure!(reader.next_packet().is_none(), "there are more frames in the file");
        Ok(())
    });
}

#[test]
fn what_is_not_to_be_had_is_said() -> Result<()> {
    for (words, code, what) in [
        (&["--dev", "net_nothing0"][..], 1, "net_nothing0"),
        (&["--dev", "net_null0", "--nb-cores", "4096"], 1, "--nb-cores asks for 4096"),
        (
            &["--dev", "net_null0", "--rxq", "4096", "--txq", "4096", "--total-num-mbufs", "511"],
            1,
            "receive queues, not 4096",
        ),
        (&["--dev", "net_null0", "--pm", "memory:", "--pm-size", "2MiB"], 1, "make a larger store"),
        (&["--dev", "net_null0", "--pm", "/nowhere/store"], 1, "/nowhere/store"),
        (&["--dev", "net_null0", "--forward-mode", "log"], 2, "--pm PATH"),
        (&["--burst", "0"], 2, "1 to 512"),
    ] {
        let (status, said) = Pmfwd::start(words)?.end()?;
        let said = said.join("\n");
        ensure!(status.code() == Some(code) && said.contains(what), "{words:?}: {status}: {said}");
    }
    Ok(())
}
