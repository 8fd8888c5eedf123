//! When requests are due in the open loop.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A Poisson process: independent exponential gaps. The same seed gives the same times.
#[derive(Debug)]
pub(super) struct Arrivals {
    rng: SmallRng,
    rate: f64,
    at: f64,
}

impl Arrivals {
    /// `rate` per second, over 0.
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15), rate, at: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let u: f64 = 1.0 - self.rng.random::<f64>();
        self.at += -u.ln() / self.rate;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential_with_the_rate() {
        let n = 20_000;
        let times: Vec<f64> = Arrivals::new(50.0, 3).take(n).map(|d| d.as_secs_f64()).collect();
        let gaps: Vec<f64> = std::iter::once(times[0]).chain(times.windows(2).map(|w| w[1] - w[0])).collect();
        let mean = gaps.iter().sum::<f64>() / n as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // Of an exponential distribution a share of 1/e is longer than the mean.
        let longer = gaps.iter().filter(|g| **g > 1.0 / 50.0).count() as f64 / n as f64;
        assert!((longer - (-1.0f64).exp()).abs() < 0.02, "{longer}");
    }

    #[test]
    fn the_seed_decides() {
        let take = |seed| Arrivals::new(1.0, seed).take(5).collect::<Vec<_>>();
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }
}
