//! `pmbench serve`: the servers that are compared, one request and one record format for all.
//!
//! A request is `POST /append` with a body of a known length; the reply has the record's number. [`Mode::Paste`] and
//! [`Mode::KernelPaste`] are `pmlog`'s own service, and [`Mode::PasteEcho`] is that without its log. The others parse
//! with `pmlog`'s parser and keep records in the same log, but for [`Mode::StatusQuoFsync`], which has a file, and
//! [`Mode::Limit`], which keeps nothing.

mod bursts;
pub mod cli;
mod control;
mod copy;
mod device;
mod ledger;
mod limit;
mod reply;
mod requests;
mod slots;
mod sockets;

pub use cli::ServeArgs;
pub use reply::REPLY_BYTES;

use anyhow::Result;

use crate::protocol::{Mode, ServerEvent};
use control::{Control, Skipped, tell};

/// Serves in the mode that was asked for until standard input says `stop` or ends.
///
/// # Errors
/// The store, the device or the socket cannot be had, or failed on the way.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let control = Control::start(args.core)?;
    let served = match args.mode {
        Mode::StatusQuo | Mode::StatusQuoFsync | Mode::MsgZerocopy | Mode::Kcm => {
            sockets::serve(args, &control)
        }
        Mode::DpdkCopy => copy::serve(args, &control),
        Mode::KernelPaste => slots::serve_kernel(args, &control),
        Mode::Paste | Mode::PasteEcho => slots::serve(args, &control),
        Mode::Limit => limit::serve(args, &control),
    };
    match served.map_err(anyhow::Error::downcast) {
        Err(Ok(Skipped(reason))) => tell(&ServerEvent::Skipped { reason }),
        Err(Err(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}
