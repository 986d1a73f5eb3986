//! One run of one cell: a link, a server behind it, and a client of Linux' own before it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Lab, Link, Path, Pmlog, PmlogOptions, noise, precede, run, wire};

use super::cell::{Cell, Congestion, Direction};

/// The length of the records.
pub const RECORD_BYTES: usize = 12 << 20;
const CLIENT: &str = "c0";
const SERVER: &str = "s0";
const OTHER_SERVER: &str = "s1";
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
/// What everything is set up over.
const SHORT: Duration = Duration::from_micros(100);
/// How long a connection may take in which nothing is lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of what [precedes](Bench::precedes) all else, the link comes first.
const LINK_LEVEL: u8 = 2;
const CLIENT_LEVEL: u8 = 1;

/// Whose TCP the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Linux,
    Ours,
}

/// What all runs have in common.
pub struct Bench<'a> {
    pub lab: &'a Lab,
    pub pmlog: &'a FilePath,
    pub bits_per_second: u64,
    pub duration: Duration,
    /// Whether pmlog knows BBR.
    pub has_bbr: bool,
    /// Whether the link and the clients come before all else on this machine, as if they were machines of their own:
    /// otherwise frames pile up where these wait for a CPU, and get lost in queues that no path has.
    pub precedes: bool,
    pub record: Vec<u8>,
}

impl<'a> Bench<'a> {
    pub fn new(lab: &'a Lab, pmlog: &'a FilePath, bits_per_second: u64, duration: Duration) -> Result<Self> {
        let mut help = Command::new(pmlog);
        let help = lab::run_for(help.args(["serve", "--help"]), Duration::from_secs(20))?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let (_, of_congestion) =
            help.split_once("--congestion").context("this pmlog has no option --congestion")?;
        let has_bbr = of_congestion.split("\n\n").next().is_some_and(|text| text.contains("bbr"));
        // What one connection has learned of the path must not help another.
        forget_paths()?;
        let precedes = std::thread::spawn(|| precede(CLIENT_LEVEL).is_ok()).join().unwrap_or(false);
        let record = noise(1, RECORD_BYTES);
        Ok(Self { lab, pmlog, bits_per_second, duration, has_bbr, precedes, record })
    }

    /// What our side is told to use.
    pub fn ours_cc(&self, congestion: Congestion) -> &'static str {
        match congestion {
            Congestion::Bbr if !self.has_bbr => Congestion::Cubic.name(),
            known => known.name(),
        }
    }

    /// Mbit/s of what a client got across in the time that a run has.
    pub fn run(&self, cell: &Cell, side: Side, seed: u64) -> Result<f64> {
        let short = Path::clean(self.bits_per_second, SHORT);
        let mut link = self.link(&[SERVER], short, seed)?;
        let server = self.serve(side, cell.congestion, seed)?;
        let address = SocketAddr::from((wire::SERVER_V4, 80));
        if cell.direction == Direction::Download {
            self.put_record(address)?;
        }
        // The handshake shall not fail by chance, but it is where senders first see how long the path is.
        link.change(cell.clean_path(self.bits_per_second), seed)?;
        let client = Client::open(address)?;
        link.change(cell.path(self.bits_per_second), seed)?;
        let measured = self.as_another_machine(|| match cell.direction {
            Direction::Upload => client.upload(&self.record, self.duration, cell.congestion),
            Direction::Download => client.download(&self.record, self.duration),
        });
        let mbit = measured.with_context(|| format!("the server wrote:\n{}", server.output()))?;
        link.counters()?;
        Ok(mbit)
    }

    /// Mbit/s of downloads at the same time through one bottleneck: two from Linux, two from ours.
    pub fn share(
        &self,
        congestion: Congestion,
        round_trip: Duration,
        seed: u64,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let short = Path::clean(self.bits_per_second, SHORT);
        let mut link = self.link(&[SERVER, OTHER_SERVER], short, seed)?;
        let ours = self.serve(Side::Ours, congestion, seed)?;
        let namespace = self.namespace("other", seed);
        wire::make_namespace(&namespace)?;
        wire::move_into(&namespace, OTHER_SERVER, OTHER_V4, OTHER_V6)?;
        self.choose(Some(&namespace), OTHER_SERVER, OTHER_V4, congestion)?;
        let theirs = self.options(&format!("other-{seed}")).kernel(&namespace).spawn()?;
        let (ours_at, theirs_at) =
            (SocketAddr::from((wire::SERVER_V4, 80)), SocketAddr::from((OTHER_V4, 80)));
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect_timeout(&theirs_at, Duration::from_secs(1)).is_err() {
            ensure!(Instant::now() < end, "pmlog on Linux' TCP does not answer\n{}", theirs.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.put_record(ours_at)?;
        self.put_record(theirs_at)?;
        link.change(Path::clean(self.bits_per_second, round_trip), seed)?;
        let clients: Vec<Client> =
            [theirs_at, theirs_at, ours_at, ours_at].into_iter().map(Client::open).collect::<Result<_>>()?;
        let rates: Vec<f64> = std::thread::scope(|scope| {
            // Twice the time of a run: flows take a while to find their shares.
            let downloads: Vec<_> = clients
                .into_iter()
                .map(|client| {
                    let download = move || client.download(&self.record, self.duration * 2);
                    scope.spawn(|| self.as_another_machine(download))
                })
                .collect();
            let joined = downloads
                .into_iter()
                .map(|download| download.join().unwrap_or_else(|_| bail!("a client panicked")));
            joined.collect::<Result<_>>()
        })
        .with_context(|| format!("ours wrote:\n{}\ntheirs wrote:\n{}", ours.output(), theirs.output()))?;
        link.counters()?;
        Ok((rates[..2].to_vec(), rates[2..].to_vec()))
    }

    fn link(&self, servers: &[&str], path: Path, seed: u64) -> Result<Link> {
        let mut link = Link::new(CLIENT, servers, path, seed)?;
        if self.precedes {
            link.precede(LINK_LEVEL)?;
        }
        Ok(link)
    }

    /// Does what a client does, before what else runs on this machine.
    fn as_another_machine<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let client = || {
            if self.precedes {
                precede(CLIENT_LEVEL)?;
            }
            work()
        };
        std::thread::scope(|scope| scope.spawn(client).join().unwrap_or_else(|_| bail!("a client panicked")))
    }

    fn namespace(&self, name: &str, seed: u64) -> PathBuf {
        self.lab.path(&format!(
            "{name}-{seed}-{}.net",
            std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()
        ))
    }

    fn options(&self, name: &str) -> PmlogOptions {
        let bytes = self.bits_per_second / 8 * (self.duration.as_secs() + 1) * 3 / 2 + (256 << 20);
        let store = PmlogOptions::of_binary(self.pmlog, &self.lab.path(name)).in_memory();
        store.option("--pm-size", &bytes.next_multiple_of(1 << 20).to_string())
    }

    /// Starts a server on the far end of the link.
    fn serve(&self, side: Side, congestion: Congestion, seed: u64) -> Result<Pmlog> {
        match side {
            Side::Ours => {
                wire::link_to_device(CLIENT, SERVER)?;
                self.choose(None, CLIENT, wire::KERNEL_V4, congestion)?;
                let device = format!("net_af_packet0,iface={SERVER}");
                let options = self.options(&format!("ours-{seed}")).device(&device);
                options.option("--congestion", self.ours_cc(congestion)).start()
            }
            Side::Linux => {
                let namespace = self.namespace("linux", seed);
                wire::link_to_kernel(CLIENT, SERVER, &namespace)?;
                self.choose(None, CLIENT, wire::KERNEL_V4, congestion)?;
                self.choose(Some(&namespace), SERVER, wire::SERVER_V4, congestion)?;
                self.options(&format!("linux-{seed}")).kernel(&namespace).start()
            }
        }
    }

    /// Says by what congestion control Linux sends over an interface. By its route, since the default of a network
    /// namespace can be only what the host allows to all.
    fn choose(
        &self,
        namespace: Option<&FilePath>,
        interface: &str,
        own: Ipv4Addr,
        congestion: Congestion,
    ) -> Result<()> {
        let own = own.to_string();
        let route =
            ["route", "replace", "10.0.0.0/24", "dev", interface, "scope", "link", "src", &own, "congctl"];
        let arguments = [&route[..], &[congestion.name()]].concat();
        match namespace {
            None => run("ip", arguments).map(drop),
            Some(namespace) => {
                wire::call_in(namespace, forget_paths)??;
                wire::run_in(namespace, "ip", &arguments)
            }
        }
        .with_context(|| {
            format!("this Linux has no {} (net.ipv4.tcp_available_congestion_control)", congestion.name())
        })
    }

    fn put_record(&self, server: SocketAddr) -> Result<()> {
        let mut connection = lab::Connection::open(server)?;
        ensure!(connection.append(&self.record)?.seq()? == 1, "the first record is not number 1");
        Ok(())
    }
}

/// Has Linux remember nothing of the paths of connections that end, in the network namespace of this thread.
fn forget_paths() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")
}

/// A connection that is open, before anything was said on it.
struct Client {
    stream: TcpStream,
    server: SocketAddr,
}

impl Client {
    fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, server })
    }

    /// Posts one record after another, and returns the rate at which the server acknowledged.
    fn upload(self, record: &[u8], duration: Duration, congestion: Congestion) -> Result<f64> {
        let is_over = AtomicBool::new(false);
        let (stream, is_over) = (&self.stream, &is_over);
        // It may come to nothing when the time is over, and when the path is bad.
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let started = Instant::now();
        let (acknowledged, elapsed) = std::thread::scope(|scope| {
            let posting = scope.spawn(move || post_until(stream, record, is_over));
            std::thread::sleep(duration);
            let acknowledged = self.acknowledged(congestion);
            let elapsed = started.elapsed();
            is_over.store(true, Ordering::Relaxed);
            posting.join().unwrap_or_else(|_| bail!("the client panicked"))?;
            Ok::<_, anyhow::Error>((acknowledged?, elapsed))
        })?;
        Ok(mbit(acknowledged, elapsed))
    }

    /// What Linux says the server has acknowledged so far.
    fn acknowledged(&self, congestion: Congestion) -> Result<u64> {
        let port = self.stream.local_addr()?.port();
        let told = run("ss", ["-tinHO", &format!("sport = :{port}")])?;
        ensure!(
            told.split_whitespace().any(|word| word == congestion.name()),
            "the connection is not one by {}: {told}",
            congestion.name()
        );
        // Linux says nothing of what is still nothing.
        let acked = told.split_whitespace().find_map(|word| word.strip_prefix("bytes_acked:"));
        acked.map_or(Ok(0), |bytes| bytes.parse().with_context(|| told.clone()))
    }

    /// Gets the first record again and again, and returns the rate at which its bytes came.
    fn download(mut self, record: &[u8], duration: Duration) -> Result<f64> {
        let request = format!("GET /records/1 HTTP/1.1\r\nHost: {}\r\n\r\n", self.server);
        let mut part = vec![0; 256 << 10];
        let mut received = 0;
        // What is still to come of the record.
        let mut ahead: &[u8] = &[];
        let started = Instant::now();
        while started.elapsed() < duration {
            let is_first = ahead.is_empty();
            if is_first {
                self.stream.write_all(request.as_bytes())?;
            }
            let left = duration.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            let len = match self.stream.read(&mut part) {
                Ok(0) => bail!("the server closed the connection after {received} bytes"),
                Ok(len) => len,
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(error).context("cannot read"),
            };
            received += len as u64;
            let mut bytes = &part[..len];
            if is_first {
                let head =
                    bytes.windows(4).position(|end| end == b"\r\n\r\n").context("a reply without a head")?;
                ensure!(
                    bytes.starts_with(b"HTTP/1.1 200"),
                    "not found: {}",
                    String::from_utf8_lossy(&bytes[..head])
                );
                bytes = &bytes[head + 4..];
                ahead = record;
            }
            ahead = ahead
                .strip_prefix(bytes)
                .with_context(|| format!("wrong bytes among the first {received}"))?;
        }
        Ok(mbit(received, started.elapsed()))
    }
}

/// Posts one record after another until it is over.
fn post_until(mut stream: &TcpStream, record: &[u8], is_over: &AtomicBool) -> Result<()> {
    let head = format!("POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: {}\r\n\r\n", record.len());
    let mut posts = 0;
    while !is_over.load(Ordering::Relaxed) {
        for mut bytes in [head.as_bytes(), record] {
            while !bytes.is_empty() {
                if is_over.load(Ordering::Relaxed) {
                    return Ok(());
                }
                match stream.write(bytes) {
                    Ok(len) => bytes = &bytes[len..],
                    Err(error) if is_timeout(&error) => {}
                    Err(error) => return Err(error).context("cannot send"),
                }
            }
        }
        let mut reply = Vec::new();
        let mut part = [0; 4096];
        while !is_whole(&reply)? {
            if is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            match stream.read(&mut part) {
                Ok(0) => bail!("the server closed the connection after {} records", posts),
                Ok(len) => reply.extend_from_slice(&part[..len]),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error).context("cannot read a reply"),
            }
        }
        posts += 1;
    }
    Ok(())
}

/// Whether that is a whole reply to an append; an error where it says that there is no record.
fn is_whole(reply: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(reply);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    ensure!(head.starts_with("HTTP/1.1 200"), "refused: {text}");
    Ok(body.trim_end().ends_with('}'))
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock | Interrupted)
}

fn mbit(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 * 8.0 / elapsed.as_secs_f64() / 1e6
}
