//! The pace of a closed loop of sequences.
//!
//! All sequences of a rank get their tokens at once, a pass apart, so tokens counted between two moments depend on
//! where in a pass these lie: by a tenth over eight passes. The sum of the sequences' own rates, each from token to
//! token, does not.

use sluice_core::ids::Nanos;

#[derive(Clone, Copy, Debug, Default)]
struct Sequence {
    last: Option<Nanos>,
    /// The token that its measured ones are counted from.
    first: Option<Nanos>,
    tokens: u64,
}

/// When tokens came, by sequence.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    sequences: Vec<Sequence>,
    measuring: bool,
    gaps: Vec<Nanos>,
}

impl Pace {
    /// Of so many sequences, not measuring yet.
    pub fn new(sequences: usize) -> Self {
        Self { sequences: vec![Sequence::default(); sequences], ..Self::default() }
    }

    /// Measures from now on.
    pub fn measure(&mut self) {
        self.measuring = true;
        for s in &mut self.sequences {
            s.first = s.last;
        }
    }

    /// Whether it does.
    pub fn is_measuring(&self) -> bool {
        self.measuring
    }

    /// A token of a sequence came.
    pub fn token(&mut self, sequence: usize, now: Nanos) {
        let Some(s) = self.sequences.get_mut(sequence) else { return };
        let last = s.last.replace(now);
        if !self.measuring {
            return;
        }
        match s.first.and(last) {
            Some(last) => {
                s.tokens += 1;
                self.gaps.push(now - last);
            }
            None => s.first = Some(now),
        }
    }

    /// Tokens per second of all sequences together.
    pub fn throughput(&self) -> f64 {
        let rate = |s: &Sequence| Some(s.tokens as f64 / s.last?.checked_sub(s.first?)? as f64);
        self.sequences.iter().filter(|s| s.tokens > 0).filter_map(rate).sum::<f64>() * 1e9
    }

    /// The time between two tokens of a sequence that this part of them does not exceed, in seconds.
    pub fn gap(&self, part: f64) -> f64 {
        let mut gaps = self.gaps.clone();
        let i = ((gaps.len() as f64 * part) as usize).min(gaps.len().saturating_sub(1));
        if gaps.is_empty() { 0.0 } else { *gaps.select_nth_unstable(i).1 as f64 / 1e9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences, a token each every 100 ns, at once.
    fn pace(begin: Nanos, end: Nanos) -> Pace {
        let mut p = Pace::new(2);
        for now in 0..end {
            if now == begin {
                p.measure();
            }
            if now % 100 == 0 {
                p.token(0, now);
                p.token(1, now);
            }
        }
        p
    }

    #[test]
    fn where_it_begins_and_ends_does_not_matter() {
        for (begin, end) in [(1, 501), (99, 590), (101, 999), (0, 1000)] {
            let p = pace(begin, end);
            assert!((p.throughput() - 2e9 / 100.0).abs() < 1.0, "{begin} to {end}: {}", p.throughput());
            assert_eq!((p.gap(0.5), p.gap(0.99)), (1e-7, 1e-7));
        }
        assert_eq!(pace(500, 500).throughput(), 0.0);
    }

    #[test]
    fn a_slow_sequence_counts_with_its_own_rate() {
        let mut p = Pace::new(2);
        p.measure();
        for now in 0..=8 {
            p.token(0, now * 100);
        }
        p.token(1, 0);
        p.token(1, 800);
        assert!((p.throughput() - (1e7 + 1e9 / 800.0)).abs() < 1.0);
        assert_eq!((p.gap(0.5), p.gap(0.99)), (1e-7, 8e-7));
    }
}
