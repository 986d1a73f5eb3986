//! Ethernet ports.

use std::sync::{Arc, MutexGuard};

use dpdk_sys as sys;

use crate::device::{OFFLOADS, Offloads, PortError, PortId, PortInfo, text};
use crate::interrupt;
use crate::missed::Missed;
use crate::pool::Pool;
use crate::queue::{RxQueue, TxQueue};
use crate::running::Running;
use crate::{log, refusal, split, spread};

/// How a port is to run.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Number of receive queues. Several share the load by a hash over addresses and ports, or as the device does
    /// unasked.
    pub rx_queues: u16,
    /// Number of transmit queues.
    pub tx_queues: u16,
    /// Length of each receive queue, in packets; adjusted to what the device can do.
    pub rx_descriptors: u16,
    /// Length of each transmit queue, in packets; adjusted to what the device can do.
    pub tx_descriptors: u16,
    /// Largest IP packet in bytes. A frame of that size must fit one buffer.
    pub mtu: u16,
    /// Receive frames to other stations too.
    pub promiscuous: bool,
    /// Receive all multicast frames, as neighbour discovery needs.
    pub all_multicast: bool,
    /// Offloads to switch on where the device has them.
    pub offloads: Offloads,
    /// Where to put headers, apart from the payload, which alone then lies in the queues' own pools. A device whose
    /// [`PortInfo::header_split`] has a reason against it puts whole frames there instead.
    pub headers: Option<Pool>,
    /// Have the device wake threads that [sleep](RxQueue::sleep) until a receive queue has something. A device that
    /// cannot is refused.
    pub rx_interrupts: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: sys::RTE_ETHER_MTU as u16,
            promiscuous: false,
            all_multicast: true,
            offloads: Offloads::all(),
            headers: None,
            rx_interrupts: false,
        }
    }
}

/// The state of a port's cable, or of what stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether frames can pass.
    pub up: bool,
    /// Speed in Mbit/s; None if the driver does not know.
    pub speed_mbps: Option<u32>,
    /// Whether both sides can send at once.
    pub full_duplex: bool,
}

/// A running port. It stops and closes when this and all its queues are dropped.
#[derive(Debug)]
pub struct Port {
    running: Arc<Running>,
    pools: Vec<Pool>,
    rx_handed_out: Vec<bool>,
    tx_handed_out: Vec<bool>,
    info: PortInfo,
    offloads: Offloads,
    pub(crate) missed: Missed,
}

impl Port {
    /// Configures and starts a port. Its receive queues take mbufs from `pools`: one each, or one for all.
    ///
    /// If it fails the device is closed; attach it again for another attempt.
    ///
    /// # Errors
    /// [`PortError`] with what was asked for and what there is.
    pub fn start(id: PortId, config: &PortConfig, pools: &[Pool]) -> Result<Self, PortError> {
        refuse_corrupting(id)?;
        let raw = id.device_info()?;
        let info = id.info()?;
        check_config(&info, config, pools)?;
        let Some(running) = Running::claim(id) else { return Err(PortError::InUse(info.name)) };
        let offloads = config.offloads & info.offloads;
        let split = config.headers.as_ref().zip(info.header_split.ok());
        let mut conf = device_configuration(config, &raw, &info, offloads);
        if split.is_some() {
            conf.rxmode.offloads |= split::offload_flags(raw.rx_offload_capa);
        }
        let step = |action, call: &dyn Fn() -> i32| PortError::check_with(id, action, log::listening(call));
        // SAFETY: the port exists and does not run; the configuration is copied.
        step("be configured", &|| unsafe {
            sys::rte_eth_dev_configure(id.0, config.rx_queues, config.tx_queues, &conf)
        })?;
        let (mut rx_descriptors, mut tx_descriptors) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: both numbers are writable.
        PortError::check(id, "adjust its queue lengths", unsafe {
            sys::rte_eth_dev_adjust_nb_rx_tx_desc(id.0, &mut rx_descriptors, &mut tx_descriptors)
        })?;
        let socket = info.socket.unwrap_or(sys::SOCKET_ID_ANY as u32);
        let rx_conf = sys::rte_eth_rxconf { offloads: conf.rxmode.offloads, ..raw.default_rxconf };
        let tx_conf = sys::rte_eth_txconf { offloads: conf.txmode.offloads, ..raw.default_txconf };
        let pools: Vec<Pool> = pools.iter().cycle().take(usize::from(config.rx_queues)).cloned().collect();
        for (queue, pool) in (0..).zip(&pools) {
            pool.used_by(&info.driver);
            let mut segments =
                split.map(|(headers, point)| split::segments(point, headers.as_ptr(), pool.as_ptr()));
            let (rx_conf, pool) = match &mut segments {
                Some(segments) => {
                    let rx_seg = segments.as_mut_ptr();
                    let rx_nseg = segments.len() as u16;
                    (sys::rte_eth_rxconf { rx_seg, rx_nseg, ..rx_conf }, std::ptr::null_mut())
                }
                None => (rx_conf, pool.as_ptr()),
            };
            // SAFETY: the port is configured for as many queues; pools live for good, and the segments'
            // descriptions until after the call.
            step("set up a receive queue", &|| unsafe {
                sys::rte_eth_rx_queue_setup(id.0, queue, rx_descriptors, socket, &rx_conf, pool)
            })?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: the port is configured for as many queues.
            step("set up a transmit queue", &|| unsafe {
                sys::rte_eth_tx_queue_setup(id.0, queue, tx_descriptors, socket, &tx_conf)
            })?;
        }
        // SAFETY: the port is configured, with all its queues.
        step("start", &|| unsafe { sys::rte_eth_dev_start(id.0) })?;
        // It makes an interface of its own, and sets the MTU of that only when told to.
        if info.driver == "net_tap" {
            // SAFETY: the port runs.
            step("have this MTU", &|| unsafe { sys::rte_eth_dev_set_mtu(id.0, config.mtu) })?;
        }
        if config.rx_interrupts {
            for queue in 0..config.rx_queues {
                interrupt::check(&running, &info, queue)?;
            }
        }
        if config.promiscuous {
            // SAFETY: the port runs.
            tolerate(id, "receive frames to other stations", unsafe {
                sys::rte_eth_promiscuous_enable(id.0)
            })?;
        }
        if config.all_multicast {
            // SAFETY: the port runs.
            tolerate(id, "receive all multicast frames", unsafe { sys::rte_eth_allmulticast_enable(id.0) })?;
        }
        let missed = Missed::of(&info);
        Ok(Self {
            running,
            pools,
            rx_handed_out: vec![false; usize::from(config.rx_queues)],
            tx_handed_out: vec![false; usize::from(config.tx_queues)],
            info,
            offloads,
            missed,
        })
    }

    /// The port's number.
    pub fn id(&self) -> PortId {
        self.running.id()
    }

    /// What the device is and can do.
    pub fn info(&self) -> &PortInfo {
        &self.info
    }

    /// Keeps other threads from controlling the port: drivers expect one at a time.
    pub(crate) fn control(&self) -> MutexGuard<'_, ()> {
        self.running.control()
    }

    /// The offloads that are on.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The pool that a receive queue takes its mbufs from; none if there is no such queue.
    pub fn pool(&self, queue: u16) -> Option<&Pool> {
        self.pools.get(usize::from(queue))
    }

    /// The largest IP packet in bytes, as the device has it now.
    ///
    /// # Errors
    /// [`PortError::Call`]: the device is gone.
    pub fn mtu(&self) -> Result<u16, PortError> {
        let _control = self.control();
        let mut mtu = 0;
        // SAFETY: the number is writable.
        PortError::check(self.id(), "tell its MTU", unsafe {
            sys::rte_eth_dev_get_mtu(self.id().0, &mut mtu)
        })?;
        Ok(mtu)
    }

    /// The link's state, without waiting for it.
    ///
    /// # Errors
    /// [`PortError::Call`]: the driver does not know.
    pub fn link(&self) -> Result<Link, PortError> {
        let _control = self.control();
        // The driver takes the interface to be up for as long as it runs.
        if self.info.driver == "net_af_packet"
            && let Some(interface) = self.info.interface
        {
            let up = interface.state().is_ok_and(|state| state.is_some_and(|state| state.up));
            return Ok(Link { up, speed_mbps: None, full_duplex: true });
        }
        let mut raw = sys::rte_eth_link::default();
        // SAFETY: the structure is writable.
        let result = unsafe { sys::rte_eth_link_get_nowait(self.id().0, &mut raw) };
        PortError::check(self.id(), "tell its link state", result)?;
        Ok(Link {
            up: u32::from(raw.link_status()) == sys::RTE_ETH_LINK_UP,
            speed_mbps: Some(raw.link_speed).filter(|speed| !matches!(*speed, 0 | u32::MAX)),
            full_duplex: u32::from(raw.link_duplex()) == sys::RTE_ETH_LINK_FULL_DUPLEX,
        })
    }

    /// Whether the device is gone for good: unplugged, or its interface deleted or moved to another namespace.
    pub fn is_removed(&self) -> bool {
        match self.info.interface {
            // What cannot be asked is not known to be gone.
            Some(interface) => interface.state().is_ok_and(|state| state.is_none()),
            None => {
                let _control = self.control();
                // SAFETY: takes a port's number by value.
                unsafe { sys::rte_eth_dev_is_removed(self.id().0) == 1 }
            }
        }
    }

    /// A receive queue: the only handle on it there will be.
    ///
    /// # Errors
    /// [`PortError::NoQueue`]: there is none, or it was handed out before.
    pub fn rx_queue(&mut self, index: u16) -> Result<RxQueue, PortError> {
        self.hand_out(index, "receive", |port| &mut port.rx_handed_out)?;
        Ok(RxQueue::new(self.running.clone(), index, self.pools[usize::from(index)].clone()))
    }

    /// A transmit queue: the only handle on it there will be.
    ///
    /// # Errors
    /// [`PortError::NoQueue`]: there is none, or it was handed out before.
    pub fn tx_queue(&mut self, index: u16) -> Result<TxQueue, PortError> {
        self.hand_out(index, "transmit", |port| &mut port.tx_handed_out)?;
        let prepare = self.offloads.intersects(Offloads::TX_IPV4_CHECKSUM | Offloads::TX_TCP_CHECKSUM);
        let linearize = !self.offloads.contains(Offloads::TX_SEGMENTS);
        Ok(TxQueue::new(self.running.clone(), index, prepare, linearize))
    }

    fn hand_out(
        &mut self,
        index: u16,
        direction: &'static str,
        queues: impl FnOnce(&mut Self) -> &mut Vec<bool>,
    ) -> Result<(), PortError> {
        match queues(self).get_mut(usize::from(index)) {
            Some(handed_out @ false) => {
                *handed_out = true;
                Ok(())
            }
            _ => Err(PortError::NoQueue { port: self.info.name.clone(), direction, index }),
        }
    }
}

/// Virtual devices may come from EAL's arguments too, so they are looked at again here.
fn refuse_corrupting(id: PortId) -> Result<(), PortError> {
    let info = id.device_info()?;
    // SAFETY: DPDK returned the device of this port; names and arguments are NUL-terminated or NULL.
    let arguments = unsafe {
        let devargs = sys::rte_dev_devargs(info.device);
        devargs.as_ref().map_or_else(String::new, |devargs| text(devargs.data))
    };
    refusal::check(&text(info.driver_name), &arguments)?;
    refusal::check(&id.name(), &arguments)?;
    Ok(())
}

impl PortInfo {
    /// Checks what can be checked of a configuration before there are pools.
    ///
    /// # Errors
    /// [`PortError::Queues`] and [`PortError::Mtu`].
    pub fn check(&self, config: &PortConfig) -> Result<(), PortError> {
        let port = || self.name.clone();
        let queues = [
            ("receive", config.rx_queues, self.max_rx_queues),
            ("transmit", config.tx_queues, self.max_tx_queues),
        ];
        for (direction, wanted, max) in queues {
            if wanted == 0 || wanted > max {
                return Err(PortError::Queues { port: port(), direction, wanted, max });
            }
        }
        let (min, max) = self.mtu_range;
        if !(min..=max).contains(&config.mtu) {
            return Err(PortError::Mtu { port: port(), wanted: config.mtu, min, max });
        }
        Ok(())
    }
}

fn check_config(info: &PortInfo, config: &PortConfig, pools: &[Pool]) -> Result<(), PortError> {
    info.check(config)?;
    if pools.len() != 1 && pools.len() != usize::from(config.rx_queues) {
        return Err(PortError::Pools { queues: config.rx_queues, pools: pools.len() });
    }
    let frame_bytes =
        usize::from(config.mtu) + sys::RTE_ETHER_HDR_LEN as usize + sys::RTE_ETHER_CRC_LEN as usize;
    let needed_bytes = Pool::HEADROOM + frame_bytes;
    // Frames that the device does not split may come in a buffer for headers as a whole.
    let mut lengths = pools.iter().chain(&config.headers).map(Pool::buffer_bytes);
    match lengths.find(|buffer_bytes| *buffer_bytes < needed_bytes) {
        Some(buffer_bytes) => Err(PortError::BufferTooSmall { buffer_bytes, mtu: config.mtu, needed_bytes }),
        None => Ok(()),
    }
}

fn device_configuration(
    config: &PortConfig,
    raw: &sys::rte_eth_dev_info,
    info: &PortInfo,
    offloads: Offloads,
) -> sys::rte_eth_conf {
    let flags = |receiving| {
        OFFLOADS
            .iter()
            .filter(|(ours, _, receive)| *receive == receiving && offloads.contains(*ours))
            .fold(0, |flags, (_, theirs, _)| flags | u64::from(*theirs))
    };
    let mut conf = sys::rte_eth_conf::default();
    conf.rxmode.mtu = match info.driver.as_str() {
        // It names a limit that it does not have: what its ring's frames hold counts, whatever it is told here.
        "net_af_packet" => u32::from(config.mtu).min(sys::RTE_ETHER_MTU),
        _ => u32::from(config.mtu),
    };
    conf.rxmode.offloads = flags(true);
    conf.intr_conf.set_rxq(config.rx_interrupts.into());
    conf.txmode.offloads = flags(false);
    let hashes = spread::hash_functions(raw.flow_type_rss_offloads);
    if config.rx_queues > 1 && info.spread.unasked.is_none() && hashes != 0 {
        conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = hashes;
    }
    conf
}

/// Devices without filters receive everything anyway, and say that they cannot be told to.
fn tolerate(id: PortId, action: &'static str, result: i32) -> Result<(), PortError> {
    if result == -libc::ENOTSUP {
        tracing::debug!(port = id.0, "the driver has no switch to {action}");
        return Ok(());
    }
    PortError::check(id, action, result).map(drop)
}
