use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const MOMENT_US: u32 = 10;

/// One byte under way, as it should be.
#[derive(Clone, Copy, Debug)]
struct Byte {
    sacked: bool,
    lost: bool,
    again: bool,
}

/// A scoreboard, and beside it each byte by itself.
struct Tested {
    board: Scoreboard,
    pool: RunPool,
    first: Seq,
    bytes: VecDeque<Byte>,
    now_us: u32,
}

impl Tested {
    fn new(first: u32, lists: usize) -> Self {
        let first = Seq(first);
        let board = Scoreboard::new(first, true);
        Self { board, pool: RunPool::new(lists), first, bytes: VecDeque::new(), now_us: 5_000 }
    }

    fn sending(&self) -> Sending {
        Sending { now_us: self.now_us, within_us: MOMENT_US, node: 7, again: false }
    }

    fn send(&mut self, len: u32) {
        let end = self.board.end + len;
        self.board.sent(end, &self.sending(), &mut self.pool);
        let byte = Byte { sacked: false, lost: false, again: false };
        self.bytes.extend((0..len).map(|_| byte));
    }

    fn acknowledge(&mut self, len: u32) -> Delivered {
        let mut news = Delivered::default();
        self.first += len;
        self.board.acknowledge(self.first, self.now_us, &mut news);
        let left = self.bytes.split_off((len as usize).min(self.bytes.len()));
        let acked = std::mem::replace(&mut self.bytes, left);
        let new = acked.iter().filter(|byte| !byte.sacked).count();
        assert_eq!(news.bytes as usize, new);
        // Karn: what was sent again measures nothing, nor does what may have waited for it.
        let again = acked.iter().filter(|byte| !byte.sacked && byte.again).count();
        assert_eq!(news.rtt_us().is_some(), new > 0 && again == 0);
        self.board.count(&news, self.now_us);
        self.board.rest(&mut self.pool);
        news
    }

    fn sack(&mut self, from: u32, to: u32) -> Delivered {
        let mut news = Delivered::default();
        self.board.sack(self.first + from, self.first + to, self.now_us, &mut news, &mut self.pool);
        for byte in self.bytes.range_mut(from as usize..to as usize) {
            (byte.sacked, byte.lost) = (true, false);
        }
        self.board.count(&news, self.now_us);
        news
    }

    fn send_lost(&mut self, most: u32) -> Option<(u32, u32)> {
        let first = self.bytes.iter().position(|byte| byte.lost);
        let part = self.board.next_lost();
        assert_eq!(part.map(|part| part.from.since(self.first) as usize), first);
        let part = part?;
        let (from, end) = (part.from, part.end.min(part.from + most));
        self.board.sent_again(from, end, &self.sending(), &mut self.pool);
        let range = (from.since(self.first), end.since(self.first));
        for byte in self.bytes.range_mut(range.0 as usize..range.1 as usize) {
            *byte = Byte { sacked: false, lost: false, again: true };
        }
        Some(range)
    }

    fn lose_all(&mut self) {
        self.board.lose_all();
        self.bytes.iter_mut().filter(|byte| !byte.sacked).for_each(|byte| byte.lost = true);
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.board.is_consistent(), "{:?}", self.board);
        let count = |is: fn(&Byte) -> bool| self.bytes.iter().filter(|byte| is(byte)).count();
        assert_eq!(self.board.sacked() as usize, count(|byte| byte.sacked));
        assert_eq!(self.board.lost() as usize, count(|byte| byte.lost));
        assert_eq!(self.board.in_flight() as usize, count(|byte| !byte.sacked && !byte.lost));
    }
}

/// Whatever comes in whatever order, the runs are what each byte by itself would be.
#[test]
fn runs_are_what_each_byte_would_be() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut run = Tested::new(rng.random(), 1);
        for _ in 0..200 {
            run.now_us += rng.random_range(0..30);
            let len = run.bytes.len() as u32;
            match rng.random_range(0..100) {
                // Few enough that there is room for each run.
                0..40 if len < 24 => run.send(rng.random_range(1..4)),
                0..60 if len > 0 => {
                    let from = rng.random_range(0..len);
                    let to = rng.random_range(from + 1..=len);
                    let before = run.bytes.iter().filter(|byte| byte.sacked).count();
                    let news = run.sack(from, to);
                    let after = run.bytes.iter().filter(|byte| byte.sacked).count();
                    assert_eq!(news.bytes as usize, after - before, "seed {seed}");
                }
                60..75 if len > 0 => drop(run.acknowledge(rng.random_range(1..=len.min(8)))),
                75..90 => drop(run.send_lost(rng.random_range(1..4))),
                90..92 => run.lose_all(),
                92..94 => {
                    run.board.find_lost();
                    run.bytes.iter_mut().for_each(|byte| byte.lost = false);
                }
                94 => {
                    run.board.forget_sacked();
                    for byte in run.bytes.iter_mut().filter(|byte| byte.sacked) {
                        (byte.sacked, byte.again) = (false, true);
                    }
                }
                _ => {}
            }
            run.check();
        }
        let all = run.bytes.len() as u32 + 3;
        run.acknowledge(all);
        assert!(run.board.is_empty() && run.pool.unused.len() == 1, "seed {seed}: the list comes back");
    }
}

/// RFC 8985, section 5.2: what was sent at one moment and arrives in part is told apart where it does.
#[test]
fn what_is_sent_before_what_has_arrived_is_lost_when_its_time_is_over() {
    let mut run = Tested::new(u32::MAX - 1_500, 1);
    for _ in 0..5 {
        run.send(1_000);
        run.now_us += 100;
    }
    run.now_us += 9_500;
    let news = run.sack(2_000, 3_000);
    let newest = news.newest.unwrap();
    assert_eq!((news.rtt_us(), news.is_reordered), (Some(9_800), false));
    let rtt_us = run.now_us - newest.sent_us;
    let overdue = |run: &mut Tested, patience| {
        run.board.lose_overdue((newest.sent_us, newest.end), patience, run.now_us)
    };
    assert_eq!(overdue(&mut run, rtt_us + 300), (0, Some(200)));
    assert_eq!(overdue(&mut run, rtt_us + 150), (1_000, Some(50)));
    assert_eq!(overdue(&mut run, rtt_us), (1_000, None));
    assert_eq!((run.board.lost(), run.board.in_flight()), (2_000, 2_000));
    let part = run.board.next_lost().unwrap();
    assert_eq!((part.from, part.end), (run.first, run.first + 1_000));
    // The first comes late after all: it was on the way longer.
    let news = run.acknowledge(1_000);
    assert!(news.is_reordered);
}

/// What is sent together has the time of its first part; but not what was sent after something that was sent again, or it would
/// count as sent before that, and as lost as soon as that has arrived.
#[test]
fn what_is_sent_after_something_was_sent_again_is_known_to_be() {
    let mut run = Tested::new(u32::MAX - 1_500, 1);
    run.send(1_000);
    run.send(1_000);
    assert!(run.board.lose_first(1_000, &mut run.pool));
    run.bytes.range_mut(..1_000).for_each(|byte| byte.lost = true);
    run.now_us += MOMENT_US / 3;
    let again_us = run.now_us;
    assert_eq!(run.send_lost(1_000), Some((0, 1_000)));
    run.now_us += MOMENT_US / 3;
    run.send(1_000);
    run.now_us += 5_000;
    let news = run.acknowledge(1_000);
    let newest = news.newest.unwrap();
    assert_eq!((newest.sent_us, newest.is_again), (again_us, true));
    let sent = (newest.sent_us, newest.end);
    assert_eq!(run.board.lose_overdue(sent, run.now_us - again_us, run.now_us), (1_000, None));
    let part = run.board.next_lost().unwrap();
    assert_eq!((part.from, part.end), (run.first, run.first + 1_000));
}

/// A connection that gets no memory for a list goes on with one run.
#[test]
fn without_memory_all_is_one_run() {
    let mut run = Tested::new(0, 0);
    for _ in 0..3 {
        run.send(1_000);
        run.now_us += 100;
    }
    assert!(run.board.notes().is_none());
    let news = run.sack(1_000, 2_000);
    assert_eq!((news.bytes, run.board.in_flight()), (0, 3_000), "what there is no room for is forgotten");
    run.board.lose_all();
    let part = run.board.next_lost().unwrap();
    assert_eq!((part.from, part.end), (Seq(0), Seq(3_000)));
    run.board.sent_again(Seq(0), Seq(1_000), &run.sending(), &mut run.pool);
    assert_eq!((run.board.lost(), run.board.in_flight()), (0, 3_000));
    let mut news = Delivered::default();
    run.board.acknowledge(Seq(1_000), run.now_us, &mut news);
    assert_eq!((news.bytes, news.rtt_us()), (1_000, None), "it was sent twice");
    assert!(run.board.lose_first(1_000, &mut run.pool));
    assert!(run.board.is_consistent());
}

/// RFC 2018 under attack: blocks of single bytes fill no more than a list, and what is sent next has a place.
#[test]
fn blocks_of_single_bytes_fill_no_more_than_a_list() {
    for lists in [1, 2] {
        let mut run = Tested::new(0, lists);
        if lists == 2 {
            run.pool.long.clear();
        }
        for n in 0..40_000u32 {
            if n % 16 == 0 {
                run.send(100);
                run.now_us += 100;
            }
            let at = n.wrapping_mul(2_654_435_761) % run.board.end.since(run.board.from);
            let mut news = Delivered::default();
            let from = run.first + at;
            run.board.sack(from, from + 1, run.now_us, &mut news, &mut run.pool);
            run.board.count(&news, run.now_us);
        }
        let list = run.board.list.as_ref().unwrap();
        let most = if lists == 1 { MOST_RUNS } else { FEW_RUNS };
        assert!(list.runs.len() <= most && list.runs.len() + 2 * KEPT_RUNS > most, "{}", list.runs.len());
        assert_eq!(list.runs.capacity(), most, "nothing was allocated");
        assert!(run.board.is_consistent());
        run.board.lose_all();
        while run.board.next_lost().is_some() {
            let part = run.board.next_lost().unwrap();
            run.board.sent_again(part.from, part.end.min(part.from + 10), &run.sending(), &mut run.pool);
        }
        assert!(run.board.is_consistent());
        run.board.clear(Seq(0), &mut run.pool);
        assert_eq!(run.pool.unused.len(), lists);
        assert!(std::iter::from_fn(|| run.pool.unused.take()).all(|list| list.runs.capacity() == FEW_RUNS));
    }
}

/// The rate at which data is delivered is that of the slower of sending and arriving
/// (draft-ietf-ccwg-bbr, section 4.1.2).
#[test]
fn the_rate_is_that_of_delivery() {
    let mut run = Tested::new(0, 1);
    for _ in 0..10 {
        run.send(1_000);
        run.now_us += 100;
    }
    run.now_us = 20_000;
    let mut rates = vec![];
    for _ in 0..10 {
        let news = run.acknowledge(1_000);
        rates.push(run.board.rate(&news, run.now_us));
        run.now_us += 500;
    }
    assert_eq!(rates[0].unwrap().bytes, 1_000);
    // From the first that was sent to the last acknowledgement.
    let last = rates[9].unwrap();
    assert_eq!((last.bytes, last.interval_us, last.is_limited), (10_000, 19_500, false));
    run.send(1_000);
    run.board.limited();
    run.now_us += 100;
    run.send(1_000);
    run.now_us += 500;
    let first = run.acknowledge(1_000);
    let second = run.acknowledge(1_000);
    assert!(!run.board.rate(&first, run.now_us).unwrap().is_limited);
    assert!(run.board.rate(&second, run.now_us).unwrap().is_limited);
}
