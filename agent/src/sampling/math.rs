//! `exp` and sums with one value on every machine.
//!
//! Only additions, multiplications and bit operations on single lanes: whatever vector width the compiler picks,
//! each lane's result is the same. No fused multiply-add, so none is contracted in or emulated.

/// Lanes of a running sum. Part of the definition: changing it changes bits.
const LANES: usize = 16;
/// Elements summed in f32 before the sum goes on in f64.
const CHUNK: usize = 256;

/// `e^x` to about one unit in the last place; 0 below -87.
pub fn exp(x: f32) -> f32 {
    // 1.5 · 2^23: adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scaled = p * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// The sum of `f(x)`: chunks of 256 in f32 over 16 lanes folded as a tree, the chunks in order in f64.
pub fn sum_by(xs: &[f32], f: impl Fn(f32) -> f32 + Copy) -> f64 {
    xs.chunks(CHUNK).map(|chunk| f64::from(chunk_sum_by(chunk, f))).sum()
}

/// One chunk of [`sum_by`].
pub fn chunk_sum_by(chunk: &[f32], f: impl Fn(f32) -> f32 + Copy) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = chunk.as_chunks::<LANES>();
    for values in whole {
        for (lane, &x) in lanes.iter_mut().zip(values) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The chunks of [`sum_by`], for a walk over them.
pub fn chunks(xs: &[f32]) -> std::slice::Chunks<'_, f32> {
    xs.chunks(CHUNK)
}

/// The highest value; NaN is never the highest. Negative infinity of an empty slice.
pub fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = xs.as_chunks::<LANES>();
    for values in whole {
        for (lane, &x) in lanes.iter_mut().zip(values) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |best, x| if x > best { x } else { best })
}

/// The lowest index of the highest value, `None` when every value is NaN or negative infinity.
pub fn argmax(xs: &[f32]) -> Option<usize> {
    let best = max(xs);
    if best == f32::NEG_INFINITY { None } else { xs.iter().position(|&x| x == best) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
    }

    #[test]
    fn sums_are_close_to_exact_and_cover_tails() {
        for len in [0, 1, 15, 16, 17, 255, 256, 257, 4096, 5000] {
            let xs: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let exact: f64 = xs.iter().map(|&x| f64::from(x)).sum();
            assert!((sum_by(&xs, |x| x) - exact).abs() < 1e-4, "{len}");
        }
    }

    #[test]
    fn argmax_takes_the_lower_of_equals_and_skips_nan() {
        let mut xs = vec![-1.0f32; 100];
        xs[70] = 3.0;
        xs[33] = 3.0;
        xs[2] = f32::NAN;
        assert_eq!(argmax(&xs), Some(33));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20]), None);
        assert_eq!(argmax(&[f32::NAN; 20]), None);
    }
}
