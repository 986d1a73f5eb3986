//! pmtool's commands about stores, from outside: what it says of damaged ones, what it writes, and what is in the copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pmem::{Options, Region, Shard, Snapshot, SnapshotEvent};
use serde_json::Value;
use tempfile::TempDir;

const SHARDS: u32 = 2;

fn options() -> Options {
    Options { volatile: true, reserve: Some(0), ..Options::default() }
}

fn shard(path: &Path, index: u32) -> Shard {
    Region::open(path, &options())
        .expect("the store")
        .into_seeds()
        .swap_remove(index as usize)
        .open()
        .expect("a shard")
}

fn pmtool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pmtool")).args(arguments).output().expect("pmtool runs")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Shard, number, epoch and bytes.
type Kept = (u32, u64, u32, Vec<u8>);

/// All readable records of a store.
fn kept(path: &Path) -> Vec<Kept> {
    let snapshot = Snapshot::open(path).expect("a store");
    let mut kept = Vec::new();
    for shard in 0..snapshot.geometry().shards {
        let scanned = snapshot.scan(shard, |event| {
            let SnapshotEvent::Record(record) = event else { return };
            let mut bytes = Vec::new();
            snapshot.write_record(&record, &mut bytes).expect("the record's bytes");
            kept.push((shard, record.info.seq, record.info.epoch, bytes));
        });
        scanned.expect("there is such a shard");
    }
    kept
}

struct Store {
    folder: TempDir,
    path: PathBuf,
    kept: Vec<Kept>,
}

impl Store {
    /// Two shards with records of all lengths, from two openings, the first of them trimmed.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.pm");
        let new = Options { size: Some(2 << 20), shards: Some(SHARDS), log_entries: Some(512), ..options() };
        Region::open(&path, &new).and_then(|region| region.begin()).expect("a new store");
        for round in 0..2_u64 {
            for index in 0..SHARDS {
                let mut shard = shard(&path, index);
                for number in 0..30_u64 {
                    let len = [0, 20, 100, 600, 3000, 20_000][number as usize % 6];
                    let byte = (number + 7 * round + u64::from(index)) as u8;
                    let bytes: Vec<u8> = (0..len).map(|at| byte ^ (at / 3) as u8).collect();
                    let _ = shard.append_copy(&bytes).expect("there is room");
                    shard.commit().expect("it is durable");
                }
                if round == 1 {
                    shard.trim(5).expect("they are durable");
                }
                shard.checkpoint().expect("the end is noted");
            }
        }
        let kept = kept(&path);
        assert!(kept.len() > 100);
        Self { folder, path, kept }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("text")
    }

    fn other(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("text").to_owned()
    }

    fn image(&self) -> Vec<u8> {
        fs::read(&self.path).expect("the store")
    }

    /// Changes a bit of each of these bytes.
    fn damage(&self, places: &[usize]) {
        let mut image = self.image();
        places.iter().for_each(|place| image[*place] ^= 4);
        fs::write(&self.path, image).expect("the store");
    }

    /// Where a log entry lies.
    fn entry(&self, shard: u32, seq: u64) -> usize {
        let geometry = *Snapshot::open(&self.path).expect("a store").geometry();
        let slot = (seq % u64::from(geometry.log_entries)) as usize;
        (geometry.log_offset + u64::from(shard) * geometry.log_stride) as usize + 64 * slot
    }

    /// Where the first byte lies that a record names.
    fn payload(&self, shard: u32, seq: u64) -> usize {
        let snapshot = Snapshot::open(&self.path).expect("a store");
        let geometry = snapshot.geometry();
        let record = snapshot.record(shard, seq).expect("a shard").expect("a record");
        let piece = record.pieces.first().expect("it is not inline");
        let arena = geometry.arena_offset + u64::from(shard) * geometry.arena_stride;
        arena as usize
            + piece.buffer as usize * usize::from(geometry.buffer_bytes)
            + usize::from(piece.offset)
    }

    /// A record of a shard that lies in buffers, the `place`th of them.
    fn long(&self, shard: u32, place: usize) -> u64 {
        let of_shard = self.kept.iter().filter(|(index, .., bytes)| *index == shard && bytes.len() >= 600);
        of_shard.clone().nth(place).expect("there are as many").1
    }

    fn without(&self, lost: &[(u32, u64)]) -> Vec<Kept> {
        let is_left = |(shard, seq, ..): &&Kept| !lost.contains(&(*shard, *seq));
        self.kept.iter().filter(is_left).cloned().collect()
    }
}

/// Where the copies of superblock and of a shard's header lie.
fn superblocks(path: &Path) -> [usize; 2] {
    Snapshot::open(path).expect("a store").geometry().superblocks()
}

fn headers(path: &Path, shard: u32) -> [usize; 2] {
    Snapshot::open(path).expect("a store").geometry().headers_of(shard)
}

#[test]
fn a_store_is_made_once_and_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("new.pm");
    let path = path.to_str().expect("text");
    let format = |more: &[&str]| pmtool(&[&["format", path, "--volatile"], more].concat());
    let told = format(&[]);
    assert_eq!(code(&told), Some(1));
    assert!(text(&told.stderr).contains("--size 1GiB") && !Path::new(path).exists(), "{told:?}");
    let made = format(&["--size", "4MiB", "--shards", "2", "--for", "pmlog", "--json"]);
    assert_eq!(code(&made), Some(0), "{made:?}");
    let made = json(&made);
    let info = json(&pmtool(&["info", path, "--json"]));
    for field in ["store", "contents", "region_bytes", "buffers", "buffer_bytes", "log_entries"] {
        assert_eq!(made[field], info[field], "{field}");
    }
    assert_eq!((info["records"].as_u64(), info["shards"].as_array().map(Vec::len)), (Some(0), Some(2)));
    let image = fs::read(path).expect("the store");
    for more in [&[][..], &["--size", "4MiB", "--shards", "2"]] {
        let told = format(more);
        assert_eq!(code(&told), Some(1), "{told:?}");
        assert!(text(&told.stderr).contains("--force"), "{told:?}");
    }
    assert!(fs::read(path).expect("the store") == image, "it was left alone");
    assert_eq!(code(&format(&["--size", "4MiB", "--force"])), Some(0));
    let info = json(&pmtool(&["info", path, "--json"]));
    assert_ne!(made["store"], info["store"]);
    for usage in [&["format"][..], &["format", path, "--size", "x"], &["info"], &["resize", path, "other"]] {
        assert_eq!(code(&pmtool(usage)), Some(2), "{usage:?}");
    }
}

#[test]
fn info_counts_bytes_that_live_and_bytes_that_are_held() {
    let store = Store::new();
    let info = json(&pmtool(&["info", store.path(), "--json"]));
    let live: u64 = store.kept.iter().map(|(.., bytes)| bytes.len() as u64).sum();
    assert_eq!(info["live_bytes"].as_u64(), Some(live));
    assert_eq!(info["records"].as_u64(), Some(store.kept.len() as u64));
    let held = info["held_bytes"].as_u64().expect("a number");
    assert!((live..3 * live).contains(&held), "{held} for {live}");
    let told = pmtool(&["info", store.path()]);
    assert_eq!(code(&told), Some(0));
    let words = text(&told.stdout);
    assert!(
        words.contains(&format!("{} records", store.kept.len())) && words.contains("shard 1: "),
        "{words}"
    );
}

#[test]
fn what_is_no_store_cannot_be_reached_or_is_in_use_is_said_so() {
    let store = Store::new();
    let foreign = store.other("foreign");
    fs::write(&foreign, vec![7; 10_000]).expect("a file");
    let missing = store.other("no/such/store");
    let to = store.other("to.pm");
    for command in ["info", "verify", "repair"] {
        for (path, said) in [
            (&foreign, "not a store"),
            (&missing, "No such file"),
            (&store.other(""), "no file and no device"),
        ] {
            let told = pmtool(&[command, path]);
            assert_eq!(code(&told), Some(1), "{told:?}");
            let words = text(&told.stderr);
            assert!(words.contains(said) && words.lines().count() == 1, "{command}: {words}");
        }
    }
    let held = shard(&store.path, 0);
    for arguments in [
        &["info", store.path()][..],
        &["verify", store.path()],
        &["repair", store.path(), "--write"],
        &["salvage", store.path(), &to, "--volatile"],
        &["format", store.path(), "--force", "--size", "1MiB"],
    ] {
        let told = pmtool(arguments);
        assert_eq!(code(&told), Some(1), "{told:?}");
        assert!(text(&told.stderr).contains("in use"), "{told:?}");
    }
    drop(held);
    let image = store.image();
    for (to, said) in [(store.path(), "in use"), (&missing, "No such file"), (&foreign, "not a store")] {
        let told = pmtool(&["salvage", store.path(), to, "--volatile"]);
        assert_eq!(code(&told), Some(1), "{told:?}");
        assert!(text(&told.stderr).contains(said), "{told:?}");
    }
    assert!(store.image() == image && fs::read(&foreign).expect("the file") == vec![7; 10_000]);
    assert!(!Path::new(&to).exists());
}

#[test]
fn a_copy_of_superblock_or_header_is_written_again_from_the_other_and_costs_no_record() {
    let store = Store::new();
    let [first, second] = superblocks(&store.path);
    let [one, other] = [0, 1].map(|shard| headers(&store.path, shard));
    let places = [first + 20, second + 20, one[0], one[1] + 30, other[0] + 255, other[1]];
    for place in places {
        let store = Store::new();
        store.damage(&[place]);
        let image = store.image();
        let told = pmtool(&["repair", store.path()]);
        assert_eq!(code(&told), Some(1), "{place}: {told:?}");
        assert!(text(&told.stdout).contains("--write does it"), "{place}: {told:?}");
        assert!(store.image() == image, "nothing is written unless it is asked for");
        let done = pmtool(&["repair", store.path(), "--write", "--json"]);
        assert_eq!(code(&done), Some(0), "{place}: {done:?}");
        assert_eq!(json(&done)["mended"].as_array().map(Vec::len), Some(1), "{place}: {done:?}");
        assert!(kept(&store.path) == store.kept, "{place}");
        let again = pmtool(&["repair", store.path()]);
        assert_eq!((code(&again), text(&again.stdout)), (Some(0), "sound\n"), "{place}");
    }
    let told = pmtool(&["repair", store.path(), "--drop", "0-5"]);
    assert_eq!(code(&told), Some(1));
    assert!(text(&told.stderr).contains("no damaged record 0-5"), "{told:?}");
}

#[test]
fn damaged_records_stay_until_they_are_dropped_by_name() {
    let store = Store::new();
    let (one, other) = (store.long(0, 3), store.long(1, 4));
    store.damage(&[store.payload(0, one), store.entry(1, other) + 10]);
    let verified = pmtool(&["verify", store.path()]);
    assert_eq!(code(&verified), Some(1));
    for said in [format!("record {one} is damaged"), format!("record {other} is damaged")] {
        assert!(text(&verified.stdout).contains(&said), "{verified:?}");
    }
    assert_eq!(json(&pmtool(&["verify", store.path(), "--json"]))["corruptions"].as_u64(), Some(2));
    let image = store.image();
    for more in [&[][..], &["--drop", "all"], &["--drop", &format!("0-{one}")]] {
        let told = pmtool(&[&["repair", store.path()], more].concat());
        assert_eq!(code(&told), Some(1), "{told:?}");
        assert!(store.image() == image);
    }
    let dropped = pmtool(&["repair", store.path(), "--drop", &format!("0-{one}"), "--write", "--json"]);
    let report = json(&dropped);
    assert_eq!((code(&dropped), &report["dropped"], &report["damaged"]), (Some(1), &1.into(), &1.into()));
    let left = store.without(&[(0, one), (1, other)]);
    assert!(kept(&store.path) == left);
    let dropped = pmtool(&["repair", store.path(), "--drop", "all", "--write"]);
    assert_eq!(code(&dropped), Some(0), "{dropped:?}");
    assert!(kept(&store.path) == left);
    assert_eq!(code(&pmtool(&["verify", store.path()])), Some(0));
}

#[test]
fn what_cannot_be_mended_in_place_is_salvaged_with_all_that_can_be_read() {
    let store = Store::new();
    let (one, other) = (store.long(0, 3), store.long(1, 4));
    let [first, second] = headers(&store.path, 1);
    store.damage(&[store.payload(0, one), store.entry(1, other) + 10, first + 8, second + 8]);
    let image = store.image();
    let told = pmtool(&["repair", store.path(), "--write"]);
    assert_eq!(code(&told), Some(1));
    assert!(text(&told.stderr).contains("pmtool salvage"), "{told:?}");

    let to = store.other("to.pm");
    let salvaged = pmtool(&["salvage", store.path(), &to, "--volatile", "--json"]);
    assert_eq!(code(&salvaged), Some(0), "{salvaged:?}");
    let report = json(&salvaged);
    assert!(text(&salvaged.stderr).is_empty(), "{salvaged:?}");
    // Of the second shard nobody knows that its first records were trimmed.
    let back: Vec<_> =
        kept(Path::new(&to)).into_iter().filter(|(shard, seq, ..)| *shard == 1 && *seq < 5).collect();
    let mut copied = kept(Path::new(&to));
    copied.retain(|record| !back.contains(record));
    assert!(copied == store.without(&[(0, one), (1, other)]));
    assert_eq!(report["records"].as_u64(), Some((copied.len() + back.len()) as u64));
    let lost = &report["shards"][1]["lost_header"];
    assert!(lost.as_str().is_some_and(|lost| lost.contains("header")), "{report}");
    assert!(report["shards"][0]["lost_header"].is_null() && report["renumbered"] == 0, "{report}");
    let reasons = report["shards"][0]["reasons"].as_array().expect("a list");
    assert!(
        matches!(&reasons[..], [reason] if reason.as_str().is_some_and(|said| said.contains(&format!("record {one} "))))
    );
    assert!(store.image() == image, "what is salvaged is only read");
    assert_eq!(code(&pmtool(&["verify", &to])), Some(0));
    // Numbers go on behind the last one.
    let mut shard = shard(Path::new(&to), 0);
    let pending = shard.append_copy(b"new").expect("there is room");
    let seq = shard.commit().expect("it is durable").confirm(pending).expect("it came before").seq;
    assert_eq!(seq, Snapshot::open(store.path()).expect("a store").scan(0, |_| ()).expect("a shard").next);
    drop(shard);
    let again = pmtool(&["salvage", store.path(), &to, "--volatile"]);
    assert!(code(&again) == Some(1) && text(&again.stderr).contains("holds a store already"), "{again:?}");
}

#[test]
fn a_store_without_a_superblock_is_found_by_its_logs() {
    let store = Store::new();
    let mut image = store.image();
    let places = superblocks(&store.path);
    let copies = [0, 1].map(|shard| headers(&store.path, shard)).concat();
    for headers_lost in [false, true] {
        let ruined = if headers_lost { &copies[..] } else { &places };
        ruined.iter().for_each(|place| image[*place..place + 256].fill(0xa5));
        fs::write(&store.path, &image).expect("the store");
        let to = store.other(&format!("to-{headers_lost}.pm"));
        let salvage =
            |more: &[&str]| pmtool(&[&["salvage", store.path(), &to, "--volatile", "--json"], more].concat());
        let told = salvage(&[]);
        assert_eq!(code(&told), Some(1), "its log is not as long as usual: {told:?}");
        assert!(text(&told.stderr).contains("say how it was made"), "{told:?}");
        let salvaged = salvage(&["--from-log-entries", "512"]);
        assert_eq!(code(&salvaged), Some(0), "{salvaged:?}");
        let report = json(&salvaged);
        assert_eq!((&report["lost_superblock"], &report["renumbered"]), (&true.into(), &0.into()));
        let mut copied = kept(Path::new(&to));
        // Without the headers nobody knows that these were trimmed.
        copied.retain(|(_, seq, ..)| !headers_lost || *seq >= 5);
        assert!(copied == store.kept, "{headers_lost}");
    }
    let told = pmtool(&[
        "salvage",
        store.path(),
        &store.other("no.pm"),
        "--from-log-entries",
        "512",
        "--from-shards",
        "3",
        "--volatile",
    ]);
    assert_eq!(code(&told), Some(1), "{told:?}");
}

#[test]
fn a_store_of_the_usual_shape_needs_no_word_of_it_to_be_found() {
    let store = Store::new();
    for shards in [1, 2, 5] {
        let from = store.other(&format!("from-{shards}.pm"));
        let new = Options { size: Some(3 << 20), shards: Some(shards), ..options() };
        Region::open(&from, &new).and_then(|region| region.begin()).expect("a new store");
        for index in 0..shards {
            let mut shard = shard(Path::new(&from), index);
            for len in [700, 10, 3000, 100] {
                let _ = shard.append_copy(&vec![index as u8 + 1; len]).expect("there is room");
            }
            shard.commit().expect("it is durable");
            shard.checkpoint().expect("the end is noted");
        }
        let expected = kept(Path::new(&from));
        let mut image = fs::read(&from).expect("the store");
        superblocks(Path::new(&from)).into_iter().for_each(|place| image[place..place + 256].fill(0xff));
        fs::write(&from, image).expect("the store");
        let to = store.other(&format!("to-{shards}.pm"));
        let salvaged = pmtool(&["salvage", &from, &to, "--volatile"]);
        assert_eq!(code(&salvaged), Some(0), "{salvaged:?}");
        assert!(text(&salvaged.stdout).contains(&format!("{shards} shard(s) were found")), "{salvaged:?}");
        assert!(expected.len() == 4 * shards as usize && kept(Path::new(&to)) == expected);
    }
}

#[test]
fn a_store_that_was_cut_off_is_salvaged_up_to_where_it_ends() {
    let store = Store::new();
    let image = store.image();
    let arena = Snapshot::open(store.path()).expect("a store").geometry().arena_offset as usize;
    for length in [arena + 50_000, arena + 400_000] {
        fs::write(&store.path, &image[..length]).expect("the store");
        let readable = kept(&store.path);
        let to = store.other(&format!("to-{length}.pm"));
        let salvaged = pmtool(&["salvage", store.path(), &to, "--volatile", "--json"]);
        assert_eq!(code(&salvaged), Some(0), "{salvaged:?}");
        assert!(json(&salvaged)["lost"].as_u64() > Some(0));
        assert!(!readable.is_empty() && kept(Path::new(&to)) == readable);
        let resized =
            pmtool(&["resize", store.path(), &store.other("no.pm"), "--size", "4MiB", "--volatile"]);
        assert!(code(&resized) == Some(1) && text(&resized.stderr).contains("cut off"), "{resized:?}");
    }
}

#[test]
fn a_store_is_copied_into_another_size_as_it_is_or_not_at_all() {
    let store = Store::new();
    for size in ["16MiB", "1MiB"] {
        let to = store.other(size);
        let resized =
            pmtool(&["resize", store.path(), &to, "--size", size, "--volatile", "--log-entries", "512"]);
        assert_eq!(code(&resized), Some(0), "{resized:?}");
        assert!(kept(Path::new(&to)) == store.kept, "{size}");
        assert_eq!(code(&pmtool(&["verify", &to])), Some(0));
    }
    let to = store.other("small.pm");
    for more in [&["--size", "300KiB"][..], &["--size", "4MiB", "--log-entries", "64"], &["--size", "64KiB"]]
    {
        let told = pmtool(&[&["resize", store.path(), &to, "--volatile"], more].concat());
        assert_eq!(code(&told), Some(1), "{told:?}");
        let words = text(&told.stderr);
        assert!(
            (words.contains("--size") || words.contains("too few")) && !Path::new(&to).exists(),
            "{words}"
        );
    }
    let full = Command::new("prlimit")
        .args([
            "--fsize=1000000",
            env!("CARGO_BIN_EXE_pmtool"),
            "resize",
            store.path(),
            &to,
            "--size",
            "4MiB",
            "--volatile",
        ])
        .output()
        .expect("prlimit runs");
    assert!(code(&full) == Some(1) && !Path::new(&to).exists(), "{full:?}");
    store.damage(&[store.payload(1, store.long(1, 2))]);
    let told = pmtool(&["resize", store.path(), &to, "--size", "4MiB", "--volatile"]);
    assert!(code(&told) == Some(1) && text(&told.stderr).contains("pmtool repair"), "{told:?}");
    assert!(!Path::new(&to).exists(), "half a store is not left behind");
}
