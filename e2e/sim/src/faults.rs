//! What goes wrong with workers and the connections between them.

use crate::rng::Rng;
use sluice_core::ids::Nanos;

/// One fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A worker dies with all it holds, and starts again as another incarnation.
    Kill {
        /// Which.
        worker: usize,
        /// For how long it is away.
        away: Nanos,
    },
    /// A worker does nothing for a time, and knows nothing of it.
    Pause {
        /// Which.
        worker: usize,
        /// How long.
        length: Nanos,
    },
    /// The connections of two workers break.
    Cut {
        /// One.
        a: usize,
        /// The other.
        b: usize,
        /// How long until they are there again.
        length: Nanos,
    },
    /// The connections between two halves of the workers break.
    Partition {
        /// A bit per worker: which half it is in.
        half: u64,
        /// How long until they are there again.
        length: Nanos,
    },
    /// A worker's frames take longer on their way.
    Slow {
        /// Which.
        worker: usize,
        /// How long it lasts.
        length: Nanos,
        /// So many times as long.
        factor: u64,
    },
}

/// The names of the kinds, in the order of [`Fault::kind`].
pub const KINDS: [&str; 5] = ["kill", "pause", "cut pair", "partition", "slow link"];

impl Fault {
    /// Which kind.
    pub const fn kind(&self) -> usize {
        match self {
            Self::Kill { .. } => 0,
            Self::Pause { .. } => 1,
            Self::Cut { .. } => 2,
            Self::Partition { .. } => 3,
            Self::Slow { .. } => 4,
        }
    }

    /// Any, among so many workers.
    pub fn draw(r: &mut Rng, workers: usize, cycle: Nanos) -> Self {
        let worker = r.below(workers as u64) as usize;
        let most = cycle * r.spread(1, 12);
        let length = 1 + r.below(most);
        match r.below(100) {
            0..35 => Self::Kill { worker, away: length },
            // Long enough to be taken for lost, often.
            35..50 => Self::Pause { worker, length: 8 * length },
            50..75 => {
                let b = (worker + 1 + r.below(workers as u64 - 1) as usize) % workers;
                Self::Cut { a: worker, b, length }
            }
            75..88 => Self::Partition { half: r.below(1 << workers), length },
            _ => Self::Slow { worker, length, factor: r.spread(2, 40) },
        }
    }
}
