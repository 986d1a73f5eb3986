//! `pmlog dump` and `pmlog verify`, as programs.

mod common;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{Lab, body};
use pmem::{Options, Region};
use pmlog::service::ServiceConfig;

/// Records of every form: in the log entry, packed, one buffer, several buffers.
const LENGTHS: [usize; 8] = [0, 5, 32, 100, 600, 1448, 4000, 20_000];

struct Store {
    path: PathBuf,
    records: Vec<(u64, Vec<u8>)>,
    _folder: tempfile::TempDir,
}

impl Store {
    /// A store in a file, with a record of each length, as an orderly end leaves it.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.pm");
        let options = Options { size: Some(2 << 20), volatile: true, ..Options::default() };
        let region = Region::open(&path, &options).expect("a new store");
        let mut lab = Lab::over(region.into_shard().expect("a new store opens"), ServiceConfig::default());
        let conn = lab.connect();
        let record = |(seed, len): (usize, &usize)| {
            let body = body(seed as u64, *len);
            (lab.append(conn, &body), body)
        };
        let records = LENGTHS.iter().enumerate().map(record).collect();
        lab.shard.checkpoint().expect("the end is noted");
        Self { path, records, _folder: folder }
    }

    fn flip(&self, offset: u64) {
        let file = File::options().read(true).write(true).open(&self.path).expect("the store");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("inside the store");
        byte[0] ^= 0x10;
        file.write_all_at(&byte, offset).expect("inside the store");
    }

    /// Where the file has these bytes.
    fn find(&self, bytes: &[u8]) -> u64 {
        let all = fs::read(&self.path).expect("the store");
        all.windows(bytes.len()).position(|window| window == bytes).expect("the bytes are there") as u64
    }
}

fn pmlog(arguments: &[&str], pm: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmlog"));
    command.args(arguments).arg("--pm").arg(pm).output().expect("pmlog runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

#[test]
fn a_sound_store_is_dumped_and_found_sound() {
    let store = Store::new();
    let before = fs::read(&store.path).expect("the store");

    let output = pmlog(&["dump"], &store.path);
    assert!(output.status.success());
    insta::assert_snapshot!("table", text(&output.stdout));

    let output = pmlog(&["dump", "--json"], &store.path);
    assert!(output.status.success());
    insta::assert_snapshot!("json_lines", text(&output.stdout));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), store.records.len());
    for (line, (seq, body)) in lines.iter().zip(&store.records) {
        assert_eq!(line["seq"], *seq);
        assert_eq!(line["length"], body.len());
        let extents = line["extents"].as_array().expect("a list");
        let extended: u64 = extents.iter().map(|extent| extent["length"].as_u64().expect("a length")).sum();
        assert_eq!(extended as usize, if body.len() <= 32 { 0 } else { body.len() });

        let output = pmlog(&["dump", "--record", &seq.to_string()], &store.path);
        assert!(output.status.success() && output.stdout == *body, "record {seq}");
    }

    let output = pmlog(&["verify"], &store.path);
    assert_eq!(output.status.code(), Some(0));
    let last = text(&output.stdout).lines().last().map(str::to_owned);
    assert_eq!(last.as_deref(), Some("sound: 8 records, 25.6 KiB"));
    let output = pmlog(&["verify", "--json"], &store.path);
    let verdict = &json_lines(&output)[0];
    assert_eq!((&verdict["sound"], &verdict["records"]), (&true.into(), &8.into()));
    assert_eq!(verdict["payload_bytes"], LENGTHS.iter().sum::<usize>());

    assert!(fs::read(&store.path).expect("the store") == before, "looking changes nothing");
}

#[test]
fn damage_is_reported_and_the_rest_is_shown() {
    let store = Store::new();
    let (seq, damaged) = &store.records[6];
    store.flip(store.find(&damaged[200..300]) + 50);

    let output = pmlog(&["verify"], &store.path);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(&format!("record {seq} is damaged")), "{}", text(&output.stdout));
    let output = pmlog(&["verify", "--json"], &store.path);
    assert_eq!(output.status.code(), Some(1));
    let verdict = &json_lines(&output)[0];
    assert_eq!((&verdict["sound"], &verdict["corruptions"]), (&false.into(), &1.into()));
    assert!(verdict["found"][0].as_str().is_some_and(|found| found.contains(&format!("record {seq}"))));

    let output = pmlog(&["dump", "--json"], &store.path);
    assert_eq!(output.status.code(), Some(1));
    let shown: Vec<_> = json_lines(&output).iter().map(|line| line["seq"].as_u64()).collect();
    let readable = store.records.iter().map(|(seq, _)| Some(*seq)).filter(|other| *other != Some(*seq));
    assert_eq!(shown, readable.collect::<Vec<_>>());
    assert!(text(&output.stderr).contains(&format!("record {seq} is damaged")));

    let output = pmlog(&["dump", "--record", &seq.to_string()], &store.path);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains(&format!("no readable record {seq}")));
}

#[test]
fn a_store_that_was_cut_off_is_still_read() {
    let store = Store::new();
    let whole = fs::read(&store.path).expect("the store");
    let cut = store.path.with_extension("cut");
    let mut readable_before = 0;
    for length in (0..whole.len()).step_by(whole.len() / 61) {
        fs::write(&cut, &whole[..length]).expect("a copy");
        let output = pmlog(&["dump", "--json"], &cut);
        let complaint = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{length} bytes: {complaint}");
        assert!(!complaint.is_empty() && !complaint.contains("panicked"), "{length} bytes: {complaint}");
        let lines = json_lines(&output);
        assert!(lines.len() >= readable_before, "more of the store shows no less of it");
        readable_before = lines.len();
        for line in lines {
            let known = store.records.iter().find(|(seq, _)| line["seq"] == *seq);
            assert_eq!(known.map(|(_, body)| body.len() as u64), line["length"].as_u64());
        }
        let output = pmlog(&["verify"], &cut);
        assert_eq!(output.status.code(), Some(1), "{length} bytes: {}", text(&output.stdout));
    }
    assert!(readable_before > 0, "the records lie before the end of the store");
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("other");
    fs::write(&other, body(1, 100_000)).expect("a file");
    for command in ["dump", "verify"] {
        let output = pmlog(&[command], &other);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("not a store"), "{}", text(&output.stderr));
        let output = pmlog(&[command], &folder.path().join("missing"));
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("missing"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_store_in_use_is_not_looked_at() {
    let store = Store::new();
    let options = Options { volatile: true, ..Options::default() };
    let shard = Region::open(&store.path, &options).and_then(Region::into_shard).expect("the store opens");
    let output = pmlog(&["verify"], &store.path);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use"), "{}", text(&output.stderr));
    drop(shard);
    assert_eq!(pmlog(&["verify"], &store.path).status.code(), Some(0));
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let store = Store::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pmlog"))
        .args(["dump", "--record", &store.records[7].0.to_string(), "--pm"])
        .arg(&store.path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pmlog runs");
    drop(child.stdout.take());
    let mut complaint = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut complaint).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(0), "{complaint}");
    assert_eq!(complaint, "");
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [&["dump"][..], &["verify", "--pm", "x", "--what"], &["serve", "--pm", "x"], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_pmlog")).args(arguments).output().expect("pmlog runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_records_of_several_shards_are_dumped_by_epoch_shard_and_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    for _ in 0..2 {
        let options =
            Options { size: Some(4 << 20), shards_if_new: Some(2), volatile: true, ..Options::default() };
        let region = Region::open(&path, &options).expect("a store");
        for (index, seed) in region.into_seeds().into_iter().enumerate() {
            let mut lab = Lab::over(seed.open().expect("it opens"), ServiceConfig::default());
            let conn = lab.connect();
            let epoch = lab.shard.epoch();
            lab.append(conn, format!("shard {index}, epoch {epoch}").as_bytes());
            lab.shard.checkpoint().expect("the end is noted");
        }
    }
    let output = pmlog(&["dump", "--json"], &path);
    assert!(output.status.success());
    let number = |line: &serde_json::Value, key: &str| line[key].as_u64().expect("a number");
    let places: Vec<_> = json_lines(&output)
        .iter()
        .map(|line| (number(line, "epoch"), number(line, "shard"), number(line, "seq")))
        .collect();
    assert_eq!(places, [(1, 0, 1), (1, 1, 1), (2, 0, 2), (2, 1, 2)]);
    let table = text(&pmlog(&["dump"], &path).stdout);
    let names: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["0-1", "1-1", "0-2", "1-2"]);
    assert_eq!(text(&pmlog(&["dump", "--record", "1-2"], &path).stdout), "shard 1, epoch 2");
    for (record, said) in [("2", "0-2"), ("1-3", "1-3"), ("2-1", "2-1")] {
        let refused = pmlog(&["dump", "--record", record], &path);
        assert!(
            refused.status.code() == Some(1) && text(&refused.stderr).contains(said),
            "{record}: {refused:?}"
        );
    }
    assert_eq!(pmlog(&["dump", "--record", "x"], &path).status.code(), Some(2));
    let verified = pmlog(&["verify"], &path);
    assert!(verified.status.success() && text(&verified.stdout).contains("sound: 4 records"), "{verified:?}");
}

/// Changes a bit of the first byte that the entry `seq` of a shard names.
fn damage_payload(image: &mut [u8], shard: usize, seq: u64) {
    let number = |image: &[u8], at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&image[at..at + len]);
        u64::from_le_bytes(bytes) as usize
    };
    let (log, log_stride) = (number(image, 64, 8), number(image, 72, 8));
    let (arena, arena_stride) = (number(image, 80, 8), number(image, 88, 8));
    let entry = log + shard * log_stride + seq as usize % number(image, 48, 4) * 64;
    let (buffer, offset) = (number(image, entry + 32, 4), number(image, entry + 36, 2));
    image[arena + shard * arena_stride + buffer * number(image, 52, 2) + offset] ^= 4;
}

#[test]
fn damaged_records_of_several_shards_are_dropped_by_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let options = Options { size: Some(4 << 20), shards: Some(2), volatile: true, ..Options::default() };
    let region = Region::open(&path, &options).expect("a store");
    let geometry = region.info().geometry;
    for seed in region.into_seeds() {
        let mut lab = Lab::over(seed.open().expect("it opens"), ServiceConfig::default());
        let conn = lab.connect();
        (0..3).for_each(|seed| assert_eq!(lab.append(conn, &body(seed, 700)), seed + 1));
        lab.shard.checkpoint().expect("the end is noted");
    }
    let mut image = fs::read(&path).expect("the store");
    for (shard, seq) in [(0, 2), (1, 2), (1, 3)] {
        damage_payload(&mut image, shard, seq);
    }
    fs::write(&path, image).expect("the store");
    let listed = || -> Vec<_> {
        let lines = json_lines(&pmlog(&["quarantine", "--json"], &path));
        lines.iter().map(|line| (line["shard"].as_u64(), line["seq"].as_u64())).collect()
    };
    let named = |shard, seq| (Some(shard), Some(seq));
    assert_eq!(listed(), [named(0, 2), named(1, 2), named(1, 3)]);

    for (name, said) in [("2", "0-2"), ("0-3", "0-3"), ("2-2", "2-2")] {
        let refused = pmlog(&["quarantine", "--drop", name], &path);
        assert_eq!(refused.status.code(), Some(1), "{name}: {refused:?}");
        assert!(text(&refused.stderr).contains(said), "{name}: {refused:?}");
    }
    assert_eq!(listed().len(), 3);
    let dropped = pmlog(&["quarantine", "--drop", "1-2"], &path);
    assert!(dropped.status.success(), "{dropped:?}");
    assert!(text(&dropped.stdout).starts_with("dropped: shard 1: record 2 is damaged"), "{dropped:?}");
    assert_eq!(listed(), [named(0, 2), named(1, 3)]);
    assert_eq!(pmlog(&["quarantine", "--drop", "1-2"], &path).status.code(), Some(1));
    let dropped = json_lines(&pmlog(&["quarantine", "--json", "--drop", "all"], &path));
    assert!(dropped.iter().all(|line| line["dropped"] == true) && dropped.len() == 2, "{dropped:?}");
    assert!(listed().is_empty());
    let nothing = pmlog(&["quarantine", "--drop", "all"], &path);
    assert!(nothing.status.success() && text(&nothing.stdout) == "no record is damaged\n", "{nothing:?}");
    let verified = pmlog(&["verify"], &path);
    assert!(verified.status.success() && text(&verified.stdout).contains("sound: 3 records"), "{verified:?}");

    // Of a shard without a header nobody knows what is damaged.
    let mut image = fs::read(&path).expect("the store");
    for copy in 0..2 {
        image[geometry.headers_of(1)[copy] + 20] ^= 1;
    }
    fs::write(&path, image).expect("the store");
    for more in [&[][..], &["--json"], &["--drop", "all"]] {
        let told = pmlog(&[&["quarantine"][..], more].concat(), &path);
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        assert!(text(&told.stdout).is_empty(), "{told:?}");
        assert!(text(&told.stderr).contains("1 of 2 shards"), "{told:?}");
    }
}

/// More than a store names when it is opened: those behind are found by their number all the same.
#[test]
fn any_one_of_very_many_damaged_records_is_dropped() {
    const SHORT: u64 = 1200;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let options = Options { size: Some(4 << 20), volatile: true, ..Options::default() };
    let region = Region::open(&path, &options).expect("a store");
    let mut lab = Lab::over(region.into_shard().expect("it opens"), ServiceConfig::default());
    let conn = lab.connect();
    for seed in 0..SHORT {
        assert_eq!(lab.append(conn, &body(seed, 40)), seed + 1);
    }
    // Of several entries.
    let long = lab.append(conn, &body(SHORT, 30_000));
    lab.shard.checkpoint().expect("the end is noted");
    drop(lab);
    let mut image = fs::read(&path).expect("the store");
    (1..=long).for_each(|seq| damage_payload(&mut image, 0, seq));
    fs::write(&path, image).expect("the store");
    let listed = || json_lines(&pmlog(&["quarantine", "--json"], &path));
    let before = listed();
    assert_eq!(before.len() as u64, long);
    assert!(before[SHORT as usize]["entries"].as_u64() > Some(1), "{}", before[SHORT as usize]);

    for (place, seq) in [long, SHORT - 1, 7].into_iter().enumerate() {
        let dropped = pmlog(&["quarantine", "--drop", &seq.to_string()], &path);
        assert!(dropped.status.success(), "{dropped:?}");
        assert!(text(&dropped.stdout).contains(&format!("dropped: record {seq} is damaged")), "{dropped:?}");
        let left = listed();
        assert!(left.iter().all(|line| line["seq"] != seq), "{seq} is still there");
        assert_eq!(left.len(), before.len() - place - 1, "others went with {seq}");
    }
    assert!(pmlog(&["quarantine", "--drop", "all"], &path).status.success());
    let verified = pmlog(&["verify"], &path);
    assert!(verified.status.success() && text(&verified.stdout).contains("sound: 0 records"), "{verified:?}");
}

/// A dump that kept 200,000 records to put them in order would need more than it may have.
#[test]
fn many_records_of_several_shards_are_dumped_in_little_memory() {
    const EACH: u64 = 100_000;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let options = Options {
        size: Some(64 << 20),
        shards: Some(2),
        log_entries: Some(1 << 17),
        volatile: true,
        ..Options::default()
    };
    let region = Region::open(&path, &options).expect("a store");
    for seed in region.into_seeds() {
        let mut shard = seed.open().expect("it opens");
        for _ in 0..EACH {
            let draft = shard.draft();
            let _ = shard.append(draft).expect("there is room");
        }
        shard.commit().expect("it is durable");
        shard.checkpoint().expect("the end is noted");
    }
    let limited = |bytes: u64| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={bytes}")).arg(env!("CARGO_BIN_EXE_pmlog"));
        command.args(["dump", "--json", "--pm"]).arg(&path).output().expect("pmlog runs")
    };
    // What the program takes for itself, whatever it reads, is found by trying.
    let least = (1..64).map(|half_mib| half_mib << 19).find(|&bytes| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={bytes}")).arg(env!("CARGO_BIN_EXE_pmlog")).arg("--version");
        command.output().expect("pmlog runs").status.success()
    });
    let output = limited(least.expect("32 MiB are enough for nothing") + (6 << 20));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count() as u64, 2 * EACH);
}
