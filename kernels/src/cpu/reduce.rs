//! Reductions over a row in a fixed virtual-lane structure.
//!
//! Lane l of [`ROW_LANES`] virtual lanes takes elements l, l + 32, l + 64, ... in order. A last partial chunk leaves
//! the lanes beyond its end as they are. The lanes are then folded by a fixed tree: lane l with lane l + 16, then
//! l + 8, + 4, + 2, + 1.

use super::simd::{Simd, max};

/// Virtual lanes of a reduction over a row.
pub(crate) const ROW_LANES: usize = 32;
/// Vectors that hold them on the narrowest set.
const MAX_VECTORS: usize = 8;

/// Folds virtual lanes by the fixed tree. `N` is a power of two.
#[inline(always)]
pub(crate) fn fold<const N: usize>(mut lanes: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = f(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The larger; `b` where either is NaN.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b < a { a } else { b }
}

/// What a reduction does with its elements.
pub(crate) trait Step: Copy {
    /// What a lane starts from; also what stands for the elements beyond the end.
    const PAD: f32;
    const START: f32;
    /// # Safety
    /// As [`Simd`].
    unsafe fn step<S: Simd>(self, acc: S::V, x: S::V) -> S::V;
    fn merge(a: f32, b: f32) -> f32;
}

/// Reduces `len` values at `x`.
///
/// # Safety
/// As [`Simd`]; `x` is valid for `len` reads.
#[inline(always)]
pub(crate) unsafe fn reduce<S: Simd, R: Step>(x: *const f32, len: usize, step: R) -> f32 {
    let vectors = ROW_LANES / S::LANES;
    let mut lanes = [R::START; ROW_LANES];
    // SAFETY: whole chunks lie inside `len`; the partial one is read from a padded copy.
    unsafe {
        let mut acc = [S::splat(R::START); MAX_VECTORS];
        let whole = len / ROW_LANES * ROW_LANES;
        let mut i = 0;
        while i < whole {
            for (v, acc) in acc.iter_mut().enumerate().take(vectors) {
                *acc = step.step::<S>(*acc, S::load(x.add(i + v * S::LANES)));
            }
            i += ROW_LANES;
        }
        if whole < len {
            let mut last = [R::PAD; ROW_LANES];
            std::ptr::copy_nonoverlapping(x.add(whole), last.as_mut_ptr(), len - whole);
            let rest = len - whole;
            let mut before = [0f32; ROW_LANES];
            for (v, acc) in acc.iter().enumerate().take(vectors) {
                S::store(before.as_mut_ptr().add(v * S::LANES), *acc);
                S::store(
                    lanes.as_mut_ptr().add(v * S::LANES),
                    step.step::<S>(*acc, S::load(last.as_ptr().add(v * S::LANES))),
                );
            }
            lanes[rest..].copy_from_slice(&before[rest..]);
        } else {
            for (v, acc) in acc.iter().enumerate().take(vectors) {
                S::store(lanes.as_mut_ptr().add(v * S::LANES), *acc);
            }
        }
    }
    fold(lanes, R::merge)
}

/// The sum of squares.
#[derive(Clone, Copy)]
pub(crate) struct SumSquares;

impl Step for SumSquares {
    const PAD: f32 = 0.0;
    const START: f32 = 0.0;
    #[inline(always)]
    unsafe fn step<S: Simd>(self, acc: S::V, x: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::fma(x, x, acc) }
    }
    #[inline(always)]
    fn merge(a: f32, b: f32) -> f32 {
        a + b
    }
}

/// The largest value.
#[derive(Clone, Copy)]
pub(crate) struct Max;

impl Step for Max {
    const PAD: f32 = f32::NEG_INFINITY;
    const START: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    unsafe fn step<S: Simd>(self, acc: S::V, x: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { max::<S>(acc, x) }
    }
    #[inline(always)]
    fn merge(a: f32, b: f32) -> f32 {
        larger(a, b)
    }
}

/// The sum of `exp(x - shift)`.
#[derive(Clone, Copy)]
pub(crate) struct SumExp {
    pub(crate) shift: f32,
}

impl Step for SumExp {
    const PAD: f32 = f32::NEG_INFINITY;
    const START: f32 = 0.0;
    #[inline(always)]
    unsafe fn step<S: Simd>(self, acc: S::V, x: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::add(acc, super::math::exp::<S>(S::sub(x, S::splat(self.shift)))) }
    }
    #[inline(always)]
    fn merge(a: f32, b: f32) -> f32 {
        a + b
    }
}
