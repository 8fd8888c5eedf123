//! Ops on whole rows: norms, embeddings, merging expert outputs, clamping.

use std::ops::Range;

use super::context::Cpu;
use super::dtype::{Bf16, Dtype, F16, Weight};
use super::experts::{tree, tree_one};
use super::memory::Aligned;
use super::reduce::{SumSquares, reduce};
use super::simd::{Kernel, Simd, dispatch};
use super::slab::{Io, Rows, Slab};
use crate::Error;
use crate::error::{below, same};

/// Values below which waking the pool costs more than it saves.
const PARALLEL_FROM: usize = 1 << 16;

/// RMS normalisation: `x / sqrt(mean(x^2) + eps)`, times the weight if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// One factor per value.
    pub weight: Option<&'a [f32]>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// One token's expert outputs.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The residual row.
    pub row: u32,
    /// The router's weights, in its order.
    pub weights: &'a [f32],
    /// For each weight the rows of its slices, in the order of segments.
    pub parts: &'a [u32],
}

/// A row-major table `[rows, cols]` that keeps its dtype: an embedding.
#[derive(Debug)]
pub struct Table {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    data: Aligned<u8>,
}

impl Table {
    /// Copies a row-major little-endian matrix.
    pub fn new(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, Error> {
        let len = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        same("bytes of a table", len.unwrap_or(usize::MAX), bytes.len())?;
        let mut data = Aligned::try_zeroed(bytes.len())?;
        data.copy_from_slice(bytes);
        if cfg!(target_endian = "big") {
            data.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
        }
        Ok(Self { dtype, rows, cols, data })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }
}

impl Cpu {
    /// `dst[i] = norm(src[i])`.
    pub fn rmsnorm(&mut self, io: Io<'_>, norm: Norm<'_>) -> Result<(), Error> {
        let cols = io.src_cols();
        let rows = io.resolve(cols, cols)?;
        check_norm(cols, norm)?;
        let isa = self.isa;
        self.bands(rows.len(), cols, &|band| {
            for i in band {
                // SAFETY: rows are checked, `cols` long, and each is written by one thread.
                unsafe {
                    let (src, dst) = (rows.src.row(rows.src_rows.at(i)), rows.dst.row(rows.dst_rows.at(i)));
                    dispatch(isa, NormRow { src, dst, cols, norm });
                }
            }
        });
        Ok(())
    }

    /// Normalises in place the columns of each row, cut into heads of `head` values (all of them for a norm over the
    /// whole projection). The weight, if any, has `head` values.
    pub fn rmsnorm_heads(
        &mut self,
        slab: &mut Slab,
        rows: Rows<'_>,
        cols: Range<usize>,
        head: usize,
        norm: Norm<'_>,
    ) -> Result<(), Error> {
        check_heads(slab, rows, &cols, head)?;
        check_norm(head, norm)?;
        let (isa, writer) = (self.isa, slab.writer());
        self.bands(rows.len(), cols.len(), &|band| {
            for i in band {
                for start in cols.clone().step_by(head) {
                    // SAFETY: the head lies in the row, and each row is written by one thread.
                    unsafe {
                        let at = writer.row(rows.at(i)).add(start);
                        dispatch(isa, NormRow { src: at, dst: at, cols: head, norm });
                    }
                }
            }
        });
        Ok(())
    }

    /// Holds the columns of each row to `-limit..=limit` (`clip_qkv`). NaN stays.
    pub fn clamp(
        &mut self,
        slab: &mut Slab,
        rows: Rows<'_>,
        cols: Range<usize>,
        limit: f32,
    ) -> Result<(), Error> {
        check_heads(slab, rows, &cols, 1)?;
        let writer = slab.writer();
        for i in 0..rows.len() {
            // SAFETY: the row and the columns are in range, and the slab is borrowed.
            let row =
                unsafe { std::slice::from_raw_parts_mut(writer.row(rows.at(i)).add(cols.start), cols.len()) };
            for x in row {
                *x = if limit < *x { limit } else { *x };
                *x = if *x < -limit { -limit } else { *x };
            }
        }
        Ok(())
    }

    /// `dst[rows[i]] = table[ids[i]]`, widened.
    pub fn embed(&mut self, table: &Table, ids: &[u32], dst: &mut Slab, rows: Rows<'_>) -> Result<(), Error> {
        same("columns of the output slab (as of the table)", table.cols, dst.cols())?;
        same("output rows (as many as ids)", ids.len(), rows.len())?;
        for id in ids {
            below("token id", *id as usize, table.rows)?;
        }
        dst.check_writes(rows)?;
        let writer = dst.writer();
        let size = table.dtype.size();
        for (i, id) in ids.iter().enumerate() {
            // SAFETY: the id and the row are in range, and both rows have the table's columns.
            unsafe {
                let src = table.data.as_ptr().add(*id as usize * table.cols * size);
                let (dst, cols) = (writer.row(rows.at(i)), table.cols);
                match table.dtype {
                    Dtype::F32 => dispatch(self.isa, Widen { src: src.cast::<f32>(), dst, cols }),
                    Dtype::F16 => dispatch(self.isa, Widen { src: src.cast::<F16>(), dst, cols }),
                    Dtype::Bf16 => dispatch(self.isa, Widen { src: src.cast::<Bf16>(), dst, cols }),
                }
            }
        }
        Ok(())
    }

    /// `residual[t.row] += sum over k of t.weights[k] * y_k`, with y_k the tree over its `slices` rows of `outputs`.
    pub fn merge_topk(
        &mut self,
        outputs: &Slab,
        residual: &mut Slab,
        slices: usize,
        tokens: &[Merge<'_>],
    ) -> Result<(), Error> {
        same("columns of the residual (as of the outputs)", outputs.cols(), residual.cols())?;
        check_slices(slices)?;
        for token in tokens {
            same("parts (slices times weights)", slices * token.weights.len(), token.parts.len())?;
            outputs.check_reads(Rows::List(token.parts))?;
        }
        let rows: Vec<u32> = tokens.iter().map(|t| t.row).collect();
        residual.check_writes(Rows::List(&rows))?;
        let (isa, reader, writer, cols) = (self.isa, outputs.reader(), residual.writer(), outputs.cols());
        let values = cols * tokens.first().map_or(1, |t| t.parts.len());
        self.bands(tokens.len(), values, &|band| {
            for token in &tokens[band] {
                // SAFETY: rows are in range and distinct, and all have `cols` values.
                unsafe {
                    let row = |part: u32| reader.row(part as usize);
                    let dst = writer.row(token.row as usize);
                    dispatch(isa, MergeRow { row: &row, token, slices, dst, cols });
                }
            }
        });
        Ok(())
    }

    /// Runs `f` over bands of `0..rows`, on several threads if the rows' `values` are worth it.
    pub(crate) fn bands(&mut self, rows: usize, values: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let threads = if rows * values < PARALLEL_FROM { 1 } else { self.pool.threads().min(rows) };
        if threads == 1 {
            return f(0..rows);
        }
        self.pool.each(threads, &|t| f(t * rows / threads..(t + 1) * rows / threads));
    }
}

/// Refuses a number of slices that no tree has.
pub(crate) fn check_slices(slices: usize) -> Result<(), Error> {
    if slices.is_power_of_two() && slices <= super::experts::MAX_SEGMENTS {
        return Ok(());
    }
    Err(Error::Unsupported { what: format!("{slices} slices: use 1, 2, 4 or 8") })
}

fn check_norm(len: usize, norm: Norm<'_>) -> Result<(), Error> {
    norm.weight.map_or(Ok(()), |w| same("values of a norm's weight", len, w.len()))
}

/// Refuses columns that are out of range or no whole number of heads, and rows that are out of range or repeated.
pub(crate) fn check_heads(
    slab: &mut Slab,
    rows: Rows<'_>,
    cols: &Range<usize>,
    head: usize,
) -> Result<(), Error> {
    if cols.start > cols.end || cols.end > slab.cols() {
        return Err(Error::Range { what: "column", index: cols.end.max(cols.start), len: slab.cols() });
    }
    if head == 0 || !cols.len().is_multiple_of(head) {
        return Err(Error::Size {
            what: "columns (a whole number of heads of)",
            expected: head,
            found: cols.len(),
        });
    }
    slab.check_writes(rows)
}

/// Normalises one row; source and destination may be the same.
struct NormRow<'a> {
    src: *const f32,
    dst: *mut f32,
    cols: usize,
    norm: Norm<'a>,
}

impl Kernel for NormRow<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both rows and the weight have `cols` values.
        unsafe {
            let squares = reduce::<S, SumSquares>(self.src, self.cols, SumSquares);
            let scale = 1.0 / (squares / self.cols as f32 + self.norm.eps).sqrt();
            let whole = self.cols / S::LANES * S::LANES;
            let mut c = 0;
            while c < whole {
                let mut y = S::mul(S::load(self.src.add(c)), S::splat(scale));
                if let Some(weight) = self.norm.weight {
                    y = S::mul(y, S::load(weight.as_ptr().add(c)));
                }
                S::store(self.dst.add(c), y);
                c += S::LANES;
            }
            while c < self.cols {
                let mut y = *self.src.add(c) * scale;
                if let Some(weight) = self.norm.weight {
                    y *= weight[c];
                }
                *self.dst.add(c) = y;
                c += 1;
            }
        }
    }
}

struct Widen<W> {
    src: *const W,
    dst: *mut f32,
    cols: usize,
}

impl<W: Weight> Kernel for Widen<W> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.cols / S::LANES * S::LANES;
        let mut c = 0;
        // SAFETY: both rows have `cols` values.
        unsafe {
            while c < whole {
                S::store(self.dst.add(c), W::contiguous::<S>(self.src.add(c)));
                c += S::LANES;
            }
            while c < self.cols {
                *self.dst.add(c) = (*self.src.add(c)).widen();
                c += 1;
            }
        }
    }
}

struct MergeRow<'a, F: Fn(u32) -> *const f32> {
    row: &'a F,
    token: &'a Merge<'a>,
    slices: usize,
    dst: *mut f32,
    cols: usize,
}

/// Columns of a row that stay in the first-level cache while the outputs are added to them.
const MERGE_BLOCK: usize = 1024;

impl<F: Fn(u32) -> *const f32> Kernel for MergeRow<'_, F> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sums = [0f32; MERGE_BLOCK];
        let mut start = 0;
        while start < self.cols {
            let len = MERGE_BLOCK.min(self.cols - start);
            let whole = len / S::LANES * S::LANES;
            sums[..len].fill(0.0);
            for (weight, ids) in self.token.weights.iter().zip(self.token.parts.chunks_exact(self.slices)) {
                let mut parts = [std::ptr::null::<f32>(); super::experts::MAX_SEGMENTS];
                for (part, id) in parts.iter_mut().zip(ids) {
                    *part = (self.row)(*id);
                }
                let parts = &parts[..self.slices];
                let sum = sums.as_mut_ptr();
                let mut c = 0;
                // SAFETY: `start + c` and its lanes lie in every row, and c and its lanes in the block.
                unsafe {
                    let w = S::splat(*weight);
                    while c < whole {
                        S::store(sum.add(c), S::fma(w, tree::<S>(parts, start + c), S::load(sum.add(c))));
                        c += S::LANES;
                    }
                    while c < len {
                        *sum.add(c) = weight.mul_add(tree_one(parts, start + c), *sum.add(c));
                        c += 1;
                    }
                }
            }
            // SAFETY: the residual row has `cols` values.
            unsafe {
                let dst = self.dst.add(start);
                let mut c = 0;
                while c < whole {
                    S::store(dst.add(c), S::add(S::load(dst.add(c)), S::load(sums.as_ptr().add(c))));
                    c += S::LANES;
                }
                while c < len {
                    *dst.add(c) += sums[c];
                    c += 1;
                }
            }
            start += len;
        }
    }
}
