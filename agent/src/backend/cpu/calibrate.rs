//! Measuring the cost curves the schedulers decide by.

use std::time::{Duration, Instant};

use sluice_core::cost::{Costs, Curve};
use sluice_core::ids::SeqHandle;
use sluice_core::step::{AttentionStep, Entry, SegmentStep, TokenRow};
use sluice_kernels::cpu::{Expert, ExpertIo, ExpertRow};

use super::CpuBackend;

/// Numbers of rows that are measured.
const ROWS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Time for one curve.
const BUDGET: Duration = Duration::from_millis(100);
/// Runs of each point that the least is taken of, as far as the budget allows.
const RUNS: u32 = 5;

impl CpuBackend {
    pub(super) fn measure(&mut self) -> Costs {
        let probe = self.probe.take();
        let routing = self.routing.take();
        let attention = if self.rank.is_some() { self.measure_attention() } else { Curve::default() };
        let (unit, launch) = self.measure_units();
        (self.probe, self.routing) = (probe, routing);
        Costs { attention, unit, launch: launch as u64 }
    }

    fn measure_attention(&mut self) -> Curve {
        let most = self.layout.tokens.min(self.kv.shape().pages as u32);
        curve(most, |rows| {
            let step = AttentionStep {
                blocks: 0..1,
                span: false,
                segments: (0..rows)
                    .map(|i| SegmentStep { seq: SeqHandle(0), start: 0, len: 1, pages: i..i + 1 })
                    .collect(),
                rows: (0..rows)
                    .map(|token| TokenRow { token, entry: Entry::Embed(0), wanted: true })
                    .collect(),
                slicing: Vec::new(),
                pages: (0..rows).collect(),
            };
            let start = Instant::now();
            self.attention(&step).ok().map(|_| start.elapsed())
        })
    }

    /// The curve of one unit without the launch, and the launch: what two units cost less together than apart.
    fn measure_units(&mut self) -> (Curve, f64) {
        let held: Vec<_> = self.slots.iter().flatten().take(2).cloned().collect();
        let inputs = self.slab.rest.rows() as u32;
        let mut time = |units: &[&Expert], rows: u32| {
            self.expert_rows.clear();
            for unit in 0..units.len() as u32 {
                let row = |i| ExpertRow { unit, src: i % inputs, dst: unit * rows + i };
                self.expert_rows.extend((0..rows).map(row));
            }
            let dst = self.buffers.outputs.get(self.expert_rows.len(), self.spec.hidden);
            let start = Instant::now();
            let io = ExpertIo::Across { src: &self.slab.rest, dst };
            self.cpu.expert_ffn(units, &self.expert_rows, io).ok().map(|()| start.elapsed())
        };
        let Some(first) = held.first() else { return (Curve::default(), 0.0) };
        if inputs == 0 {
            return (Curve::default(), 0.0);
        }
        let both: Vec<&Expert> = held.iter().map(|unit| &unit.expert).collect();
        let mut least = |units: &[&Expert]| {
            let runs = (0..2 * RUNS).filter_map(|_| time(units, 1));
            runs.min().unwrap_or_default().as_nanos() as f64
        };
        let launch = if both.len() == 2 { (2.0 * least(&both[..1]) - least(&both)).max(0.0) } else { 0.0 };
        let curve = points(ROWS[ROWS.len() - 1], |rows| time(&[&first.expert], rows));
        (
            Curve::new(curve.into_iter().map(|(rows, nanos)| (rows, (nanos - launch).max(1.0))).collect()),
            launch,
        )
    }
}

fn curve(most: u32, run: impl FnMut(u32) -> Option<Duration>) -> Curve {
    Curve::new(points(most, run))
}

/// The least time of some runs at each number of rows, until the budget is spent.
fn points(most: u32, mut run: impl FnMut(u32) -> Option<Duration>) -> Vec<(f64, f64)> {
    let start = Instant::now();
    let mut points = Vec::new();
    for rows in ROWS.into_iter().filter(|&rows| rows <= most) {
        let mut least = None;
        // The first run of a size grows buffers.
        if run(rows).is_none() {
            break;
        }
        for _ in 0..RUNS {
            least = run(rows).into_iter().chain(least).min();
            if start.elapsed() > BUDGET {
                break;
            }
        }
        points.extend(least.map(|time| (f64::from(rows), time.as_nanos() as f64)));
        // Twice the rows may take twice the time, and the curve is extended beyond its last points anyway.
        if start.elapsed() + 4 * least.unwrap_or_default() > BUDGET {
            break;
        }
    }
    points
}
