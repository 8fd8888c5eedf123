//! Snapshots: what telemetry is handed.

use sluice_core::counters::Counters;
use sluice_core::front::{FrontCounts, Waiting};
use sluice_core::ids::WorkerId;
use sluice_core::pressure::Pressure;

/// The kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// Attention of one block.
    Attention,
    /// Whole blocks.
    Span,
    /// Experts of one block.
    Experts,
    /// Final norm, head, sampling.
    Head,
}

impl StepKind {
    pub(super) const ALL: [Self; 4] = [Self::Attention, Self::Span, Self::Experts, Self::Head];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Span => "span",
            Self::Experts => "experts",
            Self::Head => "head",
        }
    }
}

/// One worker, now.
#[derive(Clone, Debug)]
pub struct WorkerSample {
    /// Who.
    pub worker: WorkerId,
    /// Its role: `attention`, `experts` or `hybrid`.
    pub role: &'static str,
    /// Its sums.
    pub counters: Counters,
    /// Its queues.
    pub pressure: Pressure,
    /// All its slots are loaded.
    pub ready: bool,
    /// Something is under way here, or waits.
    pub busy: bool,
    /// It had been told to take nothing new.
    pub draining: bool,
    /// Why it cannot go on, if it cannot.
    pub failure: Option<String>,
}

/// The gateway's front, now.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrontSample {
    /// Its sums.
    pub counts: FrontCounts,
    /// Sequences under way.
    pub live: usize,
    /// Sequences that wait for a rank.
    pub waiting: Waiting,
}
