//! The baseline's barrier: all workers run the same step, and nobody starts the next before all have announced the
//! end of this one.
//!
//! Steps go round: attention of block 0, experts of block 0, …, experts of block L-1, head. A worker that has
//! nothing to do in a step announces its end at once. When nobody has a sequence, nobody announces: a worker without
//! any follows only steps that another has announced.

use crate::frame::StepEnd;

/// What the present step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Attention of a block; of block L, the head.
    Attention(u16),
    Experts(u16),
}

#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// Steps announced.
    ended: u64,
    /// Data frames sent before the last announcement.
    frames: u64,
    /// The announcement counts: its frames have arrived.
    settled: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    blocks: u64,
    step: u64,
    heard: Vec<Option<Heard>>,
}

impl Barrier {
    pub fn new(blocks: u16) -> Self {
        Self { blocks: u64::from(blocks), step: 0, heard: vec![] }
    }

    pub fn peer_up(&mut self, peer: usize) {
        if self.heard.len() <= peer {
            self.heard.resize(peer + 1, None);
        }
        self.heard[peer] = Some(Heard { ended: self.step, frames: 0, settled: self.step });
    }

    /// Nobody waits for it.
    pub fn peer_down(&mut self, peer: usize) {
        if let Some(h) = self.heard.get_mut(peer) {
            *h = None;
        }
    }

    pub fn hear(&mut self, peer: usize, end: StepEnd) {
        if let Some(Some(h)) = self.heard.get_mut(peer)
            && end.step >= h.ended
        {
            (h.ended, h.frames) = (end.step.saturating_add(1), end.frames);
        }
    }

    /// Data frames have arrived.
    pub fn arrived(&mut self, peer: usize, seen: u64) {
        if let Some(Some(h)) = self.heard.get_mut(peer)
            && seen >= h.frames
        {
            h.settled = h.ended;
        }
    }

    pub fn phase(&self) -> Phase {
        let at = self.step % (2 * self.blocks + 1);
        if at.is_multiple_of(2) { Phase::Attention((at / 2) as u16) } else { Phase::Experts((at / 2) as u16) }
    }

    /// Everybody has ended the step before this one.
    pub fn may_start(&self) -> bool {
        self.heard.iter().flatten().all(|h| h.settled >= self.step)
    }

    /// Somebody has ended this step: one without tokens follows.
    pub fn others_ended(&self) -> bool {
        self.heard.iter().flatten().any(|h| h.ended > self.step)
    }

    /// Ends the present step, and gives its number.
    pub fn end(&mut self) -> u64 {
        self.step += 1;
        self.step - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_go_round() {
        let mut b = Barrier::new(3);
        let seen: Vec<Phase> = (0..8)
            .map(|step| {
                let p = b.phase();
                assert_eq!(b.end(), step);
                p
            })
            .collect();
        use Phase::{Attention as A, Experts as E};
        assert_eq!(seen, [A(0), E(0), A(1), E(1), A(2), E(2), A(3), A(0)]);
    }

    #[test]
    fn an_end_counts_when_its_frames_have_arrived() {
        let mut b = Barrier::new(1);
        b.peer_up(1);
        assert!(b.may_start() && !b.others_ended());
        b.end();
        assert!(!b.may_start());
        b.hear(1, StepEnd { step: 0, frames: 3, busy: true });
        b.arrived(1, 2);
        assert!(!b.may_start());
        b.arrived(1, 3);
        assert!(b.may_start());
        b.hear(1, StepEnd { step: 1, frames: 3, busy: true });
        assert!(b.others_ended());
        b.hear(1, StepEnd { step: 0, frames: 9, busy: true });
        b.arrived(1, 3);
        b.end();
        assert!(b.may_start() && !b.others_ended(), "an older end says nothing");
        b.hear(1, StepEnd { step: u64::MAX, frames: 0, busy: true });
        b.arrived(1, 0);
        assert!(b.may_start() && b.others_ended(), "whatever it means, it is not waited for");
    }
}
