//! What workers say to each other. A frame has a number within its channel, by which duplicates are dropped.
//!
//! Data frames may overtake each other and be overtaken by control frames: each side works with what has arrived.

use crate::ids::{Class, Nanos, Progress, Row, Slice};
use crate::placement::PlacementSlice;
use std::sync::Arc;

/// The two connections of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Rows: tokens and returns.
    Data,
    /// Everything else, which never waits behind rows.
    Control,
}

/// One message between two workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The epoch of the connection pair: closing both connections ends it.
    pub epoch: u32,
    /// Which connection.
    pub channel: Channel,
    /// Number within (epoch, channel), from 0.
    pub number: u64,
    /// The message.
    pub body: Body,
}

/// The messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Rank to host: tokens for its units.
    Tokens(TokenBatch),
    /// Host to rank: outputs.
    Returns(ReturnBatch),
    /// Rank to host: the frontier of one class.
    Mark(Mark),
    /// Host to rank: landing rows that are free again.
    Credit(Vec<u32>),
    /// Host to rank: units it does not hold.
    Redirect(Redirect),
    /// To everybody: the end of a step (scheduler `sync` only).
    StepEnd(StepEnd),
}

/// Tokens of one class at one progress.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenBatch {
    /// The class.
    pub class: Class,
    /// Data frames of this class sent to this worker before this one.
    pub frames: u64,
    /// The block whose experts are asked.
    pub block: u16,
    /// The generation of that block's placement that the sender routed by.
    pub generation: u64,
    /// Rows of the attention step that the batch is a part of.
    pub step_rows: u32,
    /// The clock of the tokens' wave.
    pub progress: Progress,
    /// Rows that travel: from the sender's slab into its landing ring at the receiver.
    pub rows: Vec<RowMove>,
    /// What to run on them.
    pub items: Vec<TokenItem>,
    /// The class's frontier after this batch.
    pub mark: Option<Mark>,
}

/// One input row on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMove {
    /// A row of the sender's slab.
    pub src: Row,
    /// Where it goes: an index into the sender's landing ring at the receiver.
    pub dst: u32,
}

/// One expert (slice) asked for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenItem {
    /// Index into [`TokenBatch::rows`].
    pub row: u32,
    /// The expert of the batch's block.
    pub expert: u16,
    /// The slice.
    pub slice: Slice,
    /// Where the output goes.
    pub back: ReturnTo,
}

/// A reserved return row at the token's home rank. The reservation is the return's credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReturnTo {
    /// The return group.
    pub group: u32,
    /// Which use of the group this is: an output with another tag is a duplicate.
    pub tag: u32,
    /// The router's choice.
    pub k: u8,
}

/// Outputs of one expert step for one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct ReturnBatch {
    /// Rows of the sender's slab that travel, one per item. Where they go follows from the item.
    pub rows: Vec<Row>,
    /// What they are.
    pub items: Vec<ReturnItem>,
    /// Landing rows that are free again.
    pub freed: Vec<u32>,
}

/// One output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnItem {
    /// Which reservation it fills.
    pub back: ReturnTo,
    /// The slice it is the subtree of.
    pub slice: Slice,
}

/// The frontier of one class of one rank: the lowest progress that can still come to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The class.
    pub class: Class,
    /// Rises with every mark of this class: an older mark says nothing.
    pub order: u64,
    /// The lowest progress that can still come; [`crate::ids::IDLE`] when the rank has no token in the class.
    pub progress: Progress,
    /// Data frames of the class sent to this worker before it: the mark counts once they have arrived.
    pub frames: u64,
    /// Tokens the rank has in the class.
    pub tokens: u32,
    /// The rank waits for this worker's credit, so nobody should wait for the rank.
    pub blocked: bool,
    /// The rank's cycle: median time between its attention steps.
    pub cycle: Nanos,
}

/// Items sent back unrun.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// The items.
    pub items: Vec<ReturnItem>,
    /// Landing rows that are free again.
    pub freed: Vec<u32>,
    /// The worker's placement of that block, for a dispatcher whose own is older.
    pub slice: Option<Arc<PlacementSlice>>,
}

/// The end of one step of the barrier-synchronous baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepEnd {
    /// The step.
    pub step: u64,
    /// Data frames sent to this worker before it.
    pub frames: u64,
    /// Whether the sender has any sequence.
    pub busy: bool,
}
