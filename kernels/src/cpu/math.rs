//! exp, SiLU and sigmoid: the same sequence of correctly rounded operations on every instruction set.

use super::simd::Simd;

/// `1.5 * 2^23`: adding it rounds to an integer, held in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has 10 significant bits, so that `n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Above it the argument is held, so that `2^n` stays finite.
const EXP_HIGH: f32 = 88.0;
/// Below it the result is zero: it would be subnormal, or nearly.
const EXP_LOW: f32 = -87.0;
/// Minimax coefficients of `(exp(r) - 1 - r) / r^2` on |r| <= ln(2)/2 (Cephes `expf`).
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x within 2 units in the last place for x in -87..=88; 0 below -87, exp(88) above 88, NaN for NaN.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: only register operations, under the caller's promise.
    unsafe {
        let high = S::splat(EXP_HIGH);
        // Where x is NaN the comparison is false, and x stays.
        let held = S::less(high, x, high, x);
        let biased = S::fma(held, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(biased, S::splat(ROUND));
        let r = S::fma(n, S::splat(-LN2_HIGH), held);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let mut p = S::splat(EXP[0]);
        p = S::fma(p, r, S::splat(EXP[1]));
        p = S::fma(p, r, S::splat(EXP[2]));
        p = S::fma(p, r, S::splat(EXP[3]));
        p = S::fma(p, r, S::splat(EXP[4]));
        p = S::fma(p, r, S::splat(EXP[5]));
        let tail = S::fma(p, S::mul(r, r), r);
        let y = S::mul(S::add(tail, S::splat(1.0)), S::exp2_biased(biased));
        S::less(x, S::splat(EXP_LOW), S::splat(0.0), y)
    }
}

/// `1 / (1 + exp(-x))`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}

/// `x / (1 + exp(-x))`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// e^x of one value, by the vectors' sequence of operations and so with their bits: within 2 units in the last place
/// for x in -87..=88; 0 below -87, exp(88) above 88, NaN for NaN.
#[inline(always)]
pub fn exp1(x: f32) -> f32 {
    let held = if EXP_HIGH < x { EXP_HIGH } else { x };
    let biased = held.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = biased - ROUND;
    let r = n.mul_add(-LN2_HIGH, held);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = p.mul_add(r, *c);
    }
    let tail = p.mul_add(r * r, r);
    let scale = f32::from_bits((biased.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < EXP_LOW { 0.0 } else { (tail + 1.0) * scale }
}

/// `x / (1 + exp(0 - x))` with the kernels' exp: the bits that [`super::Cpu::expert_ffn`] computes.
pub fn silu1(x: f32) -> f32 {
    x / (1.0 + exp1(0.0 - x))
}

/// `1 / (1 + exp(0 - x))` of one value, with the vectors' bits.
pub fn sigmoid1(x: f32) -> f32 {
    1.0 / (1.0 + exp1(0.0 - x))
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::simd::{Kernel, Simd, dispatch};
    use super::*;

    struct Each<'a> {
        x: &'a [f32; 16],
        exp: &'a mut [f32; 16],
        sigmoid: &'a mut [f32; 16],
    }
    impl Kernel for Each<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let mut i = 0;
            while i < 16 {
                // SAFETY: inside the arrays.
                unsafe {
                    let x = S::load(self.x.as_ptr().add(i));
                    S::store(self.exp.as_mut_ptr().add(i), exp::<S>(x));
                    S::store(self.sigmoid.as_mut_ptr().add(i), sigmoid::<S>(x));
                }
                i += S::LANES;
            }
        }
    }

    #[test]
    fn exp_and_sigmoid_are_the_same_everywhere_and_close_to_the_truth() {
        let mut worst = 0f64;
        for step in 0..400_000 {
            let base = -90.0 + step as f32 * 0.000_45;
            let x: [f32; 16] = std::array::from_fn(|i| base + i as f32 * 1e-5);
            for isa in Isa::available() {
                let (mut y, mut s) = ([0f32; 16], [0f32; 16]);
                // SAFETY: the set is available.
                unsafe { dispatch(isa, Each { x: &x, exp: &mut y, sigmoid: &mut s }) };
                for ((x, y), s) in x.iter().zip(y).zip(s) {
                    assert_eq!(s.to_bits(), sigmoid1(*x).to_bits(), "sigmoid({x}) on {isa}");
                    assert_eq!(y.to_bits(), exp1(*x).to_bits(), "exp({x}) on {isa}");
                    if (-87.0..=88.0).contains(x) {
                        let truth = f64::from(*x).exp();
                        worst = worst.max((f64::from(y) - truth).abs() / truth);
                    }
                }
            }
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "worst relative error {worst:e}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp1(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp1(-1e30), 0.0);
        assert_eq!(exp1(0.0), 1.0);
        assert!(exp1(f32::INFINITY).is_finite());
        assert!(exp1(f32::NAN).is_nan());
    }
}
