//! The modes that receive into named buffers and keep requests where they arrived: `paste` and `paste-echo` on a
//! DPDK port, `kernel-paste` on Linux' own TCP.

use anyhow::Result;
use smoltcp::time::Duration;
use stack::net::Transport;
use stack::server::Server;
use stack::transport::kernel::{KernelConfig, KernelError, KernelTransport};

use super::control::{Control, tell};
use super::device::Device;
use super::ledger::{self, Meter};
use super::service::AppendService;
use super::{ServeArgs, Skipped, ready};
use crate::protocol::{Mode, ServerEvent, Wish};

/// The longest sleep of a loop that sleeps: a wish that comes just before it is seen after it.
const SLEEP: Duration = Duration::from_millis(5);
/// Connections that may wait to be accepted.
const BACKLOG: u16 = 4096;

/// Serves on a DPDK port until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control) -> Result<()> {
    let device = Device::find(args)?;
    let (info, shard, transport) = device.open(args)?;
    let keeps = args.mode == Mode::Paste;
    let service = AppendService::new(args.max_connections.get() as usize, keeps);
    let mut server = Server::new(transport, service, shard);
    tell(&ready(args, keeps.then(|| info.domain.to_string()), &["one commit for each burst"]))?;
    // It never sleeps: a NIC does not wake it.
    run(&mut server, control, Meter::polling(), |_| Ok(()))
}

/// Serves on kernel sockets until told to stop.
pub(super) fn serve_kernel(args: &ServeArgs, control: &Control) -> Result<()> {
    KernelTransport::probe().map_err(|error| match error {
        KernelError::Unsupported { .. } | KernelError::Ring(_) => Skipped(error.to_string()).into(),
        error => anyhow::Error::new(error),
    })?;
    let (info, seed) = ledger::open(args)?;
    let shard = seed.open()?;
    let max_connections = args.max_connections.get() as usize;
    let config = KernelConfig { max_connections, ..KernelConfig::default() };
    let mut transport = KernelTransport::new(config, shard.arena().clone())?;
    transport.listen(args.listen, BACKLOG)?;
    let mut server = Server::new(transport, AppendService::new(max_connections, true), shard);
    let notes = ["one commit for each burst", "the kernel copies each byte into the store", "TCP_NODELAY"];
    tell(&ready(args, Some(info.domain.to_string()), &notes))?;
    run(&mut server, control, Meter::sleeping(), |transport| transport.wait(SLEEP))
}

/// The loop: a burst, what it leaves to do, and the `rest` after it.
fn run<T: Transport>(
    server: &mut Server<T, AppendService>,
    control: &Control,
    mut meter: Meter,
    mut rest: impl FnMut(&mut T) -> Result<(), T::Error>,
) -> Result<()> {
    loop {
        match control.next() {
            Some(Wish::Mark(id)) => {
                let mark = server.service().ledger.mark(id, &meter, Some(server.shard()));
                tell(&ServerEvent::Mark(mark))?;
            }
            Some(Wish::Stop) => break,
            None => {}
        }
        let begun = meter.raw();
        let step = server.step(meter.instant(begun))?;
        let (transport, service, shard) = server.parts();
        if step.committed {
            service.ledger.make_room(shard)?;
        }
        if step.is_idle() {
            meter.idled(begun);
        } else {
            meter.worked(begun);
        }
        // A pipelining client's appends may wait for the next commit.
        if !shard.uncommitted() {
            rest(transport)?;
        }
    }
    let (_, _, shard) = server.parts();
    Ok(shard.checkpoint()?)
}
