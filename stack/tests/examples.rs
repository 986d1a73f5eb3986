//! The examples as their readers start them, over real sockets.

use std::env::current_exe;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running example; killed when dropped.
struct Example {
    child: Child,
    address: SocketAddr,
}

impl Example {
    fn program(name: &str) -> PathBuf {
        // Cargo builds the examples of a package before its tests, beside the folder that holds those.
        let test = current_exe().expect("the test has a file");
        let folder = test.ancestors().nth(2).map(|target| target.join("examples")).expect("a target folder");
        folder.join(name)
    }

    fn start(name: &str, pm: &str) -> Self {
        let mut command = Command::new(Self::program(name));
        command.args(["--pm", pm, "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the example is built");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("its first line");
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("{name} said {line:?}")) }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("it listens");
        client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        client
    }

    /// What comes back for `bytes`, until the other side has finished too.
    fn ask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut client = self.connect();
        let mut answer = Vec::new();
        std::thread::scope(|scope| {
            let mut writer = client.try_clone().expect("a descriptor");
            scope.spawn(move || {
                writer.write_all(bytes).expect("it reads");
                writer.shutdown(Shutdown::Write).expect("a connection");
            });
            client.read_to_end(&mut answer).expect("it finishes");
        });
        answer
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn logger_answers_each_line_with_its_number_and_goes_on_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("lines.pm");
    let logger = Example::start("logger", path(&store));
    assert_eq!(logger.ask(b"one line\nand another\nno line"), b"1\n2\n");
    let mut client = logger.connect();
    for piece in ["in ", "pieces", "\n"] {
        client.write_all(piece.as_bytes()).expect("it reads");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = [0; 2];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"3\n");
    drop(logger);

    let logger = Example::start("logger", path(&store));
    assert_eq!(logger.ask(b"after the crash\n"), b"4\n");
    drop(logger);
    let options = pmem::Options::default();
    let shard = pmem::Region::open(&store, &options).expect("a store").into_shard().expect("its records");
    let lines = ["one line\n", "and another\n", "in pieces\n", "after the crash\n"];
    for (seq, line) in (1..).zip(lines) {
        assert_eq!(shard.record(seq).expect("it was acknowledged").to_vec(), line.as_bytes());
    }
}

#[test]
fn a_full_log_forgets_its_oldest_lines_and_goes_on() {
    let logger = Example::start("logger", "memory:");
    let line = [&[b'x'; 30_000][..], b"\n"].concat();
    // Far more than the store holds.
    let (rounds, lines) = (30, 100);
    let mut last = 0;
    for round in 0..rounds {
        let answer = String::from_utf8(logger.ask(&line.repeat(lines))).expect("numbers");
        assert_eq!(answer.lines().count(), lines, "round {round}");
        for seq in answer.lines().map(|seq| seq.parse::<u64>().expect("a number")) {
            assert!(seq > last, "{seq} comes after {last}");
            last = seq;
        }
    }
}

#[test]
fn echo_sends_back_what_comes() {
    let echo = Example::start("echo", "memory:");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert!(echo.ask(&bytes) == bytes, "other bytes came back");
}

/// Linux' TCP acknowledges by itself: who asks for more is told what does it, and nothing is served or made.
#[test]
fn raw_log_does_not_pretend_that_linux_waits_until_bytes_are_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("raw.pm");
    let output = Command::new(Example::program("raw_log"))
        .args(["--pm", path(&store), "--listen", "127.0.0.1:0"])
        .output()
        .expect("the example is built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--dev") && said.contains("--features dpdk"), "{said}");
    assert!(!store.exists());
}
