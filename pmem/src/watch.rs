//! Watching the long parts of opening a store, and ending them.

use std::{fmt, ops::ControlFlow, sync::Arc};

/// Told how far opening a store has come, and asked whether to go on; by default nobody is.
///
/// It is called from the thread that opens the region and from those that open its shards, some hundred times a
/// second, and is to return soon. Once it has answered [`ControlFlow::Break`], opening ends with
/// [`OpenError::Interrupted`](crate::OpenError::Interrupted), and the store is as it was.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Callback>>);

type Callback = dyn Fn(Step) -> ControlFlow<()> + Send + Sync;

/// How far opening a store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// What is being done.
    pub work: Work,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that there are, or will be by the look of it, where that is known.
    pub total_bytes: Option<u64>,
}

/// What takes long when a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// Something that may become a store is read: it must hold nothing but zeros.
    ReadingZeros,
    /// The file is given its blocks.
    Reserving,
    /// Pages are brought into memory.
    FaultingIn,
    /// A store on a disk is read into memory.
    Loading,
    /// A shard's log is read, and the records that it names.
    Recovering {
        /// The shard.
        shard: u32,
    },
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadingZeros => f.write_str("making sure that nothing is there"),
            Self::Reserving => f.write_str("reserving blocks"),
            Self::FaultingIn => f.write_str("bringing pages into memory"),
            Self::Loading => f.write_str("reading the store into memory"),
            Self::Recovering { shard } => write!(f, "recovering shard {shard}"),
        }
    }
}

/// Opening was told to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped;

impl Watch {
    /// A watch that is told by `tell`.
    pub fn new(tell: impl Fn(Step) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// Tells how far `work` has come.
    pub(crate) fn tell(&self, work: Work, done: u64, total: Option<u64>) -> Result<(), Stopped> {
        let step = Step { work, done_bytes: done, total_bytes: total };
        match self.0.as_ref().map(|tell| tell(step)) {
            Some(ControlFlow::Break(())) => Err(Stopped),
            Some(ControlFlow::Continue(())) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watch(..)" } else { "Watch(nobody)" })
    }
}
