//! Rows times a packed matrix.

use std::ops::Range;

use super::context::Cpu;
use super::dtype::PANEL;
use super::isa::Isa;
use super::packed::PackedMatrix;
use super::simd::{Kernel, LINE, Simd, dispatch};
use super::slab::{Io, Resolved};
use super::tile::{BUFFER, MAX_ROWS, MAX_STRIPS, Tiles, row_tiles, tiles};
use crate::Error;
use crate::error::same;

/// Multiply-adds below which waking the pool costs more than it saves.
const PARALLEL_FROM: usize = 1 << 18;

/// What happens to a finished sum before it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to every row: one value per output.
    pub bias: Option<&'a [f32]>,
    /// Add to what the output row holds (a residual) instead of replacing it.
    pub accumulate: bool,
}

impl Cpu {
    /// `dst[i] = src[i] W^T` (plus the epilogue) for every pair of rows of `io`.
    ///
    /// `src` has `w.cols()` columns and `dst` has `w.rows()`.
    pub fn matmul(&mut self, io: Io<'_>, w: &PackedMatrix, epilogue: Epilogue<'_>) -> Result<(), Error> {
        if let Some(bias) = epilogue.bias {
            same("values of the bias", w.rows(), bias.len())?;
        }
        let rows = io.resolve(w.cols(), w.rows())?;
        let (count, panels) = (rows.len(), w.panels());
        if count == 0 || panels == 0 {
            return Ok(());
        }
        let isa = self.isa;
        let job = Matmul { isa, tiles: tiles(isa, w.dtype()), w, rows, epilogue };
        let threads = self.pool.threads();
        if threads == 1 || count * w.rows() * w.cols() < PARALLEL_FROM {
            // SAFETY: all panels and all rows, checked above.
            unsafe { job.part(0..panels, 0..count) };
            return Ok(());
        }
        // Contiguous panels per task, so that a thread streams; rows are split only where panels are too few.
        let columns = if panels >= 16 * threads { 4 * threads } else { threads.min(panels) };
        let bands = threads.div_ceil(columns).min(count.div_ceil(job.tiles.max_rows));
        self.pool.each(columns * bands, &|task| {
            let (column, band) = (task % columns, task / columns);
            let panels = column * panels / columns..(column + 1) * panels / columns;
            let rows = band * count / bands..(band + 1) * count / bands;
            // SAFETY: tasks cover disjoint panels or rows, inside what was checked.
            unsafe { job.part(panels, rows) };
        });
        Ok(())
    }
}

struct Matmul<'a> {
    isa: Isa,
    tiles: &'static Tiles,
    w: &'a PackedMatrix,
    rows: Resolved<'a>,
    epilogue: Epilogue<'a>,
}

impl Matmul<'_> {
    /// # Safety
    /// Panels and rows are in range, and no other thread has the same part.
    unsafe fn part(&self, panels: Range<usize>, rows: Range<usize>) {
        let tiles = self.tiles;
        let per_panel = tiles.strips();
        let mut buffer = [0f32; BUFFER];
        let mut x = [std::ptr::null::<f32>(); MAX_ROWS];
        let mut dst = [std::ptr::null_mut::<f32>(); MAX_ROWS];
        let largest = rows.len().div_ceil(rows.len().div_ceil(tiles.max_rows).max(1));
        let (mut strip, end) = (panels.start * per_panel, panels.end * per_panel);
        while strip < end {
            let width = tiles.widest(largest, end - strip);
            // SAFETY: strips lie inside the packed data, rows inside their slabs.
            unsafe {
                let w = strip_pointers(self.w, tiles, strip, width);
                for (first, count) in row_tiles(rows.len(), tiles.max_rows) {
                    for r in 0..count {
                        let row = rows.start + first + r;
                        x[r] = self.rows.src.row(self.rows.src_rows.at(row));
                        dst[r] = self.rows.dst.row(self.rows.dst_rows.at(row));
                    }
                    tiles.run((count, width), x.as_ptr(), w.as_ptr(), self.w.cols(), buffer.as_mut_ptr());
                    let emit = Emit {
                        buffer: &buffer,
                        dst: &dst[..count],
                        strips: (strip, width),
                        outputs: self.w.rows(),
                        epilogue: self.epilogue,
                    };
                    dispatch(self.isa, emit);
                }
            }
            strip += width;
        }
    }
}

/// Pointers to the starts of `width` strips from `strip` on.
///
/// # Safety
/// The strips exist.
#[inline]
pub(crate) unsafe fn strip_pointers(
    w: &PackedMatrix,
    tiles: &Tiles,
    strip: usize,
    width: usize,
) -> [*const u8; MAX_STRIPS] {
    let mut pointers = [std::ptr::null(); MAX_STRIPS];
    for (p, pointer) in pointers.iter_mut().enumerate().take(width) {
        let (panel, k) = ((strip + p) / tiles.strips(), (strip + p) % tiles.strips());
        // SAFETY: the caller's.
        *pointer = unsafe { w.as_ptr().add(panel * w.panel_bytes() + k * tiles.strip_bytes) };
    }
    pointers
}

/// Stores a tile's sums `[R][P][2][LANES]` to rows, outputs from the first strip on.
pub(crate) struct Emit<'a> {
    pub(crate) buffer: &'a [f32; BUFFER],
    pub(crate) dst: &'a [*mut f32],
    /// The first strip and how many.
    pub(crate) strips: (usize, usize),
    pub(crate) outputs: usize,
    pub(crate) epilogue: Epilogue<'a>,
}

impl Kernel for Emit<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let per_panel = LINE / S::LANES;
        let (strip, width) = self.strips;
        for p in 0..width {
            let (panel, k) = ((strip + p) / per_panel, (strip + p) % per_panel);
            for half in 0..2 {
                let o = panel * PANEL + half * LINE + k * S::LANES;
                if o >= self.outputs {
                    continue;
                }
                for (r, dst) in self.dst.iter().enumerate() {
                    // SAFETY: the buffer holds the tile; `o..o + LANES` lies in the row, or the tail goes one by one.
                    unsafe {
                        let sums = self.buffer.as_ptr().add(((r * width + p) * 2 + half) * S::LANES);
                        let dst = dst.add(o);
                        if o + S::LANES <= self.outputs {
                            let mut v = S::load(sums);
                            if let Some(bias) = self.epilogue.bias {
                                v = S::add(v, S::load(bias.as_ptr().add(o)));
                            }
                            if self.epilogue.accumulate {
                                v = S::add(S::load(dst), v);
                            }
                            S::store(dst, v);
                        } else {
                            for l in 0..self.outputs - o {
                                let mut v = *sums.add(l);
                                if let Some(bias) = self.epilogue.bias {
                                    v += bias[o + l];
                                }
                                if self.epilogue.accumulate {
                                    v += *dst.add(l);
                                }
                                *dst.add(l) = v;
                            }
                        }
                    }
                }
            }
        }
    }
}
