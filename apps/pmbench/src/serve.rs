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
mod sending;
mod slots;
mod sockets;

pub use cli::ServeArgs;
pub use reply::REPLY_BYTES;

use anyhow::{Result, bail};

use crate::protocol::{Mode, ServerEvent};
pub(crate) use control::Control;
use control::{Skipped, tell};
pub(crate) use device::Device;

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
        Mode::KernelPaste => slots::serve_kernel(args, &control),
        Mode::DpdkCopy | Mode::Paste | Mode::PasteEcho | Mode::Limit => {
            Device::find(args).and_then(|device| serve_on(&device, args, &control))
        }
    };
    match served.map_err(anyhow::Error::downcast) {
        Err(Ok(Skipped(reason))) => tell(&ServerEvent::Skipped { reason }),
        Err(Err(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Serves on a DPDK port, in one of the modes that have one, until told to stop.
pub(crate) fn serve_on(device: &Device, args: &ServeArgs, control: &Control) -> Result<()> {
    match args.mode {
        Mode::DpdkCopy => copy::serve(args, control, device),
        Mode::Paste | Mode::PasteEcho => slots::serve(args, control, device),
        Mode::Limit => limit::serve(args, control, device),
        mode => bail!("a server of mode {mode} is on the kernel's sockets, and has no DPDK port"),
    }
}
