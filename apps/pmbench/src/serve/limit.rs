//! What the device can do: each frame goes back as it came, with its addresses swapped.

use anyhow::Result;
use dpdk::{MbufBatch, Pool, PoolConfig, Port, PortConfig, RxQueue, TxQueue};
use pmem::Shard;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Address,
    Ipv4Packet,
};
use stack::profile::{Laps, Stage};
use stack::server::Step;
use stack::time::Instant;

use super::bursts::{Staged, Watched, run};
use super::cli::ServeArgs;
use super::control::{Control, tell_ready};
use super::device::Device;
use super::ledger::{Ledger, Meter};

/// Mbufs that are with the device or on their way.
const MBUFS: u32 = 4096 - 1;

/// Sends frames back until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control, device: &Device) -> Result<()> {
    let pool = Pool::dram(device.eal, "frames", &PoolConfig { mbufs: MBUFS, ..PoolConfig::default() })?;
    let mut port = Port::start(device.id, &PortConfig::default(), std::slice::from_ref(&pool))?;
    let (rx, tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
    device.started(&port);
    let me = Host { mac: EthernetAddress(device.mac), ip: args.ip.address() };
    let mirror = Mirror { rx, tx, batch: MbufBatch::new(), me, ledger: Ledger::default() };
    tell_ready(args, None, &["nothing is parsed and nothing is kept"])?;
    run(&mut Watched::new(mirror, args.profile), control, Meter::polling())
}

/// A port whose frames go back.
struct Mirror {
    rx: RxQueue,
    tx: TxQueue,
    batch: MbufBatch,
    me: Host,
    ledger: Ledger,
}

impl Staged for Mirror {
    fn burst<L: Laps>(&mut self, _: Instant, laps: &mut L) -> Result<Step> {
        let Self { rx, tx, batch, me, ledger } = self;
        // A client that the kernel has interrupted takes nothing meanwhile: what waits for it goes first.
        if !batch.is_empty() {
            let sent = tx.burst(batch);
            laps.lap(Stage::Tx);
            return Ok(Step { sent, ..Step::default() });
        }
        let received = rx.burst(batch);
        laps.lap(Stage::Rx);
        if received == 0 {
            return Ok(Step::default());
        }
        batch.retain(|mbuf| match me.send_back(mbuf.bytes_mut()) {
            SentBack::Data { payload_bytes } => {
                ledger.done(payload_bytes);
                true
            }
            SentBack::Address => true,
            SentBack::No => false,
        });
        laps.lap(Stage::App);
        let sent = tx.burst(batch);
        laps.lap(Stage::Tx);
        Ok(Step { received, sent, ..Step::default() })
    }

    fn settle(&mut self, _: &Step) -> Result<()> {
        Ok(())
    }

    fn ledger(&self) -> Ledger {
        self.ledger
    }

    fn shard(&self) -> Option<&Shard> {
        None
    }
}

/// Who sends back.
struct Host {
    mac: EthernetAddress,
    ip: Ipv4Address,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum SentBack {
    /// It goes back, with so much behind the IP header.
    Data { payload_bytes: u64 },
    /// It became the answer to a question for the address.
    Address,
    /// It is not for this host.
    No,
}

impl Host {
    /// Turns a frame into the one that goes back.
    fn send_back(&self, bytes: &mut [u8]) -> SentBack {
        let Ok(mut frame) = EthernetFrame::new_checked(bytes) else { return SentBack::No };
        let from = frame.src_addr();
        if frame.dst_addr() != self.mac && !frame.dst_addr().is_broadcast() {
            return SentBack::No;
        }
        frame.set_dst_addr(from);
        frame.set_src_addr(self.mac);
        match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                let Ok(mut packet) = Ipv4Packet::new_checked(frame.payload_mut()) else {
                    return SentBack::No;
                };
                let (source, target) = (packet.src_addr(), packet.dst_addr());
                if target != self.ip {
                    return SentBack::No;
                }
                // The sum of the header's words does not change with their order.
                packet.set_src_addr(target);
                packet.set_dst_addr(source);
                SentBack::Data {
                    payload_bytes: u64::from(packet.total_len()) - u64::from(packet.header_len()),
                }
            }
            EthernetProtocol::Arp => self.tell_address(frame.payload_mut()),
            _ => SentBack::No,
        }
    }

    /// Turns a question for this host's address (RFC 826) into the answer.
    fn tell_address(&self, payload: &mut [u8]) -> SentBack {
        let Ok(mut packet) = ArpPacket::new_checked(payload) else { return SentBack::No };
        let Ok(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&ArpPacket::new_unchecked(packet.as_ref()))
        else {
            return SentBack::No;
        };
        if target_protocol_addr != self.ip {
            return SentBack::No;
        }
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: self.mac,
            source_protocol_addr: self.ip,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        answer.emit(&mut packet);
        SentBack::Address
    }
}
