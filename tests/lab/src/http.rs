//! An HTTP/1.1 client that shows what is on the wire: raw requests, pipelining, replies in order.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order of the wire.
    pub headers: Vec<(String, String)>,
    /// The body, without chunk framing.
    pub body: Vec<u8>,
}

impl Reply {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The sequence number that a 200 to an append tells.
    ///
    /// # Errors
    /// It is not such a reply.
    pub fn seq(&self) -> Result<u64> {
        ensure!(self.status == 200, "status {}: {}", self.status, String::from_utf8_lossy(&self.body));
        self.json()?["seq"].as_u64().context("no seq in the reply")
    }

    /// The name of the record that a 200 to an append tells of: its number, behind that of its shard where a store
    /// has several.
    ///
    /// # Errors
    /// It is not such a reply.
    pub fn record(&self) -> Result<String> {
        let seq = self.seq()?;
        Ok(match self.json()?["shard"].as_u64() {
            Some(shard) => format!("{shard}-{seq}"),
            None => seq.to_string(),
        })
    }
}

/// One connection to a server.
pub struct Connection {
    stream: TcpStream,
    /// Bytes received and not yet part of a reply.
    ahead: Vec<u8>,
}

impl Connection {
    /// Connects; reads and writes then wait no longer than 20 s.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, ahead: Vec::new() };
        connection.set_patience(Duration::from_secs(20))?;
        Ok(connection)
    }

    /// How long a read or a write waits.
    ///
    /// # Errors
    /// It is zero.
    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        Ok(self.stream.set_write_timeout(Some(patience))?)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Sends a `POST /append` of `body`, without waiting for the reply.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_append(&mut self, body: &[u8]) -> Result<()> {
        let head = format!("POST /append HTTP/1.1\r\nHost: lab\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.send(&request)
    }

    /// Sends a `GET`, without waiting for the reply.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_get(&mut self, path: &str) -> Result<()> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())
    }

    /// Posts `body` and waits for the reply.
    ///
    /// # Errors
    /// No reply.
    pub fn append(&mut self, body: &[u8]) -> Result<Reply> {
        self.send_append(body)?;
        self.reply()
    }

    /// Gets `path` and waits for the reply.
    ///
    /// # Errors
    /// No reply.
    pub fn get(&mut self, path: &str) -> Result<Reply> {
        self.send_get(path)?;
        self.reply()
    }

    /// Closes this side's half.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Whether the server has closed its half, without a byte more. Waits for it.
    ///
    /// # Errors
    /// It sent more, reset the connection, or did nothing.
    pub fn expect_end(&mut self) -> Result<()> {
        ensure!(self.ahead.is_empty(), "more bytes than replies");
        let read = self.stream.read(&mut [0])?;
        ensure!(read == 0, "a byte more instead of the end");
        Ok(())
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next reply to a request other than HEAD.
    ///
    /// # Errors
    /// The connection ended, or what came is not HTTP.
    pub fn reply(&mut self) -> Result<Reply> {
        let mut reply = loop {
            if let Some((reply, length)) = parse_head(&self.ahead)? {
                self.ahead.drain(..length);
                break reply;
            }
            self.read_more()?;
        };
        if reply.status < 200 {
            return Ok(reply);
        }
        if reply.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.chunks(&mut reply.body)?;
        } else {
            let length = reply.header("content-length").context("a reply without a length")?.parse()?;
            reply.body = self.take(length)?;
        }
        Ok(reply)
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Result<()> {
        loop {
            let end = loop {
                match self.ahead.windows(2).position(|pair| pair == b"\r\n") {
                    Some(end) => break end,
                    None => self.read_more()?,
                }
            };
            let line = self.take(end + 2)?;
            let size = usize::from_str_radix(std::str::from_utf8(&line[..end])?.trim(), 16)?;
            body.extend(self.take(size)?);
            ensure!(self.take(2)? == b"\r\n", "a chunk does not end where its size says");
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.ahead.len() < length {
            self.read_more()?;
        }
        let rest = self.ahead.split_off(length);
        Ok(std::mem::replace(&mut self.ahead, rest))
    }

    fn read_more(&mut self) -> Result<()> {
        let mut bytes = [0; 64 * 1024];
        let read = self.stream.read(&mut bytes)?;
        if read == 0 {
            bail!("the connection ended within a reply: {:?}", String::from_utf8_lossy(&self.ahead));
        }
        self.ahead.extend_from_slice(&bytes[..read]);
        Ok(())
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Reply, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes)? else { return Ok(None) };
    let headers = response
        .headers
        .iter()
        .map(|header| Ok((header.name.to_ascii_lowercase(), std::str::from_utf8(header.value)?.to_owned())));
    let reply = Reply {
        status: response.code.context("a reply without a status")?,
        headers: headers.collect::<Result<_>>()?,
        body: Vec::new(),
    };
    Ok(Some((reply, length)))
}
