//! What a server and the program that measures it say to each other: lines on standard input and output.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use stack::profile::Stage;

/// The way a server does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Kernel sockets: epoll, read, copy into persistent memory, flush, fence, write; a request at a time.
    StatusQuo,
    /// Kernel sockets, and a file: epoll, read, write, fdatasync, write; an fdatasync for each burst.
    StatusQuoFsync,
    /// As status-quo, with replies sent by MSG_ZEROCOPY.
    MsgZerocopy,
    /// As status-quo, with requests cut out of the streams by the kernel connection multiplexor.
    Kcm,
    /// Stock smoltcp sockets on a DPDK port, and a copy into persistent memory; a commit for each burst.
    DpdkCopy,
    /// `pmlog` on the kernel's TCP, which receives into named buffers of persistent memory; a commit for each burst.
    KernelPaste,
    /// `pmlog` on a DPDK port that receives into named buffers of persistent memory; a commit for each burst.
    Paste,
    /// As paste, with the log left out: nothing is made durable.
    PasteEcho,
    /// No stack at all: frames go back as they come, with their addresses swapped.
    Limit,
}

impl Mode {
    /// Whether the server runs on the kernel's sockets, as opposed to a DPDK port.
    pub fn is_kernel(self) -> bool {
        matches!(
            self,
            Self::StatusQuo | Self::StatusQuoFsync | Self::MsgZerocopy | Self::Kcm | Self::KernelPaste
        )
    }

    /// Whether the server's loop knows the stages of a burst apart.
    pub fn has_stages(self) -> bool {
        !self.is_kernel() || self == Self::KernelPaste
    }

    /// Whether it is measured with one stream of large records, each way.
    pub fn streams(self) -> bool {
        matches!(self, Self::StatusQuo | Self::DpdkCopy | Self::KernelPaste | Self::Paste)
    }

    /// Whether the server makes anything durable.
    pub fn persists(self) -> bool {
        !matches!(self, Self::PasteEcho | Self::Limit)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StatusQuo => "status-quo",
            Self::StatusQuoFsync => "status-quo-fsync",
            Self::MsgZerocopy => "msg-zerocopy",
            Self::Kcm => "kcm",
            Self::DpdkCopy => "dpdk-copy",
            Self::KernelPaste => "kernel-paste",
            Self::Paste => "paste",
            Self::PasteEcho => "paste-echo",
            Self::Limit => "limit",
        })
    }
}

/// A line that a server writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ServerEvent {
    /// It serves.
    Ready(Ready),
    /// The mode cannot run on this machine; the server ends.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The answer to [`ServerCommand::Mark`].
    Mark(Mark),
}

/// A server that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What it is.
    pub mode: Mode,
    /// Its process.
    pub pid: u32,
    /// What makes its writes durable; none for modes that make nothing durable.
    pub domain: Option<String>,
    /// What a reader of its figures should know.
    pub notes: Vec<String>,
}

/// What a server had done at some moment, counted from its start; two of them delimit a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The command's number.
    pub id: u64,
    /// The moment, in nanoseconds of a clock that only goes forward.
    pub time_ns: u64,
    /// Time in steps of the polling loop that found something to do, or that the kernel interrupted; none for servers
    /// that sleep in the kernel.
    pub busy_ns: Option<u64>,
    /// Requests answered; with [`Mode::Limit`], frames sent back.
    pub requests: u64,
    /// Payload bytes of those requests.
    pub payload_bytes: u64,
    /// Payload bytes that the server's CPU copied in user space.
    pub copied_bytes: u64,
    /// Cache lines flushed.
    pub flushed_lines: u64,
    /// Fences, or calls of fdatasync.
    pub fences: u64,
    /// Persistent memory taken by the records: their buffers and their log entries.
    pub pm_bytes: u64,
    /// Requests refused, and connections that broke or were reset.
    pub errors: u64,
    /// Turns of a polling loop.
    pub turns: u64,
    /// Those that found nothing to do.
    pub idle_turns: u64,
    /// Where the loop's time went; none without `--profile`.
    pub stages: Option<Stages>,
}

/// Time in the stages of a server's bursts, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// Nanoseconds in each stage, in the order of [`Stage::ALL`].
    pub ns: [u64; Stage::ALL.len()],
    /// What reading the clock took of that.
    pub readings_ns: u64,
    /// What writing down the results took beside that.
    pub recording_ns: u64,
}

impl Stages {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            ns: std::array::from_fn(|stage| self.ns[stage] - earlier.ns[stage]),
            readings_ns: self.readings_ns - earlier.readings_ns,
            recording_ns: self.recording_ns - earlier.recording_ns,
        }
    }
}

impl Mark {
    /// What happened since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            id: self.id,
            time_ns: self.time_ns - earlier.time_ns,
            busy_ns: self.busy_ns.zip(earlier.busy_ns).map(|(now, then)| now - then),
            requests: self.requests - earlier.requests,
            payload_bytes: self.payload_bytes - earlier.payload_bytes,
            copied_bytes: self.copied_bytes - earlier.copied_bytes,
            flushed_lines: self.flushed_lines - earlier.flushed_lines,
            fences: self.fences - earlier.fences,
            pm_bytes: self.pm_bytes - earlier.pm_bytes,
            errors: self.errors - earlier.errors,
            turns: self.turns - earlier.turns,
            idle_turns: self.idle_turns - earlier.idle_turns,
            stages: self.stages.zip(earlier.stages).map(|(now, then)| now.since(&then)),
        }
    }
}

/// A line that a server reads. The end of its input is a [`Stop`](Self::Stop), too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerCommand {
    /// Say what was done so far.
    Mark(u64),
    /// End.
    Stop,
}

impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark(id) => write!(f, "mark {id}"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no command; write `mark NUMBER` or `stop`")]
pub struct NoCommand(String);

impl FromStr for ServerCommand {
    type Err = NoCommand;

    fn from_str(line: &str) -> Result<Self, NoCommand> {
        let line = line.trim();
        let refused = || NoCommand(line.chars().take(80).collect());
        match line.split_once(' ') {
            None if line == "stop" => Ok(Self::Stop),
            Some(("mark", id)) => id.parse().map(Self::Mark).map_err(|_| refused()),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_of_json_that_name_themselves() {
        let ready = ServerEvent::Ready(Ready { mode: Mode::StatusQuo, pid: 7, domain: None, notes: vec![] });
        let line = serde_json::to_string(&ready).expect("plain data");
        assert_eq!(line, r#"{"event":"ready","mode":"status-quo","pid":7,"domain":null,"notes":[]}"#);
        let mark = ServerEvent::Mark(Mark { id: 3, busy_ns: Some(5), ..Mark::default() });
        let line = serde_json::to_string(&mark).expect("plain data");
        assert!(line.starts_with(r#"{"event":"mark","id":3,"time_ns":0,"busy_ns":5,"#), "{line}");
        assert_eq!(serde_json::from_str::<ServerEvent>(&line).expect("the same"), mark);
    }

    #[test]
    fn a_mode_has_one_name() {
        for mode in Mode::value_variants() {
            let name = mode.to_string();
            assert_eq!(serde_json::to_string(mode).expect("plain data"), format!("{name:?}"));
            assert_eq!(mode.to_possible_value().expect("not hidden").get_name(), name);
        }
    }

    #[test]
    fn wishes_are_read_as_they_are_written() {
        for command in [ServerCommand::Mark(0), ServerCommand::Mark(u64::MAX), ServerCommand::Stop] {
            assert_eq!(format!("{command}\n").parse(), Ok(command));
        }
        for line in ["", "mark", "mark ", "mark -1", "mark 1 2", "stop now", "Mark 1"] {
            assert!(line.parse::<ServerCommand>().is_err(), "{line:?}");
        }
    }
}
