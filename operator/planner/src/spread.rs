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
