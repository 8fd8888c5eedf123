//! How long steps take.

use crate::rng::Rng;
use sluice_core::config::Shape;
use sluice_core::cost::{Costs, Curve};
use sluice_core::ids::{MICRO, Nanos};
use sluice_core::step::Step;

/// Nanoseconds of each kind of step, the same curve on every worker but for its own pace.
#[derive(Clone, Debug)]
pub struct Timing {
    /// An attention step: launch, and per row.
    pub attention: (f64, f64),
    /// The launch of an expert step.
    pub launch: f64,
    /// A unit: its weights, and per row what exceeds them (the larger counts).
    pub unit: (f64, f64),
    /// A head step: launch, and per row.
    pub head: (f64, f64),
    /// Each step takes 1 + Exp(this) times as long.
    pub jitter: f64,
    /// Percent of steps that take 30 times as long.
    pub stalls: u64,
    /// Per worker: a factor.
    pub pace: Vec<f64>,
}

impl Timing {
    /// For `workers` workers.
    pub fn draw(r: &mut Rng, workers: usize) -> Self {
        let micros = |r: &mut Rng, lo, hi| (r.spread(lo, hi) * MICRO) as f64;
        let uneven = r.chance(40);
        Self {
            attention: (micros(r, 5, 100), r.unit() * 2000.0),
            launch: micros(r, 1, 20),
            unit: (micros(r, 1, 100), r.unit() * 5000.0),
            head: (micros(r, 1, 50), 100.0),
            jitter: if r.chance(60) { r.unit() } else { 0.0 },
            stalls: if r.chance(15) { r.range(1, 5) } else { 0 },
            pace: (0..workers).map(|_| if uneven { 0.5 + 3.0 * r.unit() } else { 1.0 }).collect(),
        }
    }

    /// The time of a step without noise on a worker of pace 1.
    pub fn exact(&self, step: &Step) -> f64 {
        match step {
            Step::Attention(a) => {
                let blocks = a.blocks.len() as f64;
                let experts = if a.span { self.launch + self.unit(a.rows.len() as f64) * 2.0 } else { 0.0 };
                blocks * (self.attention.0 + self.attention.1 * a.rows.len() as f64 + experts)
            }
            Step::Experts(e) => {
                self.launch + e.units.iter().map(|u| self.unit(u.items.len() as f64)).sum::<f64>()
            }
            Step::Head(h) => self.head.0 + self.head.1 * h.rows.len() as f64,
        }
    }

    fn unit(&self, rows: f64) -> f64 {
        self.unit.0.max(self.unit.1 * rows)
    }

    /// The time of a step as it is.
    pub fn of(&self, step: &Step, worker: usize, r: &mut Rng) -> Nanos {
        let mut t = self.exact(step) * self.pace.get(worker).copied().unwrap_or(1.0);
        if self.jitter > 0.0 {
            t *= 1.0 + r.exp(self.jitter);
        }
        if self.stalls > 0 && r.chance(self.stalls) {
            t *= 30.0;
        }
        (t as Nanos).max(1)
    }

    /// What a worker would have measured.
    pub fn costs(&self) -> Costs {
        let curve = |f: &dyn Fn(f64) -> f64| {
            Curve::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0].map(|n| (n, f(n))).to_vec())
        };
        Costs {
            attention: curve(&|n| self.attention.0 + self.attention.1 * n),
            unit: curve(&|n| self.unit(n)),
            launch: self.launch as Nanos,
        }
    }

    /// About the time between two attention steps of a rank.
    pub fn cycle(&self, shape: &Shape) -> Nanos {
        let experts = self.launch + f64::from(shape.experts) / 2.0 * self.unit(4.0);
        (self.attention.0 + 4.0 * self.attention.1 + experts) as Nanos
    }
}
