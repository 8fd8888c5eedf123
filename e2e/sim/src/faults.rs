//! What goes wrong with workers, gateways and the connections between them.

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
    /// A worker's steps take longer: its device throttles, or somebody else uses it too.
    SlowDevice {
        /// Which.
        worker: usize,
        /// How long it lasts.
        length: Nanos,
        /// So many times as long.
        factor: u64,
    },
    /// Somebody who was deposed publishes a placement of his time.
    OldTable,
    /// A rank takes no new sequences, and hands back what it has or not.
    Drain {
        /// The rank.
        rank: usize,
        /// Whether what runs goes back.
        hand_back: bool,
        /// After how long it goes, to start again as another incarnation.
        leaves: Option<Nanos>,
    },
    /// A gateway dies with all its clients.
    KillGateway {
        /// Which.
        gateway: usize,
        /// For how long it is away; for good, if another one stays.
        away: Option<Nanos>,
    },
    /// A gateway does nothing for a time, and knows nothing of it.
    PauseGateway {
        /// Which.
        gateway: usize,
        /// How long.
        length: Nanos,
    },
    /// A gateway takes no new requests, and goes when it has none.
    DrainGateway {
        /// Which.
        gateway: usize,
        /// What it still has after so long is cut.
        grace: Option<Nanos>,
        /// For how long it is away then.
        away: Nanos,
    },
    /// A gateway loses its connection to a rank.
    CutLink {
        /// The gateway.
        gateway: usize,
        /// The rank.
        rank: usize,
        /// How long until it can be there again.
        length: Nanos,
    },
    /// A gateway loses its connections to all ranks.
    Isolate {
        /// The gateway.
        gateway: usize,
        /// How long until they can be there again.
        length: Nanos,
    },
}

/// The names of the kinds, in the order of [`Fault::kind`].
pub const KINDS: [&str; 13] = [
    "kill",
    "pause",
    "cut pair",
    "partition",
    "slow link",
    "old table",
    "rank drain",
    "gateway kill",
    "gateway pause",
    "gateway drain",
    "cut link",
    "gateway isolated",
    "slow device",
];

impl Fault {
    /// Which kind.
    pub const fn kind(&self) -> usize {
        match self {
            Self::Kill { .. } => 0,
            Self::Pause { .. } => 1,
            Self::Cut { .. } => 2,
            Self::Partition { .. } => 3,
            Self::Slow { .. } => 4,
            Self::OldTable => 5,
            Self::Drain { .. } => 6,
            Self::KillGateway { .. } => 7,
            Self::PauseGateway { .. } => 8,
            Self::DrainGateway { .. } => 9,
            Self::CutLink { .. } => 10,
            Self::Isolate { .. } => 11,
            Self::SlowDevice { .. } => 12,
        }
    }

    /// Any of a worker, among so many.
    pub fn of_worker(r: &mut Rng, workers: usize, cycle: Nanos) -> Self {
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

    /// Any of a gateway and its links. `patience` is how long its links are resumed.
    pub fn of_gateway(r: &mut Rng, (gateways, ranks): (usize, usize), patience: Nanos) -> Self {
        let gateway = r.below(gateways as u64) as usize;
        let length = 1 + patience * r.spread(1, 400) / 16;
        match r.below(100) {
            0..30 => {
                let stays = gateway == 0 || r.chance(60);
                Self::KillGateway { gateway, away: stays.then_some(length) }
            }
            30..42 => Self::PauseGateway { gateway, length },
            42..60 => {
                let grace = r.chance(30).then_some(length);
                Self::DrainGateway { gateway, grace, away: 1 + r.below(patience) }
            }
            60..88 => Self::CutLink { gateway, rank: r.below(ranks as u64) as usize, length },
            _ => Self::Isolate { gateway, length },
        }
    }
}
