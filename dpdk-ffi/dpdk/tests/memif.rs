//! Two processes over memif: as with a NIC, frames are copied into named buffers from outside.

mod support;

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use dpdk::{Completions, Eal, MbufBatch, Pool, PoolConfig, Port, RxQueue, TxQueue};
use support::{contents, isolated, numbered_frame, receive, send_all, wait_for};

const FRAMES: u64 = 20_000;
const SENDER_FOLDER: &str = "DPDK_TEST_SENDER";
const NAME: &str = "frames_from_another_process_land_in_the_file";

fn frame_len(number: u64) -> usize {
    60 + (number * 37 % 1400) as usize
}

fn started(eal: Eal, folder: &Path, role: &str, pool: &Pool) -> (Port, RxQueue, TxQueue) {
    let socket = folder.join("memif.sock");
    let device = format!("net_memif0,role={role},id=1,socket={},socket-abstract=no", socket.display());
    let id = eal.attach(&device).expect("a memif port");
    let (port, rx, tx) = support::start(id, pool);
    wait_for("the other side", || port.link().expect("a link state").up.then_some(()));
    (port, rx, tx)
}

/// Sends numbered frames, their bodies attached, and then waits to be told that all have arrived.
fn sender(folder: &Path) {
    let eal = support::eal();
    let pool =
        Pool::dram(eal, "headers", &PoolConfig { mbufs: 1023, cache: 0, ..PoolConfig::default() }).unwrap();
    let mut completions = Completions::new(eal, "tails", 256, None).unwrap();
    let (_port, mut rx, mut tx) = started(eal, folder, "client", &pool);
    let mut batch = MbufBatch::new();
    let mut returned = vec![0_u32; FRAMES as usize];
    let mut count = |completions: &mut Completions<Vec<u8>>| {
        completions.drain(|body| returned[u64::from_le_bytes(body[..8].try_into().unwrap()) as usize] += 1)
    };
    for number in 0..FRAMES {
        let frame = numbered_frame(number, frame_len(number));
        let (header, body) = frame.split_at(14);
        let mut packet = pool.alloc().unwrap();
        packet.append(header.len()).unwrap().copy_from_slice(header);
        completions.attach(&mut packet, body.to_vec()).unwrap();
        batch.push(packet).unwrap();
        if batch.len() == 32 || number + 1 == FRAMES {
            send_all(&mut tx, &mut batch);
            count(&mut completions);
            // One burst at a time is in flight: nothing is dropped where the receiver is slow.
            receive(&mut rx, &mut batch);
            batch.clear();
        }
    }
    wait_for("all bodies to come back", || {
        tx.reclaim();
        count(&mut completions);
        (completions.outstanding() == 0).then_some(())
    });
    assert!(returned.iter().all(|times| *times == 1), "each body comes back exactly once");
    assert_eq!((tx.rejected(), pool.available()), (0, 1023));
}

fn start_sender(folder: &Path) -> Child {
    let test = env::current_exe().unwrap();
    let arguments = [NAME, "--exact", "--nocapture"];
    Command::new(test).args(arguments).env(SENDER_FOLDER, folder).spawn().unwrap()
}

#[test]
fn frames_from_another_process_land_in_the_file() {
    if let Some(folder) = env::var_os(SENDER_FOLDER) {
        return sender(Path::new(&folder));
    }
    isolated(NAME, || {
        const MBUFS: usize = 2047;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pm");
        let eal = support::eal();
        let (pool, mut spares) = support::file_pool(eal, &file, MBUFS, 64);
        let mut sender = start_sender(folder.path());
        let (port, mut rx, mut tx) = started(eal, folder.path(), "server", &pool);
        let mut batch = MbufBatch::new();
        let mut received = 0;
        while received < FRAMES {
            receive(&mut rx, &mut batch);
            for packet in &mut batch {
                let expected = numbered_frame(received, frame_len(received));
                assert!(contents(packet) == expected, "frame {received}");
                let offset = packet.data_offset();
                let buffer = pool.swap(packet, spares.remove(0)).unwrap();
                assert_eq!(buffer[offset..offset + expected.len()], expected);
                spares.push(buffer);
                received += 1;
            }
            batch.clear();
            if received % 32 == 0 || received == FRAMES {
                let mut permit = pool.alloc().unwrap();
                permit.append(60).unwrap().fill(0);
                batch.push(permit).unwrap();
                send_all(&mut tx, &mut batch);
            }
        }
        let last = numbered_frame(FRAMES - 1, frame_len(FRAMES - 1));
        let bytes = fs::read(&file).unwrap();
        assert!(bytes.windows(last.len()).any(|window| window == last), "the last frame lies in the file");
        assert!(sender.wait().unwrap().success(), "the sender found an error");
        drop((port, rx, tx));
        assert_eq!((pool.available(), spares.len()), (MBUFS, 64));
    });
}
