//! What each command does.

mod connection;
mod hashes;
mod keys;
mod lists;
mod numbers;
mod pubsub;
mod scan;
mod server;
mod sets;
mod streams;
mod strings;
mod transactions;

use std::sync::OnceLock;

use crate::command::Command;

pub use streams::serve_waiting;

/// All commands, by their names.
pub fn table() -> &'static [&'static Command] {
    static TABLE: OnceLock<Vec<&'static Command>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let groups = [
            connection::COMMANDS,
            hashes::COMMANDS,
            keys::COMMANDS,
            lists::COMMANDS,
            numbers::COMMANDS,
            pubsub::COMMANDS,
            scan::COMMANDS,
            server::COMMANDS,
            sets::COMMANDS,
            streams::COMMANDS,
            strings::COMMANDS,
            transactions::COMMANDS,
        ];
        let mut all: Vec<&'static Command> = groups.into_iter().flatten().collect();
        all.sort_unstable_by_key(|command| command.name);
        all
    })
}

/// One line of a table of commands.
macro_rules! command {
    ($name:literal, $arity:literal, [$($flag:ident)*], ($first:literal, $last:literal, $step:literal), $run:expr) => {
        crate::command::Command {
            name: $name,
            arity: $arity,
            flags: &[$(crate::command::Flag::$flag),*],
            keys: ($first, $last, $step),
            run: $run,
        }
    };
}
use command;
