//! A network in virtual time: hosts on a simulated Ethernet link, stepped by one loop.
//!
//! There is no clock, no thread and no wait in here. Time is a number that jumps to the next thing that
//! happens, all chance comes from one seed, and so each run can be repeated exactly: the whole behaviour of a
//! network of hosts is a function of the seed and of what the test does.
//!
//! - [`Link`] carries frames between [`Port`]s, and loses, delays, doubles or damages them as its
//!   [`Path`]s say.
//! - [`SimTransport`] runs an [`Endpoint`](crate::Endpoint) on a port; its frames arrive in buffers of a
//!   [`pmem::Arena`], as a network card's DMA would put them there.
//! - [`Peer`] is a host made of smoltcp's own interface and sockets, to test against another's TCP.
//! - [`Clock`] steps any number of [`Host`]s.

mod cores;
mod link;
mod peer;
mod transport;

pub use link::{Link, LinkCounters, Path, Port};
pub use peer::Peer;
pub use transport::{RingCounters, SimConfig, SimError, SimTransport};

use std::time::Duration;

use stack_net::time::Instant;

/// Something on the link that acts when it is polled.
pub trait Host {
    /// Takes in what has arrived by `now` and does what is due; says whether there was anything to do.
    fn poll(&mut self, now: Instant) -> bool;

    /// When the host next acts on its own.
    fn deadline(&mut self) -> Option<Instant>;
}

/// How often hosts may answer each other without time going on: beyond it they would do so for ever.
const MAX_POLLS_PER_INSTANT: usize = 100_000;

/// How many steps in a row may be asked for by a deadline that has passed already.
const MAX_LATE_STEPS: usize = 1_000;

/// The time as smoltcp has it, in microseconds as well.
fn smoltcp_time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros())
}

/// Virtual time, and the loop that moves it.
#[derive(Debug)]
pub struct Clock {
    link: Link,
    now: Instant,
    late_steps: usize,
}

impl Clock {
    /// Time for the hosts on `link`, starting at `now`.
    pub fn new(link: &Link, now: Instant) -> Self {
        Self { link: link.clone(), now, late_steps: 0 }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets every host act until none has anything left to do, then moves time on to the next arrival or
    /// deadline, but not beyond `limit`. Returns false, and goes to `limit`, when nothing happens before it.
    ///
    /// # Panics
    /// When the hosts answer each other for ever within one instant, or when one of them goes on asking for a
    /// time that has passed: on real hardware both would be a core that spins without getting anywhere.
    pub fn step(&mut self, hosts: &mut [&mut dyn Host], limit: Instant) -> bool {
        let mut polls = 0;
        while hosts.iter_mut().fold(false, |acted, host| host.poll(self.now) | acted) {
            polls += 1;
            assert!(polls < MAX_POLLS_PER_INSTANT, "the hosts never come to rest at {}", self.now);
        }
        let deadlines = hosts.iter_mut().map(|host| host.deadline()).enumerate();
        let deadline = deadlines.filter_map(|(host, at)| Some((at?, Some(host)))).min();
        let arrival = self.link.next_arrival_after(self.now).map(|at| (at, None));
        let Some((next, host)) = deadline.into_iter().chain(arrival).min() else {
            self.now = limit.max(self.now);
            return false;
        };
        if next > self.now {
            self.late_steps = 0;
        } else {
            self.late_steps += 1;
            assert!(
                self.late_steps < MAX_LATE_STEPS,
                "host {} asks for {next} again and again at {}",
                host.unwrap_or_default(),
                self.now
            );
        }
        if next > limit {
            self.now = limit.max(self.now);
            return false;
        }
        self.now = next.max(self.now + Duration::from_micros(1));
        true
    }

    /// Steps until `limit`.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn run_until(&mut self, hosts: &mut [&mut dyn Host], limit: Instant) {
        while self.now < limit && self.step(hosts, limit) {}
    }
}
