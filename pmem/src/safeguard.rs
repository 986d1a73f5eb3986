//! What the store's promises rest on, place by place in the code, so that proofs can leave out each of it once.
//!
//! Programs that are built without debug assertions have nothing of it: there is nothing to be left out by.

#[cfg(debug_assertions)]
use std::cell::Cell;

macro_rules! safeguards {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A flush, a fence or a check, by the one place in the code where it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Safeguard {
            $($(#[$doc])* $name,)*
        }

        #[cfg(debug_assertions)]
        impl Safeguard {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

safeguards! {
    // A new store, and the superblock of one that is there.
    /// Of an older store's superblock, which is gone before anything is written over that store.
    ErasedFlush,
    /// Behind that.
    ErasedFence,
    /// Of the headers of a new store's shards.
    NewHeadersFlush,
    /// Before the superblock says that there is a store.
    NewHeadersFence,
    /// Of a superblock's copy.
    SuperblockFlush,
    /// Before anybody is told that the store is there.
    NewSuperblockFence,
    /// Of a superblock that was found in memory.
    FoundSuperblockFlush,
    /// Behind that.
    FoundSuperblockFence,
    /// Of the superblock beside a copy that is repaired.
    SoundSuperblockFlush,
    /// Behind a repaired copy of the superblock.
    RepairedSuperblockFence,
    /// Behind each copy of the superblock by which a store of an older format is taken over.
    TakeOverFence,
    /// That a superblock is whole.
    SuperblockChecksum,

    // A shard's header.
    /// Of the copy that is written first.
    FirstCopyFlush,
    /// Before the other copy is touched.
    FirstCopyFence,
    /// Of the copy that is written second.
    SecondCopyFlush,
    /// Before anybody relies on the header.
    SecondCopyFence,
    /// The second copy itself.
    SecondCopy,
    /// That the copy which counts is not the first to be written over.
    OlderCopyFirst,
    /// That a header is whole.
    HeaderChecksum,
    /// What the header says is durable.
    HeaderBound,

    // An append.
    /// That no two records have bytes in common.
    Claim,
    /// Of a piece of a record.
    PieceFlush,
    /// Of a record that has come in one piece.
    WholePieceFlush,
    /// Of bytes that were copied together.
    CopiesFlush,
    /// Of a draft's copies, when it is appended.
    DraftFlush,
    /// Of short records, when their buffer is full.
    FullPackFlush,
    /// Of log entries.
    EntryFlush,
    /// Of log entries behind the ring's end.
    WrappedEntryFlush,
    /// What an entry says was durable before.
    EntryBound,
    /// The header before entries that are further ahead than the last one allows.
    AheadHeader,

    // A commit.
    /// Of short records that have come since the last one.
    CommitPackFlush,
    /// The one fence.
    CommitFence,
    /// As the first of these, where the fence is only started.
    StartedPackFlush,
    /// The fence that is only started.
    StartedFence,
    /// The wait for its end.
    StartedFenceEnd,
    /// That what comes meanwhile is not in it.
    StartedBound,
    /// That nothing is taken after a fence has failed.
    Poison,

    // What else changes the log.
    /// The header before what is trimmed is released.
    TrimHeader,
    /// The header of a checkpoint.
    CheckpointHeader,
    /// Of entries in the places of those that are dropped.
    DroppedFlush,
    /// Before what those named is released.
    DroppedFence,

    // Recovery.
    /// That an entry is whole.
    EntryChecksum,
    /// That a record's bytes are what its entry was written for.
    PayloadChecksum,
    /// That an entry is of this lap.
    EntrySeq,
    /// That an entry is of an epoch that fits.
    EntryEpoch,
    /// That the entries of a record follow one another.
    EntryOrder,
    /// That what the header calls durable is not the log's end.
    VouchedByHeader,
    /// That what an entry calls durable is not the log's end.
    VouchedByEntry,
    /// That buffers of records are not free.
    LiveBuffers,
    /// Of the header that was found.
    FoundHeaderFlush,
    /// Of payload that was found and may be in memory only.
    FoundPayloadFlush,
    /// Of entries that were found and may be in memory only.
    FoundEntriesFlush,
    /// That what was found is stored anew where a failed write has left it.
    FoundStore,
    /// Before the new epoch begins.
    FoundFence,
    /// The header of the new epoch.
    EpochHeader,
    /// That the new epoch is none of before.
    Epoch,
    /// That the new epoch is none that another shard has had.
    EpochOfAll,
    /// That entries beyond the end can never count.
    FirstSeq,
}

#[cfg(debug_assertions)]
thread_local! {
    static OMITTED: Cell<Option<Safeguard>> = const { Cell::new(None) };
    static WAS_MET: Cell<bool> = const { Cell::new(false) };
}

/// Has this thread leave out a safeguard from now on, and no other.
#[cfg(debug_assertions)]
pub fn omit(safeguard: Option<Safeguard>) {
    OMITTED.set(safeguard);
    WAS_MET.set(false);
}

/// Whether this thread has left out anything since it was told to.
#[cfg(debug_assertions)]
pub fn has_omitted() -> bool {
    WAS_MET.get()
}

/// Whether a safeguard is left out.
#[cfg(debug_assertions)]
#[inline]
pub(crate) fn omits(safeguard: Safeguard) -> bool {
    let is_omitted = OMITTED.get() == Some(safeguard);
    if is_omitted {
        WAS_MET.set(true);
    }
    is_omitted
}

/// Nothing is.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn omits(_: Safeguard) -> bool {
    false
}
