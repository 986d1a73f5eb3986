//! Servers as child processes, and a client that speaks to them.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No reply takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory in memory that outlives any process: a kill loses nothing in it, and a commit costs what it costs on
/// persistent memory.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory")
}

/// pmkv over a store in a file, on a port of its own.
pub struct Pmkv {
    child: Spawned,
    pub port: u16,
    /// What it has said before it served.
    pub said: Vec<String>,
    /// Its standard output goes on there.
    _output: BufReader<std::process::ChildStdout>,
}

impl Pmkv {
    /// Starts it with more options.
    pub fn start(store: &Path, options: &[&str]) -> Self {
        Self::try_start(store, options, &[]).expect("pmkv serves")
    }

    /// As [`start`](Self::start), with variables of the environment; what it wrote if it does not serve.
    pub fn try_start(store: &Path, options: &[&str], variables: &[(&str, &str)]) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmkv"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--pm"]).arg(store).args(options);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Spawned(command.spawn().expect("the binary was built"));
        let mut output = BufReader::new(child.0.stdout.take().expect("it is piped"));
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            if output.read_line(&mut line).expect("text") == 0 {
                let mut errors = String::new();
                child.0.stderr.take().expect("it is piped").read_to_string(&mut errors).expect("text");
                return Err(errors);
            }
            said.push(line.trim_end().to_owned());
            if let Some(rest) = line.strip_prefix("serving   127.0.0.1:") {
                let port = rest.split_whitespace().next().and_then(|port| port.parse().ok()).expect("a port");
                return Ok(Self { child, port, said, _output: output });
            }
        }
    }

    pub fn client(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_nodelay(true).expect("an option");
        Client::new(stream)
    }

    /// Ends it without warning.
    pub fn kill(self) {
        drop(self);
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        let pid = self.child.0.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill").success());
        assert!(self.child.0.wait().expect("it ends").success());
    }
}

/// A child process that is killed when it is of no use any more.
struct Spawned(Child);

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's redis-server, which keeps nothing.
pub struct Redis {
    _child: Spawned,
    socket: PathBuf,
}

impl Redis {
    pub fn start(directory: &Path) -> Self {
        let socket = directory.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--databases", "1", "--unixsocket"]).arg(&socket);
        command.arg("--dir").arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
        let child = Spawned(command.spawn().expect("redis-server is installed (cargo xtask setup)"));
        let redis = Self { _child: child, socket };
        let begun = Instant::now();
        while UnixStream::connect(&redis.socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        redis
    }

    pub fn client(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        Client::new(stream)
    }
}

/// A reply.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Self>),
    Map(Vec<Self>),
    Set(Vec<Self>),
    Push(Vec<Self>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Simple(text) => write!(f, "+{text}"),
            Self::Error(text) => write!(f, "-{text}"),
            Self::Integer(value) => write!(f, ":{value}"),
            Self::Bulk(bytes) if bytes.len() > 100 => write!(f, "({} bytes)", bytes.len()),
            Self::Bulk(bytes) => write!(f, "{:?}", bytes.escape_ascii().to_string()),
            Self::Null => f.write_str("null"),
            Self::Array(all) => write!(f, "{all:?}"),
            Self::Map(all) => write!(f, "map{all:?}"),
            Self::Set(all) => write!(f, "set{all:?}"),
            Self::Push(all) => write!(f, "push{all:?}"),
        }
    }
}

impl Reply {
    pub fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    pub fn ok() -> Self {
        Self::Simple("OK".into())
    }

    pub fn text(&self) -> String {
        match self {
            Self::Bulk(bytes) => String::from_utf8(bytes.clone()).expect("text"),
            Self::Simple(text) | Self::Error(text) => text.clone(),
            other => panic!("{other:?} is no text"),
        }
    }
}

/// A connection to a server.
pub struct Client<S> {
    stream: BufReader<S>,
}

/// A command as clients send it.
pub fn command<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

impl<S: std::io::Read> Client<S>
where
    for<'a> &'a S: std::io::Write,
{
    fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_ref().write_all(bytes).expect("the server takes it");
    }

    /// Sends a command, and gives the reply.
    pub fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send(&command(args));
        self.reply()
    }

    /// Sends a command of words.
    pub fn say(&mut self, words: &str) -> Reply {
        self.ask(&words.split(' ').collect::<Vec<_>>())
    }

    /// Whether the server has ended the connection.
    pub fn is_ended(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok([]) | Err(_))
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).ok()?;
        assert!(line.is_empty() || line.ends_with(b"\r\n"), "{:?}", line.escape_ascii().to_string());
        line.truncate(line.len().saturating_sub(2));
        (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned())
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply")
    }

    /// The next reply; none if the connection ends.
    pub fn try_reply(&mut self) -> Option<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().unwrap_or_else(|_| panic!("{line} has no number"));
        let many =
            |client: &mut Self, len: i64| (0..len).map(|_| client.try_reply()).collect::<Option<Vec<_>>>();
        Some(match kind {
            "+" => Reply::Simple(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Integer(number()),
            "_" => Reply::Null,
            "$" | "*" if number() < 0 => Reply::Null,
            "$" | "=" => {
                let mut bytes = vec![0; number() as usize + 2];
                self.stream.read_exact(&mut bytes).ok()?;
                assert!(bytes.ends_with(b"\r\n"));
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            "*" => Reply::Array(many(self, number())?),
            "%" => Reply::Map(many(self, 2 * number())?),
            "~" => Reply::Set(many(self, number())?),
            ">" => Reply::Push(many(self, number())?),
            _ => panic!("{line} is no reply"),
        })
    }
}
