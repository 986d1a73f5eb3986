//! Frames taken in by the burst: headers are looked at some frames ahead, and segments that are just what their
//! connections expect take a shorter way than [`Endpoint::receive`], with the same result.

use arrayvec::ArrayVec;
use stack_net::profile::{Laps, Stage};
use stack_net::time::Instant;

use super::Endpoint;
use crate::checksum::Verdict;
use crate::fast::Form;
use crate::frame::{RxBurst, RxFrame as _, Share};

/// Frames whose headers are looked at together: enough that the memory of their connections comes in at the same time,
/// and so few that it is still in the nearest cache when the payloads of those before have passed through it.
const LOOK_AHEAD: usize = 16;

/// The form of a usual segment, and the connection that is probably its.
#[derive(Clone, Copy)]
struct Foreseen {
    form: Form,
    index: u32,
    /// Whether its headers are those of the segment before, but for lengths and numbers.
    follows: bool,
}

/// The connection whose segments are being taken in, one behind the other, and which is settled after the last.
struct Run(Option<u32>);

impl Endpoint {
    /// Takes in the frames of a burst in their order, and says of each what other cores have to do with it. Says to
    /// `laps` where the time goes.
    pub fn receive_burst<B: RxBurst + ?Sized, L: Laps>(&mut self, now: Instant, burst: &mut B, laps: &mut L) {
        self.now = self.now.max(now);
        let mut run = Run(None);
        let count = burst.len();
        for from in (0..count).step_by(LOOK_AHEAD) {
            let range = from..count.min(from + LOOK_AHEAD);
            let mut before = None;
            let foreseen = range.clone().map(|at| {
                let head = burst.head(at);
                let foreseen = self.foresee(head, before);
                before = foreseen.map(|foreseen| (head, foreseen));
                foreseen
            });
            let foreseen: ArrayVec<_, LOOK_AHEAD> = foreseen.collect();
            laps.lap(Stage::Parse);
            for (at, foreseen) in range.zip(&foreseen) {
                let is_taken = match *foreseen {
                    Some(foreseen) => self.receive_foreseen(burst, at, foreseen, &mut run, laps),
                    None => false,
                };
                if !is_taken {
                    self.finish_run(&mut run);
                    self.receive_any(burst, at, laps);
                }
                laps.lap(Stage::Tcp);
            }
        }
        self.finish_run(&mut run);
    }

    /// Takes in a frame on the complete path.
    fn receive_any<B: RxBurst + ?Sized, L: Laps>(&mut self, burst: &mut B, at: usize, laps: &mut L) {
        let is_last = burst.is_last(at);
        burst.untag(at);
        let Some(mut frame) = burst.frame(at) else { return };
        let parsed = self.parse(&frame);
        laps.lap(Stage::Parse);
        let share = self.accept(self.now, &parsed, &mut frame, is_last);
        drop(frame);
        match share {
            Share::Nothing => {}
            Share::StrayWhole => self.take_whole(|whole| burst.share(at, share, Some(whole))),
            Share::News | Share::Stray => burst.share(at, share, None),
        }
    }

    /// Finds the connection of a segment of the usual form, and has its memory come in; that of the segment `before` is the
    /// first guess. Nothing is decided here: the frames before may yet change everything.
    #[inline(always)]
    fn foresee(&self, head: &[u8], before: Option<(&[u8], Foreseen)>) -> Option<Foreseen> {
        if let Some((known, Foreseen { form, index, .. })) = before
            && let Some(form) = form.recognise_again(head, known)
        {
            return Some(Foreseen { form, index, follows: true });
        }
        let (form, ends) = Form::recognise(head, self.cx.config.mac)?;
        let index = self.flows.guess_v4(&ends)?;
        self.places[index as usize].connection.touch();
        Some(Foreseen { form, index, follows: false })
    }

    /// Takes in a segment of the usual form if its connection is there and expects it; false, and nothing is changed, if
    /// not, or if it is damaged.
    #[inline(always)]
    fn receive_foreseen<B: RxBurst + ?Sized, L: Laps>(
        &mut self,
        burst: &mut B,
        at: usize,
        Foreseen { form, index, follows }: Foreseen,
        run: &mut Run,
        laps: &mut L,
    ) -> bool {
        if run.0 != Some(index) {
            self.finish_run(run);
        }
        let now = self.now;
        let Self { places, cx, .. } = self;
        // A place that is free by now has a connection that expects nothing.
        let connection = &mut places[index as usize].connection;
        let Some(segment) = form.read(burst.head(at)) else { return false };
        // What was true of the segment before is true of one that follows it in the same run.
        let is_known = follows && run.0 == Some(index);
        let may_be = is_known || connection.key.has_ends(&segment.ends) && connection.is_ready_for(&segment);
        if !may_be || !connection.expects(now, &segment) {
            return false;
        }
        let Some(mut frame) = burst.frame(at) else { return true };
        if !frame.apart().is_empty() || !cx.config.is_of_vlan(frame.vlan()) {
            return false;
        }
        let verdict = segment.judge(frame.bytes(), frame.checksum());
        if verdict == Verdict::Wrong {
            return false;
        }
        laps.lap(Stage::Parse);
        cx.counters.frames_in += 1;
        cx.counters.segments_in += 1;
        cx.counters.partial_checksums += u64::from(verdict == Verdict::Partial);
        connection.take_expected(now, &segment, &mut frame, cx);
        run.0 = Some(index);
        true
    }

    /// Does once for several segments of a connection what follows from each.
    #[inline]
    fn finish_run(&mut self, run: &mut Run) {
        if let Some(index) = run.0.take()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            place.connection.note_offer(&mut self.cx);
            place.settle(index, &mut self.output, &mut self.telling);
        }
    }
}

#[cfg(test)]
mod tests;
