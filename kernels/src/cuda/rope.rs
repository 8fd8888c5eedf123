//! Norm and rotation of heads, and keys and values into the cache.

use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::experts::check_rows;
use super::kv::{KvCache, KvCall};
use super::launch::{Start, argument, launch};
use super::merge::int;
use crate::error::same;

const THREADS: u32 = 256;
const HEADS_PER_BLOCK: usize = THREADS as usize / 32;
/// Pairs of columns that a warp turns at once: halves are multiples of it.
const LANES: usize = 32;

/// Cosines and sines per position on the device, `[positions][rotary_dim / 2]` each.
#[derive(Debug)]
pub struct RopeTable {
    half: usize,
    positions: usize,
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

impl RopeTable {
    /// A table for `rotary_dim` rotated values per head: 64 or 128.
    pub fn new(device: &Device, rotary_dim: usize, cos: &[f32], sin: &[f32]) -> Result<Self, Error> {
        let half = rotary_dim / 2;
        if ![LANES, 2 * LANES].contains(&half) || 2 * half != rotary_dim {
            return Err(crate::Error::Unsupported {
                what: format!("rotary dimension {rotary_dim} on a GPU: use 64 or 128"),
            }
            .into());
        }
        same("sines (as many as cosines)", cos.len(), sin.len())?;
        same("cosines of whole positions", cos.len() / half * half, cos.len())?;
        let positions = cos.len() / half;
        int(positions)?;
        Ok(Self { half, positions, cosines: device.upload(cos)?, sines: device.upload(sin)? })
    }
}

/// A norm over each head of the queries and of the keys, before they turn: one factor per column of a head.
#[derive(Debug)]
pub struct HeadNorms {
    /// Of the queries.
    pub query: Buffer<f32>,
    /// Of the keys.
    pub key: Buffer<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Turns queries in place and writes keys and values to their pages.
#[derive(Debug)]
pub struct RopeAppend {
    heads_64: Kernel,
    heads_128: Kernel,
}

/// `Params` of `rope.cu`.
#[repr(C)]
struct Params {
    qkv: u64,
    cache: u64,
    places: u64,
    cosines: u64,
    sines: u64,
    query_norm: u64,
    key_norm: u64,
    rows: i32,
    stride: i32,
    heads: i32,
    kv_heads: i32,
    half: i32,
    positions: i32,
    pages: i32,
    eps: f32,
}

impl RopeAppend {
    /// Finds the kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self {
            heads_64: device.kernel("rope", "rope_append_64", THREADS)?,
            heads_128: device.kernel("rope", "rope_append_128", THREADS)?,
        })
    }

    /// For every row of the call, `stride` values apart: `heads` heads of queries, then the cache's heads of keys, then of
    /// values. Queries and keys are normalised (if there are norms) and turned by the row's position in f32, and rounded
    /// once; queries stay in the row, keys and values go to the pages of `block`. The pages belong to the caller: one
    /// that another sequence shares must not be written.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        device: &Device,
        cache: &mut KvCache,
        block: usize,
        call: &KvCall,
        qkv: &mut Buffer<bf16>,
        stride: usize,
        heads: usize,
        table: &RopeTable,
        norms: Option<&HeadNorms>,
    ) -> Result<(), Error> {
        let shape = cache.shape();
        call.check(shape)?;
        let all = heads + 2 * shape.heads;
        check_rows("query, key and value", call.rows(), qkv.len(), stride, all * shape.head_dim)?;
        if 2 * table.half > shape.head_dim {
            return Err(crate::Error::Size {
                what: "rotary dimension (at most the head's)",
                expected: shape.head_dim,
                found: 2 * table.half,
            }
            .into());
        }
        if let Some(norms) = norms {
            same("factors of the queries' norm", shape.head_dim, norms.query.len())?;
            same("factors of the keys' norm", shape.head_dim, norms.key.len())?;
        }
        if call.rows() == 0 {
            return Ok(());
        }
        let mut params = Params {
            qkv: device.address_mut(qkv),
            cache: cache.block(device, block)?,
            places: call.places_address(device),
            cosines: device.address(&table.cosines),
            sines: device.address(&table.sines),
            query_norm: norms.map_or(0, |norms| device.address(&norms.query)),
            key_norm: norms.map_or(0, |norms| device.address(&norms.key)),
            rows: int(call.rows())?,
            stride: int(stride)?,
            heads: int(heads)?,
            kv_heads: int(shape.heads)?,
            half: int(table.half)?,
            positions: int(table.positions)?,
            pages: int(shape.pages)?,
            eps: norms.map_or(0.0, |norms| norms.eps),
        };
        let kernel = if shape.head_dim == 64 { self.heads_64 } else { self.heads_128 };
        let grid = (all.div_ceil(HEADS_PER_BLOCK) as u32, params.rows.unsigned_abs());
        // SAFETY: `Params` is the kernel's; rows fit their memory, and the kernel traps on a page or position that is not
        // there. The cache is borrowed mutably.
        unsafe { launch(device, kernel, grid, Start::Overlapped, &mut [argument(&mut params)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel reads it field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernel() {
        assert_eq!(size_of::<Params>(), 88);
        assert_eq!(std::mem::offset_of!(Params, rows), 56);
    }
}
