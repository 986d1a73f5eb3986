//! The modes in which the stack receives into named buffers and the loop never sleeps: `paste` and `paste-echo`.

use anyhow::Result;
use stack::net::Transport as _;
use stack::server::Server;
use stack::transport::dpdk::DpdkTransport;

use super::control::{Control, tell};
use super::device::Device;
use super::ledger::Meter;
use super::service::AppendService;
use super::{ServeArgs, ready};
use crate::protocol::{Mode, ServerEvent, Wish};

/// Serves until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control) -> Result<()> {
    let device = Device::find(args)?;
    let (info, shard, transport) = device.open(args)?;
    let keeps = args.mode == Mode::Paste;
    let service = AppendService::new(args.max_connections.get() as usize, keeps);
    let mut server = Server::new(transport, service, shard);
    let mut meter = Meter::polling();
    tell(&ready(args, keeps.then_some(&info), &[]))?;
    run(&mut server, control, &mut meter)?;
    let (_, _, shard) = server.parts();
    Ok(shard.checkpoint()?)
}

fn run(
    server: &mut Server<DpdkTransport, AppendService>,
    control: &Control,
    meter: &mut Meter,
) -> Result<()> {
    loop {
        match control.next() {
            Some(Wish::Mark(id)) => {
                let mark = server.service().ledger.mark(id, meter, Some(server.shard()));
                tell(&ServerEvent::Mark(mark))?;
            }
            Some(Wish::Stop) => break,
            None => {}
        }
        let begun = meter.raw();
        let step = server.step(meter.instant(begun))?;
        if step.committed {
            let (_, service, shard) = server.parts();
            service.ledger.make_room(shard)?;
        }
        if !step.is_idle() {
            meter.worked(begun);
        }
    }
    let (transport, ..) = server.parts();
    transport.transmit(meter.instant(meter.raw()))?;
    Ok(())
}
