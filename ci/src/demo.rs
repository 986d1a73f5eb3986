//! `cargo xtask demo`: real requests, a kill -9 in mid-load, and every acknowledged record back.

mod kv;
mod load;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use lab::{Connection, Curl, Lab, Pmlog, PmlogOptions, wire};

use crate::inside;
use crate::setup::Packages;
use crate::steps::{Step, programs, workspace};

/// Room for the load of some seconds.
const STORE: ByteSize = ByteSize::gib(1);
/// How long wrk runs before the server is killed.
const LOAD_BEFORE_KILL: Duration = Duration::from_millis(2500);

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    /// Which program is shown.
    #[arg(value_enum, default_value_t = What::Log)]
    what: What,
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// pmlog: records over HTTP.
    Log,
    /// pmkv: keys and values over Redis' protocol.
    Kv,
}

/// Builds, and runs the rest inside namespaces. Returns whether it passed.
pub fn run(options: &Options) -> Result<bool> {
    options.packages.provide()?;
    let (program, what, requests) = match options.what {
        What::Log => ("pmlog", "log", "HTTP requests"),
        What::Kv => ("pmkv", "kv", "values of keys"),
    };
    println!("paste-dpdk: {requests} become durable in the packet buffers where they arrive\n");
    let [program] = programs([program])?;

    let scratch = lab::scratch_directory("demo-")?;
    let mut command = lab::inside(&std::env::current_exe()?)?;
    command.args(["demo-inside", what, "--program"]).arg(&program).arg("--scratch").arg(scratch.path());
    let ended = inside::run(&mut command)?;
    Ok(ended.context("interrupted")?.success())
}

#[derive(Args)]
pub struct Inside {
    #[arg(value_enum)]
    what: What,
    #[arg(long)]
    program: PathBuf,
    #[arg(long)]
    scratch: PathBuf,
}

/// The demo itself, as root of its own namespaces.
pub fn run_inside(options: &Inside) -> Result<()> {
    inside::end_on_signals()?;
    let outcome = match options.what {
        What::Log => Demo::new(options)?.play()?,
        What::Kv => kv::play(&options.program, &options.scratch)?,
    };
    println!("\nPASS acknowledged={} recovered={} lost=0", outcome.acknowledged, outcome.recovered);
    Ok(())
}

/// How many records or keys were acknowledged before the kill, and how many were there after it.
struct Outcome {
    acknowledged: usize,
    recovered: u64,
}

struct Demo {
    lab: Lab,
    server: PmlogOptions,
    pmlog: PathBuf,
    store: PathBuf,
    /// What each acknowledged record must hold.
    acknowledged: BTreeMap<u64, Body>,
}

/// The bytes of a record, or what they are made from.
enum Body {
    File(PathBuf),
    Load(load::Tag),
}

impl Body {
    fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            Self::Load(tag) => Ok(tag.body()),
        }
    }
}

impl Demo {
    fn new(inside: &Inside) -> Result<Self> {
        let lab = Lab::enter(&inside.scratch)?;
        let store = lab.path("store.pm");
        let size = STORE.as_u64().to_string();
        let server = PmlogOptions::of_binary(&inside.program, &store).option("--pm-size", &size);
        Ok(Self { lab, server, pmlog: inside.program.clone(), store, acknowledged: BTreeMap::new() })
    }

    fn play(mut self) -> Result<Outcome> {
        self.connect()?;
        let (server, _) = self.serve("serve")?;
        self.post_files()?;
        self.fetch("fetch")?;
        let unanswered = self.load_and_kill(server)?;
        let recovered = self.recover(unanswered)?;
        Ok(Outcome { acknowledged: self.acknowledged.len(), recovered })
    }

    fn connect(&self) -> Result<()> {
        let step = Step::start("connect");
        wire::veth()?;
        step.end(&format!(
            "Linux veth0 {} <-> veth1 {}, a DPDK port ({})",
            wire::KERNEL_V4,
            wire::SERVER_V4,
            wire::VETH_DEVICE
        ));
        Ok(())
    }

    /// Starts the server, and returns it with the number of records it found.
    fn serve(&self, name: &str) -> Result<(Pmlog, u64)> {
        let step = Step::start(name);
        let server = self.server.start()?;
        let health = server.health()?;
        let records = health["records"].as_u64().context("/health tells no number of records")?;
        let domain = health["domain"].as_str().context("/health tells no persistence domain")?;
        step.end(&format!("pmlog on a file of {STORE} ({domain} domain), {records} records found"));
        Ok((server, records))
    }

    /// Posts real files with curl.
    fn post_files(&mut self) -> Result<()> {
        let step = Step::start("post");
        let files = [
            self.lab.write("empty", b"")?,
            self.lab.write("byte", b"!")?,
            self.lab.write("kibibyte", &lab::noise(1, 1024))?,
            workspace().join("Cargo.lock"),
            self.lab.write("random", &lab::noise(2, 10 << 20))?,
        ];
        let mut told = Vec::new();
        for file in files {
            let reply = Curl::post(&Pmlog::url("/append"), &file).json()?;
            let seq = reply["seq"].as_u64().with_context(|| format!("no seq in {reply}"))?;
            let size = ByteSize::b(fs::metadata(&file)?.len());
            told.push(format!("{size} as record {seq}"));
            if self.acknowledged.insert(seq, Body::File(file)).is_some() {
                bail!("record {seq} was acknowledged twice");
            }
        }
        step.end(&format!("curl: {}", told.join(", ")));
        Ok(())
    }

    /// Fetches each acknowledged record and compares.
    fn fetch(&self, name: &str) -> Result<()> {
        let step = Step::start(name);
        let address = SocketAddr::new(IpAddr::V4(wire::SERVER_V4), 80);
        let mut connection = Connection::open(address)?;
        let mut lost = Vec::new();
        for (done, (seq, body)) in self.acknowledged.iter().enumerate() {
            let reply = connection.get(&format!("/records/{seq}"))?;
            let expected = body.bytes()?;
            if reply.status != 200 {
                lost.push(format!("record {seq}: status {}", reply.status));
            } else if reply.body != expected {
                let at = reply.body.iter().zip(&expected).position(|(a, b)| a != b);
                lost.push(format!(
                    "record {seq}: {} bytes instead of {}, the first wrong one at {}",
                    reply.body.len(),
                    expected.len(),
                    at.unwrap_or(reply.body.len().min(expected.len()))
                ));
            }
            if done % 1000 == 0 {
                step.progress(&format!("{done} of {}", self.acknowledged.len()));
            }
        }
        if !lost.is_empty() {
            let shown = lost.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
            bail!("LOST {} of {} acknowledged records\n{shown}", lost.len(), self.acknowledged.len());
        }
        step.end(&format!(
            "{} acknowledged records, each byte for byte as it was sent",
            self.acknowledged.len()
        ));
        Ok(())
    }

    /// Lets wrk post records, and kills the server under it. Returns how many requests had no answer.
    fn load_and_kill(&mut self, server: Pmlog) -> Result<u64> {
        let step = Step::start("load");
        let load = load::start(&self.lab)?;
        let started = Instant::now();
        while started.elapsed() < LOAD_BEFORE_KILL || load.acknowledged()? == 0 {
            ensure!(started.elapsed() < load::LIMIT, "wrk had no answer before its time was over");
            std::thread::sleep(Duration::from_millis(20));
        }
        let elapsed = started.elapsed();
        server.kill()?;
        step.end(&format!("wrk: {} connections, bodies of {} bytes", load::CONNECTIONS, load::BODY_BYTES));

        let step = Step::start("kill -9");
        let tags = load.finish()?;
        ensure!(!tags.is_empty(), "nothing was acknowledged under load");
        let rate = tags.len() as f64 / elapsed.as_secs_f64();
        step.end(&format!("in mid-load, with {} records acknowledged ({rate:.0} a second)", tags.len()));
        for (seq, tag) in tags {
            if self.acknowledged.insert(seq, Body::Load(tag)).is_some() {
                bail!("record {seq} was acknowledged twice");
            }
        }
        Ok(load::CONNECTIONS)
    }

    /// Starts the server again on what the kill left, and compares. Returns how many records it found.
    fn recover(&self, unanswered: u64) -> Result<u64> {
        let (server, recovered) = self.serve("restart")?;
        let acknowledged = self.acknowledged.len() as u64;
        ensure!(recovered >= acknowledged, "{recovered} records recovered of {acknowledged} acknowledged");
        ensure!(
            recovered <= acknowledged + unanswered,
            "{recovered} records recovered, of {acknowledged} acknowledged and at most {unanswered} unanswered"
        );
        self.fetch("compare")?;
        let status = server.interrupt()?;
        ensure!(status.success(), "pmlog ended with {status} on SIGINT");
        self.verify(&self.store)?;
        Ok(recovered)
    }

    fn verify(&self, store: &Path) -> Result<()> {
        let step = Step::start("verify");
        let mut command = std::process::Command::new(&self.pmlog);
        command.arg("verify").arg("--pm").arg(store);
        let output = lab::run_for(&mut command, Duration::from_secs(30))?;
        let text = String::from_utf8_lossy(&output.stdout);
        step.end(&format!("pmlog verify: {}", text.lines().last().unwrap_or("sound")));
        Ok(())
    }
}
