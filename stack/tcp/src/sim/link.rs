//! An Ethernet link between ports: latency, bandwidth, a bounded queue, and faults drawn from one seed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::phy::{PcapLinkType, PcapSink};
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet};
use stack_net::time::Instant;

use super::smoltcp_time;

const ETHERNET_HEADER_BYTES: usize = EthernetFrame::<&[u8]>::header_len();

/// Frames that were too long and are kept for who asks for them.
const OVERSIZED_FRAMES: usize = 16;

/// What happens to the frames that leave a port. Shares are probabilities, 0 to 1, drawn for each frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Time from the end of sending to arrival.
    pub latency: Duration,
    /// Bandwidth; frames wait for the ones before them.
    pub bits_per_second: u64,
    /// Frames that may wait; further ones are lost.
    pub queue_frames: usize,
    /// Frames that wait before a further one is marked as a sign of congestion, if it may be (RFC 3168).
    pub marks_behind_frames: usize,
    /// The longest IP packet; longer ones are lost and counted as oversized.
    pub mtu: usize,
    /// Share of frames lost, or of those with which a burst of losses begins.
    pub loss: f64,
    /// Frames lost in a row.
    pub loss_burst: u32,
    /// Share of frames that arrive twice.
    pub duplication: f64,
    /// Share of frames that come late, by up to [`reordering_delay`](Self::reordering_delay).
    pub reordering: f64,
    /// The most by which a frame comes late.
    pub reordering_delay: Duration,
    /// Share of IP packets in which one byte changes. A single byte, since the Internet checksum finds every
    /// such change; the Ethernet header and ARP stay whole, since in life the frame check sequence, which
    /// they alone rely on, finds these.
    pub corruption: f64,
}

impl Default for Path {
    /// A faultless gigabit link of 50 us.
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(50),
            bits_per_second: 1_000_000_000,
            queue_frames: 1_000,
            marks_behind_frames: usize::MAX,
            mtu: 1_500,
            loss: 0.0,
            loss_burst: 1,
            duplication: 0.0,
            reordering: 0.0,
            reordering_delay: Duration::from_millis(2),
            corruption: 0.0,
        }
    }
}

/// What the link did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames that hosts sent.
    pub sent: u64,
    /// Frames put on their way to a port, counted once for each port and copy.
    pub carried: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames lost since the queue was full.
    pub overflowed: u64,
    /// Frames marked since many waited.
    pub marked: u64,
    /// Frames lost since they were longer than the path's MTU.
    pub oversized: u64,
    /// Frames that a port's filter took away.
    pub filtered: u64,
    /// Frames that arrived twice.
    pub duplicated: u64,
    /// Frames that came late.
    pub reordered: u64,
    /// Frames in which a byte changed.
    pub corrupted: u64,
}

/// A link, as a handle: clones name the same link.
///
/// It works as a switch does: a frame goes to the port from which its destination was last heard, and to all
/// other ports when there is none.
#[derive(Clone)]
pub struct Link(Rc<RefCell<Wire>>);

impl Link {
    /// A link whose chance comes from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Wire {
            rng: ChaCha8Rng::seed_from_u64(seed),
            lines: Vec::new(),
            learned: BTreeMap::new(),
            frames: 0,
            counters: LinkCounters::default(),
            capture: None,
        })))
    }

    /// A new port; `path` is what its frames go through.
    pub fn port(&self, path: Path) -> Port {
        let mut wire = self.0.borrow_mut();
        wire.lines.push(Line {
            path,
            busy_until: Instant::ZERO,
            waiting: VecDeque::new(),
            arriving: BinaryHeap::new(),
            left_to_lose: 0,
            oversized: VecDeque::new(),
            filter: None,
        });
        Port { link: self.clone(), index: wire.lines.len() - 1 }
    }

    /// Writes each frame that a host sends to `output`, in pcap format.
    pub fn capture(&self, output: impl Write + 'static) {
        let mut output: Box<dyn Write> = Box::new(output);
        output.global_header(PcapLinkType::Ethernet);
        self.0.borrow_mut().capture = Some(output);
    }

    /// When the next frame arrives, at a port where none waits since `now` or before.
    pub fn next_arrival_after(&self, now: Instant) -> Option<Instant> {
        self.0.borrow().lines.iter().filter_map(Line::next_arrival).filter(|&at| at > now).min()
    }

    /// What the link did so far.
    pub fn counters(&self) -> LinkCounters {
        self.0.borrow().counters
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = self.0.borrow();
        f.debug_struct("Link").field("ports", &wire.lines.len()).field("counters", &wire.counters).finish()
    }
}

/// One host's place on a link.
#[derive(Debug)]
pub struct Port {
    link: Link,
    index: usize,
}

impl Port {
    /// Sends a frame at `now`.
    pub fn send(&self, now: Instant, frame: Vec<u8>) {
        self.link.0.borrow_mut().send(self.index, now, frame);
    }

    /// The next frame that has arrived by `now`.
    pub fn receive(&self, now: Instant) -> Option<Vec<u8>> {
        self.link.0.borrow_mut().lines[self.index].receive(now)
    }

    /// What the frames sent from here go through.
    pub fn path(&self) -> Path {
        self.link.0.borrow().lines[self.index].path
    }

    /// Changes what later frames from here go through.
    pub fn set_path(&self, path: Path) {
        self.link.0.borrow_mut().lines[self.index].path = path;
    }

    /// The earliest frame sent here that was longer than the path's MTU and was not asked for yet, of the last few:
    /// a router that says so sends it back in part.
    pub fn take_oversized(&self) -> Option<Vec<u8>> {
        self.link.0.borrow_mut().lines[self.index].oversized.pop_front()
    }

    /// From now on only the frames sent here that `keep` returns true for get onto the link. It may change
    /// them, too. It must not use the link.
    pub fn set_filter(&self, keep: impl FnMut(&mut Vec<u8>) -> bool + 'static) {
        self.link.0.borrow_mut().lines[self.index].filter = Some(Box::new(keep));
    }
}

type Filter = Box<dyn FnMut(&mut Vec<u8>) -> bool>;

struct Wire {
    rng: ChaCha8Rng,
    lines: Vec<Line>,
    learned: BTreeMap<EthernetAddress, usize>,
    frames: u64,
    counters: LinkCounters,
    capture: Option<Box<dyn Write>>,
}

impl Wire {
    fn send(&mut self, from: usize, now: Instant, mut frame: Vec<u8>) {
        self.counters.sent += 1;
        if let Some(capture) = &mut self.capture {
            capture.packet(smoltcp_time(now), &frame);
        }
        let line = &mut self.lines[from];
        let path = line.path;
        if let Some(keep) = &mut line.filter
            && !keep(&mut frame)
        {
            self.counters.filtered += 1;
            return;
        }
        if frame.len() > path.mtu + ETHERNET_HEADER_BYTES {
            self.counters.oversized += 1;
            if line.oversized.len() == OVERSIZED_FRAMES {
                line.oversized.pop_front();
            }
            line.oversized.push_back(frame);
            return;
        }
        let Some(sent_at) = line.enqueue(now, frame.len()) else {
            self.counters.overflowed += 1;
            return;
        };
        if line.waiting.len() > path.marks_behind_frames && mark(&mut frame) {
            self.counters.marked += 1;
        }
        let Ok(header) = EthernetFrame::new_checked(&frame) else { return };
        let destination = header.dst_addr();
        if header.src_addr().is_unicast() {
            self.learned.insert(header.src_addr(), from);
        }
        match self.learned.get(&destination).copied() {
            Some(to) if destination.is_unicast() => {
                if to != from {
                    self.carry(from, to, sent_at, frame);
                }
            }
            _ => {
                for to in (0..self.lines.len()).filter(|&to| to != from) {
                    self.carry(from, to, sent_at, frame.clone());
                }
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize, sent_at: Instant, mut frame: Vec<u8>) {
        let Line { path, left_to_lose, .. } = &mut self.lines[from];
        let path = *path;
        if *left_to_lose == 0 && self.rng.random_bool(path.loss) {
            *left_to_lose = path.loss_burst;
        }
        if *left_to_lose > 0 {
            *left_to_lose -= 1;
            self.counters.lost += 1;
            return;
        }
        if self.rng.random_bool(path.corruption) && self.corrupt(&mut frame) {
            self.counters.corrupted += 1;
        }
        if self.rng.random_bool(path.duplication) {
            self.counters.duplicated += 1;
            self.arrive(&path, to, sent_at, frame.clone());
        }
        self.arrive(&path, to, sent_at, frame);
    }

    fn corrupt(&mut self, frame: &mut [u8]) -> bool {
        let ip = EthernetFrame::new_checked(&*frame)
            .is_ok_and(|frame| matches!(frame.ethertype(), EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6));
        if !ip || frame.len() == ETHERNET_HEADER_BYTES {
            return false;
        }
        let at = self.rng.random_range(ETHERNET_HEADER_BYTES..frame.len());
        frame[at] ^= self.rng.random_range(1..=u8::MAX);
        true
    }

    fn arrive(&mut self, path: &Path, to: usize, sent_at: Instant, frame: Vec<u8>) {
        let mut at = sent_at + path.latency;
        if self.rng.random_bool(path.reordering) {
            self.counters.reordered += 1;
            at += Duration::from_micros(self.rng.random_range(0..=path.reordering_delay.as_micros() as u64));
        }
        self.frames += 1;
        self.counters.carried += 1;
        self.lines[to].arriving.push(Reverse(Arrival { at, order: self.frames, frame }));
    }
}

/// Marks a frame as a sign of congestion, if it is one that may be marked (RFC 3168, section 5).
fn mark(frame: &mut [u8]) -> bool {
    let Ok(mut ethernet) = EthernetFrame::new_checked(frame) else { return false };
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else { return false };
            let may_be = ip.ecn() != 0;
            if may_be {
                ip.set_ecn(3);
                ip.fill_checksum();
            }
            may_be
        }
        EthernetProtocol::Ipv6 => {
            let Ok(mut ip) = Ipv6Packet::new_checked(ethernet.payload_mut()) else { return false };
            let class = ip.traffic_class();
            ip.set_traffic_class(if class & 3 == 0 { class } else { class | 3 });
            class & 3 != 0
        }
        _ => false,
    }
}

struct Line {
    path: Path,
    busy_until: Instant,
    /// When each of the waiting frames will have left.
    waiting: VecDeque<Instant>,
    arriving: BinaryHeap<Reverse<Arrival>>,
    /// Frames still to be lost of a burst.
    left_to_lose: u32,
    /// The last frames that were too long.
    oversized: VecDeque<Vec<u8>>,
    filter: Option<Filter>,
}

impl Line {
    /// When a frame handed over at `now` will have left; `None` when the queue is full.
    fn enqueue(&mut self, now: Instant, frame_bytes: usize) -> Option<Instant> {
        while self.waiting.front().is_some_and(|&left_at| left_at <= now) {
            self.waiting.pop_front();
        }
        if self.waiting.len() >= self.path.queue_frames {
            return None;
        }
        let bits = frame_bytes as u64 * 8;
        let sending = Duration::from_micros((bits * 1_000_000).div_ceil(self.path.bits_per_second));
        self.busy_until = self.busy_until.max(now) + sending;
        self.waiting.push_back(self.busy_until);
        Some(self.busy_until)
    }

    fn next_arrival(&self) -> Option<Instant> {
        self.arriving.peek().map(|Reverse(next)| next.at)
    }

    fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_arrival()? > now {
            return None;
        }
        self.arriving.pop().map(|Reverse(next)| next.frame)
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Instant,
    order: u64,
    frame: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const B: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);
    const END: Instant = Instant::from_micros(1_000_000_000);

    fn frame(from: EthernetAddress, to: EthernetAddress, payload_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; ETHERNET_HEADER_BYTES + payload_bytes];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_src_addr(from);
        frame.set_dst_addr(to);
        frame.set_ethertype(EthernetProtocol::Ipv4);
        bytes
    }

    fn received(port: &Port) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| port.receive(END)).collect()
    }

    #[test]
    fn bandwidth_and_latency_say_when_a_frame_arrives() {
        let link = Link::new(1);
        let path =
            Path { bits_per_second: 8_000_000, latency: Duration::from_micros(100), ..Path::default() };
        let (a, b) = (link.port(path), link.port(path));
        a.send(Instant::ZERO, frame(A, B, 86));
        a.send(Instant::ZERO, frame(A, B, 86));
        assert_eq!(link.next_arrival_after(Instant::ZERO), Some(Instant::from_micros(200)));
        assert!(b.receive(Instant::from_micros(199)).is_none());
        assert!(b.receive(Instant::from_micros(200)).is_some());
        assert_eq!(link.next_arrival_after(Instant::ZERO), Some(Instant::from_micros(300)));
    }

    #[test]
    fn a_full_queue_and_too_long_a_frame_lose() {
        let link = Link::new(1);
        let path = Path { queue_frames: 3, mtu: 100, ..Path::default() };
        let (a, b) = (link.port(path), link.port(path));
        a.send(Instant::ZERO, frame(A, B, 101));
        for _ in 0..5 {
            a.send(Instant::ZERO, frame(A, B, 100));
        }
        assert_eq!(received(&b).len(), 3);
        assert_eq!((link.counters().oversized, link.counters().overflowed), (1, 2));
        a.send(END, frame(A, B, 100));
        assert_eq!(link.counters().overflowed, 2, "the queue drains");
    }

    #[test]
    fn a_frame_goes_where_its_destination_was_heard() {
        let link = Link::new(1);
        let ports = [(); 3].map(|()| link.port(Path::default()));
        ports[0].send(Instant::ZERO, frame(A, B, 50));
        assert_eq!((received(&ports[1]).len(), received(&ports[2]).len()), (1, 1));
        ports[1].send(Instant::ZERO, frame(B, A, 50));
        ports[0].send(Instant::ZERO, frame(A, B, 50));
        assert_eq!(ports.each_ref().map(|port| received(port).len()), [1, 1, 0]);
        ports[0].send(Instant::ZERO, frame(A, EthernetAddress::BROADCAST, 50));
        assert_eq!(ports.each_ref().map(|port| received(port).len()), [0, 1, 1]);
    }

    #[test]
    fn faults_happen_as_often_as_asked_and_the_same_for_the_same_seed() {
        let run = |seed| {
            let link = Link::new(seed);
            let path = Path {
                loss: 0.1,
                duplication: 0.1,
                reordering: 0.1,
                corruption: 0.1,
                queue_frames: usize::MAX,
                ..Path::default()
            };
            let (a, b) = (link.port(path), link.port(path));
            for n in 0..1_000 {
                a.send(Instant::from_micros(n), frame(A, B, 100));
            }
            let arrived = received(&b);
            let whole = frame(A, B, 100);
            let damaged = arrived.iter().filter(|&frame| *frame != whole).count();
            (link.counters(), damaged, arrived)
        };
        let (counters, damaged, arrived) = run(7);
        for count in [counters.lost, counters.duplicated, counters.reordered, counters.corrupted] {
            assert!((50..200).contains(&count), "{counters:?}");
        }
        assert_eq!(arrived.len() as u64, 1_000 - counters.lost + counters.duplicated);
        assert!(damaged as u64 >= counters.corrupted);
        assert_eq!(run(7), (counters, damaged, arrived));
        assert_ne!(run(8).0, counters);
    }

    #[test]
    fn losses_come_in_bursts_as_long_as_asked() {
        let link = Link::new(1);
        let path = Path { loss: 0.01, loss_burst: 4, queue_frames: usize::MAX, ..Path::default() };
        let (a, b) = (link.port(path), link.port(path));
        for n in 0..10_000_u16 {
            a.send(Instant::from_micros(n.into()), frame(A, B, usize::from(n % 1_000)));
        }
        let lens: Vec<usize> = received(&b).iter().map(|frame| frame.len() - ETHERNET_HEADER_BYTES).collect();
        let gaps = lens.windows(2).map(|pair| (pair[1] + 1_000 - pair[0] - 1) % 1_000).filter(|&gap| gap > 0);
        let (mut bursts, mut odd) = (0, 0);
        gaps.for_each(|gap| if gap % 4 == 0 { bursts += 1 } else { odd += 1 });
        assert!(bursts > 50 && odd == 0, "{bursts} bursts, and {odd} of other lengths");
    }

    #[test]
    fn the_last_frames_that_were_too_long_are_there_for_who_asks() {
        let link = Link::new(1);
        let a = link.port(Path { mtu: 100, ..Path::default() });
        for len in 100..120 {
            a.send(Instant::ZERO, frame(A, B, len));
        }
        let kept: Vec<usize> =
            std::iter::from_fn(|| a.take_oversized()).map(|frame| frame.len() - 14).collect();
        assert_eq!(kept, (104..120).collect::<Vec<_>>());
    }

    #[test]
    fn a_filter_takes_frames_away() {
        let link = Link::new(1);
        let (a, b) = (link.port(Path::default()), link.port(Path::default()));
        let mut left = 2;
        a.set_filter(move |_| {
            left -= 1;
            left > 0
        });
        for _ in 0..2 {
            a.send(Instant::ZERO, frame(A, B, 50));
        }
        assert_eq!(received(&b).len(), 1);
        assert_eq!(link.counters().filtered, 1);
    }
}
