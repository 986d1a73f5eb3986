//! How much may be in flight. An algorithm behind one trait owns two numbers of a connection, its congestion window and
//! its slow start threshold, and nothing else: what is lost, and what is to be sent again, is found elsewhere.
//!
//! All connections of an endpoint have the same algorithm. What it remembers of one lies in a pool, and a connection
//! takes a part of that only when it has filled its window or lost something: one whose requests and replies fit the
//! initial window says nothing about the network, and needs no more than the numbers.

mod bbr;
pub(crate) mod choice;
mod cubic;
mod newreno;
mod pace;
mod slow_start;
mod validation;

use stack_net::time::Instant;

use self::bbr::Bbr;
use self::choice::CongestionControl;
use self::cubic::Cubic;
use self::newreno::NewReno;
use self::pace::{Pace, burst_bytes, catch_up_us};
use self::validation::Validation;
use super::scoreboard::RateSample;
use super::seq::Seq;

/// Does the same with the pool of whichever algorithm there is.
macro_rules! with_pool {
    ($controls:expr, $pool:ident => $work:expr) => {
        match &mut $controls.memory {
            Memory::NewReno($pool) => $work,
            Memory::Cubic($pool) => $work,
            Memory::Bbr($pool) => $work,
        }
    };
}

/// The congestion control of a connection, but for what its algorithm remembers.
#[derive(Clone, Debug)]
pub(crate) struct Congestion {
    window: Window,
    /// The congestion window was full when the last number before this one was sent.
    full_to: Seq,
    /// Where in [`Controls`] its memory lies, or [`NONE`].
    place: u32,
}

/// What an algorithm owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Bytes that may be in flight.
    pub cwnd: u32,
    /// Above this the window grows slowly, in bytes.
    pub ssthresh: u32,
}

/// An acknowledgement of data that was sent while the window was full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub now: Instant,
    /// Most payload bytes of a segment.
    pub mss: u32,
    /// Bytes that it says have arrived and no acknowledgement before it did.
    pub bytes: u32,
    /// Everything before this is acknowledged, and everything before that was sent.
    pub ack: Seq,
    pub sent_to: Seq,
    /// The round trip that it measures, and the smoothed one, in microseconds.
    pub rtt_us: Option<u32>,
    pub srtt_us: u32,
    /// Bytes that are still in flight.
    pub flight: u32,
    /// How fast what it tells of was delivered, for a congestion control that [models](Congestion::models) the path.
    pub rate: Option<RateSample>,
    /// Whether it shows that something is lost.
    pub loses: bool,
}

/// A loss, or what stands for one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub mss: u32,
    /// Bytes in flight when it was noticed.
    pub flight: u32,
    /// Everything before this was sent.
    pub sent_to: Seq,
    /// Whether what was lost was sent while the window was full.
    pub was_full: bool,
    /// Whether nothing was lost, but marked as a sign of congestion (RFC 3168).
    pub is_mark: bool,
}

impl Loss {
    /// Bytes of the window that were in use: RFC 9438, section 4.6.
    fn used(&self, window: &Window) -> u32 {
        if self.was_full { window.cwnd } else { window.cwnd.min(self.flight) }
    }
}

/// What an algorithm undoes when a loss turns out to have been none.
#[derive(Clone, Copy, Debug)]
struct Undo(Window);

impl Undo {
    fn apply(self, window: &mut Window) {
        window.cwnd = window.cwnd.max(self.0.cwnd);
        window.ssthresh = window.ssthresh.max(self.0.ssthresh);
    }
}

/// A congestion control, for one connection.
pub(crate) trait Control: Clone + std::fmt::Debug {
    /// One that knows nothing yet.
    fn new() -> Self;

    /// New data was acknowledged outside of loss recovery.
    fn on_ack(&mut self, window: &mut Window, acked: &Acked);

    /// A loss was detected: recovery begins.
    fn on_recovery(&mut self, window: &mut Window, loss: &Loss);

    /// Recovery is over, and `flight` bytes are in flight: what is missing is not sent in one burst (RFC 6582, section
    /// 3.2, step 3).
    fn on_recovered(&mut self, window: &mut Window, flight: u32, mss: u32) {
        let most = flight.max(mss).saturating_add(mss).min(MAX_WINDOW_BYTES);
        window.cwnd = window.ssthresh.min(most);
    }

    /// The retransmission timer fired; `first` unless it had before, for the same data.
    fn on_timeout(&mut self, window: &mut Window, loss: &Loss, first: bool);

    /// The last loss or timeout was none: what was sent has arrived.
    fn on_undo(&mut self, window: &mut Window);

    /// Something is sent, with so many bytes in flight before it.
    fn on_sent(&mut self, _flight: u32) {}

    /// Bytes a second at which a connection with this smoothed round trip sends, if it is to send at a rate: a little more
    /// than its window comes to, and twice as much where the window doubles.
    fn pacing_rate(&self, window: &Window, srtt_us: u32) -> u64 {
        let cwnd = u64::from(window.cwnd);
        let a_second = if window.cwnd < window.ssthresh / 2 { 2 * cwnd } else { cwnd + cwnd / 5 };
        a_second * 1_000_000 / u64::from(srtt_us.max(1))
    }
}

/// No place in the pool.
const NONE: u32 = u32::MAX;

/// The largest window that a peer can offer (RFC 7323, section 2.3): more is never in flight.
const MAX_WINDOW_BYTES: u32 = 1 << 30;

/// The least segment that a window is reckoned for before a connection knows its own.
const LEAST_MSS: u32 = 64;

impl Congestion {
    pub(crate) fn new() -> Self {
        Self { window: Window::initial(LEAST_MSS), full_to: Seq(0), place: NONE }
    }

    /// The network, or segments of which it has nothing been told yet, are new: `next` is the next number to be sent.
    pub(crate) fn begin(&mut self, mss: u32, next: Seq) {
        (self.window, self.full_to) = (Window::initial(mss), next);
    }

    /// Bytes that may be in flight.
    #[inline]
    pub(crate) fn window(&self) -> u32 {
        self.window.cwnd
    }

    /// The slow start threshold, in bytes.
    pub(crate) fn threshold(&self) -> u32 {
        self.window.ssthresh
    }

    /// Notes that the window keeps data from being sent; `sent_to` is the number behind all that was sent.
    pub(crate) fn filled(&mut self, sent_to: Seq) {
        self.full_to = sent_to;
    }

    /// Whether what is acknowledged next, from `next` on, was sent while the window was full.
    pub(crate) fn is_full(&self, next: Seq) -> bool {
        next.before(self.full_to)
    }

    /// Whether an acknowledgement that goes on from `before` to `ack` is of data that was sent while the window was
    /// full. A window that the application does not fill says nothing about the network, and does not grow (RFC 7661,
    /// section 1).
    #[inline]
    pub(crate) fn was_full(&mut self, before: Seq, ack: Seq) -> bool {
        let was_full = self.is_full(before);
        if !was_full {
            // It stays close, so that the comparison never meets a wrapped number.
            self.full_to = ack;
        }
        was_full
    }

    /// New data was acknowledged outside of loss recovery, of what was sent while the window [was
    /// full](Self::was_full).
    pub(crate) fn on_ack(&mut self, acked: &Acked, controls: &mut Controls) {
        controls.on_ack(self, acked);
    }

    /// Whether a model of the path says how much may be in flight: all acknowledgements are for it, and in recovery nothing
    /// else limits what is sent.
    #[inline]
    pub(crate) fn models(&self, controls: &Controls) -> bool {
        self.place != NONE && controls.models
    }

    /// Whether the connection sends at a rate.
    #[inline]
    pub(crate) fn is_paced(&self, controls: &Controls) -> bool {
        self.place != NONE && controls.paces
    }

    /// Whether what waits to be sent has to wait until [`held_until`](Self::held_until).
    pub(crate) fn holds(&mut self, now: Instant, controls: &mut Controls) -> bool {
        self.is_paced(controls) && with_pool!(controls, pool => pool.of(self).pace.holds(now))
    }

    /// Until when what waits to be sent has to, if it was [held](Self::holds).
    pub(crate) fn held_until(&self, controls: &Controls) -> Option<Instant> {
        if !self.is_paced(controls) {
            return None;
        }
        match &controls.memory {
            Memory::NewReno(pool) => pool.entries[self.place as usize].pace.held_until(),
            Memory::Cubic(pool) => pool.entries[self.place as usize].pace.held_until(),
            Memory::Bbr(pool) => pool.entries[self.place as usize].pace.held_until(),
        }
    }

    /// Most bytes of a frame that the device cuts into segments.
    pub(crate) fn burst_bytes(&mut self, srtt_us: u32, mss: u32, controls: &mut Controls) -> u32 {
        if !self.is_paced(controls) {
            return u32::MAX;
        }
        let rate = with_pool!(controls, pool => pool.of(self).control.pacing_rate(&self.window, srtt_us));
        burst_bytes(rate, mss, srtt_us)
    }

    /// Notes that so many bytes were sent, with `flight` in flight before.
    pub(crate) fn on_sent(
        &mut self,
        now: Instant,
        bytes: u32,
        flight: u32,
        srtt_us: u32,
        controls: &mut Controls,
    ) {
        with_pool!(controls, pool => {
            let entry = pool.of(self);
            entry.control.on_sent(flight);
            let rate = entry.control.pacing_rate(&self.window, srtt_us);
            entry.pace.sent(now, bytes, rate, catch_up_us(srtt_us));
        });
    }

    /// A loss was detected: recovery begins.
    pub(crate) fn on_recovery(&mut self, loss: &Loss, controls: &mut Controls) {
        controls.on_recovery(self, loss);
    }

    /// The retransmission timer fired; `first` unless it had before, for the same data.
    pub(crate) fn on_timeout(&mut self, loss: &Loss, first: bool, controls: &mut Controls) {
        controls.on_timeout(self, loss, first);
    }

    /// The last loss or timeout was none: what was sent has arrived.
    pub(crate) fn on_undo(&mut self, controls: &mut Controls) {
        controls.on_undo(self);
    }

    /// Recovery is over, and `flight` bytes are in flight.
    pub(crate) fn on_recovered(&mut self, flight: u32, mss: u32, controls: &mut Controls) {
        controls.on_recovered(self, flight, mss);
    }

    /// Nothing was sent for `idle_us`, which is longer than a timeout: the window says less and less, and halves with each
    /// timeout, down to the initial one. What it was is remembered in the threshold (RFC 2861, section 3).
    pub(crate) fn restarted_after_idle(
        &mut self,
        idle_us: u64,
        timeout_us: u64,
        mss: u32,
        controls: &Controls,
    ) {
        if self.models(controls) {
            // The model stands, and there is no burst.
            return;
        }
        let Window { cwnd, ssthresh } = self.window;
        let halvings = (idle_us / timeout_us.max(1)).min(31) as u32;
        self.window.cwnd = (cwnd >> halvings).max(cwnd.min(initial_window(mss)));
        self.window.ssthresh = ssthresh.max(cwnd / 4 * 3);
    }

    /// More is sent, with `flight` bytes in flight: of a window that was not used for long half is given up, and remembered in
    /// the threshold (RFC 7661, section 4.4.3). One that was never full is small.
    pub(crate) fn validate(&mut self, now: Instant, flight: u32, mss: u32, controls: &mut Controls) {
        if self.place == NONE || controls.models {
            return;
        }
        let Window { cwnd, ssthresh } = self.window;
        if with_pool!(controls, pool => pool.of(self).validation.is_over(now, flight, cwnd)) {
            self.window.cwnd = (cwnd / 2).max(cwnd.min(initial_window(mss)));
            self.window.ssthresh = ssthresh.max(cwnd / 4 * 3);
        }
    }

    /// A segment of the handshake was lost (RFC 5681, section 3.1).
    pub(crate) fn handshake_was_retransmitted(&mut self, mss: u32) {
        self.window.cwnd = mss;
    }
}

impl Window {
    /// Grows by so many bytes.
    fn grow(&mut self, bytes: u32) {
        self.cwnd = self.cwnd.saturating_add(bytes).min(MAX_WINDOW_BYTES);
    }

    fn initial(mss: u32) -> Self {
        Self { cwnd: initial_window(mss), ssthresh: u32::MAX }
    }
}

/// RFC 6928, section 2.
fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14_600))
}

/// What the algorithm of an endpoint remembers of its connections.
#[derive(Debug)]
pub(crate) struct Controls {
    memory: Memory,
    /// Whether it [models](Congestion::models) paths, and whether connections send at a rate.
    models: bool,
    paces: bool,
}

#[derive(Debug)]
enum Memory {
    NewReno(Pool<NewReno>),
    Cubic(Pool<Cubic>),
    Bbr(Pool<Bbr>),
}

/// Memory for all connections that an endpoint may have. What none has needed yet takes addresses, but no memory.
#[derive(Debug)]
struct Pool<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    control: T,
    pace: Pace,
    validation: Validation,
}

impl Controls {
    /// For so many connections, which send at a rate if their algorithm has one, or with `paces`.
    pub(crate) fn new(algorithm: CongestionControl, paces: bool, connections: usize) -> Self {
        let memory = match algorithm {
            CongestionControl::NewReno => Memory::NewReno(Pool::new(connections)),
            CongestionControl::Cubic => Memory::Cubic(Pool::new(connections)),
            CongestionControl::Bbr => Memory::Bbr(Pool::new(connections)),
        };
        let models = algorithm.models();
        Self { memory, models, paces: paces || models }
    }

    /// Whether the algorithm [models](Congestion::models) paths.
    pub(crate) fn models(&self) -> bool {
        self.models
    }

    fn on_ack(&mut self, congestion: &mut Congestion, acked: &Acked) {
        with_pool!(self, pool => pool.of(congestion).control.on_ack(&mut congestion.window, acked));
    }

    fn on_recovery(&mut self, congestion: &mut Congestion, loss: &Loss) {
        with_pool!(self, pool => pool.of(congestion).control.on_recovery(&mut congestion.window, loss));
    }

    fn on_recovered(&mut self, congestion: &mut Congestion, flight: u32, mss: u32) {
        with_pool!(self, pool => pool.of(congestion).control.on_recovered(&mut congestion.window, flight, mss));
    }

    fn on_timeout(&mut self, congestion: &mut Congestion, loss: &Loss, first: bool) {
        with_pool!(self, pool => pool.of(congestion).control.on_timeout(&mut congestion.window, loss, first));
    }

    fn on_undo(&mut self, congestion: &mut Congestion) {
        with_pool!(self, pool => pool.of(congestion).control.on_undo(&mut congestion.window));
    }

    /// Forgets a connection that is over.
    pub(crate) fn forget(&mut self, congestion: &mut Congestion) {
        with_pool!(self, pool => pool.forget(congestion));
    }
}

impl<T: Control> Pool<T> {
    fn new(connections: usize) -> Self {
        Self { entries: Vec::with_capacity(connections), free: Vec::with_capacity(connections) }
    }

    /// What is remembered of a connection, from now on if it was nothing.
    fn of(&mut self, congestion: &mut Congestion) -> &mut Entry<T> {
        if congestion.place == NONE {
            let entry = Entry { control: T::new(), pace: Pace::new(), validation: Validation::new() };
            congestion.place = self.free.pop().unwrap_or(self.entries.len() as u32);
            match self.entries.get_mut(congestion.place as usize) {
                Some(place) => *place = entry,
                None => self.entries.push(entry),
            }
        }
        &mut self.entries[congestion.place as usize]
    }

    fn forget(&mut self, congestion: &mut Congestion) {
        if congestion.place != NONE {
            self.free.push(congestion.place);
            congestion.place = NONE;
        }
    }
}

#[cfg(test)]
mod tests;
