//! What a plan is made from.

use sluice_core::cost::Curve;
use sluice_core::ids::{Unit, WorkerId};
use std::collections::BTreeMap;

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// For each block of the model, whether it has experts.
    pub moe: Vec<bool>,
    /// Experts per block that has any.
    pub experts: u16,
    /// Segments of an expert's inner dimension (G): 1, 2, 4 or 8.
    pub segments: u8,
    /// Slices an expert is held in (S), a divisor of `segments`.
    pub slices: u8,
    /// Who can hold units. Their order does not matter.
    pub workers: Vec<Worker>,
    /// How many replicas an expert has.
    pub replicas: Replicas,
    /// Rows per expert and step, if they are known. Without them all experts of a block count as equal, and the
    /// holders of a unit share evenly.
    pub load: Option<Load>,
    /// What a step of one unit (in this slicing) costs. If it is empty, the time of a step is its rows.
    pub cost: Curve,
    /// What is held now. Units and workers that are not of this request are passed over.
    pub current: Vec<(Unit, WorkerId)>,
    /// The current placement stays as long as its pass is at most this part longer than a new one's.
    pub tolerance: f64,
}

impl Request {
    /// One replica of every expert, whole, without knowledge of load or cost.
    pub fn new(moe: Vec<bool>, experts: u16, workers: Vec<Worker>) -> Self {
        Self {
            moe,
            experts,
            segments: 1,
            slices: 1,
            workers,
            replicas: Replicas::default(),
            load: None,
            cost: Curve::default(),
            current: Vec::new(),
            tolerance: 0.05,
        }
    }
}

/// A worker that can hold units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub id: WorkerId,
    /// Units it has room for; `u32::MAX` if that is no question.
    pub slots: u32,
}

/// How many replicas an expert has, all its slices alike at the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// As many are always placed.
    pub min: u32,
    /// More than `min` are placed only where the load asks for them.
    pub max: u32,
}

/// Bounds for all experts, and other ones for some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// For every expert not in `experts`.
    pub all: Bounds,
    /// By (block, expert).
    pub experts: BTreeMap<(u16, u16), Bounds>,
}

impl Replicas {
    /// Exactly `count` of every expert.
    pub fn exactly(count: u32) -> Self {
        Self::between(count, count)
    }

    /// `min` of every expert, up to `max` where the load asks for them.
    pub fn between(min: u32, max: u32) -> Self {
        Self { all: Bounds { min, max }, experts: BTreeMap::new() }
    }

    /// The bounds of one expert.
    pub fn of(&self, block: u16, expert: u16) -> Bounds {
        self.experts.get(&(block, expert)).copied().unwrap_or(self.all)
    }
}

impl Default for Replicas {
    fn default() -> Self {
        Self::exactly(1)
    }
}

/// Mean rows per step of each expert, as `rows[block][expert]`; a block without experts has an empty list. A block
/// whose rows are all 0 was not measured and counts as even.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// By block and expert.
    pub rows: Vec<Vec<f64>>,
}
