//! What an executor runs: coarse layer steps, not single ops. A compute backend takes a [`Step`] and answers with
//! an [`Outcome`]. The hidden states stay in the backend's slab (see [`crate::slab::SlabLayout`]); a step names rows.

use crate::ids::{Row, SeqHandle, Unit};
use crate::sequence::Abort;
use std::ops::Range;

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Attention of one block over a batch of tokens, or a span of whole blocks.
    Attention(AttentionStep),
    /// The units of one block held here, over a grouped batch.
    Experts(ExpertStep),
    /// Final norm, lm_head and sampling.
    Head(HeadStep),
}

/// Attention of block `blocks.start`: enter the rows (embed, or merge what the experts of the block before returned),
/// norm, QKV, append KV, attend, project, add to the residual; then norm into the input row and route.
/// A dense feed-forward or a shared expert of the block runs here as well, into the residual.
///
/// Two segments of one sequence may be in one step: the keys and values of all rows are appended before any row
/// attends, and a row attends to positions up to its own.
///
/// With `span`, the backend holds all units of `blocks` and runs attention and experts of each of them to the end:
/// the residual is whole afterwards, and the next step's entry is [`Entry::Carry`].
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionStep {
    /// The block, or the blocks of a span.
    pub blocks: Range<u16>,
    /// Whether the experts of `blocks` run here too.
    pub span: bool,
    /// Runs of consecutive positions. Their lengths sum to `rows.len()`.
    pub segments: Vec<SegmentStep>,
    /// The tokens, segment after segment.
    pub rows: Vec<TokenRow>,
    /// For each row that merges, in order, `top_k` values: the number of slices that choice came in.
    pub slicing: Vec<u8>,
    /// The page tables of all segments, one after another.
    pub pages: Vec<u32>,
}

/// Consecutive positions of one sequence within an [`AttentionStep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentStep {
    /// The sequence.
    pub seq: SeqHandle,
    /// Position of its first row.
    pub start: u32,
    /// Rows.
    pub len: u32,
    /// Its page table in [`AttentionStep::pages`]: page i holds positions `i * page_size ..`.
    pub pages: Range<u32>,
}

/// One token of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The token: an index into the slab's residual and input regions.
    pub token: u32,
    /// How its residual comes to be whole.
    pub entry: Entry,
    /// Whether anything after the last block's KV is wanted of it. A prompt token that is not the last one is needed
    /// in the last block for its keys and values only.
    pub wanted: bool,
}

/// How a row enters a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The embedding of a token id.
    Embed(u32),
    /// Add the expert outputs in this return group, in the router's order of k, weighted with the router's weights,
    /// which the backend kept for the token since it routed it.
    Merge(u32),
    /// The residual is whole.
    Carry,
}

/// The units of one block over a grouped batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertStep {
    /// The block.
    pub block: u16,
    /// The units, each with its part of `items`.
    pub units: Vec<UnitBatch>,
    /// Rows to read and rows to write, both in this worker's slab.
    pub items: Vec<ExpertItem>,
}

/// One unit of an [`ExpertStep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitBatch {
    /// The unit.
    pub unit: Unit,
    /// The slot that holds its weights.
    pub slot: u32,
    /// Its part of [`ExpertStep::items`].
    pub items: Range<u32>,
}

/// One row through one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertItem {
    /// Input.
    pub src: Row,
    /// Output: the subtree of the unit's slice, in f32.
    pub dst: Row,
}

/// Final norm, lm_head and sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadStep {
    /// The rows.
    pub rows: Vec<HeadRow>,
    /// As in [`AttentionStep::slicing`].
    pub slicing: Vec<u8>,
}

/// One row to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRow {
    /// The token.
    pub token: u32,
    /// [`Entry::Merge`] or [`Entry::Carry`].
    pub entry: Entry,
    /// The sequence, by which the sampler finds its state.
    pub seq: SeqHandle,
    /// Which of the sequence's generated tokens this is, from 0, over all attempts.
    pub index: u32,
}

/// What a step left behind.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a single block with experts: `top_k` expert ids per row, in the router's order. Rows not wanted after the
    /// last block may hold anything. Empty for a dense block.
    Routed(Vec<u16>),
    /// Of a span: rows per (block of the span, expert).
    Spanned(Vec<u32>),
    /// Experts are done.
    Experts,
    /// Of a head: one per row.
    Sampled(Vec<Sample>),
    /// The device failed; the worker cannot go on.
    Failed(String),
}

/// What the sampler drew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A token id.
    Token(u32),
    /// Structured output is complete and allows no further token: the sequence stops here.
    Done,
    /// The sequence cannot go on: it ends with an error.
    Abort(Abort),
}
