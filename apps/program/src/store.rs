//! Stores as tools see them: looked at, checked, mended, and copied, while nobody serves them.

mod copy;
mod damage;
mod facts;
mod name;
mod repair;
mod verify;

pub use copy::{Target, resize, salvage};
pub use damage::{Dropped, damaged};
pub use facts::info;
pub use name::{NoName, RecordName};
pub use repair::repair;
pub use verify::verify;

/// How a tool tells what it finds.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    /// The program's name.
    pub name: &'static str,
    /// JSON instead of words; then no progress is shown either.
    pub json: bool,
}

/// What damaged places or records one JSON report lists in words; all of them are counted.
const MAX_LISTED: usize = 1000;

/// A record's or a shard's place in words.
fn of_shard(shard: u32, shards: u32) -> String {
    if shards > 1 { format!("shard {shard}: ") } else { String::new() }
}
