//! Compute kernels: CPU microkernels with one fixed summation order, and their f64 twins
//!
//! Activations and sums are f32; weights keep their dtype ([`cpu::Dtype`]).
//!
//! # The numerics contract
//! The bits of a result are a function of the op's own inputs: never of the instruction set, of the number of rows in
//! the call, of which rows they are, or of the number of threads. All of it follows from fixing, per op, the order
//! of correctly rounded IEEE operations:
//!
//! - **Product** `y = x W^T`: every output is one chain, `acc = fma(x[i], w[i], acc)` from +0 with i rising. A bias is
//!   added to the finished sum, and then, where the call accumulates, the sum is added to the value already there.
//! - **Segments**: the inner dimension f of an expert's down product is cut by [`cpu::segments`]`(f, G)`. Each segment
//!   is a chain of its own from +0; segments are combined by the balanced binary tree over their index,
//!   `node(lo, hi) = node(lo, mid) + node(mid, hi)`. A holder of segments lo..hi returns `node(lo, hi)` in f32, and
//!   [`cpu::Cpu::combine_slices`] computes the upper levels. (This part is shared by every kind of device; the rest
//!   holds among CPUs.)
//! - **Expert**: `h = silu(x gate^T) * (x up^T)`, then the down product over h.
//! - **exp** is one polynomial with a fixed sequence of operations (2 ulp; 0 below -87; held at exp(88) above), and
//!   `silu(x) = x / (1 + exp(0 - x))`, `sigmoid(x) = 1 / (1 + exp(0 - x))`.
//! - **Reductions over a row** (sums of squares, maxima, sums of exp): 32 virtual lanes, lane l takes elements l,
//!   l + 32, ... in order, then the tree l with l + 16, + 8, + 4, + 2, + 1.
//! - **Attention** of a query at position p: scores are `scale * chain(q, k)`. Positions are grouped in blocks of 64 and
//!   chunks of 512, aligned to the sequence's start. Within a chunk, blocks follow in order by online softmax: the new
//!   maximum m, `alpha = exp(m_old - m)`, 16 virtual lanes of the weights' sum (`lane = lane * alpha`, then the
//!   weights of positions 16 j + lane in order), and per value column `o = o * alpha` followed by the chain of
//!   `fma(weight, v, o)` over the block's visible positions. Chunks are merged in order from the first that the
//!   query sees. So prefill, decode and replay agree.
//! - **Merge**: `residual + s`, where s is the chain of `fma(w_k, y_k, s)` from +0 in the router's order.
//! - Ties (top-k) go to the lower id.
//!
//! Values that are NaN or infinite propagate, but which NaN is not part of the contract.
#![allow(unsafe_code)]

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod reference;

pub use error::Error;
