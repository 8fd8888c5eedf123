//! The product's inner kernel: an outer-product register tile.
//!
//! A tile is R rows by P strips. A strip is two vectors of one panel (outputs `k*LANES..` and `16 + k*LANES..`), so a
//! panel is `16 / LANES` strips. Each output is one chain over the inner dimension: `acc = fma(x[i], w[i], acc)` from
//! +0, i rising. R and P only decide which chains run side by side.
// Loops over a tile's constant sizes index several register arrays at once.
#![allow(clippy::needless_range_loop)]

use super::dtype::{Bf16, Dtype, F16, PANEL, Weight};
use super::isa::Isa;
use super::simd::Simd;

/// Rows of the largest tile of any set.
pub(crate) const MAX_ROWS: usize = 12;
/// Strips of the widest tile of any set.
pub(crate) const MAX_STRIPS: usize = 4;
/// Bytes that weights are asked for ahead of their use, per strip.
const AHEAD: usize = 1536;
/// Values a tile leaves: R x P x two vectors, at most [`Tiles::accumulators`] vectors of 16 lanes.
pub(crate) const BUFFER: usize = 24 * 16;

/// Computes a tile: `x` points to R row pointers, `w` to P strip pointers, both at the first inner index; `inner` is
/// the number of steps; `out` takes `[R][P][2][LANES]`.
pub(crate) type TileFn = unsafe fn(x: *const *const f32, w: *const *const u8, inner: usize, out: *mut f32);

/// The tiles of one instruction set and dtype.
pub(crate) struct Tiles {
    pub(crate) lanes: usize,
    pub(crate) max_rows: usize,
    pub(crate) accumulators: usize,
    /// Bytes between the strips of a panel.
    pub(crate) strip_bytes: usize,
    /// Bytes between the inner steps of a panel.
    pub(crate) step_bytes: usize,
    /// By rows - 1, and by log2 of the strips.
    table: [[Option<TileFn>; 3]; MAX_ROWS],
}

impl Tiles {
    /// Strips of a panel.
    pub(crate) fn strips(&self) -> usize {
        PANEL / 2 / self.lanes
    }

    /// The widest power of two of strips, at most `strips`, that tiles of `rows` rows can take.
    pub(crate) fn widest(&self, rows: usize, strips: usize) -> usize {
        let fit = (self.accumulators / (2 * rows)).min(strips).min(MAX_STRIPS);
        if fit >= 4 { 4 } else { fit.clamp(1, 2) }
    }

    /// The tile of a shape that [`Self::widest`] allows.
    ///
    /// # Safety
    /// As [`TileFn`] says of its pointers; the set is available.
    #[inline]
    pub(crate) unsafe fn run(
        &self,
        shape: (usize, usize),
        x: *const *const f32,
        w: *const *const u8,
        inner: usize,
        out: *mut f32,
    ) {
        let (rows, strips) = shape;
        let Some(tile) = self.table[rows - 1][strips.trailing_zeros() as usize] else {
            unreachable!("no tile of {rows} rows by {strips} strips");
        };
        // SAFETY: the caller's.
        unsafe { tile(x, w, inner, out) }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, W: Weight, const R: usize, const P: usize>(
    x: *const *const f32,
    w: *const *const u8,
    inner: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[[zero; 2]; P]; R];
        let mut xs = [std::ptr::null::<f32>(); R];
        let mut ws = [std::ptr::null::<W>(); P];
        for r in 0..R {
            xs[r] = *x.add(r);
        }
        for p in 0..P {
            ws[p] = (*w.add(p)).cast();
        }
        for i in 0..inner {
            let mut b = [(zero, zero); P];
            for p in 0..P {
                let row = ws[p].add(i * PANEL);
                b[p] = W::strip::<S>(row);
                // With few rows the loads themselves run far enough ahead, and so do a panel's two lines of f32.
                if R >= 4 && size_of::<W>() == 2 {
                    S::prefetch(row.cast::<u8>().wrapping_add(AHEAD));
                }
            }
            for r in 0..R {
                let a = S::splat(*xs[r].add(i));
                for p in 0..P {
                    acc[r][p][0] = S::fma(a, b[p].0, acc[r][p][0]);
                    acc[r][p][1] = S::fma(a, b[p].1, acc[r][p][1]);
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for h in 0..2 {
                    S::store(out.add(((r * P + p) * 2 + h) * S::LANES), acc[r][p][h]);
                }
            }
        }
    }
}

macro_rules! tiles {
    ($module:ident, $set:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn entry<W: Weight, const R: usize, const P: usize>(
                x: *const *const f32,
                w: *const *const u8,
                inner: usize,
                out: *mut f32,
            ) {
                // SAFETY: this function enables the set's features; the rest is the caller's.
                unsafe { tile::<$set, W, R, P>(x, w, inner, out) }
            }

            const ACCUMULATORS: usize = <$set as Simd>::ACCUMULATORS;

            const fn pick<W: Weight, const R: usize, const P: usize>() -> Option<TileFn> {
                if 2 * R * P <= ACCUMULATORS { Some(entry::<W, R, P>) } else { None }
            }

            const fn by_strips<W: Weight, const R: usize>() -> [Option<TileFn>; 3] {
                [pick::<W, R, 1>(), pick::<W, R, 2>(), pick::<W, R, 4>()]
            }

            const fn of<W: Weight>() -> Tiles {
                Tiles {
                    lanes: <$set as Simd>::LANES,
                    max_rows: ACCUMULATORS / 2,
                    accumulators: ACCUMULATORS,
                    strip_bytes: <$set as Simd>::LANES * W::SPREAD * size_of::<W>(),
                    step_bytes: PANEL * size_of::<W>(),
                    table: [
                        by_strips::<W, 1>(),
                        by_strips::<W, 2>(),
                        by_strips::<W, 3>(),
                        by_strips::<W, 4>(),
                        by_strips::<W, 5>(),
                        by_strips::<W, 6>(),
                        by_strips::<W, 7>(),
                        by_strips::<W, 8>(),
                        by_strips::<W, 9>(),
                        by_strips::<W, 10>(),
                        by_strips::<W, 11>(),
                        by_strips::<W, 12>(),
                    ],
                }
            }

            pub(super) static F32: Tiles = of::<f32>();
            pub(super) static F16: Tiles = of::<super::F16>();
            pub(super) static BF16: Tiles = of::<Bf16>();
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles!(avx512, super::super::simd::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2");
#[cfg(target_arch = "x86_64")]
tiles!(avx2, super::super::simd::Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
tiles!(neon, super::super::simd::Neon, "neon");
tiles!(portable, super::super::simd::Portable);

/// The tiles for weights of a dtype on an instruction set.
pub(crate) fn tiles(isa: Isa, dtype: Dtype) -> &'static Tiles {
    macro_rules! by_dtype {
        ($module:ident) => {
            match dtype {
                Dtype::F32 => &$module::F32,
                Dtype::F16 => &$module::F16,
                Dtype::Bf16 => &$module::BF16,
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_dtype!(avx512),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_dtype!(avx2),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => by_dtype!(neon),
        _ => by_dtype!(portable),
    }
}

/// Cuts `rows` rows into tiles of at most `max` rows whose sizes differ by at most one; yields (first, count).
pub(crate) fn row_tiles(rows: usize, max: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let tiles = rows.div_ceil(max);
    (0..tiles).map(move |t| {
        let (start, end) = (t * rows / tiles, (t + 1) * rows / tiles);
        (start, end - start)
    })
}
