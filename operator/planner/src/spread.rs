//! The fractions of each unit's holders, for one block.
//!
//! All rows of a unit start on one holder; then rows move off the busiest worker while that lowers its time without
//! raising another's over it. A second holder costs a second read of the weights, so small batches stay whole and
//! big ones spread.

use crate::cost::Cost;

/// A move must lower the busiest worker's time by this part, or it is not worth a fraction.
const WORTH: f64 = 0.005;
/// Halvings in search of the part that leaves two workers equally busy.
const HALVINGS: u32 = 20;
/// Moves per block at most: a bound, not a setting.
const MOVES: usize = 2000;

/// One block, spread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    /// By unit of the block and by holder: they sum to 1.
    pub fractions: Vec<Vec<f64>>,
    /// By worker.
    pub times: Vec<f64>,
}

impl Spread {
    /// The holders of each unit share evenly: what to do without a load.
    pub(crate) fn even(holders: &[Vec<usize>], rows: &[f64], workers: usize, cost: Cost) -> Self {
        let fractions: Vec<Vec<f64>> = holders.iter().map(|h| vec![1.0 / h.len() as f64; h.len()]).collect();
        let mut times = vec![0.0; workers];
        for ((held, fractions), rows) in holders.iter().zip(&fractions).zip(rows) {
            held.iter().zip(fractions).for_each(|(&worker, part)| times[worker] += cost.time(rows * part));
        }
        Self { fractions, times }
    }

    /// By load.
    pub(crate) fn by_load(holders: &[Vec<usize>], rows: &[f64], workers: usize, cost: Cost) -> Self {
        let mut spread = Self {
            fractions: holders.iter().map(|held| vec![0.0; held.len()]).collect(),
            times: vec![0.0; workers],
        };
        let mut by_rows: Vec<usize> = (0..holders.len()).collect();
        by_rows.sort_by(|&a, &b| rows[b].total_cmp(&rows[a]));
        for unit in by_rows {
            let times = &spread.times;
            let least = (0..holders[unit].len())
                .min_by(|&a, &b| times[holders[unit][a]].total_cmp(&times[holders[unit][b]]));
            if let Some(at) = least {
                spread.fractions[unit][at] = 1.0;
                spread.times[holders[unit][at]] += cost.time(rows[unit]);
            }
        }
        let mut held = vec![Vec::new(); workers];
        for (unit, of) in holders.iter().enumerate() {
            of.iter().enumerate().for_each(|(at, &worker)| held[worker].push((unit, at)));
        }
        for _ in 0..MOVES {
            let Some(best) = spread.best_move(holders, &held, rows, cost) else { break };
            let Move { unit, from, to, part, from_time, to_time } = best;
            let fractions = &mut spread.fractions[unit];
            fractions[to] += part;
            fractions[from] -= part;
            spread.times[holders[unit][from]] = from_time;
            spread.times[holders[unit][to]] = to_time;
        }
        spread
    }

    /// The busiest worker.
    pub(crate) fn busiest(&self) -> Option<usize> {
        (0..self.times.len()).rev().max_by(|&a, &b| self.times[a].total_cmp(&self.times[b]))
    }

    /// The time of the busiest worker.
    pub(crate) fn longest(&self) -> f64 {
        self.times.iter().copied().fold(0.0, f64::max)
    }

    fn best_move(
        &self,
        holders: &[Vec<usize>],
        held: &[Vec<(usize, usize)>],
        rows: &[f64],
        cost: Cost,
    ) -> Option<Move> {
        let busy = self.busiest()?;
        let mut best: Option<Move> = None;
        let mut bar = self.times[busy] * (1.0 - WORTH);
        for &(unit, from) in &held[busy] {
            let fractions = &self.fractions[unit];
            if fractions[from] <= 0.0 {
                continue;
            }
            let time = |fraction: f64| cost.time(fraction * rows[unit]);
            for to in (0..fractions.len()).filter(|&to| to != from) {
                let there = self.times[holders[unit][to]];
                let after = |part: f64| {
                    let from_time = self.times[busy] - time(fractions[from]) + time(fractions[from] - part);
                    let to_time = there - time(fractions[to]) + time(fractions[to] + part);
                    Move { unit, from, to, part, from_time, to_time }
                };
                // The more moves, the less is left here and the more is there: the least maximum is at the crossing,
                // or everything moves.
                let all = after(fractions[from]);
                let (mut low, mut high) = (0.0, fractions[from]);
                for _ in 0..HALVINGS {
                    let middle = f64::midpoint(low, high);
                    let half = after(middle);
                    if half.from_time > half.to_time { low = middle } else { high = middle }
                }
                for candidate in [after(low), after(high), all] {
                    if candidate.longest() < bar {
                        bar = candidate.longest();
                        best = Some(candidate);
                    }
                }
            }
        }
        best
    }
}

struct Move {
    unit: usize,
    from: usize,
    to: usize,
    part: f64,
    from_time: f64,
    to_time: f64,
}

impl Move {
    fn longest(&self) -> f64 {
        self.from_time.max(self.to_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::cost::Curve;

    fn spread(holders: &[&[usize]], rows: &[f64], workers: usize, curve: &Curve) -> Spread {
        let holders: Vec<_> = holders.iter().map(|held| held.to_vec()).collect();
        let cost = Cost(curve);
        let spread = Spread::by_load(&holders, rows, workers, cost);
        let mut times = vec![0.0; workers];
        for ((held, fractions), rows) in holders.iter().zip(&spread.fractions).zip(rows) {
            assert!((fractions.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{fractions:?}");
            held.iter().zip(fractions).for_each(|(&worker, part)| times[worker] += cost.time(part * rows));
        }
        for (kept, counted) in spread.times.iter().zip(&times) {
            assert!((kept - counted).abs() < 1e-6, "{:?} for {times:?}", spread.times);
        }
        spread
    }

    fn near(found: &[f64], expected: &[f64], within: f64) {
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= within);
        assert!(close && found.len() == expected.len(), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn two_holders_end_up_equally_busy() {
        let rows = Curve::default();
        near(&spread(&[&[0, 1]], &[100.0], 2, &rows).times, &[50.0, 50.0], 0.001);
        // Worker 1 has 40 of its own.
        near(&spread(&[&[0, 1], &[1]], &[100.0, 40.0], 2, &rows).times, &[70.0, 70.0], 0.001);
        let uneven = spread(&[&[0, 1, 2], &[2]], &[100.0, 60.0], 3, &rows);
        near(&uneven.times, &[50.0, 50.0, 60.0], 0.5);
    }

    #[test]
    fn each_unit_starts_where_least_is_to_do() {
        // Heaviest first: 60 on 0, 50 on 1, 40 on 1 or 2.
        let whole = Curve::new(vec![(1000.0, 1.0), (2000.0, 2.0)]);
        let spread = spread(&[&[1, 2], &[0, 1], &[0]], &[40.0, 50.0, 60.0], 3, &whole);
        assert_eq!(spread.fractions, [vec![0.0, 1.0], vec![0.0, 1.0], vec![1.0]]);
        assert_eq!(spread.times, [1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_second_read_of_the_weights_must_pay() {
        let curve = Curve::new(vec![(80.0, 4.0), (160.0, 8.0)]);
        // Half of 80 rows takes as long as all of them.
        assert_eq!(spread(&[&[0, 1]], &[80.0], 2, &curve).fractions, [vec![1.0, 0.0]]);
        // 160 rows: 8, or 4 and 4.
        near(&spread(&[&[0, 1]], &[160.0], 2, &curve).times, &[4.0, 4.0], 0.001);
        // Beside 80 others, all of it moves: 4 and 4 instead of 8.
        let moved = spread(&[&[0, 1], &[0]], &[60.0, 80.0], 2, &curve);
        assert_eq!(moved.fractions, [vec![0.0, 1.0], vec![1.0]]);
    }

    #[test]
    fn everything_moves_where_that_is_best() {
        let curve = Curve::new(vec![(80.0, 4.0), (160.0, 8.0)]);
        // Both start on 0 and 1; 2 is idle and holds the smaller one too, so it can take it whole.
        let spread = spread(&[&[0], &[1], &[0, 2]], &[90.0, 100.0, 70.0], 3, &curve);
        assert_eq!(spread.fractions[2], [0.0, 1.0]);
        near(&spread.times, &[4.5, 5.0, 4.0], 1e-9);
    }

    #[test]
    fn a_gain_too_small_is_left() {
        // 100 and 99.8: a perfect split would gain a thousandth.
        let rows = Curve::default();
        let spread = spread(&[&[0, 1], &[1]], &[100.0, 99.8], 2, &rows);
        assert_eq!(spread.fractions[0], [1.0, 0.0]);
        assert_eq!((spread.busiest(), spread.longest()), (Some(0), 100.0));
    }

    #[test]
    fn even_is_even() {
        let curve = Curve::new(vec![(10.0, 2.0), (20.0, 4.0)]);
        let spread = Spread::even(&[vec![0, 2], vec![1]], &[40.0, 15.0], 3, Cost(&curve));
        assert_eq!(spread.fractions, [vec![0.5, 0.5], vec![1.0]]);
        assert_eq!(spread.times, [4.0, 3.0, 4.0]);
        assert_eq!((spread.busiest(), spread.longest()), (Some(0), 4.0));
    }
}
