//! How many files and connections a process may have open.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process have `each` descriptors for each of `clients` clients, and `others` besides. The usual soft limit
/// is there for programs with select, which this is none of.
///
/// # Errors
/// The hard limit is too low.
pub fn allow_descriptors(clients: u64, each: u64, others: u64) -> Result<()> {
    let needed = clients * each + others;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let most = maximum.unwrap_or(u64::MAX);
    ensure!(
        most >= needed,
        "{clients} clients at a time take {needed} descriptors, and this process may have {most}; lower \
         --max-connections, or raise the hard limit (ulimit -Hn)"
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })
        .with_context(|| format!("the limit on descriptors cannot be raised to {needed}"))
}
