//! Randomness from one u64, and the hash that symbolic values are made with.

/// SplitMix64: small, fast, and good for every seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// All that follows is decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5157_CE00_51D0_11A5)
    }

    /// A generator of its own, so that draws of one subject do not shift those of another.
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `n`; 0 for 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// From `lo` to `hi`, both included.
    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.below(hi.saturating_sub(lo) + 1)
    }

    /// As [`Self::range`], but small values as likely as large ones of each order of magnitude.
    pub fn spread(&mut self, lo: u64, hi: u64) -> u64 {
        let (a, b) = ((lo.max(1) as f64).ln(), (hi.max(1) as f64 + 1.0).ln());
        ((a + (b - a) * self.unit()).exp() as u64).clamp(lo, hi)
    }

    /// True in `percent` of 100.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed.
    pub fn exp(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Any order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Neither commutative nor associative, so every order of operands gives another value.
pub fn mix(a: u64, b: u64) -> u64 {
    let m = u128::from(a ^ 0x9E37_79B9_7F4A_7C15) * u128::from(b ^ 0xD1B5_4A32_D192_ED03);
    (m as u64) ^ ((m >> 64) as u64).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_their_bounds_and_reach_both_ends() {
        let mut r = Rng::new(7);
        let all: Vec<u64> = (0..1000).map(|_| r.range(3, 5)).collect();
        assert!((3..=5).all(|v| all.contains(&v)) && all.iter().all(|v| (3..=5).contains(v)));
        let all: Vec<u64> = (0..2000).map(|_| r.spread(1, 64)).collect();
        assert!(all.contains(&1) && all.contains(&64));
        assert!(all.iter().filter(|v| **v <= 8).count() > 700);
        assert_eq!(r.below(0), 0);
    }

    #[test]
    fn mixing_depends_on_the_order() {
        let (a, b, c) = (1, 2, 3);
        assert_ne!(mix(a, b), mix(b, a));
        assert_ne!(mix(mix(a, b), c), mix(a, mix(b, c)));
    }
}
