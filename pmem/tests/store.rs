//! Making and opening stores in files and memory: what is created, what is refused, and what stays untouched.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{append, contents, payload, store, tiny};
use pmem::{
    AppendError, Contents, Domain, Full, Kind, LineModel, MEMORY, Medium, OpenError, Options, Region, Shard,
    Snapshot, SnapshotEvent,
};

/// A folder on a disk; tests of refused volatile files name tmpfs themselves.
fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn new(size: u64) -> Options {
    Options { size: Some(size), reserve: Some(2), ..Options::default() }
}

fn open(path: &Path, options: &Options) -> Result<Region, OpenError> {
    Region::open(path, options)
}

#[test]
fn a_file_is_made_without_holes_and_opened_again_with_its_records() {
    let dir = disk();
    let path = dir.path().join("store");
    let region = open(&path, &new(1 << 20)).unwrap();
    let info = region.info().clone();
    assert!(info.is_new);
    assert_eq!((info.kind, info.domain), (Kind::File, Domain::Msync));
    assert_eq!(info.geometry.region_bytes, 1 << 20);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 1 << 20);
    assert!(meta.blocks() * 512 >= 1 << 20, "{} blocks", meta.blocks());
    let mut shard = region.into_shard().unwrap();
    let seqs = [store(&mut shard, &payload(1, 100_000), 1448), store(&mut shard, b"short", 1448)];
    shard.checkpoint().unwrap();
    drop(shard);

    for options in [Options::default(), new(1 << 20)] {
        let region = open(&path, &options).unwrap();
        assert_eq!((region.info().is_new, region.info().uuid), (false, info.uuid));
        assert_eq!(region.info().geometry, info.geometry);
        let shard = region.into_shard().unwrap();
        assert_eq!(contents(&shard), [(seqs[0], payload(1, 100_000)), (seqs[1], b"short".to_vec())]);
        assert_eq!(shard.recovery().records, 2);
    }
}

#[test]
fn the_description_says_what_was_found() {
    let dir = disk();
    let path = dir.path().join("store");
    let text = open(&path, &new(1 << 20)).unwrap().info().to_string();
    for part in ["store", "regular file", "msync", "new store", "1 MiB", "1 shard(s)", "2176"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_new_store_needs_a_size_and_leaves_nothing_without() {
    let dir = disk();
    let path = dir.path().join("store");
    assert!(matches!(open(&path, &Options::default()), Err(OpenError::NoSize { .. })));
    assert!(!path.exists());
    assert!(matches!(Region::open(MEMORY, &Options::default()), Err(OpenError::NoSize { .. })));
}

#[test]
fn a_region_that_is_too_small_says_how_large_it_must_be() {
    let dir = disk();
    let path = dir.path().join("store");
    let error = open(&path, &new(8192)).map(|_| ()).unwrap_err();
    assert!(!path.exists(), "no half-made file");
    let text = error.to_string();
    assert!(text.contains("8192 bytes are too few"), "{text}");
    let needed: u64 = text.split("at least ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(open(&path, &new(needed - 4096)).is_err());
    assert!(open(&path, &new(needed)).is_ok());
}

#[test]
fn what_is_not_a_store_is_left_alone() {
    let dir = disk();
    let path = dir.path().join("precious");
    let mut late = vec![0; 1 << 20];
    late[900_000] = 1;
    for bytes in [b"my thesis".to_vec(), vec![0xa5; 1 << 20], late] {
        fs::write(&path, &bytes).unwrap();
        for size in [None, Some(bytes.len() as u64)] {
            let error = open(&path, &Options { size, ..Options::default() }).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
            assert!(error.to_string().contains("left alone"), "{error}");
        }
        assert!(fs::read(&path).unwrap() == bytes);
    }
    let forced = Options { force: true, ..new(1 << 20) };
    assert!(open(&path, &forced).unwrap().info().is_new);
}

#[test]
fn zeros_and_empty_files_become_a_store() {
    let dir = disk();
    let path = dir.path().join("zeros");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    assert!(matches!(open(&path, &new(2 << 20)), Err(OpenError::Mismatch { .. })));
    assert!(open(&path, &Options::default()).unwrap().info().is_new);
    let path = dir.path().join("empty");
    File::create(&path).unwrap();
    assert!(matches!(open(&path, &Options::default()), Err(OpenError::NoSize { .. })));
    assert!(open(&path, &new(1 << 20)).unwrap().info().is_new);
}

#[test]
fn only_force_formats_over_a_store() {
    let dir = disk();
    let path = dir.path().join("store");
    let mut shard = open(&path, &new(1 << 20)).unwrap().into_shard().unwrap();
    store(&mut shard, b"kept", 1448);
    drop(shard);
    for (options, what) in [
        (new(2 << 20), "a size in bytes of 1048576, not 2097152"),
        (Options { shards: Some(2), ..Options::default() }, "a number of shards of 1, not 2"),
        (Options { buffer_bytes: Some(4096), ..Options::default() }, "a buffer length of 2176, not 4096"),
    ] {
        let error = open(&path, &options).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let shard = open(&path, &Options::default()).unwrap().into_shard().unwrap();
    assert_eq!(contents(&shard), [(1, b"kept".to_vec())]);
    drop(shard);
    let force = Options { force: true, ..new(2 << 20) };
    let region = open(&path, &force).unwrap();
    assert!(region.info().is_new);
    assert_eq!(region.info().geometry.region_bytes, 2 << 20);
    let mut shard = region.into_shard().unwrap();
    assert_eq!(contents(&shard), []);
    assert_eq!(store(&mut shard, b"fresh", 1448), 1);
    drop(shard);
    let shard = open(&path, &Options::default()).unwrap().into_shard().unwrap();
    assert_eq!(
        contents(&shard),
        [(1, b"fresh".to_vec())],
        "entries of the old store mean nothing in the new one"
    );
}

/// Changes bytes of a store's file.
fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// A small store with one record in a file.
fn made(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("store");
    let mut shard = open(&path, &new(1 << 20)).unwrap().into_shard().unwrap();
    store(&mut shard, b"record", 1448);
    path
}

/// Where a store of 1 MiB has the second copy of its superblock.
const LAST_BLOCK: u64 = (1 << 20) - 4096;

#[test]
fn another_version_is_refused_and_left_alone() {
    let dir = disk();
    let path = made(&dir);
    let mut copy = fs::read(&path).unwrap()[..256].to_vec();
    copy[8..12].copy_from_slice(&7u32.to_le_bytes());
    copy[12..16].fill(0);
    let crc = crc32c::crc32c(&copy);
    copy[12..16].copy_from_slice(&crc.to_le_bytes());
    let made = fs::read(&path).unwrap();
    // In one copy alone it is no damage that this program may repair.
    let second = LAST_BLOCK;
    for places in [[0, 0], [second, second], [0, second]] {
        for place in [0, second] {
            patch(&path, place, &made[place as usize..][..256]);
        }
        places.iter().for_each(|&place| patch(&path, place, &copy));
        let before = fs::read(&path).unwrap();
        for result in [open(&path, &Options::default()).map(|_| ()), Snapshot::open(&path).map(|_| ())] {
            let error = result.unwrap_err();
            assert!(
                matches!(error, OpenError::Version { found: 7, supported: 2, .. }),
                "{places:?}: {error}"
            );
        }
        assert!(fs::read(&path).unwrap() == before);
    }
}

#[test]
fn one_damaged_superblock_is_repaired_and_two_are_reported() {
    let dir = disk();
    let path = made(&dir);
    for copy in [0, LAST_BLOCK] {
        patch(&path, copy + 40, &[0xff; 8]);
        assert!(Snapshot::open(&path).unwrap().has_damaged_superblock());
        let region = open(&path, &Options::default()).unwrap();
        assert!(region.info().repaired && !region.info().is_new);
        drop(region);
        assert!(Snapshot::open(&path).unwrap().has_damaged_superblock(), "repaired before a shard is open");
        open(&path, &Options::default()).unwrap().into_shard().unwrap();
        assert!(!open(&path, &Options::default()).unwrap().info().repaired);
    }
    for copy in [0, LAST_BLOCK] {
        patch(&path, copy, &[b"PASTE-PM".as_slice(), &[0xff; 504]].concat());
    }
    for result in [open(&path, &Options::default()).map(|_| ()), Snapshot::open(&path).map(|_| ())] {
        let error = result.unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}

/// Of a store that is shorter than what it lies on, the size says where the second copy is.
#[test]
fn a_store_whose_first_block_is_lost_is_found_by_its_last_one() {
    let dir = disk();
    let (path, longer) = (made(&dir), dir.path().join("longer"));
    patch(&path, 0, &[0; 4096]);
    fs::write(&longer, [fs::read(&path).unwrap(), vec![0xee; 300_000]].concat()).unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    assert!(snapshot.has_damaged_superblock() && snapshot.scan(0, |_| {}).unwrap().records == 1);
    drop(snapshot);
    for (path, options) in [(&path, Options::default()), (&longer, new(1 << 20))] {
        let region = open(path, &options).unwrap();
        assert!(region.info().repaired && !region.info().is_new, "{}", region.info());
        assert_eq!(contents(&region.into_shard().unwrap()), [(1, b"record".to_vec())]);
        assert!(!open(path, &Options::default()).unwrap().info().repaired);
    }
    patch(&longer, 0, &[0; 4096]);
    let error = open(&longer, &Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
}

/// A store that was formatted over does not come back when the new one's first block is lost.
#[test]
fn the_last_block_of_an_older_store_is_not_taken_for_that_of_a_shorter_one() {
    let medium: Arc<dyn Medium> = LineModel::new(2 << 20);
    let make = |size: u64| {
        let options = Options { force: true, ..new(size) };
        drop(Region::over(medium.clone(), &options).unwrap().into_shard().unwrap());
    };
    make(2 << 20);
    let old = Region::over(medium.clone(), &Options::default()).unwrap().info().uuid;
    make(1 << 20);
    let region = Region::over(medium.clone(), &Options::default()).unwrap();
    assert!(region.info().uuid != old && region.info().geometry.region_bytes == 1 << 20);
    drop(region);
    // SAFETY: inside of the medium, which nobody has open.
    #[allow(unsafe_code, reason = "the medium changes as a lost block would change it")]
    unsafe {
        medium.store(0, &[0; 4096]);
    }
    let found = Region::over(medium.clone(), &Options::default()).map(|region| region.info().uuid);
    assert!(found.as_ref().is_ok_and(|&uuid| uuid != old) || found.is_err(), "{found:?}");
    let found = Region::over(medium, &Options { size: Some(1 << 20), ..Options::default() }).unwrap();
    assert!(found.info().repaired && found.info().uuid != old, "{}", found.info());
}

#[test]
fn a_file_that_was_cut_off_is_refused_but_can_be_read() {
    let dir = disk();
    let path = made(&dir);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(900_000).unwrap();
    let error = open(&path, &Options::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Truncated { expected: 1_048_576, actual: 900_000, .. }), "{error}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 900_000);
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!(snapshot.missing_bytes(), 148_576);
    let mut bytes = Vec::new();
    snapshot
        .scan(0, |event| match event {
            SnapshotEvent::Record(record) => snapshot.write_record(&record, &mut bytes).unwrap(),
            SnapshotEvent::Corrupt(corruption) => panic!("{corruption}"),
        })
        .unwrap();
    assert_eq!(bytes, b"record");
}

#[test]
fn a_second_user_is_kept_out_until_the_first_is_gone() {
    let dir = disk();
    let path = made(&dir);
    let region = open(&path, &Options::default()).unwrap();
    let locked = |result: Result<(), OpenError>| matches!(result, Err(OpenError::Locked { .. }));
    assert!(locked(open(&path, &Options::default()).map(|_| ())));
    assert!(locked(Snapshot::open(&path).map(|_| ())));
    let shard = region.into_shard().unwrap();
    assert!(locked(open(&path, &Options { force: true, ..new(1 << 20) }).map(|_| ())));
    let extent = shard.arena().take().unwrap().into_extent(0, 10).unwrap();
    drop(shard);
    assert!(locked(open(&path, &Options::default()).map(|_| ())), "a buffer of it is still in use");
    drop(extent);
    let snapshots = [Snapshot::open(&path).unwrap(), Snapshot::open(&path).unwrap()];
    assert!(locked(open(&path, &Options::default()).map(|_| ())), "readers keep writers out");
    drop(snapshots);
    open(&path, &Options::default()).unwrap();
}

/// Opens a store in another process, which this test program runs as.
#[test]
fn another_process_is_kept_out() {
    const STORE: &str = "PMEM_TEST_LOCKED_STORE";
    if let Some(path) = std::env::var_os(STORE) {
        let error = open(path.as_ref(), &Options::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        return;
    }
    let dir = disk();
    let path = made(&dir);
    let _region = open(&path, &Options::default()).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_is_kept_out"])
        .env(STORE, &path)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

/// Runs into a limit that the shell puts on this test program's files.
#[test]
fn a_limit_on_files_is_said_and_leaves_no_file() {
    const STORE: &str = "PMEM_TEST_LIMITED_STORE";
    if let Some(path) = std::env::var_os(STORE) {
        let error = open(path.as_ref(), &new(1 << 20)).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::FileLimit { bytes: 1_048_576, limit: 262_144, .. }), "{error}");
        assert!(error.to_string().contains("ulimit -f"), "{error}");
        assert!(!Path::new(&path).exists());
        // What is there already may be longer.
        let path = Path::new(&path).with_file_name("longer");
        open(&path, &Options::default()).unwrap().into_shard().unwrap();
        let before = fs::read(&path).unwrap();
        let error = open(&path, &Options { force: true, ..new(2 << 20) }).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::FileLimit { .. }), "{error}");
        assert!(fs::read(&path).unwrap() == before);
        return;
    }
    let dir = disk();
    open(&dir.path().join("longer"), &new(1 << 20)).unwrap().into_shard().unwrap();
    let child = std::process::Command::new("sh")
        .args(["-c", r#"ulimit -f 512; exec "$0" --exact a_limit_on_files_is_said_and_leaves_no_file"#])
        .arg(std::env::current_exe().unwrap())
        .env(STORE, dir.path().join("store"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

/// What opens with which options is refused, and leaves a store, its length, its copy with holes, and the folder alone.
#[test]
fn whatever_is_refused_leaves_the_store_as_it_was() {
    let dir = disk();
    let path = made(&dir);
    let before = fs::read(&path).unwrap();
    let base = Options::default();
    let refused = [
        Options { size: Some(4096), ..base.clone() },
        Options { size: Some(2 << 20), ..base.clone() },
        Options { size: Some(1 << 60), ..base.clone() },
        Options { shards: Some(2), ..base.clone() },
        Options { shards: Some(0), ..base.clone() },
        Options { shards: Some(100_000), ..base.clone() },
        Options { buffer_bytes: Some(100), ..base.clone() },
        Options { buffer_bytes: Some(4096), ..base.clone() },
        Options { log_entries: Some(100), ..base.clone() },
        Options { log_entries: Some(1 << 30), ..base.clone() },
    ];
    for options in refused {
        for force in [false, true] {
            // What would make a store if it were forced to.
            let is_possible = options.size == Some(2 << 20)
                || options.shards == Some(2)
                || options.buffer_bytes == Some(4096);
            let options = Options { force, ..options.clone() };
            match open(&path, &options) {
                Ok(region) => {
                    assert!(force && is_possible, "{options:?}");
                    assert!(region.info().is_new);
                }
                Err(error) => assert!(!(force && is_possible), "{options:?}: {error}"),
            }
            // Also where no shard was opened of what could be made.
            assert!(fs::read(&path).unwrap() == before, "{options:?}");
            let fresh = dir.path().join("fresh");
            let _ = open(&fresh, &options);
            assert!(!fresh.exists(), "{options:?}");
            File::create(&fresh).unwrap();
            let _ = open(&fresh, &options);
            assert_eq!(fs::metadata(&fresh).unwrap().len(), 0, "{options:?}");
            fs::remove_file(&fresh).unwrap();
        }
    }
    let shard = open(&path, &base).unwrap().into_shard().unwrap();
    assert_eq!(contents(&shard), [(1, b"record".to_vec())]);
}

#[test]
fn a_store_that_is_made_smaller_gives_the_rest_back() {
    let dir = disk();
    let path = dir.path().join("store");
    open(&path, &new(4 << 20)).unwrap().into_shard().unwrap();
    open(&path, &Options { force: true, ..new(1 << 20) }).unwrap().into_shard().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    assert_eq!(open(&path, &Options::default()).unwrap().info().geometry.region_bytes, 1 << 20);
}

/// Bytes on the disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn the_holes_of_a_copied_store_are_filled_when_it_is_opened() {
    let dir = disk();
    let path = made(&dir);
    let sparse = dir.path().join("sparse");
    let copied = std::process::Command::new("cp").arg("--sparse=always").args([&path, &sparse]).status();
    assert!(copied.unwrap().success());
    assert!(allocated(&sparse) < 1 << 19, "{} bytes are there: no holes to test with", allocated(&sparse));
    let before = fs::read(&sparse).unwrap();
    // Not for a store that is refused.
    open(&sparse, &Options { shards: Some(2), ..Options::default() }).map(|_| ()).unwrap_err();
    assert!(allocated(&sparse) < 1 << 19);
    let region = open(&sparse, &Options::default()).unwrap();
    assert!(allocated(&sparse) >= 1 << 20, "{} bytes are there", allocated(&sparse));
    assert!(fs::read(&sparse).unwrap() == before);
    assert_eq!(contents(&region.into_shard().unwrap()), [(1, b"record".to_vec())]);
}

/// Ends opening at each step in turn, until it is not ended any more.
#[test]
fn opening_can_be_ended_at_any_step_and_leaves_what_was_there() {
    use std::{
        collections::BTreeSet,
        ops::ControlFlow,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use pmem::{Watch, Work};

    let dir = disk();
    let store = dir.path().join("store");
    let mut shard = open(&store, &new(8 << 20)).unwrap().into_shard().unwrap();
    for seed in 0..30 {
        common::store(&mut shard, &payload(seed, 100_000), 1448);
    }
    drop(shard);
    let zeros = dir.path().join("zeros");
    fs::write(&zeros, vec![0; 4 << 20]).unwrap();
    let fresh = dir.path().join("fresh");
    for (path, options) in [
        (&store, Options::default()),
        (&store, Options { force: true, ..new(16 << 20) }),
        (&zeros, Options::default()),
        (&fresh, new(4 << 20)),
    ] {
        let before = fs::read(path).ok();
        let works = Arc::new(Mutex::new(BTreeSet::new()));
        for allowed in 0.. {
            let left = AtomicUsize::new(allowed);
            let seen = works.clone();
            let watch = Watch::new(move |step| {
                seen.lock().unwrap().insert(step.work.to_string());
                match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                    Ok(_) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            let options = Options { watch, ..options.clone() };
            match open(path, &options).and_then(Region::into_shard) {
                Ok(_) => {
                    assert!(allowed > 1, "{options:?}: there was nothing to end");
                    break;
                }
                Err(OpenError::Interrupted { .. }) => {
                    assert!(fs::read(path).ok() == before, "{options:?} at step {allowed}");
                }
                Err(error) => panic!("{options:?} at step {allowed}: {error}"),
            }
        }
        let works = works.lock().unwrap();
        assert!(works.contains(&Work::Recovering { shard: 0 }.to_string()), "{works:?}");
        assert_eq!(works.contains(&Work::ReadingZeros.to_string()), path == &zeros, "{works:?}");
    }
}

#[test]
fn memory_is_volatile_by_name_and_tmpfs_only_by_permission() {
    let region = Region::open(MEMORY, &new(1 << 20)).unwrap();
    assert!(matches!((region.info().kind, region.info().domain), (Kind::Memory, Domain::Volatile(_))));
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("there is no tmpfs here to try");
        return;
    };
    let path = dir.path().join("store");
    let error = open(&path, &new(1 << 20)).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Volatile { what: "tmpfs", .. }), "{error}");
    assert!(!path.exists());
    let allowed = Options { volatile: true, ..new(1 << 20) };
    let mut shard = open(&path, &allowed).unwrap().into_shard().unwrap();
    store(&mut shard, b"until the reboot", 1448);
    drop(shard);
    assert!(matches!(open(&path, &Options::default()), Err(OpenError::Volatile { .. })));
    assert_eq!(contents(&open(&path, &allowed).unwrap().into_shard().unwrap()).len(), 1);
}

#[test]
fn what_cannot_hold_a_store_is_said_to_be_what_it_is() {
    let dir = disk();
    let error = open(dir.path(), &new(1 << 20)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    let error = open(Path::new("/dev/zero"), &new(1 << 20)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not device-DAX"), "{error}");
    let error = open(&dir.path().join("no/such/folder"), &new(1 << 20)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Io { what: "creating", .. }), "{error}");
    for options in [
        Options { buffer_bytes: Some(100), ..new(1 << 20) },
        Options { log_entries: Some(100), ..new(1 << 20) },
        Options { shards: Some(0), ..new(1 << 20) },
    ] {
        assert!(matches!(Region::open(MEMORY, &options), Err(OpenError::Geometry(_))), "{options:?}");
    }
}

#[test]
fn shards_are_independent_and_open_in_their_own_threads() {
    let dir = disk();
    let path = dir.path().join("store");
    let options = Options { shards: Some(3), ..new(4 << 20) };
    let work = |round: u64| {
        let region = open(&path, &options).unwrap();
        let threads: Vec<_> = region
            .into_seeds()
            .into_iter()
            .map(|seed| {
                std::thread::spawn(move || {
                    let index = u64::from(seed.index());
                    let mut shard = seed.open().unwrap();
                    let before = contents(&shard).len() as u64;
                    assert_eq!(before, round * 20);
                    for record in 0..20 {
                        store(&mut shard, &payload(index << 32 | (before + record), 3000), 1448);
                    }
                    let all = contents(&shard);
                    assert!(
                        all.iter()
                            .enumerate()
                            .all(|(nr, (_, bytes))| *bytes == payload(index << 32 | nr as u64, 3000))
                    );
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    };
    (0..3).for_each(work);
    let snapshot = Snapshot::open(&path).unwrap();
    for shard in 0..3 {
        let report = snapshot.scan(shard, |_| {}).unwrap();
        assert_eq!((report.records, report.epoch, report.corruptions), (60, Some(3), 0));
        assert_eq!(report.live_buffers + report.free_buffers, snapshot.geometry().buffers);
    }
    assert!(snapshot.scan(3, |_| {}).is_err());
}

#[test]
fn arenas_and_logs_are_aligned_to_pages_and_large_ones_to_huge_pages() {
    for (size, align) in [(1 << 20, 4096), (256 << 20, 2 << 20)] {
        let region = Region::open(MEMORY, &Options { shards: Some(2), ..new(size) }).unwrap();
        let geometry = region.info().geometry;
        for offset in [geometry.log_offset, geometry.log_stride, geometry.arena_offset, geometry.arena_stride]
        {
            assert_eq!(offset % align, 0, "{geometry:?}");
        }
        let shards: Vec<_> = region.into_seeds().into_iter().map(|seed| seed.open().unwrap()).collect();
        for shard in &shards {
            let arena = shard.arena();
            assert_eq!((arena.base() as usize % 4096, arena.len_bytes() % 4096), (0, 0));
            assert!(shard.log_entries() as usize >= arena.buffers() / 2);
            assert!(arena.buffers() * arena.buffer_bytes() <= arena.len_bytes());
        }
        assert_eq!(
            shards[0].arena().base().wrapping_add(shards[0].arena().len_bytes()),
            shards[1].arena().base()
        );
    }
}

/// What a process that is killed has appended and flushed is there for the next one, and then durable.
#[test]
fn records_of_a_killed_process_are_rescued() {
    let dir = disk();
    let path = dir.path().join("store");
    let mut shard = open(&path, &new(1 << 20)).unwrap().into_shard().unwrap();
    let _pending = append(&mut shard, &payload(5, 5000), 1448).unwrap();
    drop(shard);
    let shard = open(&path, &Options::default()).unwrap().into_shard().unwrap();
    assert_eq!(contents(&shard), [(1, payload(5, 5000))]);
    assert_eq!(shard.recovery().rescued_entries, 1);
}

#[test]
fn memory_that_is_freed_can_be_opened_again_at_its_address() {
    let opening = || {
        for _ in 0..300 {
            let options = Options { size: Some(256 << 10), ..Options::default() };
            drop(Region::open("memory:", &options).unwrap());
            let shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
            let last = shard.arena().clone();
            drop(shard);
            drop(last);
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(opening))));
}

#[test]
fn a_store_is_free_at_once_though_processes_are_being_started() {
    let dir = disk();
    let path = dir.path().join("store");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    // A process that is not yet another program has copies of all descriptors.
                    std::process::Command::new("true").status().unwrap();
                }
            });
        }
        let opened: Result<Vec<_>, _> = (0..200).map(|_| open(&path, &new(256 << 10)).map(drop)).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        opened.unwrap();
    });
}

/// A shard that was left out of some openings, as after a crash between two of them, catches up: epochs order the
/// records of all shards.
#[test]
fn shards_that_are_opened_together_have_one_epoch() {
    let model: Arc<LineModel> = LineModel::new(1 << 20);
    let options = Options { shards_if_new: Some(3), ..tiny() };
    let open = |model: &Arc<LineModel>, shards: &[usize]| -> Vec<Shard> {
        let medium: Arc<dyn Medium> = model.clone();
        let region = Region::over(medium, &options).unwrap();
        assert_eq!(region.info().geometry.shards, 3);
        let seeds = region.into_seeds().into_iter().enumerate();
        seeds.filter(|(index, _)| shards.contains(index)).map(|(_, seed)| seed.open().unwrap()).collect()
    };
    for (opened, epoch) in [(&[0, 1, 2][..], 1), (&[1], 2), (&[1, 2], 3), (&[0, 1, 2], 4)] {
        for mut shard in open(&model, opened) {
            assert_eq!(shard.epoch(), epoch);
            // The first shard is left without records of epochs 2 and 3.
            store(&mut shard, &payload(epoch.into(), 20), 800);
            store(&mut shard, &payload(epoch.into(), 3000), 800);
        }
    }
    for (shard, epochs) in open(&model, &[0, 1, 2]).iter().zip([&[1, 4][..], &[1, 2, 3, 4], &[1, 3, 4]]) {
        let records: Vec<_> = shard.records(0).map(|info| (info.epoch, info.seq)).collect();
        assert_eq!(records.len(), 2 * epochs.len());
        for epoch in 0..7 {
            let first = records.iter().find(|(of, _)| *of >= epoch).map_or(shard.next_seq(), |(_, seq)| *seq);
            assert_eq!(shard.first_of_epoch(epoch), first, "epoch {epoch} of {records:?}");
        }
    }
}

#[test]
fn a_timed_region_knows_what_persisting_has_cost_and_others_do_not() {
    let delay_ns = 50_000;
    let persist_delay = std::time::Duration::from_nanos(delay_ns);
    for timed in [false, true] {
        let options = Options { timed, persist_delay, ..new(1 << 20) };
        let mut shard = open(Path::new(MEMORY), &options).unwrap().into_shard().unwrap();
        let before = shard.spent();
        store(&mut shard, &payload(1, 10_000), 1448);
        let after = shard.spent();
        if timed {
            let fence_ns = after.fence_ns - before.fence_ns;
            // A clock that is calibrated anew at each start is not exact.
            assert!(fence_ns >= delay_ns * 9 / 10, "{fence_ns} ns");
            assert!(after.flush_ns > before.flush_ns, "{before:?} {after:?}");
            assert!(after.readings > before.readings, "{before:?} {after:?}");
        } else {
            assert_eq!((before, after), Default::default());
        }
    }
}

/// Page faults of this thread so far that needed no disk: the tenth field of its stat (proc(5)).
fn page_faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").expect("procfs");
    let fields = stat.rsplit_once(')').expect("a name in brackets").1;
    fields.split_whitespace().nth(7).expect("more fields").parse().expect("a number")
}

#[test]
fn a_populated_store_faults_no_page_in_later() {
    let directory = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a tmpfs");
    let options = Options { size: Some(16 << 20), volatile: true, populate: true, ..Options::default() };
    let shard = Region::open(directory.path().join("store"), &options).unwrap().into_shard().unwrap();
    let arena = shard.arena();
    let (before, pages) = (page_faults(), arena.len_bytes() as u64 / 4096);
    let mut buffers: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
    for buffer in &mut buffers {
        assert!(buffer.arrive(0, &[1; 64]));
    }
    let faults = page_faults() - before;
    assert!(buffers.len() > 1000 && faults < pages / 10, "{faults} page faults for {pages} pages");
}

/// A file system without DAX refuses MAP_SYNC when the kernel has already unmapped what lay at the address.
#[test]
fn stores_in_files_are_opened_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let dir = disk();
                for round in 0..100 {
                    let path = dir.path().join("store");
                    let mut shard = open(&path, &new(1 << 20)).unwrap().into_shard().unwrap();
                    let sent = payload(round, 3000);
                    let pending = append(&mut shard, &sent, 1000).unwrap();
                    assert!(shard.commit().unwrap().confirm(pending).is_ok());
                    drop(shard);
                    fs::remove_file(&path).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_default_log_has_room_for_short_records() {
    for (size, least) in [(4 << 20, 4096), (64 << 20, 100_000)] {
        let mut shard = Region::open(MEMORY, &new(size)).unwrap().into_shard().unwrap();
        let (entries, buffers) = (shard.log_entries() as f64, shard.arena().buffers() as f64);
        assert!((3.0..7.0).contains(&(entries / buffers)), "{entries} entries for {buffers} buffers");
        let mut records = 0;
        let full = loop {
            match shard.append_copy(b"x") {
                Ok(_) => records += 1,
                Err(error) => break error,
            }
        };
        assert!(records >= least, "{records} records of one byte in {size} bytes");
        assert!(matches!(full, AppendError::Full(Full::LogEntries { free: 0, .. })), "{full}");
        assert_eq!(shard.free_log_entries(), 0);
        // Of 64 bytes each, the log and the buffers last about as long.
        let mut shard = Region::open(MEMORY, &new(size)).unwrap().into_shard().unwrap();
        let mut records = 0;
        while shard.append_copy(&[7; 64]).is_ok() {
            records += 1;
        }
        assert!(records >= least, "{records} records of 64 bytes in {size} bytes");
    }
    let asked = Options { log_entries: Some(1024), ..new(4 << 20) };
    assert_eq!(Region::open(MEMORY, &asked).unwrap().into_shard().unwrap().log_entries(), 1024);
}

#[test]
fn a_store_is_of_one_kind_of_records() {
    let dir = disk();
    let path = dir.path().join("store");
    let of = |contents| Options { contents, ..Options::default() };
    let bodies = Options { size: Some(1 << 20), ..of(Contents::Bodies) };
    drop(open(&path, &bodies).unwrap().into_shard().unwrap());
    let before = fs::read(&path).unwrap();
    let error = open(&path, &of(Contents::Frames)).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Contents { found: Contents::Bodies, asked: Contents::Frames, .. }));
    let text = error.to_string();
    assert!(text.contains("pmlog") && text.contains("pmfwd") && text.contains("left alone"), "{text}");
    assert!(fs::read(&path).unwrap() == before, "a store that was refused was changed");
    for contents in [Contents::Bodies, Contents::Unknown] {
        assert_eq!(open(&path, &of(contents)).unwrap().info().contents, Contents::Bodies);
    }
    assert_eq!(Snapshot::open(&path).unwrap().contents(), Contents::Bodies);
    // Older programs say nothing, and when they repair a copy they leave out what it said.
    let mut plain = before[..256].to_vec();
    plain[96..100].fill(0);
    plain[12..16].fill(0);
    let crc = crc32c::crc32c(&plain);
    plain[12..16].copy_from_slice(&crc.to_le_bytes());
    for copy in 0..2 {
        fs::write(&path, &before).unwrap();
        patch(&path, copy * LAST_BLOCK, &plain);
        let region = open(&path, &Options::default()).unwrap();
        assert_eq!((region.info().contents, region.info().repaired), (Contents::Bodies, true));
        drop(region.into_shard().unwrap());
        assert!(fs::read(&path).unwrap()[..4096] == before[..4096]);
    }
    patch(&path, 0, &plain);
    patch(&path, LAST_BLOCK, &plain);
    let region = open(&path, &of(Contents::Frames)).unwrap();
    assert_eq!(region.info().contents, Contents::Unknown);
    assert!(region.info().to_string().contains("unknown kind"), "{}", region.info());
    drop(region);
    // By force it is another's.
    let forced = Options { force: true, size: Some(1 << 20), ..of(Contents::Frames) };
    drop(open(&path, &forced).unwrap().into_shard().unwrap());
    assert_eq!(Snapshot::open(&path).unwrap().contents(), Contents::Frames);
}
