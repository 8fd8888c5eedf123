//! The sum of what a token's experts returned.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::launch::{Start, argument, launch};
use super::shape::MAX_SEGMENTS;
use crate::error::same;

const THREADS: u32 = 256;
const COLUMNS_PER_THREAD: usize = 8;

/// Merges outputs in the router's order.
#[derive(Debug)]
pub struct Merge {
    whole: Kernel,
    sliced: Kernel,
}

/// What the experts returned: rows of d values.
#[derive(Debug)]
pub enum Returned<'a> {
    /// Outputs of whole experts.
    Whole(&'a Buffer<bf16>),
    /// f32 subtrees of experts held in so many slices; the slices of one output are consecutive.
    Slices(&'a Buffer<f32>, usize),
}

/// What a merge reads and writes, for n tokens of K experts each.
#[derive(Debug)]
pub struct MergeIo<'a> {
    /// The slab of returned rows.
    pub returned: Returned<'a>,
    /// Row of output (token, k, slice) in that slab, or their order if none is given.
    pub rows: Option<CudaView<'a, i32>>,
    /// The router's weights, `[n, K]`.
    pub weights: CudaView<'a, f32>,
    /// Added to the sum, `[n, d]`.
    pub residual: Option<CudaView<'a, bf16>>,
    /// Takes the result, `[n, d]`.
    pub out: CudaViewMut<'a, bf16>,
}

impl Merge {
    /// Finds the kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self {
            whole: device.kernel("merge", "merge", THREADS)?,
            sliced: device.kernel("merge", "merge_slices", THREADS)?,
        })
    }

    /// `out = residual + sum over k of weight_k * y_k`, for `n` tokens of `top_k` outputs with `d` columns.
    pub fn run(
        &self,
        device: &Device,
        n: usize,
        top_k: usize,
        d: usize,
        io: MergeIo<'_>,
    ) -> Result<(), Error> {
        let MergeIo { returned, rows, weights, residual, mut out } = io;
        let (slab_values, slices) = match &returned {
            Returned::Whole(y) => (y.len(), 1),
            Returned::Slices(y, slices) => (y.len(), *slices),
        };
        if d == 0
            || !d.is_multiple_of(COLUMNS_PER_THREAD)
            || !slices.is_power_of_two()
            || slices > MAX_SEGMENTS
        {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "merging {d} columns of {slices} slices: use a multiple of 8, and 1, 2, 4 or 8"
                ),
            }
            .into());
        }
        let slab_rows = slab_values / d;
        let returns = n * top_k * slices;
        same("weights (tokens times experts per token)", n * top_k, weights.len())?;
        same("values of the merged rows", n * d, out.len())?;
        if let Some(residual) = &residual {
            same("values of the residual rows", n * d, residual.len())?;
        }
        match &rows {
            Some(rows) => same("row numbers (tokens times experts times slices)", returns, rows.len())?,
            None if returns > slab_rows => {
                return Err(
                    crate::Error::Range { what: "returned row", index: returns - 1, len: slab_rows }.into()
                );
            }
            None => {}
        }
        if n == 0 {
            return Ok(());
        }

        let mut y = match &returned {
            Returned::Whole(y) => device.address(*y),
            Returned::Slices(y, _) => device.address(*y),
        };
        let mut rows = rows.map_or(0, |rows| device.address(&rows));
        let mut residual = residual.map_or(0, |residual| device.address(&residual));
        let mut weights = device.address(&weights);
        let mut out = device.address_mut(&mut out);
        let (mut slab_rows, mut top_k, mut slices, mut d_i32) =
            (int(slab_rows)?, int(top_k)?, int(slices)?, int(d)?);
        let grid = (d.div_ceil(COLUMNS_PER_THREAD * THREADS as usize) as u32, int(n)?.unsigned_abs());
        let mut arguments = vec![
            argument(&mut y),
            argument(&mut slab_rows),
            argument(&mut rows),
            argument(&mut weights),
            argument(&mut residual),
            argument(&mut out),
            argument(&mut top_k),
        ];
        let kernel = match returned {
            Returned::Whole(_) => self.whole,
            Returned::Slices(..) => {
                arguments.push(argument(&mut slices));
                self.sliced
            }
        };
        arguments.push(argument(&mut d_i32));
        // SAFETY: the parameters of `merge` or `merge_slices`; sizes are checked above, and the kernels trap on a row
        // number that is not below `slab_rows`.
        unsafe { launch(device, kernel, grid, Start::Overlapped, &mut arguments) }
    }
}

/// A size as kernels take it.
pub(crate) fn int(size: usize) -> Result<i32, crate::Error> {
    i32::try_from(size).map_err(|_| crate::Error::Unsupported { what: format!("{size} rows in one launch") })
}
