//! Ops on whole rows: RMS norm with the residual before it, gather, scatter and embedding.

use cudarc::driver::CudaView;
use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::kv::at_most;
use super::launch::{Start, argument, launch};
use super::merge::int;
use crate::error::same;

const THREADS: u32 = 256;
/// Values of a 16-byte access.
const PIECE: usize = 8;
/// `kMaxPieces` of `rows.cu`, in columns.
const MAX_NORM_COLUMNS: usize = 4 * THREADS as usize * PIECE;

/// The kernels on rows.
#[derive(Debug)]
pub struct RowOps {
    norm: Kernel,
    copy: Kernel,
}

/// A norm's factors, one per column, and what is added to the mean of squares.
#[derive(Debug)]
pub struct RowNorm<'a> {
    /// The factors.
    pub weight: &'a Buffer<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl RowOps {
    /// Finds the kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self {
            norm: device.kernel("rows", "add_rmsnorm", THREADS)?,
            copy: device.kernel("rows", "copy_rows", THREADS)?,
        })
    }

    /// `x += delta` (rounded, where there is one), then `out = norm(x)`, for the first `rows` rows. One call or two give
    /// the same bits.
    pub fn add_rmsnorm(
        &self,
        device: &Device,
        rows: usize,
        x: &mut Buffer<bf16>,
        delta: Option<&Buffer<bf16>>,
        norm: &RowNorm<'_>,
        out: &mut Buffer<bf16>,
    ) -> Result<(), Error> {
        let columns = norm.weight.len();
        if columns == 0 || !columns.is_multiple_of(PIECE) || columns > MAX_NORM_COLUMNS {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "a norm over {columns} columns: use a multiple of {PIECE} up to {MAX_NORM_COLUMNS}"
                ),
            }
            .into());
        }
        at_most("rows to normalise (as in memory)", x.len() / columns, rows)?;
        at_most("normalised rows (as in memory)", out.len() / columns, rows)?;
        if let Some(delta) = delta {
            at_most("rows to add (as in memory)", delta.len() / columns, rows)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let mut x = device.address_mut(x);
        let mut delta = delta.map_or(0, |delta| device.address(delta));
        let mut weight = device.address(norm.weight);
        let mut out = device.address_mut(out);
        let (mut columns, mut eps) = (int(columns)?, norm.eps);
        let mut arguments = [
            argument(&mut x),
            argument(&mut delta),
            argument(&mut weight),
            argument(&mut out),
            argument(&mut columns),
            argument(&mut eps),
        ];
        let grid = (int(rows)?.unsigned_abs(), 1);
        // SAFETY: the parameters of `add_rmsnorm`; every buffer has `rows` rows of `columns` values.
        unsafe { launch(device, self.norm, grid, Start::Overlapped, &mut arguments) }
    }

    /// `to[to_rows[i]] = from[from_rows[i]]` for i below `count`; without a list, row i. Rows written must be distinct.
    /// The kernel traps on a row that is not there. An embedding is a copy from the table's rows by token id.
    #[allow(clippy::too_many_arguments)]
    pub fn copy(
        &self,
        device: &Device,
        count: usize,
        columns: usize,
        from: &Buffer<bf16>,
        from_rows: Option<CudaView<'_, i32>>,
        to: &mut Buffer<bf16>,
        to_rows: Option<CudaView<'_, i32>>,
    ) -> Result<(), Error> {
        if columns == 0 || !columns.is_multiple_of(PIECE) {
            return Err(crate::Error::Unsupported {
                what: format!("copying rows of {columns} columns: use a multiple of {PIECE}"),
            }
            .into());
        }
        for rows in [&from_rows, &to_rows].into_iter().flatten() {
            same("row numbers (one per row copied)", count, rows.len())?;
        }
        if count == 0 {
            return Ok(());
        }
        let (mut from_count, mut to_count) = (int(from.len() / columns)?, int(to.len() / columns)?);
        let mut from = device.address(from);
        let mut to = device.address_mut(to);
        let mut from_rows = from_rows.map_or(0, |rows| device.address(&rows));
        let mut to_rows = to_rows.map_or(0, |rows| device.address(&rows));
        let mut columns_i32 = int(columns)?;
        let mut arguments = [
            argument(&mut from),
            argument(&mut from_rows),
            argument(&mut from_count),
            argument(&mut to),
            argument(&mut to_rows),
            argument(&mut to_count),
            argument(&mut columns_i32),
        ];
        let grid = (columns.div_ceil(PIECE * THREADS as usize) as u32, int(count)?.unsigned_abs());
        // SAFETY: the parameters of `copy_rows`, which traps on a row that is not below its buffer's count.
        unsafe { launch(device, self.copy, grid, Start::Overlapped, &mut arguments) }
    }
}
