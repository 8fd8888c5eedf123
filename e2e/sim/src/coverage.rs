//! What occurred in a run, so that a million quiet runs are not mistaken for proof.

use crate::faults::KINDS;
use sluice_core::counters::Counters;
use sluice_core::front::FrontCounts;

/// What is counted beside faults.
const OTHERS: [&str; 37] = [
    "restart",
    "stale incarnation",
    "stale generation",
    "replica joins",
    "replica drains",
    "placement change",
    "session resumed",
    "session lost",
    "session replaced",
    "session lapsed",
    "late word",
    "rank lost, resuming",
    "rank lost, replaying",
    "cut with gateway",
    "gateway left",
    "mask",
    "suspicion",
    "re-dispatch",
    "hedge",
    "redirect",
    "duplicate frame",
    "duplicate return",
    "orphan",
    "preemption",
    "credit stall",
    "urgent release",
    "late token",
    "slice",
    "span",
    "wave",
    "prefix hit",
    "replay",
    "busy rank",
    "cancel",
    "deadline",
    "failed",
    "refused at the door",
];

/// How often things occurred in one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    core: Counters,
    front: FrontCounts,
    /// Frames that arrived twice.
    pub copies: u64,
    /// Requests refused at the door.
    pub refused: u64,
    /// Requests cut with their gateway.
    pub cut: u64,
    /// Gateways that were drained and left without a cut.
    pub left: u64,
    /// Sessions of a gateway and a rank that went on over another connection.
    pub resumed: u64,
    /// Sessions that a gateway gave up.
    pub lost: u64,
    /// Sessions that another one of the same gateway took the place of.
    pub replaced: u64,
    /// Sessions that a rank let lapse.
    pub lapsed: u64,
    /// Words of a session that was over, passed on all the same.
    pub late_words: u64,
    /// Ranks killed while a gateway was resuming its session with them.
    pub lost_resuming: u64,
    /// Ranks killed that had replays.
    pub lost_replaying: u64,
    /// Hellos of an earlier incarnation.
    pub stale_incarnations: u64,
    /// Workers that heard of an older generation than they had.
    pub stale_generations: u64,
    /// Placement slices published while tokens flowed.
    pub placements: u64,
    /// Replicas that joined.
    pub joins: u64,
    /// Replicas that were drained.
    pub replica_drains: u64,
    /// Workers started again.
    pub restarts: u64,
    /// Runs with more than one decode wave.
    pub waves: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hits: u64,
    /// Faults of each kind.
    pub faults: [u64; KINDS.len()],
}

impl Coverage {
    /// The names of what is counted, in the order of [`Self::counts`]: the faults, then what they and the load lead to.
    pub const NAMES: [&str; KINDS.len() + OTHERS.len()] = {
        let mut all = [""; KINDS.len() + OTHERS.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = if i < KINDS.len() { KINDS[i] } else { OTHERS[i - KINDS.len()] };
            i += 1;
        }
        all
    };

    /// The counts.
    pub fn counts(&self) -> [u64; Self::NAMES.len()] {
        let (c, f) = (&self.core, &self.front);
        let others: [u64; OTHERS.len()] = [
            self.restarts,
            self.stale_incarnations,
            self.stale_generations,
            self.joins,
            self.replica_drains,
            self.placements,
            self.resumed,
            self.lost,
            self.replaced,
            self.lapsed,
            self.late_words,
            self.lost_resuming,
            self.lost_replaying,
            self.cut,
            self.left,
            c.masked,
            c.suspected,
            c.redispatched,
            c.hedged,
            c.redirected,
            c.duplicate_frames,
            c.duplicate_returns,
            c.orphaned,
            c.preemptions,
            c.credit_stalls,
            c.urgent,
            c.late,
            c.sliced,
            c.spans,
            self.waves,
            self.prefix_hits,
            f.replays + f.preempted,
            f.busy,
            f.cancelled,
            f.deadline,
            f.failed,
            self.refused,
        ];
        let mut all = [0; Self::NAMES.len()];
        all[..KINDS.len()].copy_from_slice(&self.faults);
        all[KINDS.len()..].copy_from_slice(&others);
        all
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
            (&mut to.hedged, c.hedged),
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
