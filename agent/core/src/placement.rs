//! Who holds which unit: a table in slices by block range, each with its own generation.

use crate::ids::{Unit, WorkerId};
use std::ops::Range;

/// Whether a unit's replica takes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaState {
    /// Loading its weights; takes none.
    Joining,
    /// Serves.
    Active,
    /// Empties its queues; takes none that its sender could send elsewhere.
    Draining,
}

/// One holder of one unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replica {
    /// The holder.
    pub worker: WorkerId,
    /// What it holds.
    pub unit: Unit,
    /// Its state.
    pub state: ReplicaState,
    /// The part of the unit's tokens that should go to it, of the sum over its siblings.
    pub fraction: f32,
}

/// The rows of some blocks, versioned together. No invariant spans slices.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementSlice {
    /// The blocks it covers.
    pub blocks: Range<u16>,
    /// Rises whenever rows change.
    pub generation: u64,
    /// The rows.
    pub replicas: Vec<Replica>,
}
