//! Weights, packed once at load for the tile kernels.

use std::ops::Range;

use super::dtype::{Bf16, Dtype, F16, PANEL, Weight};
use super::memory::Aligned;
use crate::Error;
use crate::error::same;

/// Columns that are transposed at a time while packing: a panel's part of a source stays in the first-level cache.
const BLOCK: usize = 32;

/// A row-major little-endian matrix `[rows, cols]` in a checkpoint, or a window of one.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<'a> Source<'a> {
    /// The whole matrix. `bytes` holds exactly `rows * cols` values; no alignment is needed.
    pub fn new(dtype: Dtype, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, Error> {
        let len = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        same("bytes of a matrix", len.unwrap_or(usize::MAX), bytes.len())?;
        Ok(Self { dtype, bytes, stride: cols, rows: 0..rows, cols: 0..cols })
    }

    /// Only these rows (of those the window has).
    pub fn rows(mut self, rows: Range<usize>) -> Result<Self, Error> {
        self.rows = window("rows of a matrix", &self.rows, rows)?;
        Ok(self)
    }

    /// Only these columns (of those the window has).
    pub fn cols(mut self, cols: Range<usize>) -> Result<Self, Error> {
        self.cols = window("columns of a matrix", &self.cols, cols)?;
        Ok(self)
    }

    /// Rows and columns of the window.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.cols.len())
    }

    /// One row of the window.
    fn row(&self, row: usize) -> &'a [u8] {
        let start = (self.rows.start + row) * self.stride;
        let size = self.dtype.size();
        &self.bytes[(start + self.cols.start) * size..(start + self.cols.end) * size]
    }
}

fn window(what: &'static str, outer: &Range<usize>, inner: Range<usize>) -> Result<Range<usize>, Error> {
    if inner.start > inner.end || inner.end > outer.len() {
        return Err(Error::Range { what, index: inner.start.max(inner.end), len: outer.len() });
    }
    Ok(outer.start + inner.start..outer.start + inner.end)
}

/// A weight matrix `[rows, cols]` (outputs, inputs), packed into panels of 32 outputs: `[rows / 32][cols][32]`,
/// 64-byte aligned, the last panel filled up with zeros. It keeps its dtype.
#[derive(Debug)]
pub struct PackedMatrix {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    data: Aligned<u8>,
}

impl PackedMatrix {
    /// Packs a whole row-major little-endian matrix `[rows, cols]`.
    pub fn pack(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, Error> {
        Self::stack(&[Source::new(dtype, rows, cols, bytes)?])
    }

    /// Packs pieces (all of one dtype and width) stacked along the outputs: Q, K and V, or windows of an expert's
    /// matrices.
    pub fn stack(pieces: &[Source<'_>]) -> Result<Self, Error> {
        let Some(first) = pieces.first() else {
            return Err(Error::Size { what: "pieces of a stacked matrix (at least)", expected: 1, found: 0 });
        };
        let (dtype, cols) = (first.dtype, first.cols.len());
        for piece in pieces {
            same("columns of a stacked piece", cols, piece.cols.len())?;
            if piece.dtype != dtype {
                return Err(Error::Unsupported {
                    what: format!(
                        "a stacked matrix of {dtype} has a piece of {}: convert it first",
                        piece.dtype
                    ),
                });
            }
        }
        let rows = pieces.iter().map(|p| p.rows.len()).sum::<usize>();
        let size = rows.div_ceil(PANEL).checked_mul(PANEL * dtype.size()).and_then(|n| n.checked_mul(cols));
        let Some(size) = size else {
            return Err(Error::Size {
                what: "outputs of a matrix (at most)",
                expected: usize::MAX / 128,
                found: rows,
            });
        };
        let mut data = Aligned::try_zeroed(size)?;
        let sources: Vec<&[u8]> =
            pieces.iter().flat_map(|p| (0..p.rows.len()).map(|row| p.row(row))).collect();
        match dtype {
            Dtype::F32 => fill::<f32, 4>(&mut data, cols, &sources),
            Dtype::F16 => fill::<F16, 2>(&mut data, cols, &sources),
            Dtype::Bf16 => fill::<Bf16, 2>(&mut data, cols, &sources),
        }
        Ok(Self { dtype, rows, cols, data })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes held in memory, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.cols * PANEL * self.dtype.size()
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// One weight, widened (for the reference and for tests).
    pub fn get(&self, row: usize, col: usize) -> f32 {
        let size = self.dtype.size();
        let slot = match self.dtype {
            Dtype::F32 => f32::slot(row % PANEL),
            Dtype::F16 => F16::slot(row % PANEL),
            Dtype::Bf16 => Bf16::slot(row % PANEL),
        };
        let at = (row / PANEL * self.panel_bytes()) + (col * PANEL + slot) * size;
        let b = &self.data[at..at + size];
        match self.dtype {
            Dtype::F32 => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F16 => F16(u16::from_ne_bytes([b[0], b[1]])).widen(),
            Dtype::Bf16 => Bf16(u16::from_ne_bytes([b[0], b[1]])).widen(),
        }
    }
}

/// Transposes rows of `N`-byte values into panels.
fn fill<W: Weight, const N: usize>(data: &mut [u8], cols: usize, sources: &[&[u8]]) {
    for (panel, rows) in data.chunks_exact_mut((cols * PANEL * N).max(1)).zip(sources.chunks(PANEL)) {
        for (block, out) in panel.chunks_mut(BLOCK * PANEL * N).enumerate() {
            let start = block * BLOCK;
            for (o, row) in rows.iter().enumerate() {
                let at = W::slot(o) * N;
                let values = row[start * N..].as_chunks::<N>().0;
                for (line, value) in out.as_chunks_mut::<N>().0.chunks_exact_mut(PANEL).zip(values) {
                    let mut value = *value;
                    if cfg!(target_endian = "big") {
                        value.reverse();
                    }
                    line[at / N] = value;
                }
            }
        }
    }
}
