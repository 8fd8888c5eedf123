//! Kernels for NVIDIA GPUs (Hopper), and the launches that check their arguments.
//!
//! # The numerics contract
//! Weights, the residual, an expert's input, its inner row h and its output are bf16; sums are f32. The bits of a row
//! are a function of its own input and weights: never of the number of rows in the launch, of the other rows, of the
//! kernel's variant, or of how its tiles are dealt to multiprocessors. It follows from how the products are made:
//! weights are the M operand of the tensor core's product and tokens its N operand, and the inner dimension is walked
//! in one order by one chain of accumulators, so that an output's additions are the same at every N.
//!
//! - **Segments** of the down product are such chains too, and are added by the tree that the CPU kernels use
//!   ([`crate::cpu::segments`]). A holder of a slice returns its f32 subtree; a whole expert's sum is rounded to bf16
//!   once, after the tree, and so is the sum over slices in [`Merge`]: the same bits from one holder or several.
//! - **SiLU** is a fixed sequence of instructions: `g * rcp(1 + ex2(-g log2 e)) * u`.
//! - **Merge**: `residual + s`, where s is the chain of `fma(w_k, y_k, s)` from +0 in the router's order.
//!
//! Bits are the same among devices of one kind, not between kinds.

mod cubins;
mod device;
mod error;
mod experts;
mod fill;
mod graph;
mod launch;
mod merge;
mod shape;
mod slots;

/// Names the bits that these kernels compute; part of a worker's numerics id. It changes whenever a result may.
pub const KERNEL_SET: &str = "cuda-sm90-1";

pub use cubins::available_cubins;
pub use device::{Buffer, Device};
pub use error::Error;
pub use experts::{Bounds, ExpertCall, ExpertFfn, Output, Pairs, Rows, Split, Tuning, Variant};
pub use fill::Fill;
pub use graph::Graph;
pub use merge::{Merge, MergeIo, Returned};
pub use shape::ExpertShape;
pub use slots::{ExpertSlots, ExpertSource};
