//! Kernels for NVIDIA GPUs (Hopper), and the launches that check their arguments.
//!
//! # The numerics contract
//! Weights, the residual, an expert's input, its inner row h and its output, queries, keys, values and attention's output
//! are bf16; sums, router logits and weights are f32. The bits of a row
//! are a function of its own input and weights: never of the number of rows in the launch, of the other rows, of the
//! kernel's variant, or of how its tiles are dealt to multiprocessors. It follows from how the products are made:
//! weights are the M operand of the tensor core's product and tokens its N operand, and the inner dimension is walked
//! in one order by one chain of accumulators, so that an output's additions are the same at every N.
//!
//! - **Segments** of the down product are such chains too, and are added by the tree that the CPU kernels use
//!   ([`crate::cpu::segments`]). A holder of a slice returns its f32 subtree; a whole expert's sum is rounded to bf16
//!   once, after the tree, and so is the sum over slices in [`Merge`]: the same bits from one holder or several.
//! - **SiLU** is a fixed sequence of instructions: `g * rcp(1 + ex2(-g log2 e)) * u`.
//! - **Attention** of a query at position p: positions are grouped in blocks of 64 and chunks of 512, both aligned to the
//!   sequence's start. A block's scores are the tensor core's chain over the head's columns; its weights are
//!   `ex2(score * scale * log2 e - r)`, where the reference r is the largest score so far, rounded up to a multiple of 8, so
//!   that what was summed is brought to a new one by a power of two, exactly. Weights are rounded to bf16 for the chain over
//!   the block's values, which goes on from block to block of a chunk; their f32 sum is made in a fixed order. Chunks are
//!   computed from nothing and added in order. So decode, prefill and replay agree, however the work is cut.
//! - **Dense products** (the projections around attention, the logits): one chain over the columns, or, by the matrix's shape
//!   alone, four chains of a quarter of them each, added as (0 + 1) + (2 + 3).
//! - **Norms** sum squares in a fixed tree over the row's length; a head's, before its rotation, is not rounded in between.
//! - **Logits**: the sum of exponentials is made in slices of 4,096, relative to each one's best, and folded in a fixed tree.
//! - **Router**: the CPU kernels' bits.
//! - **Merge**: `residual + s`, where s is the chain of `fma(w_k, y_k, s)` from +0 in the router's order.
//!
//! Bits are the same among devices of one kind, not between kinds.

mod attention;
mod cubins;
mod dense;
mod device;
mod error;
mod experts;
mod fill;
mod graph;
mod kv;
mod launch;
mod logits;
mod merge;
mod relayout;
mod rope;
mod router;
mod rows;
mod shape;
mod slots;

/// Names the bits that these kernels compute; part of a worker's numerics id. It changes whenever a result may.
pub const KERNEL_SET: &str = "cuda-sm90-2";

pub use attention::{Attention, AttentionPlan, PlanLimits, Tiles};
pub use cubins::available_cubins;
pub use dense::{Dense, DenseOutput, DenseShape, DenseTiles, DenseTuning, DenseWeights};
pub use device::{Buffer, Device, View};
pub use error::Error;
pub use experts::{Bounds, ExpertCall, ExpertFfn, Output, Pairs, Rows, Split, Tuning, Variant};
pub use fill::Fill;
pub use graph::Graph;
pub use kv::{KvCache, KvCall, KvShape};
pub use logits::{LogitSummary, Summary};
pub use merge::{Merge, MergeIo, Returned};
pub use rope::{HeadNorms, RopeAppend, RopeTable};
pub use router::{Route, Routed, Router};
pub use rows::{RowNorm, RowOps};
pub use shape::ExpertShape;
pub use slots::{ExpertSlots, ExpertSource};
