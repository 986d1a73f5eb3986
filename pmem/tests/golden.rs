//! Stores as released code has left them, of every version of the format: they open, for reading and for writing, with all
//! that they hold. `golden/README.md` says where they come from.

#[path = "golden/content.rs"]
mod content;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use content::{Entry, content, state, time_s};
use flate2::read::GzDecoder;
use pmem::{LineModel, Medium, Options, Region, Shard, Snapshot, SnapshotEvent};

/// By shard and number.
type Records = BTreeMap<(usize, u64), Entry>;

const SHARDS: usize = 3;
const VERSIONS: [u32; 2] = [1, 2];
/// What a store is once it has been written to.
const CURRENT: u32 = 2;

struct Golden {
    _folder: tempfile::TempDir,
    path: PathBuf,
    version: u32,
    records: Records,
}

impl Golden {
    fn new(version: u32) -> Self {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("store");
        let mut bytes = Vec::new();
        let packed = File::open(images.join(format!("version-{version}.store.gz"))).unwrap();
        GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();
        let lines = fs::read_to_string(images.join(format!("version-{version}.records"))).unwrap();
        let records = lines.lines().map(parse).collect();
        Self { _folder: folder, path, version, records }
    }

    fn open(&self) -> Vec<Shard> {
        let seeds = Region::open(&self.path, &Options { reserve: Some(2), ..Options::default() })
            .unwrap()
            .into_seeds();
        seeds.into_iter().map(|seed| seed.open().unwrap()).collect()
    }

    fn of_state(&self, shard: usize, state: &str) -> Vec<(u64, u64)> {
        let of = self.records.iter().filter(|((of, _), entry)| *of == shard && entry.state == state);
        of.map(|((_, seq), entry)| (*seq, entry.len)).collect()
    }

    /// What the store holds is what the list says, byte for byte.
    fn check(&self, shards: &[Shard], what: &str) {
        for (index, shard) in shards.iter().enumerate() {
            let listed: Vec<_> = shard.records(0).map(|info| (info.seq, info.len)).collect();
            assert_eq!(
                listed,
                self.of_state(index, "live"),
                "version {}, shard {index}, {what}",
                self.version
            );
            for seq in shard.head_seq()..shard.next_seq() {
                let found = state(shard, seq);
                assert_eq!(Some(&found), self.records.get(&(index, seq)), "{index}, {seq}, {what}");
                if let Some(record) = shard.record(seq) {
                    assert!(
                        record.to_vec() == content(index, seq, found.len as usize),
                        "{index}, {seq}, {what}"
                    );
                }
            }
        }
    }
}

fn parse(line: &str) -> ((usize, u64), Entry) {
    let fields: Vec<_> = line.split(' ').collect();
    let entry = Entry { state: fields[2].into(), len: fields[3].parse().unwrap() };
    ((fields[0].parse().unwrap(), fields[1].parse().unwrap()), entry)
}

fn append(shard: &mut Shard, index: usize, len: usize) -> ((usize, u64), Entry) {
    let seq = shard.next_seq();
    let pending = shard.append_copy(&content(index, seq, len)).unwrap();
    shard.commit().unwrap().confirm(pending).unwrap();
    ((index, seq), Entry { state: "live".into(), len: len as u64 })
}

#[test]
fn stores_of_every_version_are_read_with_every_record() {
    for golden in VERSIONS.map(Golden::new) {
        let before = fs::read(&golden.path).unwrap();
        let snapshot = Snapshot::open(&golden.path).unwrap();
        for index in 0..SHARDS {
            let (mut live, mut damaged) = (Vec::new(), 0);
            let report = snapshot
                .scan(index as u32, |event| match event {
                    SnapshotEvent::Record(record) => {
                        let mut bytes = Vec::new();
                        snapshot.write_record(&record, &mut bytes).unwrap();
                        assert!(bytes == content(index, record.info.seq, bytes.len()), "{:?}", record.info);
                        assert_eq!(record.info.time_s, time_s(golden.version, record.info.seq));
                        live.push((record.info.seq, bytes.len() as u64));
                    }
                    SnapshotEvent::Corrupt(_) => damaged += 1,
                })
                .unwrap();
            assert_eq!(live, golden.of_state(index, "live"), "version {}, shard {index}", golden.version);
            assert_eq!((damaged, report.torn.is_some()), (u32::from(index == 0), index == 1));
            assert_eq!(report.header_damage.is_some(), index == 2);
        }
        assert!(fs::read(&golden.path).unwrap() == before, "reading changes nothing");
    }
}

#[test]
fn stores_of_every_version_are_written_on_and_keep_every_record() {
    for mut golden in VERSIONS.map(Golden::new) {
        let mut shards = golden.open();
        golden.check(&shards, "as found");
        for (&(index, seq), _) in golden.records.iter().filter(|(_, entry)| entry.state == "live") {
            let record = shards[index].record(seq).unwrap();
            assert_eq!(record.time_s(), time_s(golden.version, seq), "version {}", golden.version);
        }
        for (index, shard) in shards.iter_mut().enumerate() {
            golden.records.extend([20, 300, 1500].map(|len| append(shard, index, len)));
        }
        drop(shards);
        let mut shards = golden.open();
        golden.check(&shards, "after more appends");
        // Everything that was there is trimmed, the damaged record, too, and what came then stays.
        for (index, shard) in shards.iter_mut().enumerate() {
            let last = append(shard, index, 100);
            let trimmed = shard.trim(last.0.1).unwrap();
            assert_eq!(trimmed.head, last.0.1);
            golden.records.retain(|(of, _), _| *of != index);
            golden.records.extend([last]);
            while shard.tend() {}
            assert_eq!(shard.quarantine_counts(), (0, 0));
        }
        golden.check(&shards, "after a trim");
        drop(shards);
        let shards = golden.open();
        golden.check(&shards, "after the last opening");
        assert!(shards.iter().all(|shard| shard.recovery().header_damage.is_none()));
        drop(shards);
        let snapshot = Snapshot::open(&golden.path).unwrap();
        assert_eq!((snapshot.version(), snapshot.has_damaged_superblock()), (CURRENT, false));
    }
}

#[test]
fn a_store_of_an_older_version_says_what_becomes_of_it_and_is_that_only_once_it_is_written_to() {
    let golden = Golden::new(1);
    let before = fs::read(&golden.path).unwrap();
    let said = Region::open(&golden.path, &Options::default()).unwrap().info().to_string();
    assert!(said.contains("of format 1 so far") && said.contains("older programs will refuse it"), "{said}");
    assert!(
        fs::read(&golden.path).unwrap() == before,
        "a store was changed before it was opened for writing"
    );
    drop(golden.open());
    let said = Region::open(&golden.path, &Options::default()).unwrap().info().to_string();
    assert!(!said.contains("older programs"), "{said}");
    // Both copies of the superblock say the new version, which the first program refuses in either.
    let after = fs::read(&golden.path).unwrap();
    assert_eq!([after[8], after[256 + 8]], [CURRENT as u8; 2]);
}

/// The power is cut before each step of taking a store over, and of a first append to it.
#[test]
fn a_power_cut_while_a_store_is_taken_over_costs_no_record_and_leaves_nothing_that_an_older_program_misreads()
{
    let mut golden = Golden::new(1);
    let image = fs::read(&golden.path).unwrap();
    let old = golden.records.clone();
    let (mut cuts, mut taken_over) = (0, 0);
    for operation in 0.. {
        let model = LineModel::from_image(image.clone());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(operation + 1);
        model.crash_at(operation, move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        });
        let mut shards = open_all(&model);
        let new = append(&mut shards[1], 1, 300);
        let Some(crashed) = model.crashed() else { break };
        cuts += 1;
        let versions = [crashed[8], crashed[256 + 8]];
        taken_over += u32::from(versions.contains(&2));
        let logs = number(&crashed, 64) as usize..number(&crashed, 80) as usize;
        let has_new_entry = crashed[logs].chunks(64).any(|entry| entry[4] == 2);
        assert!(!has_new_entry || versions.contains(&2), "operation {operation}: {versions:?}");
        let shards = open_all(&LineModel::from_image(crashed));
        golden.records = old.clone();
        golden.records.extend(shards[1].record(new.0.1).map(|_| new));
        golden.check(&shards, &format!("after a power cut before operation {operation}"));
    }
    assert!(cuts > 20 && taken_over > 10, "{cuts} cuts, {taken_over} of them with a copy of the new version");
}

fn open_all(model: &Arc<LineModel>) -> Vec<Shard> {
    let medium: Arc<dyn Medium> = model.clone();
    let region = Region::over(medium, &Options { reserve: Some(2), ..Options::default() }).unwrap();
    region.into_seeds().into_iter().map(|seed| seed.open().unwrap()).collect()
}

fn number(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
}
