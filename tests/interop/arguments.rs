//! What a server says instead of starting.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, PmlogOptions, isolated, noise, pmlog_binary, wire};
use rustix::process::Signal;

use crate::{Over, connect, options, serve};

/// A refusal with code 1 and one message that has all of `words`, and no panic.
pub(crate) fn ensure_refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "ended with {}\n{said}", output.status);
    ensure!(!said.contains("panicked"), "{said}");
    for word in words {
        ensure!(said.to_lowercase().contains(word), "the message does not tell {word:?}\n{said}");
    }
    ensure_told_once(&said)
}

/// No part of a message comes twice, as a reason does that an error tells itself and its cause tells again.
fn ensure_told_once(said: &str) -> Result<()> {
    for line in said.lines() {
        let mut parts: Vec<_> =
            line.split([':', ';']).map(str::trim).filter(|part| part.len() > 12).collect();
        parts.sort_unstable();
        let twice = parts.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "{twice:?} is told twice\n{said}");
    }
    Ok(())
}

#[test]
fn an_unknown_device() {
    isolated(|lab| {
        for device in ["net_nothing0", "0000:ff:1f.7", "eth9"] {
            ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.device(device).refusal()?, &[device])?;
        }
        let missing = "net_af_packet0,iface=veth9";
        ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.device(missing).refusal()?, &["veth9"])
    });
}

#[test]
fn a_missing_permission() {
    isolated(|lab| {
        wire::veth()?;
        let server = options(lab, Over::Dpdk, "16MiB")?.command();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_raw,-net_admin", "--inh-caps", "-net_raw,-net_admin", "--"]);
        command.arg(server.get_program()).args(server.get_args());
        let output = lab::output_within(&mut command, Duration::from_secs(30))?;
        ensure_refused(&output, &["cap_net_raw"])
    });
}

#[test]
fn a_store_that_is_too_small() {
    isolated(|lab| {
        wire::veth()?;
        // Too small for a store, and too small for a network card's receive ring.
        for size in ["0", "4096"] {
            ensure_refused(&options(lab, Over::Dpdk, size)?.refusal()?, &[size, "too few"])?;
        }
        ensure!(!lab.path("store.pm").exists(), "a store that is no store was left behind");
        ensure_refused(&options(lab, Over::Dpdk, "64KiB")?.refusal()?, &["larger store"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}

#[test]
fn a_store_that_does_not_exist_and_has_no_size() {
    isolated(|lab| {
        wire::veth()?;
        ensure_refused(&PmlogOptions::new(&lab.path("store.pm"))?.refusal()?, &["--pm-size"])
    });
}

#[test]
fn a_store_of_another_version() {
    isolated(|lab| {
        serve(lab, Over::Dpdk, "16MiB")?.interrupt()?;
        let store = lab.path("store.pm");
        let mut image = fs::read(&store)?;
        // Magic, version, checksum of the 256 bytes with zeros in its place: so in every version.
        for superblock in image[..512].chunks_mut(256) {
            superblock[8..12].copy_from_slice(&32_767_u32.to_le_bytes());
            superblock[12..16].fill(0);
            let sum = crc32c::crc32c(superblock);
            superblock[12..16].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(&store, &image)?;
        ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.refusal()?, &["version", "32767"])?;
        ensure!(fs::read(&store)? == image, "a store of another version was changed");
        Ok(())
    });
}

#[test]
fn a_file_that_is_no_store_is_left_alone() {
    isolated(|lab| {
        wire::veth()?;
        let precious = noise(1, 16 << 20);
        lab.write("store.pm", &precious)?;
        ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.refusal()?, &["not", "store", "--force"])?;
        ensure!(fs::read(lab.path("store.pm"))? == precious, "a file that is no store was changed");
        // Asked twice, it does.
        let server = options(lab, Over::Dpdk, "16MiB")?.flag("--force").start()?;
        ensure!(server.health()?["records"].as_u64() == Some(0), "{}", server.health()?);
        Ok(())
    });
}

#[test]
fn a_store_that_another_process_uses() {
    isolated(|lab| {
        let mut server = serve(lab, Over::Dpdk, "16MiB")?;
        let output = options(lab, Over::Dpdk, "16MiB")?.device(wire::TAP_DEVICE).refusal()?;
        ensure_refused(&output, &["in use"])?;
        ensure!(server.is_running()?, "the first server did not survive the second");
        connect()?.append(b"still there")?.seq()?;
        Ok(())
    });
}

#[test]
fn an_address_that_another_host_has() {
    isolated(|lab| {
        wire::veth()?;
        let theirs = format!("{}/24", wire::SERVER_V4);
        lab::run("ip", ["address", "add", &theirs, "dev", "veth0"])?;
        ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.refusal()?, &["10.0.0.2", "in use", "--ip"])?;
        lab::run("ip", ["address", "del", &theirs, "dev", "veth0"])?;
        let theirs = format!("{}/64", wire::SERVER_V6);
        lab::run("ip", ["address", "add", &theirs, "dev", "veth0", "nodad"])?;
        ensure_refused(&options(lab, Over::Dpdk, "16MiB")?.refusal()?, &["fd00::2", "in use", "--ip6"])
    });
}

#[test]
fn a_store_of_another_size() {
    isolated(|lab| {
        serve(lab, Over::Dpdk, "16MiB")?.interrupt()?;
        ensure_refused(&options(lab, Over::Dpdk, "32MiB")?.refusal()?, &["size"])?;
        // Without a size it is taken as it is.
        PmlogOptions::new(&lab.path("store.pm"))?.start().map(drop)
    });
}

#[test]
fn memory_as_a_store_must_be_asked_for() {
    isolated(|lab| {
        wire::veth()?;
        let folder = lab.path("memory");
        fs::create_dir(&folder)?;
        lab::run("mount", ["-t", "tmpfs", "tmpfs", folder.to_str().context("a plain path")?])?;
        let store = PmlogOptions::new(&folder.join("store.pm"))?.option("--pm-size", "16MiB");
        ensure_refused(&store.refusal()?, &["--volatile"])?;
        let server = store.flag("--volatile").start()?;
        ensure!(
            server.health()?["domain"].as_str().is_some_and(|domain| domain.contains("volatile")),
            "{}",
            server.health()?
        );
        Ok(())
    });
}

#[test]
fn wrong_usage_ends_with_code_2() {
    fn code(arguments: &[&str]) -> Result<Option<i32>> {
        Ok(lab::output_within(Command::new(pmlog_binary()?).args(arguments), Duration::from_secs(10))?
            .status
            .code())
    }
    isolated(|_: &Lab| {
        for arguments in [
            &[][..],
            &["serve"],
            &["serve", "--pm", "x", "--dev", "net_null0", "--ip", "10.0.0.2"],
            &["serve", "--pm", "x", "--dev", "net_null0", "--ip", "10.0.0.2/24", "--nonsense"],
            &["dump"],
            &["verify", "--pm"],
        ] {
            ensure!(code(arguments)? == Some(2), "{arguments:?} ends with {:?}", code(arguments)?);
        }
        ensure!(code(&["--help"])? == Some(0) && code(&["serve", "--help"])? == Some(0), "no help");
        Ok(())
    });
}

#[test]
fn signals_end_a_server_cleanly() {
    isolated(|lab| {
        wire::veth()?;
        for signal in [Signal::INT, Signal::TERM] {
            let server = options(lab, Over::Dpdk, "16MiB")?.start()?;
            connect()?.append(b"hello")?.seq()?;
            let status = server.signal(signal)?;
            ensure!(status.success(), "{signal:?}: {status}");
        }
        let server = options(lab, Over::Dpdk, "16MiB")?.start()?;
        ensure!(server.health()?["records"].as_u64() == Some(2), "{}", server.health()?);
        Ok(())
    });
}
