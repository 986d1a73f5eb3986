//! The generator's transport, and the wire that it works where the server is a thread of the same process.

use std::time::Duration;

use dpdk::SleepError;
use stack::Endpoint;
use stack::doze::Waker;
use stack::net::{Event, Transport};
use stack::time::Instant;
use stack::transport::OverEndpoint;
use stack::transport::dpdk::DpdkTransport;

use crate::wire::Wire;

/// The stack on the generator's port. Frames come and go by themselves, unless there is a wire, which carries them when
/// the port is looked at and when it was given some.
pub struct Wired {
    transport: DpdkTransport,
    wire: Option<Box<Wire>>,
}

impl Wired {
    /// A transport, and what carries its frames, if it takes somebody to do so.
    pub fn new(transport: DpdkTransport, wire: Option<Box<Wire>>) -> Self {
        Self { transport, wire }
    }
}

impl OverEndpoint for Wired {
    type Endpoint = Endpoint;

    fn endpoint(&self) -> &Endpoint {
        self.transport.endpoint()
    }

    fn endpoint_mut(&mut self) -> &mut Endpoint {
        self.transport.endpoint_mut()
    }
}

impl Transport for Wired {
    type Error = SleepError;

    fn receive(&mut self, now: Instant) -> Result<usize, SleepError> {
        if let Some(wire) = &mut self.wire {
            wire.carry_to_client();
        }
        self.transport.receive(now)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.transport.next_event()
    }

    fn transmit(&mut self, now: Instant) -> Result<usize, SleepError> {
        let sent = self.transport.transmit(now)?;
        if let Some(wire) = &mut self.wire {
            wire.carry_to_server();
        }
        Ok(sent)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.transport.next_deadline()
    }

    fn wait(&mut self, limit: Duration) -> Result<(), SleepError> {
        self.transport.wait(limit)
    }

    fn waker(&mut self) -> Result<Option<Waker>, SleepError> {
        self.transport.waker()
    }
}
