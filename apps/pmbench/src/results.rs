//! What a run found, as results.json and run.json hold it.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use stack::profile::Stage;

use crate::protocol::Mode;

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// A pair of virtual Ethernet interfaces; DPDK ports are packet sockets on them.
    Veth,
    /// Shared memory between two DPDK ports.
    Memif,
    /// Rings between two threads of one process, of which the client's does what a NIC's hardware does.
    Ring,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Memif => "memif",
            Self::Ring => "ring",
        })
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// They append records of a usual size, many at a time.
    Requests,
    /// One of them appends large records, one behind the other.
    StreamUp,
    /// One of them reads large records, one behind the other.
    StreamDown,
}

/// What is measured together: everything but the mode and the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Load {
    /// What clients do.
    pub kind: Kind,
    /// Payload bytes of a request.
    pub size: u32,
    /// Connections, each with one request on its way.
    pub connections: u32,
    /// What each persist takes longer than the memory does.
    pub persist_delay_us: u64,
}

impl Load {
    /// Appends of `size` bytes over so many connections.
    pub const fn requests(size: u32, connections: u32) -> Self {
        Self { kind: Kind::Requests, size, connections, persist_delay_us: 0 }
    }

    /// Large records over one connection.
    pub const fn stream(kind: Kind, size: u32) -> Self {
        Self { kind, size, connections: 1, persist_delay_us: 0 }
    }

    /// Whether it is one stream of large records.
    pub fn is_stream(self) -> bool {
        self.kind != Kind::Requests
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Requests => {
                let plural = if self.connections == 1 { "" } else { "s" };
                write!(f, "{} B, {} connection{plural}", self.size, self.connections)?;
            }
            Kind::StreamUp => write!(f, "a stream up, records of {} B", self.size)?,
            Kind::StreamDown => write!(f, "a stream down, records of {} B", self.size)?,
        }
        if self.persist_delay_us > 0 {
            write!(f, ", {} us a persist", self.persist_delay_us)?;
        }
        Ok(())
    }
}

/// One measurement; results.json is a list of them. What was not measured is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What lay between client and server.
    pub link: Link,
    /// How the server did it.
    pub mode: Mode,
    /// What it was loaded with.
    #[serde(flatten)]
    pub load: Load,
    /// Which round, from 1.
    pub round: u32,
    /// Requests answered in a second.
    pub requests_per_s: Option<f64>,
    /// Median latency.
    pub p50_us: Option<f64>,
    /// Latency of the 99th percentile.
    pub p99_us: Option<f64>,
    /// Latency of the 99.9th percentile.
    pub p999_us: Option<f64>,
    /// What a request took of the server's core.
    pub server_cpu_ns_per_request: Option<f64>,
    /// Payload bytes that the server's CPU copied in user space.
    pub copied_bytes_per_request: Option<f64>,
    /// Cache lines flushed.
    pub flushed_lines_per_request: Option<f64>,
    /// Fences, or calls of fdatasync.
    pub fences_per_request: Option<f64>,
    /// Persistent memory taken for each byte of payload.
    pub pm_bytes_per_payload_byte: Option<f64>,
    /// Of a stream: payload in a second, in Gbit.
    pub gbit_per_s: Option<f64>,
    /// Of a stream: payload in a second of the server's core, in Gbit.
    pub gbit_per_cpu_s: Option<f64>,
    /// Why the mode cannot run here; null if it ran.
    pub skipped: Option<String>,
}

impl Cell {
    /// A cell in which nothing was measured.
    pub fn skipped(link: Link, mode: Mode, load: Load, round: u32, reason: String) -> Self {
        Self {
            link,
            mode,
            load,
            round,
            requests_per_s: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            server_cpu_ns_per_request: None,
            copied_bytes_per_request: None,
            flushed_lines_per_request: None,
            fences_per_request: None,
            pm_bytes_per_payload_byte: None,
            gbit_per_s: None,
            gbit_per_cpu_s: None,
            skipped: Some(reason),
        }
    }
}

/// More than this part of a CPU is not taken by accident.
pub const QUIET: f64 = 0.1;

/// Where, when and how a run was made; what run.json holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The day, UTC.
    pub date: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that there are.
    pub cores: usize,
    /// Whether the processor says that a hypervisor lies below.
    pub is_virtual: bool,
    /// The kernel's release.
    pub kernel: String,
    /// What was built.
    pub commit: String,
    /// The processor that the server ran on.
    pub server_core: usize,
    /// The processor that the client ran on.
    pub client_core: usize,
    /// What part of the busier of the two was taken by something else before the run.
    pub busy_before: f64,
    /// Whether the server's processor did the kernel's work on what the server received.
    pub steered: bool,
    /// How long each cell was measured.
    pub seconds: f64,
    /// How often.
    pub rounds: u32,
    /// How large each store was.
    pub store_bytes: u64,
    /// What each mode says of itself.
    pub modes: Vec<ModeNotes>,
    /// What is known of each cell beside its results; in the same order.
    pub details: Vec<Detail>,
    /// Where the time goes in the servers that the targets speak of; measured after the rounds, and no part of them.
    pub profiles: Vec<Profiled>,
    /// The second client's figures.
    pub confirmation: Vec<Confirmation>,
    /// What failed.
    pub failures: Vec<Failure>,
}

/// What a mode says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeNotes {
    /// The mode.
    pub mode: Mode,
    /// What makes its writes durable.
    pub domain: Option<String>,
    /// What a reader of its figures should know.
    pub notes: Vec<String>,
}

/// What is known of a measurement beside its results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// The part of the time in which the client had something to do: near 1 the client was the limit.
    pub client_busy: f64,
    /// The part of the time in which the server's core was not idle; polling loops are never idle.
    pub server_core_busy: f64,
    /// What the kernel says of the server's core, for each request.
    pub core: CoreShares,
    /// Segments that the client sent again; of raw frames, those that were lost.
    pub retransmits: u64,
}

/// Time of a core for each request, as the kernel counts it: in steps of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoreShares {
    /// In programs.
    pub user_ns: f64,
    /// In the kernel on behalf of programs.
    pub system_ns: f64,
    /// In interrupts and softirqs, which take in packets.
    pub softirq_ns: f64,
}

/// Where the time of a server went that was measured once more, stage by stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profiled {
    /// What lay between client and server.
    pub link: Link,
    /// How the server did it.
    pub mode: Mode,
    /// What it was loaded with.
    #[serde(flatten)]
    pub load: Load,
    /// Requests answered in a second.
    pub requests_per_s: f64,
    /// Median latency.
    pub p50_us: f64,
    /// What a request took of the server's core.
    pub server_cpu_ns_per_request: f64,
    /// The parts of that which belong to a stage of a burst.
    pub stages: Vec<StageShare>,
    /// What measuring took of all that.
    pub measuring_ns_per_request: f64,
}

/// The time of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageShare {
    /// Which.
    pub stage: Stage,
    /// Its time divided by all requests.
    pub ns_per_request: f64,
}

/// What wrk found of a mode, on veth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The mode.
    pub mode: Mode,
    /// What it was loaded with.
    #[serde(flatten)]
    pub load: Load,
    /// Requests answered in a second.
    pub requests_per_s: f64,
    /// What a request took of the server's core.
    pub server_cpu_ns_per_request: f64,
}

/// A cell that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What lay between client and server.
    pub link: Link,
    /// How the server did it.
    pub mode: Mode,
    /// What it was loaded with.
    #[serde(flatten)]
    pub load: Load,
    /// When: `round N`, `profile` or `wrk`.
    pub during: String,
    /// What went wrong.
    pub why: String,
}

/// All that a run found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// The measurements.
    pub cells: Vec<Cell>,
    /// The circumstances.
    pub run: Run,
}

impl Results {
    /// Reads results.json and run.json of a folder.
    ///
    /// # Errors
    /// One of them is missing, or not as [`write`](Self::write) leaves it.
    pub fn read(folder: &Path) -> Result<Self> {
        fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("not of this program: {}", file.display()))
        }
        Ok(Self { cells: read(&folder.join("results.json"))?, run: read(&folder.join("run.json"))? })
    }

    /// Writes results.json and run.json into a folder, which is made.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(folder, "results.json", &self.cells)?;
        write_json(folder, "run.json", &self.run)
    }
}

/// Writes a file into a folder, which is made.
pub(crate) fn write_json(folder: &Path, name: &str, what: &impl Serialize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (file, text) = (folder.join(name), serde_json::to_string_pretty(what)? + "\n");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_the_fields_that_readers_of_the_file_expect() {
        let load = Load { persist_delay_us: 10, ..Load::requests(1024, 50) };
        let cell = Cell::skipped(Link::Veth, Mode::Kcm, load, 2, "no AF_KCM".to_owned());
        let json = serde_json::to_value(&cell).expect("plain data");
        let mut names: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = [
            "link",
            "mode",
            "kind",
            "size",
            "connections",
            "persist_delay_us",
            "round",
            "requests_per_s",
            "p50_us",
            "p99_us",
            "p999_us",
            "server_cpu_ns_per_request",
            "copied_bytes_per_request",
            "flushed_lines_per_request",
            "fences_per_request",
            "pm_bytes_per_payload_byte",
            "gbit_per_s",
            "gbit_per_cpu_s",
            "skipped",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!((json["link"].as_str(), json["mode"].as_str()), (Some("veth"), Some("kcm")));
        assert_eq!(serde_json::from_value::<Cell>(json).expect("the same"), cell);
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let load = Load::requests(64, 1);
        let cell = Cell {
            requests_per_s: Some(1234.5),
            skipped: None,
            ..Cell::skipped(Link::Memif, Mode::Paste, load, 1, String::new())
        };
        let run = Run { details: vec![Detail { client_busy: 0.5, ..Detail::default() }], ..Run::default() };
        let results = Results { cells: vec![cell], run };
        let inner = folder.path().join("new");
        results.write(&inner).expect("written");
        assert_eq!(Results::read(&inner).expect("read"), results);
        assert!(Results::read(folder.path()).is_err());
    }
}
