//! One process per test, as the EAL starts once per process; and memory to lend to devices.

#![allow(dead_code, unsafe_code, reason = "each test binary uses its own part; mapping a file needs unsafe")]

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dpdk::{
    Eal, ExternalArea, ExternalPool, ExternalPoolConfig, Mbuf, MbufBatch, Pool, Port, PortConfig, PortId,
    RxQueue, TxQueue,
};

/// DPDK's default: 128 bytes of headroom and 2048 of data.
pub const BUFFER_BYTES: usize = 2176;

const CASE: &str = "DPDK_TEST_CASE";
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `body` in a process of its own; `name` is the test's name.
pub fn isolated(name: &str, body: impl FnOnce()) {
    isolated_within(&[], name, body);
}

/// As [`isolated`], as root of a user, mount and network namespace of its own.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    isolated_within(&["unshare", "-Urnm"], name, body);
}

/// As [`isolated`], without any capability.
pub fn unprivileged(name: &str, body: impl FnOnce()) {
    isolated_within(&["unshare", "-U"], name, body);
}

fn isolated_within(wrapper: &[&str], name: &str, body: impl FnOnce()) {
    if std::env::var_os(CASE).is_some_and(|case| case == *name) {
        return body();
    }
    let test = std::env::current_exe().expect("the test's own path");
    let mut words: Vec<&str> = wrapper.to_vec();
    words.extend([test.to_str().expect("a path in UTF-8"), name, "--exact", "--nocapture"]);
    let output = Command::new(words[0]).args(&words[1..]).env(CASE, name).output().expect("the test runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{name}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Starts the EAL with a small memory of its own, so that tests do not compete for hugepages.
pub fn eal() -> Eal {
    Eal::init(["--no-huge", "--no-shconf", "-m", "128"]).expect("the EAL starts")
}

/// Runs a program to its end and insists that it succeeds.
pub fn run(program: &str, arguments: &str) -> Output {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect("the program runs");
    assert!(
        output.status.success(),
        "{program} {arguments}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Polls until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = condition() {
            return result;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::yield_now();
    }
}

/// A new file, mapped and registered, and cut into buffers.
pub fn file_buffers(eal: Eal, path: &Path, count: usize) -> (ExternalArea, Vec<&'static mut [u8]>) {
    let len = (count * BUFFER_BYTES).next_multiple_of(4096);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).expect("a new file");
    // SAFETY: the descriptor is open.
    let allocated = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as i64) };
    assert_eq!(allocated, 0, "room for {len} bytes in {}", path.display());
    // SAFETY: nothing else changes the file but the devices that its parts are lent to.
    let mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("a mapping");
    let bytes: &'static mut [u8] = &mut Box::leak(Box::new(mapping))[..];
    #[expect(clippy::disallowed_methods, reason = "memory of the test's own")]
    let area = ExternalArea::register(eal, bytes.as_ptr(), bytes.len()).expect("an area");
    (area, bytes.chunks_exact_mut(BUFFER_BYTES).take(count).collect())
}

/// A pool of `mbufs` over a new file, and `spares` more buffers from it.
pub fn file_pool(
    eal: Eal,
    path: &Path,
    mbufs: usize,
    spares: usize,
) -> (ExternalPool, Vec<&'static mut [u8]>) {
    file_pool_with(eal, path, mbufs, spares, 0)
}

/// As [`file_pool`], with a cache of so many mbufs for each lcore.
pub fn file_pool_with(
    eal: Eal,
    path: &Path,
    mbufs: usize,
    spares: usize,
    cache: u32,
) -> (ExternalPool, Vec<&'static mut [u8]>) {
    let (area, mut buffers) = file_buffers(eal, path, mbufs + spares);
    let spares = buffers.split_off(mbufs);
    let config = ExternalPoolConfig { cache, socket: None };
    (ExternalPool::new(eal, "pm", area, buffers, &config).expect("a pool over the file"), spares)
}

/// A started port whose only receive queue is over `pool`.
pub fn start(id: PortId, pool: &Pool) -> (Port, RxQueue, TxQueue) {
    let mut port =
        Port::start(id, &PortConfig::default(), std::slice::from_ref(pool)).expect("a started port");
    let (rx, tx) = (port.rx_queue(0).expect("its queue"), port.tx_queue(0).expect("its queue"));
    (port, rx, tx)
}

/// Payload that says whose it is, counts how many of its kind are alive, and may only be owned by its own thread.
pub struct Payload {
    pub number: u64,
    pub bytes: Vec<u8>,
    alive: Rc<Cell<usize>>,
}

impl Payload {
    pub fn new(number: u64, len: usize, alive: &Rc<Cell<usize>>) -> Self {
        alive.set(alive.get() + 1);
        Self { number, bytes: payload_bytes(number, len), alive: alive.clone() }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

/// What payload of that number and length consists of.
pub fn payload_bytes(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|place| (number.wrapping_mul(7) ^ place) as u8).collect()
}

/// Sends the whole batch.
pub fn send_all(tx: &mut TxQueue, batch: &mut MbufBatch) {
    wait_for("the device to take all packets", || {
        tx.burst(batch);
        batch.is_empty().then_some(())
    });
}

/// Receives at least one packet.
pub fn receive(rx: &mut RxQueue, batch: &mut MbufBatch) {
    wait_for("a packet", || (rx.burst(batch) > 0).then_some(()));
}

/// The packet's bytes over all segments.
pub fn contents(packet: &Mbuf) -> Vec<u8> {
    packet.segments().flatten().copied().collect()
}

/// A frame of `len` bytes that no other number gives.
pub fn numbered_frame(number: u64, len: usize) -> Vec<u8> {
    let mut frame = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5".to_vec();
    frame.extend_from_slice(&number.to_le_bytes());
    while frame.len() < len {
        frame.push((number as usize).wrapping_mul(31).wrapping_add(frame.len()) as u8);
    }
    frame
}
