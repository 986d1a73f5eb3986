//! What a device does to frames on their way, and what is said of it: offloads of a stock veth pair, VLANs, MTUs,
//! rings that run over, links that go down, interfaces that go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Curl, Frames, Lab, Pmlog, Trunk, isolated, noise, run, wire};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::arguments::ensure_refused;
use crate::{Over, compare, connect, options, over_each_transport, post, serve, wait_until};

over_each_transport!(all_kinds_of_drops_are_told);

const V4: IpAddr = IpAddr::V4(wire::SERVER_V4);
const V6: IpAddr = IpAddr::V6(wire::SERVER_V6);
/// A host that there is not.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

fn drops(server: &Pmlog, kind: &str) -> Result<u64> {
    let health = server.health()?;
    health["drops"][kind].as_u64().with_context(|| format!("no {kind} in {health}"))
}

/// Who has the server's address? asks the stranger, from behind some bytes of VLAN tags.
fn question(tags: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(STRANGER);
    frame.extend(tags);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(STRANGER);
    frame.extend([10, 0, 0, 0x77, 0, 0, 0, 0, 0, 0]);
    frame.extend(wire::SERVER_V4.octets());
    frame.resize(60 + tags.len(), 0);
    frame
}

/// Whether the stranger gets an answer.
fn is_answered(frames: &mut Frames, limit: Duration) -> bool {
    frames
        .wait_for(limit, |frame| (frame.starts_with(&STRANGER) && frame[12..14] == [8, 6]).then_some(()))
        .is_some()
}

#[test]
fn a_stock_veth_pair_is_served_though_checksums_are_left_to_a_card() {
    isolated(|lab| {
        wire::stock_veth()?;
        let server = options(lab, Over::Dpdk, "32MiB")?.flag("--json").start()?;
        for (server, seed) in [(V4, 1), (V6, 2)] {
            let body = noise(seed, 1000);
            let seq = post(server, lab, "body", &body)?;
            compare(server, seq, &body)?;
        }
        ensure!(drops(&server, "checksum")? == 0, "{}", server.health()?);
        wait_until("a report tells of partial checksums", || {
            let output = server.output();
            let last: Value = serde_json::from_str(output.lines().last().unwrap_or_default())?;
            Ok(last["partial_checksums"].as_u64() > Some(0))
        })?;
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn partial_checksums_are_dropped_where_that_is_asked_for_and_the_cause_is_named() {
    isolated(|lab| {
        wire::stock_veth()?;
        let server = options(lab, Over::Dpdk, "32MiB")?.option("--partial-checksums", "refuse").spawn()?;
        wait_until("it serves", || Ok(server.output().contains("Ctrl-C ends")))?;
        wait_until("the cause is named", || {
            let reply = Curl::get(&Pmlog::url("/health")).limit(Duration::from_millis(300)).reply();
            ensure!(reply.is_err(), "a segment without a checksum was taken");
            Ok(server.output().contains("\"checksum\"") && server.output().contains("ethtool -K"))
        })?;
        run("ethtool", ["-K", "veth0", "tx", "off"])?;
        ensure!(drops(&server, "checksum")? >= 4, "{}", server.health()?);
        let (log, ended) = (lab.path("store.log"), server.interrupt()?);
        ensure!(ended.success());
        let said = std::fs::read_to_string(log)?;
        ensure!(said.lines().any(|line| line.starts_with("dropped   checksum")), "{said}");
        Ok(())
    });
}

#[test]
fn frames_that_a_kernel_left_uncut_are_counted_and_named_and_served_after_the_remedy() {
    isolated(|lab| {
        wire::stock_veth()?;
        let server = options(lab, Over::Dpdk, "32MiB")?.start()?;
        ensure!(server.output().contains("ethtool -K"), "{}", server.output());
        let body = noise(3, 1 << 20);
        let file = lab.write("body", &body)?;
        wait_until("the cause is named", || {
            let _ = Curl::post(&Pmlog::url("/append"), &file).limit(Duration::from_secs(1)).reply();
            Ok(server.output().contains("\"truncated\""))
        })?;
        ensure!(
            drops(&server, "truncated")? >= 4 && drops(&server, "malformed")? == 0,
            "{}",
            server.health()?
        );
        run("ethtool", ["-K", "veth0", "tx", "off", "tso", "off", "gso", "off"])?;
        let seq = post(V4, lab, "body", &body)?;
        compare(V4, seq, &body)?;
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

fn all_kinds_of_drops_are_told(lab: &Lab, over: Over) -> Result<()> {
    crate::cable(lab, over)?;
    let server = options(lab, over, "32MiB")?.flag("--json").start()?;
    if over == Over::Dpdk {
        let mut frames = Frames::on("veth0")?;
        // IPv4, and no more than half of its header.
        let mut broken = question(&[]);
        (broken[12], broken[13]) = (8, 0);
        broken.truncate(24);
        frames.send(&broken)?;
        wait_until("the frame is counted", || Ok(drops(&server, "malformed")? == 1))?;
    }
    let kinds = |drops: &Value| -> Result<Vec<String>> {
        Ok(drops.as_object().context("the kinds of drops")?.keys().cloned().collect())
    };
    let of_health = kinds(&server.health()?["drops"])?;
    let expected: &[&str] = match over {
        Over::Dpdk => {
            &["malformed", "truncated", "vlan", "checksum", "no_buffer", "too_long_to_send", "device_missed"]
        }
        Over::Kernel => &["refused", "not_accepted"],
    };
    for kind in expected {
        ensure!(of_health.iter().any(|name| name == kind), "no {kind} in {of_health:?}");
    }
    let (log, ended) = (lab.path("store.log"), server.interrupt()?);
    ensure!(ended.success());
    let said = std::fs::read_to_string(log)?;
    let end: Value = serde_json::from_str(said.lines().last().context("reports")?)?;
    ensure!(end["event"] == "end" && kinds(&end["drops"])? == of_health, "{end}");
    Ok(())
}

#[test]
fn frames_of_a_vlan_are_dropped_and_counted_and_priorities_are_served() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "32MiB")?;
        let mut frames = Frames::on("veth0")?;
        let tags: [&[u8]; 5] = [
            &[0x81, 0, 0, 7],
            &[0x81, 0, 0xef, 0xff],
            &[0x88, 0xa8, 0, 7],
            // Of two tags the device takes the outer one off.
            &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8],
            &[0x81, 0, 0, 0, 0x81, 0, 0, 7],
        ];
        for tags in tags {
            frames.send(&question(tags))?;
            ensure!(!is_answered(&mut frames, Duration::from_millis(200)), "answered behind {tags:02x?}");
        }
        for tags in [&[][..], &[0x81, 0, 0xe0, 0]] {
            frames.send(&question(tags))?;
            ensure!(is_answered(&mut frames, Duration::from_secs(10)), "not answered behind {tags:02x?}");
        }
        wait_until("they are counted", || Ok(drops(&server, "vlan")? == 5))?;
        // However many there are, little is written.
        for _ in 0..3000 {
            frames.send(&question(&[0x81, 0, 0, 7]))?;
        }
        wait_until("many are counted", || Ok(drops(&server, "vlan")? > 500))?;
        ensure!(server.output().len() < 8192, "{} bytes of messages", server.output().len());
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn a_server_in_a_vlan_is_reached_there_and_tags_all_that_it_sends() {
    isolated(|lab| {
        let trunk = Trunk::new("access0", "trunk0", 7)?;
        wire::link_to_device("access0", "trunk0")?;
        let options = options(lab, Over::Dpdk, "64MiB")?.device("net_af_packet0,iface=trunk0");
        let server = options.option("--vlan", "7").start()?;
        for address in [V4, V6] {
            run("ping", ["-n", "-c", "3", "-i", "0.2", "-w", "20", &address.to_string()])?;
            let body = noise(8, 300_000);
            let seq = post(address, lab, "body", &body)?;
            compare(address, seq, &body)?;
        }
        let [tagged, others] = trunk.counts();
        ensure!(tagged > 200 && others == 0, "{tagged} frames with the tag, {others} others");
        ensure!(drops(&server, "vlan")? == 0, "{}", server.health()?);
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn a_server_in_another_vlan_is_not_reached() {
    isolated(|lab| {
        let _trunk = Trunk::new("access0", "trunk0", 7)?;
        wire::link_to_device("access0", "trunk0")?;
        let options = options(lab, Over::Dpdk, "64MiB")?.device("net_af_packet0,iface=trunk0");
        let server = options.option("--vlan", "8").spawn()?;
        wait_until("it serves", || Ok(server.output().contains("serving")))?;
        ensure!(run("ping", ["-n", "-c", "2", "-i", "0.2", "-w", "2", "10.0.0.2"]).is_err(), "it answers");
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

/// Hosts' questions to all, and what switches tell each other.
#[test]
fn what_any_network_has_is_counted_apart_and_no_reason_to_warn() {
    isolated(|lab| {
        wire::veth()?;
        let server = options(lab, Over::Dpdk, "16MiB")?.start()?;
        let mut frames = Frames::on("veth0")?;
        // A datagram to ff02::fb, where multicast DNS is.
        let mut query = [&[0x33, 0x33, 0, 0, 0, 0xfb][..], &STRANGER, &[0x86, 0xdd]].concat();
        query.extend([0x60, 0, 0, 0, 0, 8, 17, 255]);
        query.extend(wire::KERNEL_V6.octets());
        query.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb]);
        query.extend([0x14, 0xe9, 0x14, 0xe9, 0, 8, 0, 1]);
        // Spanning trees, and LLDP.
        let mut bridges = [&[1, 0x80, 0xc2, 0, 0, 0][..], &STRANGER, &[0, 38]].concat();
        bridges.resize(60, 0);
        let mut lldp = [&[1, 0x80, 0xc2, 0, 0, 14][..], &STRANGER, &[0x88, 0xcc]].concat();
        lldp.resize(60, 0);
        let sent = [query, bridges, lldp];
        for frame in &sent {
            for _ in 0..20 {
                frames.send(frame)?;
            }
        }
        wait_until("all of them are counted", || {
            Ok(drops(&server, "group")? + drops(&server, "device_missed")? >= 60)
        })?;
        let said = |kind: &str| server.output().contains(&format!("for \"{kind}\""));
        ensure!(drops(&server, "address")? < 20 && drops(&server, "protocol")? < 20, "{}", server.health()?);
        // A second is how often the server looks.
        std::thread::sleep(Duration::from_secs(3));
        ensure!(!["group", "address", "protocol"].into_iter().any(said), "{}", server.output());
        Ok(())
    });
}

#[test]
fn what_the_ring_had_no_room_for_is_told() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "32MiB")?;
        let pid = Pid::from_raw(i32::try_from(server.pid())?).context("a process has a number")?;
        let mut frames = Frames::on("veth0")?;
        kill_process(pid, Signal::STOP)?;
        // The ring has 512 places. The kernel's own queue in front of it has 1,000, and is given time to empty.
        for sent in 0..2000 {
            if sent % 64 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            frames.send(&question(&[0x81, 0, 0, 7]))?;
        }
        kill_process(pid, Signal::CONT)?;
        // On a busy machine the kernel's own queue may have run over all the same.
        let shown: Value = serde_json::from_str(&run("ip", ["-s", "-j", "link", "show", "veth0"])?)?;
        let lost =
            shown[0]["stats64"]["tx"]["dropped"].as_u64().context("no count of what the wire has lost")?;
        let told = || Ok::<_, anyhow::Error>((drops(&server, "device_missed")?, drops(&server, "vlan")?));
        wait_until("each frame was received or missed", || {
            told().map(|(missed, vlan)| missed + vlan + lost >= 2000)
        })?;
        let (missed, vlan) = told()?;
        ensure!(missed + lost >= 1400, "{lost} and {}", server.health()?);
        // The kernel may have said something of its own meanwhile, and nothing is counted twice.
        ensure!(missed + vlan + lost <= 2020, "{lost} and {}", server.health()?);
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn a_link_that_goes_down_is_told_and_served_again_when_it_is_up() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "32MiB")?;
        let seq = post(V4, lab, "body", &noise(4, 5000))?;
        ensure!(server.health()?["link_up"] == true, "{}", server.health()?);
        // First the peer's side goes down, then the server's own.
        for (side, times) in [("veth0", 1), ("veth1", 2)] {
            run("ip", ["link", "set", side, "down"])?;
            wait_until("the link is said to be down", || {
                Ok(server.output().matches("the link is down").count() == times)
            })?;
            run("ip", ["link", "set", side, "up"])?;
            wait_until("the link is said to be up", || {
                Ok(server.output().matches("the link is up again").count() == times)
            })?;
            compare(V4, seq, &noise(4, 5000))?;
        }
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn a_device_that_is_gone_ends_the_server_in_order() {
    isolated(|lab| {
        let mut server = serve(lab, Over::Dpdk, "32MiB")?;
        let body = noise(5, 100_000);
        let seq = post(V4, lab, "body", &body)?;
        // Somebody who is connected does not hold it up.
        let _client = connect()?;
        run("ip", ["link", "del", "veth0"])?;
        let begun = Instant::now();
        let (log, ended) = (lab.path("store.log"), server.wait_for_end()?);
        ensure!(ended.code() == Some(1), "ended with {ended} after {:?}", begun.elapsed());
        let said = std::fs::read_to_string(log)?;
        ensure!(said.contains("net_af_packet0 is gone") && !said.contains("panicked"), "{said}");
        let server = serve(lab, Over::Dpdk, "32MiB")?;
        compare(V4, seq, &body)?;
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

/// The MSS that the server names when somebody connects by IPv4 or IPv6.
fn mss_of(server: IpAddr) -> Result<u16> {
    // A socket that was there before would be full of what was sent meanwhile.
    let mut frames = Frames::on("veth0")?;
    let url = wire::url(server, "/health");
    let client = std::thread::spawn(move || Curl::get(&url).limit(Duration::from_secs(10)).reply());
    let at = if server.is_ipv4() { 34 } else { 54 };
    let mss = frames.wait_for(Duration::from_secs(10), |frame| {
        // A SYN and ACK from port 80, with the MSS as its first option.
        let tcp = frame.get(at..)?;
        let kind: [u8; 2] = if server.is_ipv4() { [0x08, 0] } else { [0x86, 0xdd] };
        let is_it = frame[12..14] == kind && tcp.len() >= 24 && tcp[..2] == [0, 80] && tcp[13] & 0x12 == 0x12;
        (is_it && tcp[20..22] == [2, 4]).then(|| u16::from_be_bytes([tcp[22], tcp[23]]))
    });
    let reply = client.join().ok().context("the client panicked")??;
    ensure!(reply.0 == 200, "{reply:?}");
    mss.context("no SYN and ACK with an MSS was seen")
}

#[test]
fn segments_are_as_long_as_the_interface_allows() {
    isolated(|lab| {
        wire::veth()?;
        // More than a frame of the ring takes is not named, whatever the interface has.
        for (mtu, expected) in [(1280_u16, 1280), (1400, 1400), (1500, 1500), (9000, 1968)] {
            run("ip", ["link", "set", "veth1", "mtu", &mtu.to_string()])?;
            let server = options(lab, Over::Dpdk, "64MiB")?.start()?;
            for (address, headers) in [(V4, 40), (V6, 60)] {
                let mss = mss_of(address)?;
                ensure!(mss == expected - headers, "MSS {mss} to {address} with an MTU of {mtu}");
                let body = noise(u64::from(mtu), 1 << 20);
                let seq = post(address, lab, "body", &body)?;
                compare(address, seq, &body)?;
            }
            ensure!(drops(&server, "too_long_to_send")? == 0, "{}", server.health()?);
            ensure!(server.interrupt()?.success());
        }
        // The peer's side may be wider or narrower; and less than the interface allows may be wanted.
        run("ip", ["link", "set", "veth1", "mtu", "9000"])?;
        for (peer, wanted) in [("9000", None), ("1280", None), ("1500", Some("1300")), ("9000", Some("1968"))]
        {
            run("ip", ["link", "set", "veth0", "mtu", peer])?;
            let options = options(lab, Over::Dpdk, "64MiB")?;
            let options = match wanted {
                Some(mtu) => options.option("--mtu", mtu),
                None => options,
            };
            let server = options.start()?;
            let body = noise(6, 1 << 20);
            for address in [V4, V6] {
                let seq = post(address, lab, "body", &body)?;
                compare(address, seq, &body)?;
            }
            ensure!(server.interrupt()?.success());
        }
        Ok(())
    });
}

/// Jumbo frames, where a buffer of the store takes them: with payload that lies in the store, and with such that is copied
/// behind the headers and is longer than a usual buffer.
#[test]
fn frames_of_9000_bytes_are_received_and_sent() {
    isolated(|lab| {
        wire::veth()?;
        for side in ["veth0", "veth1"] {
            run("ip", ["link", "set", side, "mtu", "9000"])?;
        }
        let options = options(lab, Over::Dpdk, "128MiB")?.option("--mtu", "9000");
        let options = options.device("net_af_packet0,iface=veth1,framesz=12288,blocksz=12288,framecnt=256");
        let server = options.option("--buffer-bytes", "12416").start()?;
        let client = [2, 0, 0, 0, 0, 0x11];
        run("ip", ["link", "set", "veth0", "address", "02:00:00:00:00:11"])?;
        for (address, mss) in [(V4, 8960), (V6, 8940)] {
            ensure!(mss_of(address)? == mss, "another MSS than {mss} to {address}");
            let body = noise(6, 3 << 20);
            let mut to_server = Frames::on("veth0")?;
            let seq = post(address, lab, "body", &body)?;
            // A socket that was there before would be full of what was sent meanwhile.
            let mut from_server = Frames::on("veth0")?;
            compare(address, seq, &body)?;
            for (frames, is_from_server) in [(&mut to_server, false), (&mut from_server, true)] {
                let is_long = |frame: &[u8]| {
                    let is_its = (frame.get(6..12) != Some(&client[..])) == is_from_server;
                    (is_its && frame.len() == 9014).then_some(())
                };
                let seen = frames.wait_for(Duration::from_secs(10), is_long);
                ensure!(seen.is_some(), "no long frame at {address}, from the server: {is_from_server}");
            }
        }
        for n in 0..200 {
            post(V4, lab, "body", &noise(n, 100))?;
        }
        let list = Curl::get(&wire::url(V4, "/records?from=1&limit=1000")).body()?;
        ensure!(list.len() > 9_000, "a list of {} bytes", list.len());
        ensure!(drops(&server, "too_long_to_send")? == 0, "{}", server.health()?);
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}

#[test]
fn an_mtu_that_cannot_be_is_refused_with_the_remedy() {
    isolated(|lab| {
        wire::veth()?;
        let wanting = |mtu| options(lab, Over::Dpdk, "32MiB").map(|options| options.option("--mtu", mtu));
        ensure_refused(&wanting("9000")?.refusal()?, &["--mtu 9000", "1968"])?;
        let long = wanting("9000")?.option("--buffer-bytes", "9216");
        ensure_refused(&long.device(wire::TAP_DEVICE).refusal()?, &["net_tap0", "1504", "9000"])?;
        ensure_refused(&wanting("1600")?.refusal()?, &["--mtu 1600", "ip link set veth1 mtu 1600"])?;
        ensure_refused(&wanting("1279")?.refusal()?, &["1279", "1280", "--ip6"])?;
        run("ip", ["link", "set", "veth1", "mtu", "1000"])?;
        ensure_refused(&options(lab, Over::Dpdk, "32MiB")?.refusal()?, &["1000", "1280", "--ip6"])?;
        let server = options(lab, Over::Dpdk, "32MiB")?.without_ipv6().start()?;
        let body = noise(7, 200_000);
        let seq = post(V4, lab, "body", &body)?;
        compare(V4, seq, &body)?;
        ensure!(mss_of(V4)? == 960);
        ensure!(server.interrupt()?.success());
        run("ip", ["link", "set", "veth1", "mtu", "500"])?;
        ensure_refused(&options(lab, Over::Dpdk, "32MiB")?.without_ipv6().refusal()?, &["500", "576"])
    });
}

#[test]
fn an_mtu_that_is_lowered_under_the_server_is_told() {
    isolated(|lab| {
        let server = serve(lab, Over::Dpdk, "32MiB")?;
        run("ip", ["link", "set", "veth1", "mtu", "1300"])?;
        wait_until("it is told", || Ok(server.output().contains("takes 1300 bytes by now")))?;
        ensure!(server.interrupt()?.success());
        Ok(())
    });
}
