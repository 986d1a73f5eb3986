//! The client's side of HTTP/1.1, as far as this server speaks it: requests that are sent ahead, and bodies as they come.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether a signal has come meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Of a reply's head, and of a line in a body.
const MAX_LINE_BYTES: u64 = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host and port, as they are connected to.
    host: String,
    port: u16,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write where the server is as http://HOST or http://HOST:PORT".to_owned();
        let authority = text.strip_prefix("http://").ok_or_else(bad)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (authority, 80),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', '[', ']', ' ']);
        if is_host { Ok(Self { host: host.to_owned(), port }) } else { Err(bad()) }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

/// Why a server could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no way to it.
    #[error("cannot connect to {url}; is pmlog serving there?")]
    Connect {
        /// Where.
        url: Url,
        /// Why.
        source: io::Error,
    },
    /// The connection ended, or took too long.
    #[error("the connection to {url} broke off")]
    Broken {
        /// Where.
        url: Url,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{url} answered {status}: {reason}")]
    Refused {
        /// Where.
        url: Url,
        /// The status.
        status: u16,
        /// Its reason.
        reason: String,
    },
    /// What answers does not speak as pmlog does.
    #[error("what {url} answers is not what pmlog says: {what}")]
    Strange {
        /// Where.
        url: Url,
        /// What is wrong.
        what: String,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

/// One connection to a server.
#[derive(Debug)]
pub struct Connection {
    url: Url,
    stream: BufReader<Patient>,
}

/// A stream whose reads and writes look for signals.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
}

impl Patient {
    fn try_until<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let begun = Instant::now();
        loop {
            match attempt() {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                done => return done,
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other(Stopped));
            }
            if begun.elapsed() >= PATIENCE {
                let why = format!("nothing has come for {} s", PATIENCE.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Stopped;

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.try_until(|| (&self.stream).read(into))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_until(|| (&self.stream).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The head of a reply.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The shard that takes what is appended over this connection, where there are several.
    pub shard: Option<u32>,
    length: Option<u64>,
}

#[derive(Deserialize)]
struct Reason {
    error: String,
}

impl Connection {
    /// Connects. `stop` ends all waiting.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn open(url: &Url, stop: &Arc<AtomicBool>) -> Result<Self, ClientError> {
        let refused = |source| ClientError::Connect { url: url.clone(), source };
        let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
        for address in (url.host.as_str(), url.port).to_socket_addrs().map_err(refused)? {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(LOOK_EVERY))?;
                stream.set_write_timeout(Some(LOOK_EVERY))?;
                Ok(stream)
            });
            match stream {
                Ok(stream) => {
                    let stream = Patient { stream, stop: stop.clone() };
                    return Ok(Self { url: url.clone(), stream: BufReader::with_capacity(1 << 18, stream) });
                }
                Err(error) => last = error,
            }
        }
        Err(refused(last))
    }

    /// Asks for something that takes no body, without waiting for the reply.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub fn get(&mut self, target: &str) -> Result<(), ClientError> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.authority());
        self.send(head.as_bytes())
    }

    /// Appends a record, without waiting for the reply.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub fn append(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let length = body.len();
        let head = format!(
            "POST /append HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n",
            self.authority()
        );
        self.send(&[head.as_bytes(), body].concat())
    }

    fn authority(&self) -> String {
        self.url.to_string().split_off("http://".len())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = self.stream.get_mut().write_all(bytes);
        sent.map_err(|source| self.broken(source))
    }

    /// The head of the next reply that is no refusal. Its body follows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn head(&mut self) -> Result<Head, ClientError> {
        let head = self.any_head()?;
        if head.status == 200 {
            return Ok(head);
        }
        let mut text = Vec::new();
        let length = head.length.unwrap_or(0).min(MAX_LINE_BYTES);
        let read = self.stream.by_ref().take(length).read_to_end(&mut text);
        read.map_err(|source| self.broken(source))?;
        let reason = match serde_json::from_slice::<Reason>(&text) {
            Ok(Reason { error }) => error,
            Err(_) => String::from_utf8_lossy(&text).into_owned(),
        };
        Err(ClientError::Refused { url: self.url.clone(), status: head.status, reason })
    }

    fn any_head(&mut self) -> Result<Head, ClientError> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let room = MAX_LINE_BYTES - text.len() as u64;
            let read = self.stream.by_ref().take(room).read_until(b'\n', &mut text);
            match read.map_err(|source| self.broken(source))? {
                0 if text.len() as u64 == MAX_LINE_BYTES => return Err(self.strange("a head without an end")),
                0 => return Err(self.broken(ErrorKind::UnexpectedEof.into())),
                _ => {}
            }
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let status = match head.parse(&text) {
            Ok(httparse::Status::Complete(_)) => head.code,
            _ => None,
        };
        let Some(status) = status else { return Err(self.strange("no HTTP")) };
        let value = |name: &str| {
            let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        Ok(Head {
            status,
            shard: value("Log-Shard").and_then(|shard| shard.parse().ok()),
            length: value("Content-Length").and_then(|length| length.parse().ok()),
        })
    }

    /// The body of a reply, as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn json<T: for<'a> Deserialize<'a>>(&mut self, head: &Head) -> Result<T, ClientError> {
        let mut text = Vec::new();
        let read = match head.length {
            Some(length) => self.stream.by_ref().take(length).read_to_end(&mut text),
            None => self.chunks().read_to_end(&mut text),
        };
        read.map_err(|source| self.broken(source))?;
        serde_json::from_slice(&text).map_err(|error| self.strange(&error.to_string()))
    }

    /// The body of a reply that comes in chunks.
    pub fn chunks(&mut self) -> BufReader<Chunks<'_>> {
        BufReader::with_capacity(1 << 16, Chunks { stream: &mut self.stream, left: 0, is_ended: false })
    }

    /// What an error of a stream means.
    pub fn broken(&self, source: io::Error) -> ClientError {
        if source.get_ref().is_some_and(|inner| inner.is::<Stopped>()) {
            return ClientError::Interrupted;
        }
        ClientError::Broken { url: self.url.clone(), source }
    }

    /// The server says what it should not.
    pub fn strange(&self, what: &str) -> ClientError {
        ClientError::Strange { url: self.url.clone(), what: what.to_owned() }
    }
}

/// A body, out of its chunks.
#[derive(Debug)]
pub struct Chunks<'a> {
    stream: &'a mut BufReader<Patient>,
    left: u64,
    is_ended: bool,
}

impl Chunks<'_> {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.is_ended {
            return Ok(0);
        }
        if self.left == 0 {
            let size = self.line()?;
            let size = size.split(';').next().unwrap_or_default();
            self.left = u64::from_str_radix(size, 16)
                .map_err(|_| io::Error::new(ErrorKind::InvalidData, "a chunk without a size"))?;
            if self.left == 0 {
                self.is_ended = true;
                self.line()?;
                return Ok(0);
            }
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.stream.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        if self.left == 0 && !self.line()?.is_empty() {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "a chunk that does not end where its size says",
            ));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_perhaps_a_port() {
        for (text, shown) in [
            ("http://log.example", "http://log.example:80"),
            ("http://log.example/", "http://log.example:80"),
            ("http://10.0.0.2:8080", "http://10.0.0.2:8080"),
            ("http://[fd00::2]", "http://[fd00::2]:80"),
            ("http://[fd00::2]:8080/", "http://[fd00::2]:8080"),
        ] {
            assert_eq!(text.parse::<Url>().expect("a good one").to_string(), shown);
        }
        for text in
            ["log.example", "https://log", "http://", "http://log/append", "http://log:x", "http://a@b"]
        {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
