//! A simulated host of several cores: one port, whose frames are spread over them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use stack_net::time::Instant;

use super::Port;
use crate::Share;

/// One core's part of a port.
#[derive(Debug)]
pub(super) struct CorePort {
    port: Rc<Port>,
    core: usize,
    spreader: Rc<RefCell<Spreader>>,
}

/// What comes to a core.
#[derive(Debug)]
pub(super) enum Parcel {
    /// A frame, and how many other cores have had it before and have no connection for it.
    Frame { bytes: Vec<u8>, asked: usize },
    /// A copy of a frame that another core has answered.
    News(Vec<u8>),
}

/// To which core the device gives a frame.
type CoreOf = Box<dyn FnMut(&[u8]) -> usize>;

struct Spreader {
    core_of: CoreOf,
    inboxes: Vec<VecDeque<Parcel>>,
}

/// The parts of `cores` cores at `port`; `core_of` tells to which of them the device gives a frame.
pub(super) fn core_ports(
    port: Port,
    cores: usize,
    core_of: impl FnMut(&[u8]) -> usize + 'static,
) -> Vec<CorePort> {
    let port = Rc::new(port);
    let inboxes = (0..cores).map(|_| VecDeque::new()).collect();
    let spreader = Rc::new(RefCell::new(Spreader { core_of: Box::new(core_of), inboxes }));
    (0..cores).map(|core| CorePort { port: port.clone(), core, spreader: spreader.clone() }).collect()
}

impl CorePort {
    pub(super) fn port(&self) -> &Port {
        &self.port
    }

    /// The next that has come to this core by `now`.
    pub(super) fn receive(&self, now: Instant) -> Option<Parcel> {
        let Spreader { core_of, inboxes } = &mut *self.spreader.borrow_mut();
        while let Some(bytes) = self.port.receive(now) {
            inboxes[core_of(&bytes)].push_back(Parcel::Frame { bytes, asked: 0 });
        }
        inboxes[self.core].pop_front()
    }

    /// Whether a frame that so many other cores have had can belong to no further one.
    pub(super) fn is_last(&self, asked: usize) -> bool {
        asked + 1 >= self.spreader.borrow().inboxes.len()
    }

    /// Gives a frame to the others, as far as it concerns them.
    pub(super) fn pass_on(&self, share: Share, bytes: Vec<u8>, asked: usize) {
        let inboxes = &mut self.spreader.borrow_mut().inboxes;
        match share {
            Share::Nothing => {}
            Share::Stray | Share::StrayWhole => {
                let next = (self.core + 1) % inboxes.len();
                inboxes[next].push_back(Parcel::Frame { bytes, asked: asked + 1 });
            }
            Share::News => {
                let others = inboxes.iter_mut().enumerate().filter(|(core, _)| *core != self.core);
                others.for_each(|(_, inbox)| inbox.push_back(Parcel::News(bytes.clone())));
            }
        }
    }
}

impl std::fmt::Debug for Spreader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spreader").field("inboxes", &self.inboxes).finish_non_exhaustive()
    }
}
