//! Server and client in one process, over a link that does as a NIC does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use pmbench::load::{LoadEvent, Summary};
use pmbench::protocol::{Mark, Mode, ServerCommand, ServerEvent};
use pmem::{Options, Region};

const EAL: [&str; 6] = ["--", "--no-huge", "-m", "256", "--no-shconf", "--no-telemetry"];

fn command(mode: Mode, store: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmbench"));
    command.args(["ring", "--mode", &mode.to_string(), "--pm"]).arg(store);
    if !more.contains(&"--pm-size") {
        command.args(["--pm-size", "32MiB"]);
    }
    command.args(["--connections", "8", "--seconds", "0.3", "--warmup", "0.1"]).args(more).args(EAL);
    command
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A process of both, as the program that measures sees it.
struct Both {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Both {
    fn start(mode: Mode, store: &Path, size: u32) -> Self {
        let mut command = command(mode, store, &["--json", "--linger", "--size", &size.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let input = child.stdin.take().expect("it was asked for");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).expect("lines"), 0, "it ended");
        line
    }

    fn summary(&mut self) -> Summary {
        loop {
            let line = self.line();
            if let Ok(LoadEvent::Finished(summary)) = serde_json::from_str(&line) {
                return summary;
            }
        }
    }

    fn mark(&mut self) -> Mark {
        writeln!(self.input, "{}", ServerCommand::Mark(7)).expect("it listens");
        let line = self.line();
        match serde_json::from_str(&line) {
            Ok(ServerEvent::Mark(mark)) => mark,
            other => panic!("{other:?} in {line}"),
        }
    }

    fn stop(mut self) {
        writeln!(self.input, "{}", ServerCommand::Stop).expect("it listens");
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the client was told is kept lies on the medium; returns what the server has done.
fn keeps(mode: Mode, size: u32) -> Mark {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let store = folder.path().join("pm");
    let mut both = Both::start(mode, &store, size);
    let summary = both.summary();
    assert!(summary.requests > 0 && summary.errors.total() == 0, "{summary:?}");
    let mark = both.mark();
    assert!(mark.requests >= summary.requests && mark.errors == 0, "{mark:?} of {summary:?}");
    assert_eq!(mark.payload_bytes, mark.requests * u64::from(size), "{mark:?}");
    assert!(mark.busy_ns.is_some_and(|busy| busy > 0 && busy < mark.time_ns), "{mark:?}");
    both.stop();
    let options = Options { volatile: true, ..Options::default() };
    let shard = Region::open(&store, &options).expect("a store").into_shard().expect("its only shard");
    let expected: Vec<u8> = (0..size).map(|at| b'a' + (at % 26) as u8).collect();
    let records: Vec<u64> = shard.records(0).map(|info| info.seq).collect();
    let (kept, is_trimmed) = (records.len() as u64, shard.head_seq() > 1);
    assert!(kept == mark.requests || is_trimmed && kept > 0, "{kept} records of {mark:?}");
    for seq in records {
        assert!(shard.record(seq).expect("a record").to_vec() == expected, "record {seq} is another");
    }
    mark
}

#[test]
fn paste_keeps_what_came_over_the_ring_where_it_came() {
    for size in [64, 1024, 8192] {
        let mark = keeps(Mode::Paste, size);
        // Short records are copied together, so as not to take a buffer each.
        let copied = if size < 512 { mark.payload_bytes } else { 0 };
        assert_eq!(mark.copied_bytes, copied, "{mark:?}");
        assert!(mark.fences > 0 && mark.fences <= mark.requests + 1, "{mark:?}");
    }
}

#[test]
fn dpdk_copy_keeps_what_came_over_the_ring_with_two_copies() {
    for size in [64, 1024, 8192] {
        let mark = keeps(Mode::DpdkCopy, size);
        assert!(mark.copied_bytes >= 2 * mark.payload_bytes, "{mark:?}");
    }
}

#[test]
fn bounds_answer_over_the_ring_and_keep_nothing() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    for mode in [Mode::PasteEcho, Mode::Limit] {
        let mut both = Both::start(mode, &folder.path().join("pm"), 8192);
        let summary = both.summary();
        let mark = both.mark();
        assert!(summary.requests > 0 && summary.errors.total() == 0, "{mode}: {summary:?}");
        assert!(mark.requests >= summary.requests, "{mode}: {mark:?}");
        assert_eq!((mark.flushed_lines, mark.fences), (0, 0), "{mode}: {mark:?}");
        both.stop();
    }
}

#[test]
fn without_linger_both_end_with_the_clients_report() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let mut command = command(Mode::Paste, &folder.path().join("pm"), &["--profile"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Its input stays open.
    let _input = child.stdin.take();
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("requests  "), "{said}{}", complaint(&output));
    assert!(complaint(&output).contains("flush"), "no stages in {}", complaint(&output));
}

#[test]
fn a_server_that_does_not_start_ends_its_client_too() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    // No store of this size holds a receive queue.
    let mut small = command(Mode::Paste, &folder.path().join("pm"), &["--pm-size", "2MiB"]);
    let output = lab::output_within(&mut small, Duration::from_secs(60)).expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", complaint(&output));
    assert!(complaint(&output).contains("make a larger store"), "{}", complaint(&output));
}

#[test]
fn a_mode_without_a_port_has_no_ring() {
    let output = command(Mode::Kcm, Path::new("memory:"), &[]).output().expect("it ends");
    assert_eq!(output.status.code(), Some(2), "{}", complaint(&output));
    assert!(
        complaint(&output).contains("choose dpdk-copy, paste, paste-echo or limit"),
        "{}",
        complaint(&output)
    );
}
