//! Why there is no plan.

use sluice_core::ids::WorkerId;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A number of segments that no deployment has.
    #[error("{0} segments: there must be 1, 2, 4 or 8")]
    Segments(u8),
    /// A slicing that does not cut the segments evenly.
    #[error("{slices} slices of {segments} segments: the slices must divide the segments")]
    Slices {
        /// Slices asked for.
        slices: u8,
        /// Segments of the deployment.
        segments: u8,
    },
    /// More blocks than a block number can name.
    #[error("{0} blocks: at most 65535 can be numbered")]
    Blocks(usize),
    /// Blocks with experts, but no experts.
    #[error("{0} blocks have experts, but the number of experts is 0")]
    NoExperts(usize),
    /// Bounds that nothing fits.
    #[error(
        "replicas of {what}: minimum {min}, maximum {max}; the minimum must be at least 1 and not over the maximum"
    )]
    Bounds {
        /// Which bounds.
        what: String,
        /// The minimum.
        min: u32,
        /// The maximum.
        max: u32,
    },
    /// Bounds for an expert that does not exist.
    #[error("replicas of expert {expert} of block {block}: the model has no such expert")]
    UnknownExpert {
        /// The block.
        block: u16,
        /// The expert.
        expert: u16,
    },
    /// A worker twice.
    #[error("{0} is listed twice")]
    DuplicateWorker(WorkerId),
    /// More replicas than workers that could hold one each.
    #[error(
        "expert {expert} of block {block} needs {replicas} replicas on distinct workers, but {workers} have slots"
    )]
    TooFewWorkers {
        /// The block.
        block: u16,
        /// The expert.
        expert: u16,
        /// Replicas it must have.
        replicas: u32,
        /// Workers with at least one slot.
        workers: usize,
    },
    /// Fewer slots than copies of units.
    #[error("{needed} slots are needed for all units and their replicas, the workers have {have}")]
    TooFewSlots {
        /// Copies of units that must be placed.
        needed: u64,
        /// Slots of all workers.
        have: u64,
    },
    /// Enough slots, but on too few workers.
    #[error(
        "the {units} units with the most replicas need {needed} slots on distinct workers, but the workers can give \
         them {have}: the slots are too unevenly divided"
    )]
    SlotsTooUneven {
        /// Units with the most replicas.
        units: u64,
        /// Copies of them.
        needed: u64,
        /// Slots they can have: no worker holds two copies of one unit.
        have: u64,
    },
    /// A load of another shape than the model.
    #[error("the load of block {block} has {found} experts, the model has {expected}")]
    LoadShape {
        /// The block.
        block: usize,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// A load of another number of blocks than the model.
    #[error("the load has {found} blocks, the model has {expected}")]
    LoadBlocks {
        /// Blocks found.
        found: usize,
        /// Blocks expected.
        expected: usize,
    },
    /// A load that is no number of rows.
    #[error("the load of expert {expert} of block {block} is {value}: it must be finite and not negative")]
    LoadValue {
        /// The block.
        block: usize,
        /// The expert.
        expert: usize,
        /// The value.
        value: f64,
    },
    /// A tolerance that is none.
    #[error("tolerance {0}: it must be finite and not negative")]
    Tolerance(f64),
}
