//! Percentiles.

use std::time::Duration;

use serde::Serialize;

/// The `q`-quantile (0 to 1) of ascending values, linear between the two nearest; `None` of nothing.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(last);
    Some(sorted[low] + (sorted[high] - sorted[low]) * part)
}

/// What a set of times looks like, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// Greatest.
    pub max: f64,
}

impl Summary {
    /// Of any times; `None` of none.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut seconds: Vec<f64> = times.into_iter().map(|t| t.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        Some(Self {
            count: seconds.len(),
            mean: seconds.iter().sum::<f64>() / seconds.len() as f64,
            min: *seconds.first()?,
            p50: percentile(&seconds, 0.5)?,
            p90: percentile(&seconds, 0.9)?,
            p99: percentile(&seconds, 0.99)?,
            max: *seconds.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let v: Vec<f64> = (1..=5).map(f64::from).collect();
        assert_eq!(percentile(&v, 0.0), Some(1.0));
        assert_eq!(percentile(&v, 0.5), Some(3.0));
        assert_eq!(percentile(&v, 0.9), Some(4.6));
        assert_eq!(percentile(&v, 1.0), Some(5.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_summary_does_not_mind_the_order() {
        let s = Summary::of([3, 1, 2].map(Duration::from_secs)).unwrap();
        assert_eq!((s.count, s.mean, s.min, s.p50, s.max), (3, 2.0, 1.0, 2.0, 3.0));
        assert_eq!(Summary::of([]), None);
    }
}
