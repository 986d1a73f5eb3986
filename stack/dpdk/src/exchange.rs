//! What goes from one core to another: bounded queues of mbufs, of which each core reads its own.
//!
//! An mbuf may be freed by any thread that the EAL knows; it goes back to its pool by that thread's cache. Payload
//! lies where the receiving core's device put it, and a core that keeps it copies it into its own arena.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use dpdk::{Mbuf, MbufBatch};
use stack_net::doze::{Doze, Waker};

/// Segments without a connection that may wait for a core.
pub(super) const STRAYS: usize = 256;

/// Frames that other cores have answered, and that a core may learn from.
pub(super) const NEWS: usize = 64;

/// A segment for which so many cores have found no connection.
pub(super) struct Stray {
    pub(super) mbuf: Mbuf,
    pub(super) asked: u16,
}

/// The queues of all cores.
pub(super) struct Exchange {
    inboxes: Box<[Inbox]>,
}

/// The queues of one core: others write, it reads.
struct Inbox {
    /// Segments of the core's own connections.
    segments: ArrayQueue<Mbuf>,
    strays: ArrayQueue<Stray>,
    news: ArrayQueue<Mbuf>,
    /// Frames to be sent for cores that have no transmit queue.
    departures: ArrayQueue<Mbuf>,
    /// Whether the core has given frames to another one, and waits for their payload to come back.
    waits_for_payload: AtomicBool,
    doze: Doze,
}

impl Exchange {
    /// For `cores` cores, with room for `segments` frames on their way to each core, and for as many on their way
    /// out.
    pub(super) fn new(cores: usize, segments: usize) -> Arc<Self> {
        let inbox = || Inbox {
            segments: ArrayQueue::new(segments),
            strays: ArrayQueue::new(STRAYS),
            news: ArrayQueue::new(NEWS),
            departures: ArrayQueue::new(segments),
            waits_for_payload: AtomicBool::new(false),
            doze: Doze::default(),
        };
        Arc::new(Self { inboxes: (0..cores).map(|_| inbox()).collect() })
    }

    pub(super) fn cores(&self) -> usize {
        self.inboxes.len()
    }

    /// Gives a core a segment of one of its connections; false, and the segment is lost, if it has too many.
    pub(super) fn give_segment(&self, core: usize, mbuf: Mbuf) -> bool {
        self.inboxes[core].add(|inbox| inbox.segments.push(mbuf)).is_ok()
    }

    /// Asks a core whether a segment is its own; false, and the segment is lost, if it is asked too much.
    pub(super) fn give_stray(&self, core: usize, stray: Stray) -> bool {
        self.inboxes[core].add(|inbox| inbox.strays.push(stray)).is_ok()
    }

    /// Tells a core what another has learned; false if it is told too much.
    pub(super) fn give_news(&self, core: usize, mbuf: Mbuf) -> bool {
        self.inboxes[core].add(|inbox| inbox.news.push(mbuf)).is_ok()
    }

    /// Has a core send a frame; the frame comes back if too many wait for that.
    pub(super) fn give_departure(&self, core: usize, mbuf: Mbuf) -> Result<(), Mbuf> {
        self.inboxes[core].add(|inbox| inbox.departures.push(mbuf))
    }

    /// Moves segments that were given to a core into the batch, as far as they fit.
    pub(super) fn take_segments(&self, core: usize, batch: &mut MbufBatch) {
        fill(batch, &self.inboxes[core].segments);
    }

    /// Moves frames that a core is to send into the batch, as far as they fit.
    pub(super) fn take_departures(&self, core: usize, batch: &mut MbufBatch) {
        fill(batch, &self.inboxes[core].departures);
    }

    pub(super) fn take_stray(&self, core: usize) -> Option<Stray> {
        self.inboxes[core].strays.pop()
    }

    pub(super) fn take_news(&self, core: usize) -> Option<Mbuf> {
        self.inboxes[core].news.pop()
    }

    /// Notes whether a core waits for payload in frames that others send.
    pub(super) fn wait_for_payload(&self, core: usize, waits: bool) {
        let flag = &self.inboxes[core].waits_for_payload;
        if flag.load(Ordering::Relaxed) != waits {
            flag.store(waits, Ordering::Relaxed);
        }
    }

    /// Whether any core waits for payload in frames that another sends.
    pub(super) fn is_payload_waited_for(&self) -> bool {
        self.inboxes.iter().any(|inbox| inbox.waits_for_payload.load(Ordering::Relaxed))
    }

    /// Says how a core that sleeps is woken. Without that it looks at its inbox often enough.
    pub(super) fn wake_by(&self, core: usize, waker: Waker) {
        self.inboxes[core].doze.wake_by(waker);
    }

    /// Notes that a core goes to sleep; false if it must not, since there is something in its inbox.
    pub(super) fn may_sleep(&self, core: usize) -> bool {
        let Inbox { segments, strays, news, departures, doze, .. } = &self.inboxes[core];
        doze.may_sleep(|| {
            segments.is_empty() && strays.is_empty() && news.is_empty() && departures.is_empty()
        })
    }

    /// Notes that a core is awake.
    pub(super) fn is_awake(&self, core: usize) {
        self.inboxes[core].doze.is_awake();
    }
}

impl Inbox {
    /// Adds something, and wakes the core if it sleeps.
    fn add<T>(&self, push: impl FnOnce(&Self) -> Result<(), T>) -> Result<(), T> {
        push(self)?;
        self.doze.wake();
        Ok(())
    }
}

fn fill(batch: &mut MbufBatch, queue: &ArrayQueue<Mbuf>) {
    while batch.room() > 0
        && let Some(mbuf) = queue.pop()
    {
        // There is room: it comes back only to a full batch.
        let _ = batch.push(mbuf);
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("cores", &self.cores()).finish_non_exhaustive()
    }
}
