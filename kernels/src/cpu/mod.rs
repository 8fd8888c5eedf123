//! Kernels for CPUs.

mod attention;
mod context;
mod dtype;
mod experts;
mod isa;
mod kv;
mod math;
mod matmul;
mod memory;
mod packed;
mod pool;
mod reduce;
mod rope;
mod router;
mod rows;
mod simd;
mod slab;
mod tile;

/// Names the bits that these kernels compute; part of a worker's numerics id. It changes whenever a result may.
pub const KERNEL_SET: &str = "cpu-2";

pub use attention::Attention;
pub use context::Cpu;
pub use dtype::Dtype;
pub use experts::{Expert, ExpertIo, ExpertRow, SliceIo, segments};
pub use isa::Isa;
pub use kv::{KvCache, KvColumns, KvSegment, KvShape, MAX_HEAD_DIM, PAGE};
pub use math::{exp1 as exp, sigmoid1 as sigmoid, silu1 as silu};
pub use matmul::Epilogue;
pub use packed::{PackedMatrix, Source};
pub use pool::Pool;
pub use rope::RopeTable;
pub use router::{Routed, Router, Score};
pub use rows::{Merge, Norm, Table};
pub use slab::{Io, Rows, Slab};
