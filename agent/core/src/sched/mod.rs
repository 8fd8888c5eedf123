//! Schedulers: which μ-queue an idle worker runs next. One trait, chosen by name per role.

mod defrag;
mod flfs;
mod frontier;
mod mtfs;

use crate::config::Policy;
use crate::cost::Costs;
use crate::host::{ExpertQueue, Host};
use crate::ids::{IDLE, Nanos, Progress};
use crate::rank::{AttentionQueue, Rank};

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing yet: sleep until a message, or until then.
    Sleep(Option<Nanos>),
    /// Attention (or, at block L, the head) of these classes (as bits).
    Attention {
        /// The block.
        block: u16,
        /// The classes.
        classes: u16,
    },
    /// Experts of a block.
    Experts {
        /// The block.
        block: u16,
        /// Which of its μ-queues.
        take: Take,
    },
}

/// Which μ-queues of a block an expert step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// All of them.
    All,
    /// One unit's, of all classes.
    Unit(u32),
    /// Those that the frontier lets run.
    Runnable,
}

/// A policy.
pub trait Scheduler: Send + std::fmt::Debug {
    /// Chooses among what waits.
    fn choose(&mut self, view: &View<'_>) -> Choice;
}

/// The scheduler of a name. `sync` chooses within a phase as `flfs` does; its barrier is the worker's.
pub(crate) fn make(policy: Policy) -> Box<dyn Scheduler> {
    match policy {
        Policy::Mtfs => Box::new(mtfs::Mtfs),
        Policy::Flfs | Policy::Sync => Box::new(flfs::Flfs),
        Policy::Defrag => Box::new(defrag::Defrag::default()),
        Policy::Frontier => Box::new(frontier::FrontierFirst),
    }
}

/// Above so many units of a block held here, every policy runs them in one launch.
const GROUP_ABOVE: u32 = 16;

/// What a scheduler sees of its worker.
#[derive(Debug)]
pub struct View<'a> {
    /// Now.
    pub now: Nanos,
    /// L.
    pub blocks: u16,
    pub(crate) rank: Option<&'a Rank>,
    pub(crate) host: Option<&'a Host>,
    pub(crate) costs: &'a Costs,
    /// The longest cycle of any rank.
    pub(crate) cycle: Nanos,
    /// Per class, the frontier over all ranks.
    pub(crate) floors: &'a [(Progress, Option<Nanos>)],
    pub(crate) classes: u8,
}

impl<'a> View<'a> {
    /// Attention μ-queues with anything waiting. Block L is the head.
    pub fn attention(&self) -> impl Iterator<Item = &'a AttentionQueue> + use<'a> {
        self.rank.into_iter().flat_map(|r| r.queues.active())
    }

    /// Expert μ-queues, summed per block and class, with anything waiting.
    pub fn experts(&self) -> impl Iterator<Item = &'a ExpertQueue> + use<'a> {
        self.host.into_iter().flat_map(|h| h.queues.active())
    }

    /// All classes, as bits.
    pub fn all_classes(&self) -> u16 {
        (1 << self.classes) - 1
    }

    /// The largest μ-queue of a block, or all of them where the model has many small experts.
    pub(crate) fn largest(&self, block: u16) -> Take {
        let Some(host) = self.host else { return Take::All };
        if host.units_of(block) > GROUP_ABOVE {
            return Take::All;
        }
        let mut best: Option<(usize, u32)> = None;
        for class in 0..self.classes {
            for &unit in host.queues.units(block, class) {
                let rows = (0..self.classes).map(|c| host.queues.queue(unit, c).items.len()).sum();
                if best.is_none_or(|(n, u)| rows > n || (rows == n && unit < u)) {
                    best = Some((rows, unit));
                }
            }
        }
        best.map_or(Take::All, |(_, u)| Take::Unit(u))
    }

    /// An attention μ-queue is complete when it stands at its rank's least progress of the wave, and all the rank's
    /// tokens at that progress are in it.
    pub fn attention_complete(&self, q: &AttentionQueue) -> bool {
        let Some(rank) = self.rank else { return false };
        let clock = &rank.clocks[q.class as usize];
        let mut here = q.at_progress;
        if q.block == self.blocks {
            // A sampled token stands at the same progress: it waits at block 0 for the rest.
            let first = rank.queues.get(0, q.class);
            here += if first.progress == q.progress { first.at_progress } else { 0 };
        }
        clock.frontier() > q.progress || (clock.frontier() == q.progress && here >= clock.at_frontier())
    }

    /// The part of an attention step that would not be paid again if it ran now.
    pub fn attention_useful(&self, q: &AttentionQueue) -> f64 {
        let Some(rank) = self.rank else { return 0.0 };
        let missing = rank.clocks[q.class as usize].up_to(q.progress).saturating_sub(q.rows);
        crate::cost::useful(|n| self.costs.attention.at(n), f64::from(q.rows), f64::from(missing))
    }

    /// An expert μ-queue is complete when the frontier has passed it.
    pub fn experts_complete(&self, class: u8, progress: Progress) -> bool {
        self.floors.get(class as usize).is_none_or(|f| f.0 > progress)
    }

    /// The same for one unit's μ-queue.
    pub fn unit_useful(&self, unit: u32, class: u8) -> f64 {
        let Some(host) = self.host else { return 0.0 };
        let q = host.queues.queue(unit, class);
        let Some(block) = host.held[unit as usize].as_ref().map(|h| h.unit.block) else { return 1.0 };
        let late = host.frontier.late_tokens(class, q.least, self.now, self.cycle);
        let missing = host.share(unit) * f64::from(late);
        let launch = self.costs.launch as f64 / f64::from(host.units_of(block).max(1));
        let t = |n: f64| if n > 0.0 { self.costs.unit.at(n) + launch } else { 0.0 };
        crate::cost::useful(t, q.items.len() as f64, missing)
    }

    /// When silence of a rank next changes what is complete.
    pub(crate) fn silence(&self) -> Option<Nanos> {
        self.floors.iter().filter(|f| f.0 != IDLE).filter_map(|f| f.1).min()
    }
}
