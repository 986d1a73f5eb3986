//! The examples as their readers start them, over real sockets.

use std::env::current_exe;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A running example; killed when dropped.
struct Example {
    child: Child,
    address: SocketAddr,
    /// What it says after its first line.
    output: BufReader<ChildStdout>,
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
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("its first line");
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("{name} said {line:?}")), output }
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

#[test]
fn echo_sends_back_datagrams() {
    let echo = Example::start("echo", "memory:");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(echo.address).expect("an address");
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    for len in [0, 1, 2_000] {
        client.send(&vec![7; len]).expect("it is there");
        let mut answer = [0; 3_000];
        let got = client.recv(&mut answer).expect("an answer");
        assert_eq!(answer[..got], vec![7; len]);
    }
}

/// The number of durable messages in a line of syslog's.
fn durable(line: &str) -> Option<u64> {
    line.split_once(" durable")?.0.parse().ok()
}

/// What syslog has said is durable is there, whenever it is killed; what is no message is not.
#[test]
fn syslog_has_after_a_crash_what_it_said_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("syslog.pm");
    let mut syslog = Example::start("syslog", path(&store));
    let port = syslog.address.port().to_string();
    let logger = Command::new("logger")
        .args([
            "--udp",
            "--server",
            "127.0.0.1",
            "--port",
            &port,
            "--tag",
            "test",
            "--priority",
            "user.notice",
        ])
        .arg("by logger")
        .status();
    assert!(logger.expect("bsdutils has it").success());
    let mut line = String::new();
    syslog.output.read_line(&mut line).expect("it says so");
    assert_eq!(line, "1 durable, 0 refused\n");

    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(syslog.address).expect("an address");
    let mut sent = 0_u32;
    let mut durable_messages = 0;
    while durable_messages < 2_000 {
        for _ in 0..50 {
            client.send(b"no message").expect("it is there");
            client.send(format!("<13>message {sent}").as_bytes()).expect("it is there");
            sent += 1;
        }
        line.clear();
        syslog.output.read_line(&mut line).expect("it goes on");
        durable_messages = durable(&line).expect("a number");
    }
    syslog.child.kill().expect("it runs");
    let mut rest = String::new();
    syslog.output.read_to_string(&mut rest).expect("text");
    // The last line may have been cut off.
    let lines = rest.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let durable_messages = lines.filter_map(durable).next_back().unwrap_or(durable_messages);
    drop(syslog);

    let options = pmem::Options::default();
    let shard = pmem::Region::open(&store, &options).expect("a store").into_shard().expect("its records");
    let records: Vec<_> = shard.records(shard.head_seq()).collect();
    assert!(records.len() as u64 >= durable_messages, "{} of {durable_messages} are there", records.len());
    let texts = records.iter().map(|info| shard.record(info.seq).expect("it is there").to_vec());
    let texts: Vec<_> = texts.map(|text| String::from_utf8(text).expect("text")).collect();
    assert!(texts[0].starts_with("<13>") && texts[0].contains("by logger"), "{}", texts[0]);
    let number = |text: &String| text.strip_prefix("<13>message ").and_then(|number| number.parse().ok());
    let numbers: Option<Vec<u32>> = texts[1..].iter().map(number).collect();
    let numbers = numbers.expect("each is a message");
    assert!(numbers.is_sorted_by(|one, next| one < next), "each is there once, in order");
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
