//! What becomes of a store's file: where there is no room for it, where it is cut off under the server, where the server
//! is refused, and where its start is ended.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Lab, PmlogOptions, noise};
use rustix::process::Signal;

use crate::arguments::ensure_refused;
use crate::{Over, cable, connect, options, over_each_transport, serve, two_cpus, wait_until};

over_each_transport! {
    a_store_with_holes_is_served_only_where_there_is_room_for_all_of_it,
    a_store_that_is_cut_off_under_the_server_is_told,
    a_server_that_is_refused_leaves_the_store_as_it_was,
    a_signal_ends_a_long_start_in_order,
}

/// A server on another store than the usual one.
fn server_on(lab: &Lab, over: Over, pm: &Path) -> Result<PmlogOptions> {
    let options = PmlogOptions::new(pm)?;
    Ok(match over {
        Over::Dpdk => options,
        Over::Kernel => options.kernel(&lab.path("server.net")),
    })
}

/// A new tmpfs of some size in the test's folder.
fn tmpfs(lab: &Lab, name: &str, size: &str) -> Result<PathBuf> {
    let folder = lab.path(name);
    fs::create_dir(&folder)?;
    let options = format!("size={size}");
    lab::run("mount", ["-t", "tmpfs", "-o", &options, "tmpfs", folder.to_str().context("a plain path")?])?;
    Ok(folder)
}

/// Bytes that a file has on its file system.
fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

fn a_store_with_holes_is_served_only_where_there_is_room_for_all_of_it(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "32MiB")?;
    for seed in 0..20 {
        connect()?.append(&noise(seed, 10_000))?.seq()?;
    }
    server.interrupt()?;
    let folder = tmpfs(lab, "small", "16m")?;
    let sparse = folder.join("store.pm");
    let [from, to] = [lab.path("store.pm"), sparse.clone()];
    lab::run("cp", ["--sparse=always", from.to_str().context("plain")?, to.to_str().context("plain")?])?;
    ensure!(allocated(&sparse)? < 8 << 20, "{} bytes are there: no holes to test with", allocated(&sparse)?);
    let before = fs::read(&sparse)?;
    let store = server_on(lab, over, &sparse)?.flag("--volatile");
    ensure_refused(
        &store.refusal()?,
        &["no room for the 33554432 bytes", "have no blocks yet", "make room"],
    )?;
    ensure!(fs::read(&sparse)? == before, "a store that is refused was changed");

    lab::run("mount", ["-o", "remount,size=40m", folder.to_str().context("a plain path")?])?;
    let server = store.start()?;
    ensure!(allocated(&sparse)? >= 32 << 20, "{} bytes are there", allocated(&sparse)?);
    ensure!(server.health()?["records"].as_u64() == Some(20), "{}", server.health()?);
    // The rest of the file system goes to somebody else.
    let ballast = File::create(folder.join("ballast"))?;
    let mut filler = &ballast;
    while std::io::Write::write_all(&mut filler, &[1; 1 << 16]).is_ok() {}
    let mut connection = connect()?;
    while connection.append(&noise(1, 64 << 10))?.status == 200 {}
    ensure!(connect()?.get("/health")?.status == 200, "a full store on a full file system ends the server");
    ensure!(server.interrupt()?.success(), "it did not end in order");
    Ok(())
}

fn a_store_that_is_cut_off_under_the_server_is_told(lab: &Lab, over: Over) -> Result<()> {
    let mut server = serve(lab, over, "32MiB")?;
    connect()?.append(b"before")?.seq()?;
    let store = lab.path("store.pm");
    File::options().write(true).open(&store)?.set_len(1 << 20)?;
    // Clients go on until it ends.
    while server.is_running()? {
        let _ = connect().and_then(|mut connection| connection.append(&noise(1, 20_000)));
    }
    let status = server.wait_for_end()?;
    let said = server.output();
    ensure!(said.contains("cut off under this process"), "{status}: {said}");
    // The kernel meets it first, or this process does.
    if said.contains("SIGBUS") {
        ensure!(status.signal() == Some(Signal::BUS.as_raw()), "{status}: {said}");
        ensure!(said.contains(&format!("the store {} failed at byte ", store.display())), "{said}");
        ensure!(said.contains("at 1048576 bytes"), "{said}");
    } else {
        ensure!(over == Over::Kernel && status.code() == Some(1), "{status}: {said}");
        ensure!(said.contains("cannot reach the store's memory"), "{said}");
    }
    Ok(())
}

/// Options that nobody can be served with, with or without `--force`.
fn mistakes(over: Over) -> Result<Vec<Vec<String>>> {
    let two = two_cpus()?;
    let mut mistakes = vec![
        vec!["--pm-size", "4KiB"],
        // Enough for a store, but not for a ring to receive into.
        vec!["--pm-size", "64KiB"],
        vec!["--pm-size", "64PiB"],
        vec!["--shards", "256"],
        vec!["--shards", "1", "--cores", &two],
        vec!["--cores", "0,1023"],
        vec!["--max-connections", "4294967295"],
        vec!["--max-record", "0.5"],
    ];
    mistakes.push(match over {
        Over::Dpdk => vec!["--port", "0"],
        Over::Kernel => vec!["--listen", "192.0.2.1:80"],
    });
    Ok(mistakes.into_iter().map(|words| words.into_iter().map(str::to_owned).collect()).collect())
}

fn a_server_that_is_refused_leaves_the_store_as_it_was(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "16MiB")?;
    for seed in 0..20 {
        connect()?.append(&noise(seed, 10_000))?.seq()?;
    }
    let (store, fresh) = (lab.path("store.pm"), lab.path("fresh.pm"));
    // Also not while another process has it.
    let in_use = server_on(lab, over, &store)?.option("--pm-size", "32MiB").flag("--force");
    let in_use = match over {
        Over::Dpdk => in_use.device(lab::wire::TAP_DEVICE),
        Over::Kernel => in_use.option("--listen", "[::]:81"),
    };
    ensure!(!in_use.refusal()?.status.success(), "a store in use was formatted");
    ensure!(server.health()?["records"].as_u64() == Some(20), "{}", server.health()?);
    server.interrupt()?;
    let before = fs::read(&store)?;
    for words in mistakes(over)? {
        for force in [false, true] {
            for path in [&store, &fresh] {
                let mut options = server_on(lab, over, path)?;
                for word in &words {
                    options = options.flag(word);
                }
                if force {
                    options = options.flag("--force");
                }
                if path == &fresh && !words.iter().any(|word| word == "--pm-size") {
                    options = options.option("--pm-size", "16MiB");
                }
                let output = options.refusal().with_context(|| format!("{words:?}"))?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(matches!(output.status.code(), Some(1 | 2)), "{words:?}: {} {said}", output.status);
                ensure!(
                    fs::read(&store)? == before,
                    "{words:?}, force {force}: the store was changed\n{said}"
                );
                ensure!(!fresh.exists(), "{words:?}, force {force}: a new store was left behind\n{said}");
            }
        }
    }
    if over == Over::Kernel {
        let limited =
            server_on(lab, over, &fresh)?.option("--pm-size", "16MiB").under(&["prlimit", "--fsize=1000000"]);
        ensure_refused(&limited.refusal()?, &["16777216", "1000000", "ulimit -f"])?;
        ensure!(!fresh.exists(), "a new store was left behind");
    }
    let server = options(lab, over, "16MiB")?.start()?;
    ensure!(server.health()?["records"].as_u64() == Some(20), "{}", server.health()?);
    Ok(())
}

/// Whether any process has this file open. Here the server's number is another than in `/proc`.
fn is_open(path: &Path) -> Result<bool> {
    let tables =
        fs::read_dir("/proc")?.flatten().filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
    Ok(tables.flatten().flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == path))
}

fn a_signal_ends_a_long_start_in_order(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    // So many zeros take longer to read than anybody here waits.
    let zeros = lab.path("zeros.pm");
    let bytes = 200 << 30;
    File::create(&zeros)?.set_len(bytes)?;
    for (signal, is_json) in [(Signal::INT, false), (Signal::TERM, true)] {
        let options = server_on(lab, over, &zeros)?;
        let mut server = if is_json { options.flag("--json").spawn()? } else { options.spawn()? };
        wait_until("it is at the store", || {
            ensure!(server.is_running()?, "{}", server.output());
            let shows = server.output().contains("pmlog: making sure that nothing is there: ");
            Ok(if is_json { is_open(&zeros)? } else { shows })
        })?;
        let log = zeros.with_extension("log");
        let status = server.signal(signal)?;
        let said = fs::read_to_string(&log)?;
        ensure!(status.success(), "{signal:?}: {status}\n{said}");
        let word = if is_json { r#"{"event":"interrupted"}"# } else { "before it served" };
        ensure!(said.contains(word) && !said.contains("serving"), "{signal:?}: {said}");
        let meta = fs::metadata(&zeros)?;
        ensure!(meta.len() == bytes && allocated(&zeros)? < 1 << 20, "the file was changed");
    }
    Ok(())
}
