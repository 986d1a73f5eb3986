//! A ring as the kernel offers it, or why it offers none.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::buffers::ProvidedBuffers;
use crate::KernelError;

/// Lengths of the submission queue, which is emptied when it is full: the first for which there is memory. Queues
/// count as locked memory of the user, who may have little left (`ulimit -l`).
pub(super) const SUBMISSIONS: [u32; 3] = [1024, 256, 64];
/// Length of the completion queue. The kernel keeps what does not fit.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;
/// The only group of provided buffers.
pub(super) const GROUP: u16 = 0;

/// Whether the kernel has what a ring needs.
pub(crate) fn probe() -> Result<(), KernelError> {
    let buffers = ProvidedBuffers::new(1).map_err(KernelError::Ring)?;
    let uring = uring(&[1])?;
    features(&uring)?;
    register(&uring, &buffers)
}

/// A ring with the first of these lengths that is to be had.
pub(super) fn uring(lengths: &[u32]) -> Result<IoUring, KernelError> {
    let mut outcome = Err(io::Error::from(io::ErrorKind::InvalidInput));
    for &submissions in lengths {
        outcome = uring_of(submissions);
        if !matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::ENOMEM)) {
            break;
        }
    }
    outcome.map_err(KernelError::Ring)
}

fn uring_of(submissions: u32) -> io::Result<IoUring> {
    let mut plain = IoUring::builder();
    plain.setup_cqsize(submissions * COMPLETIONS_PER_SUBMISSION).setup_clamp();
    let mut deferring = plain.clone();
    deferring.setup_submit_all().setup_coop_taskrun().setup_single_issuer().setup_defer_taskrun();
    match deferring.build(submissions) {
        // Before Linux 6.1, completions cannot wait until they are asked for.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(submissions),
        outcome => outcome,
    }
}

/// Whether the kernel sends without copying; an error if it cannot do what is needed.
pub(super) fn features(uring: &IoUring) -> Result<bool, KernelError> {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(KernelError::Ring)?;
    sends_without_copying(|operation| probe.is_supported(operation))
}

/// Whether a kernel that has these operations sends without copying.
fn sends_without_copying(has: impl Fn(u8) -> bool) -> Result<bool, KernelError> {
    // Multishot receive cannot be asked for; it came with the same release as this operation.
    if !has(opcode::SendZc::CODE) {
        return Err(KernelError::Unsupported { feature: "multishot receive", release: "6.0" });
    }
    Ok(has(opcode::SendMsgZc::CODE))
}

/// Tells the kernel of the buffers, whose mapping must live until after the ring is closed.
pub(super) fn register(uring: &IoUring, buffers: &ProvidedBuffers) -> Result<(), KernelError> {
    // SAFETY: the mapping is as large as the entries need, and outlives the ring: whoever holds both drops the ring
    // first.
    unsafe { uring.submitter().register_buf_ring_with_flags(buffers.address(), buffers.entries, GROUP, 0) }
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                KernelError::Unsupported { feature: "provided-buffer rings", release: "5.19" }
            }
            _ => KernelError::Ring(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_taken_for_what_it_can_do() {
        let up_to = |last: u8| sends_without_copying(move |operation| operation <= last);
        // io_uring.h of Linux 5.19, 6.0 and 6.1: their last operations.
        let (socket, send_zc, sendmsg_zc) = (45, 47, 48);
        let refused = up_to(socket).expect_err("no multishot receive");
        assert!(refused.to_string().contains("Linux 6.0"), "{refused}");
        assert!(matches!(up_to(send_zc), Ok(false)));
        assert!(matches!(up_to(sendmsg_zc), Ok(true)));
    }
}
