//! What occurred in a run, so that a million quiet runs are not mistaken for proof.

use crate::faults::KINDS;
use sluice_core::counters::Counters;
use sluice_core::front::FrontCounts;

/// How often things occurred in one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    core: Counters,
    front: FrontCounts,
    /// Frames that arrived twice.
    pub copies: u64,
    /// Requests refused at the door.
    pub refused: u64,
    /// Ranks drained.
    pub drains: u64,
    /// Connections between a gateway and a rank that broke.
    pub cuts: u64,
    /// Placement slices published while tokens flowed.
    pub placements: u64,
    /// Runs with more than one decode wave.
    pub waves: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hits: u64,
    /// Faults of each kind.
    pub faults: [u64; KINDS.len()],
}

impl Coverage {
    /// The names of what is counted, in the order of [`Self::counts`].
    pub const NAMES: [&str; 29] = [
        "redirect",
        "duplicate frame",
        "duplicate return",
        "preemption",
        "credit stall",
        "urgent release",
        "slice",
        "wave",
        "span",
        "orphan",
        "late token",
        "prefix hit",
        "cancel",
        "deadline",
        "refused at the door",
        "failed",
        "busy rank",
        "replay",
        "drain",
        "cut connection",
        "placement change",
        "kill",
        "pause",
        "cut pair",
        "partition",
        "slow link",
        "mask",
        "suspicion",
        "re-dispatch",
    ];

    /// The counts.
    pub fn counts(&self) -> [u64; Self::NAMES.len()] {
        let (c, f) = (&self.core, &self.front);
        [
            c.redirected,
            c.duplicate_frames,
            c.duplicate_returns,
            c.preemptions,
            c.credit_stalls,
            c.urgent,
            c.sliced,
            self.waves,
            c.spans,
            c.orphaned,
            c.late,
            self.prefix_hits,
            f.cancelled,
            f.deadline,
            self.refused,
            f.failed,
            f.busy,
            f.replays + f.preempted,
            self.drains,
            self.cuts,
            self.placements,
            self.faults[0],
            self.faults[1],
            self.faults[2],
            self.faults[3],
            self.faults[4],
            c.masked,
            c.suspected,
            c.redispatched,
        ]
    }

    /// Adds a worker's.
    pub fn add(&mut self, c: &Counters) {
        let to = &mut self.core;
        for (a, b) in [
            (&mut to.redirected, c.redirected),
            (&mut to.duplicate_frames, c.duplicate_frames),
            (&mut to.duplicate_returns, c.duplicate_returns),
            (&mut to.preemptions, c.preemptions),
            (&mut to.credit_stalls, c.credit_stalls),
            (&mut to.urgent, c.urgent),
            (&mut to.sliced, c.sliced),
            (&mut to.spans, c.spans),
            (&mut to.orphaned, c.orphaned),
            (&mut to.late, c.late),
            (&mut to.masked, c.masked),
            (&mut to.suspected, c.suspected),
            (&mut to.redispatched, c.redispatched),
        ] {
            *a += b;
        }
    }

    /// Adds a gateway's.
    pub fn add_front(&mut self, f: FrontCounts) {
        let to = &mut self.front;
        for (a, b) in [
            (&mut to.cancelled, f.cancelled),
            (&mut to.deadline, f.deadline),
            (&mut to.failed, f.failed),
            (&mut to.busy, f.busy),
            (&mut to.replays, f.replays),
            (&mut to.preempted, f.preempted),
        ] {
            *a += b;
        }
    }
}
