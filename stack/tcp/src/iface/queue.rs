//! Frames that wait for the device.

/// A ring of frames in memory taken at the start.
#[derive(Debug)]
pub(super) struct FrameQueue {
    frames: Box<[Vec<u8>]>,
    first: usize,
    len: usize,
}

impl FrameQueue {
    pub(super) fn new(frames: usize, frame_bytes: usize) -> Self {
        Self { frames: (0..frames).map(|_| Vec::with_capacity(frame_bytes)).collect(), first: 0, len: 0 }
    }

    pub(super) fn room(&self) -> usize {
        self.frames.len() - self.len
    }

    /// Adds a frame of zeros that `write` fills in; false, and it is lost, if there is no room.
    pub(super) fn push(&mut self, bytes: usize, write: impl FnOnce(&mut [u8])) -> bool {
        if self.room() == 0 {
            return false;
        }
        let at = (self.first + self.len) % self.frames.len();
        let frame = &mut self.frames[at];
        frame.clear();
        frame.resize(bytes, 0);
        write(frame);
        self.len += 1;
        true
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn front(&self) -> Option<&[u8]> {
        (self.len > 0).then(|| &self.frames[self.first][..])
    }

    pub(super) fn pop(&mut self) {
        if self.len > 0 {
            self.first = (self.first + 1) % self.frames.len();
            self.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_in_order_and_never_more_than_there_are_places() {
        let mut queue = FrameQueue::new(3, 8);
        for round in 0..10 {
            let taken = (0..5).filter(|n| queue.push(1, |frame| frame[0] = round * 5 + n)).count();
            assert_eq!(taken, 3);
            for n in 0..3 {
                assert_eq!(queue.front(), Some(&[round * 5 + n][..]));
                queue.pop();
            }
            assert_eq!(queue.front(), None);
        }
    }
}
