//! Records in a file or a pipe: the form is drawn in `docs/archive.md`.
//!
//! An archive is written from its beginning to its end, and read so. Each frame's head has a checksum of its own and one of
//! the bytes behind it, so that what is cut off or altered is known as such where it is.

use std::io::{self, Read, Seek, Write};

use pmem::{crc32c, crc32c_append};
use uuid::Uuid;

use crate::service::MAX_SHARDS;

const MAGIC: [u8; 8] = *b"pmlogarc";
/// The form of archives that is written here, and the only one that is read.
pub const VERSION: u32 = 1;
/// Bytes of the head of an archive, and of that of a frame.
pub const HEAD_BYTES: usize = 32;
/// Bytes of the head of a frame.
pub const FRAME_BYTES: usize = 48;
const RECORD: [u8; 4] = *b"RECD";
const END: [u8; 4] = *b"ENDR";

/// One record, as an archive names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The shard that had it.
    pub shard: u32,
    /// Its number there.
    pub seq: u64,
    /// Log entries that it took: the next record's number is so much higher at least.
    pub entries: u32,
    /// The epoch in which it was written.
    pub epoch: u32,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

impl Entry {
    /// The number behind it.
    pub fn next(&self) -> u64 {
        self.seq.saturating_add(self.entries.into())
    }
}

/// What comes next in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record, whose bytes follow.
    Record(Entry),
    /// The end of an export. Another one may follow, of what came later.
    End {
        /// Records before it, from the beginning of the archive.
        records: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// Why an archive cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Something else.
    #[error("this is no archive of pmlog's: it does not begin as one")]
    Foreign,
    /// A later form.
    #[error(
        "the archive is of version {found}, and this program reads version {VERSION}: take a newer pmlog"
    )]
    Version {
        /// Which.
        found: u32,
    },
    /// It ends too early.
    #[error(
        "the archive ends at byte {at}, before its end is marked: it was cut off, or its export was not finished; all \
         {records} records before are whole"
    )]
    CutOff {
        /// Where.
        at: u64,
        /// Records before.
        records: u64,
    },
    /// Its bytes are not those that were written.
    #[error("the archive is altered at byte {at}: {what}; all {records} records before are whole")]
    Altered {
        /// Where.
        at: u64,
        /// Records before.
        records: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A record that the machine has no memory for, or the medium's error.
    #[error("the archive cannot be read at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    records: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins an archive of a store.
    ///
    /// # Errors
    /// What `out` says.
    pub fn begin(mut out: W, store: Uuid) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..28].copy_from_slice(store.as_bytes());
        let sum = crc32c(&head[..28]);
        head[28..].copy_from_slice(&sum.to_le_bytes());
        out.write_all(&head)?;
        Ok(Self { out, records: 0, bytes: 0 })
    }

    /// Goes on behind what is there, which holds so many records of so many bytes.
    pub fn append(out: W, records: u64, bytes: u64) -> Self {
        Self { out, records, bytes }
    }

    /// Begins a record; all of its bytes have to follow.
    ///
    /// # Errors
    /// What `out` says.
    pub fn record(&mut self, entry: &Entry) -> io::Result<()> {
        self.records += 1;
        self.bytes += entry.len_bytes;
        let Entry { shard, seq, entries, epoch, len_bytes, crc32c } = *entry;
        self.frame(RECORD, shard, [seq, len_bytes], [entries, epoch, 0, crc32c])
    }

    /// Marks the end.
    ///
    /// # Errors
    /// What `out` says.
    pub fn end(&mut self) -> io::Result<()> {
        self.frame(END, 0, [self.records, self.bytes], [0; 4])?;
        self.out.flush()
    }

    /// Records so far, and their bytes.
    pub fn written(&self) -> (u64, u64) {
        (self.records, self.bytes)
    }

    /// Where a record's bytes go.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    fn frame(&mut self, kind: [u8; 4], shard: u32, long: [u64; 2], short: [u32; 4]) -> io::Result<()> {
        let mut frame = [0; FRAME_BYTES];
        frame[..4].copy_from_slice(&kind);
        frame[4..8].copy_from_slice(&shard.to_le_bytes());
        for (place, number) in frame[8..24].chunks_exact_mut(8).zip(long) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        for (place, number) in frame[24..40].chunks_exact_mut(4).zip(short) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc32c(&frame[..44]);
        frame[44..].copy_from_slice(&sum.to_le_bytes());
        self.out.write_all(&frame)
    }
}

/// Reads an archive.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    store: Uuid,
    at: u64,
    records: u64,
    bytes: u64,
}

impl<R: Read> Reader<R> {
    /// Begins with an archive.
    ///
    /// # Errors
    /// [`ArchiveError`]: it is none, or none that can be read here.
    pub fn begin(mut input: R) -> Result<Self, ArchiveError> {
        let mut head = [0; HEAD_BYTES];
        let read = fill(&mut input, &mut head).map_err(|source| ArchiveError::Read { at: 0, source })?;
        if head[..read.min(8)] != MAGIC[..read.min(8)] {
            return Err(ArchiveError::Foreign);
        }
        if read < HEAD_BYTES {
            return Err(ArchiveError::CutOff { at: read as u64, records: 0 });
        }
        if word(&head, 28) != crc32c(&head[..28]) {
            return Err(ArchiveError::Altered {
                at: 0,
                records: 0,
                what: "its head's checksum does not match",
            });
        }
        match word(&head, 8) {
            VERSION => {}
            found => return Err(ArchiveError::Version { found }),
        }
        let mut store = [0; 16];
        store.copy_from_slice(&head[12..28]);
        Ok(Self { input, store: Uuid::from_bytes(store), at: HEAD_BYTES as u64, records: 0, bytes: 0 })
    }

    /// Goes on at a frame, before which so many records were read.
    pub fn go_on(input: R, store: Uuid, at: u64, records: u64, bytes: u64) -> Self {
        Self { input, store, at, records, bytes }
    }

    /// The store that it was made of.
    pub fn store(&self) -> Uuid {
        self.store
    }

    /// Bytes that are read.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Records that were read, and their bytes.
    pub fn read(&self) -> (u64, u64) {
        (self.records, self.bytes)
    }

    /// The next frame; none where an archive may end, which is behind an end. A record's bytes have to be
    /// [read](Self::payload) or [passed over](Self::skip) before the next one.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn frame(&mut self) -> Result<Option<Frame>, ArchiveError> {
        let mut frame = [0; FRAME_BYTES];
        let at = self.at;
        match fill(&mut self.input, &mut frame).map_err(|source| ArchiveError::Read { at, source })? {
            0 => return Ok(None),
            FRAME_BYTES => {}
            read => return Err(self.cut_off(read)),
        }
        if word(&frame, 44) != crc32c(&frame[..44]) {
            return Err(self.altered("the checksum of a record's head does not match"));
        }
        let (seq, len_bytes) = (long(&frame, 8), long(&frame, 16));
        if word(&frame, 4) as usize >= MAX_SHARDS {
            return Err(self.altered("a record of a shard that no store has"));
        }
        let found = if frame[..4] == RECORD {
            let (shard, entries, epoch) = (word(&frame, 4), word(&frame, 24), word(&frame, 28));
            Frame::Record(Entry { shard, seq, entries, epoch, len_bytes, crc32c: word(&frame, 36) })
        } else if frame[..4] == END {
            if (seq, len_bytes) != (self.records, self.bytes) {
                return Err(self.altered("its end counts other records than it has"));
            }
            Frame::End { records: self.records, bytes: self.bytes }
        } else {
            return Err(self.altered("a part that is neither a record nor an end"));
        };
        self.at += FRAME_BYTES as u64;
        Ok(Some(found))
    }

    /// Reads the bytes of the record that came last, and checks them.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn payload(&mut self, entry: &Entry, into: &mut Vec<u8>) -> Result<(), ArchiveError> {
        into.clear();
        let at = self.at;
        // Memory is taken as bytes come, whatever the length says.
        let read = self.input.by_ref().take(entry.len_bytes).read_to_end(into);
        let read = read.map_err(|source| ArchiveError::Read { at, source })?;
        if (read as u64) < entry.len_bytes {
            return Err(self.cut_off(read));
        }
        self.passed(entry, crc32c(into))
    }

    /// Passes over the bytes of the record that came last, and checks them.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn skip(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let at = self.at;
        let mut sum = Sum::new(io::sink());
        let read = io::copy(&mut self.input.by_ref().take(entry.len_bytes), &mut sum);
        let read = read.map_err(|source| ArchiveError::Read { at, source })?;
        if read < entry.len_bytes {
            return Err(self.cut_off(read as usize));
        }
        self.passed(entry, sum.crc32c())
    }

    fn passed(&mut self, entry: &Entry, sum: u32) -> Result<(), ArchiveError> {
        if sum != entry.crc32c {
            return Err(self.altered("the checksum of a record's bytes does not match"));
        }
        self.at += entry.len_bytes;
        self.records += 1;
        self.bytes += entry.len_bytes;
        Ok(())
    }

    /// What is wrong where it ends without an end.
    pub fn cut_off(&self, read: usize) -> ArchiveError {
        ArchiveError::CutOff { at: self.at + read as u64, records: self.records }
    }

    fn altered(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Altered { at: self.at, records: self.records, what }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Passes over the bytes of the record that came last, without reading them.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn leap(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let at = self.at;
        let len = i64::try_from(entry.len_bytes).map_err(|_| self.cut_off(0))?;
        self.input.seek_relative(len).map_err(|source| ArchiveError::Read { at, source })?;
        self.passed(entry, entry.crc32c)
    }
}

/// Counts and sums up what is written.
#[derive(Debug)]
pub struct Sum<W> {
    out: W,
    crc32c: u32,
    bytes: u64,
}

impl<W> Sum<W> {
    /// Nothing so far.
    pub fn new(out: W) -> Self {
        Self { out, crc32c: 0, bytes: 0 }
    }

    /// CRC-32C of all bytes so far.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<W: Write> Write for Sum<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc32c = crc32c_append(self.crc32c, &bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads as much as there is.
fn fill(input: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match input.read(&mut into[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(lens: &[usize]) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), Uuid::from_u128(7)).expect("memory takes all");
        for (number, len) in (0..).zip(lens) {
            let bytes = vec![number as u8; *len];
            let entry = Entry {
                shard: number % 2,
                seq: 10 + u64::from(number),
                entries: 1,
                epoch: 3,
                len_bytes: *len as u64,
                crc32c: crc32c(&bytes),
            };
            writer.record(&entry).expect("memory takes all");
            writer.out().extend_from_slice(&bytes);
        }
        writer.end().expect("memory takes all");
        writer.out
    }

    /// Reads all, and gives how many records there are.
    fn read(bytes: &[u8]) -> Result<u64, ArchiveError> {
        let mut reader = Reader::begin(bytes)?;
        let mut is_ended = false;
        while let Some(frame) = reader.frame()? {
            is_ended = match frame {
                Frame::Record(entry) if entry.seq % 2 == 0 => reader.skip(&entry).map(|()| false)?,
                Frame::Record(entry) => reader.payload(&entry, &mut Vec::new()).map(|()| false)?,
                Frame::End { .. } => true,
            };
        }
        if is_ended { Ok(reader.records) } else { Err(reader.cut_off(0)) }
    }

    #[test]
    fn an_archive_reads_as_it_was_written() {
        assert_eq!(read(&archive(&[0, 1, 1000, 70_000])).expect("a whole archive"), 4);
        assert_eq!(read(&archive(&[])).expect("a whole archive"), 0);
        let twice = [archive(&[5, 6]), Vec::new()].concat();
        let mut writer = Writer::append(twice, 2, 11);
        writer.end().expect("memory takes all");
        assert_eq!(read(writer.out()).expect("a whole archive"), 2);
    }

    #[test]
    fn wherever_it_is_cut_off_or_altered_it_is_found_out() {
        let whole = archive(&[0, 3, 200]);
        for end in 0..whole.len() {
            let error = read(&whole[..end]).expect_err("it is cut off");
            assert!(matches!(error, ArchiveError::CutOff { at, .. } if at == end as u64), "{end}: {error}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut altered = whole.clone();
                altered[at] ^= 1 << bit;
                assert!(read(&altered).is_err(), "bit {bit} of byte {at}");
            }
        }
        let mut later = whole.clone();
        later[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let sum = crc32c(&later[..28]);
        later[28..32].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(read(&later), Err(ArchiveError::Version { found: 2 })));
    }

    #[test]
    fn a_length_that_is_a_lie_takes_no_memory() {
        let mut writer = Writer::begin(Vec::new(), Uuid::nil()).expect("memory takes all");
        let entry = Entry { shard: 0, seq: 1, entries: 1, epoch: 1, len_bytes: u64::MAX, crc32c: 0 };
        writer.record(&entry).expect("memory takes all");
        writer.out().extend_from_slice(b"few");
        let mut reader = Reader::begin(&writer.out[..]).expect("a head");
        assert!(matches!(reader.frame(), Ok(Some(Frame::Record(found))) if found == entry));
        let mut bytes = Vec::new();
        assert!(matches!(reader.payload(&entry, &mut bytes), Err(ArchiveError::CutOff { .. })));
        assert!(bytes.capacity() < 1 << 20);
    }
}
