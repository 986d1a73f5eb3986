//! A client that speaks as much of Redis' protocol as the demo needs.

use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// No reply takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Client {
    input: BufReader<TcpStream>,
    output: BufWriter<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { input: BufReader::new(stream.try_clone()?), output: BufWriter::new(stream) })
    }

    /// The connection, to end it from elsewhere.
    pub fn end(&self) -> Result<TcpStream> {
        Ok(self.input.get_ref().try_clone()?)
    }

    /// Sends a command, sooner or later.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        write!(self.output, "*{}\r\n", args.len())?;
        for arg in args.iter().map(AsRef::as_ref) {
            write!(self.output, "${}\r\n", arg.len())?;
            self.output.write_all(arg)?;
            self.output.write_all(b"\r\n")?;
        }
        Ok(())
    }

    /// Sends all that is not sent yet.
    pub fn flush(&mut self) -> Result<()> {
        Ok(self.output.flush()?)
    }

    /// The next reply, without ends of lines: of a string, `$` and the bytes.
    pub fn reply(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.input.read_until(b'\n', &mut line)?;
        ensure!(line.ends_with(b"\r\n"), "the connection has ended");
        line.truncate(line.len() - 2);
        let Some(len) = line.strip_prefix(b"$").filter(|len| *len != b"-1") else { return Ok(line) };
        let len: usize = std::str::from_utf8(len)?.parse()?;
        let mut bytes = vec![0; len + 2];
        self.input.read_exact(&mut bytes)?;
        bytes.truncate(len);
        Ok([b"$", &*bytes].concat())
    }

    /// Sends a command that is answered with a number.
    pub fn integer(&mut self, words: &[&str]) -> Result<u64> {
        self.send(words)?;
        self.flush()?;
        let reply = self.reply()?;
        let number =
            reply.strip_prefix(b":").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        number.with_context(|| format!("{words:?} is answered with {}", reply.escape_ascii()))
    }
}
