//! Measuring the cost curves the schedulers decide by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::cost::{Costs, Curve};
use sluice_core::ids::{SeqHandle, Slice, Unit};
use sluice_core::step::{AttentionStep, Entry, SegmentStep, TokenRow};
use sluice_kernels::cpu::{Dtype, Expert, ExpertIo, ExpertRow, Source};

use super::CpuBackend;
use crate::backend::weights::UnitWeights;

/// Numbers of rows that are measured.
const ROWS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Time for one curve.
const BUDGET: Duration = Duration::from_millis(100);
/// Bytes of the units that are measured by turns: beyond what a core's share of the last cache holds.
const FOOTPRINT: usize = 64 << 20;
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
        let inputs = self.slab.rest.rows() as u32;
        let (units, scale) = self.specimens();
        if units.is_empty() || inputs == 0 {
            return (Curve::default(), 0.0);
        }
        let mut next = 0;
        let mut time = |count: usize, rows: u32| {
            // Another unit each time: in service its weights were last read as long ago as all others'.
            let taken: Vec<&Expert> = (0..count).map(|i| &units[(next + i) % units.len()].expert).collect();
            next += count;
            self.expert_rows.clear();
            for unit in 0..count as u32 {
                let row = |i| ExpertRow { unit, src: i % inputs, dst: unit * rows + i };
                self.expert_rows.extend((0..rows).map(row));
            }
            let dst = self.buffers.outputs.get(self.expert_rows.len(), self.spec.hidden);
            let start = Instant::now();
            let io = ExpertIo::Across { src: &self.slab.rest, dst };
            self.cpu.expert_ffn(&taken, &self.expert_rows, io).ok().map(|()| start.elapsed())
        };
        let mut least = |count| {
            let runs = (0..2 * RUNS).filter_map(|_| time(count, 1));
            runs.min().unwrap_or_default().as_nanos() as f64
        };
        let launch = if units.len() > 1 { (2.0 * least(1) - least(2)).max(0.0) } else { 0.0 };
        let curve = points(ROWS[ROWS.len() - 1], |rows| time(1, rows));
        let net = |(rows, nanos): (f64, f64)| (rows, (nanos - launch).max(1.0) * scale);
        (Curve::new(curve.into_iter().map(net).collect()), launch)
    }

    /// Units to measure, as many as outgrow the caches if there are so many slots, and by what their times are to be
    /// multiplied. Units that are loaded already, or else made-up ones of the same shape, narrowed where an expert is
    /// very large: time grows with the inner dimension.
    fn specimens(&self) -> (Vec<Arc<UnitWeights>>, f64) {
        let held: Vec<_> = self.slots.iter().flatten().cloned().collect();
        if let Some(first) = held.first() {
            let count = (FOOTPRINT / first.bytes().max(1)).max(2);
            return (held.into_iter().take(count).collect(), 1.0);
        }
        let moe = self.spec.blocks.iter().find_map(|block| block.feed_forward.moe());
        let Some(moe) = moe.filter(|_| !self.slots.is_empty()) else { return (Vec::new(), 1.0) };
        let dtype = self.rank.as_ref().map_or(Dtype::Bf16, |rank| rank.head.dtype());
        let column = 3 * self.spec.hidden * dtype.size();
        let wanted = moe.expert.inner.div_ceil(self.layout.parts.max(1) as usize);
        let inner = wanted.min((FOOTPRINT / 2 / column).max(32));
        let count = (FOOTPRINT / (inner * column)).clamp(2, self.slots.len().max(2));
        let zeros = vec![0; inner * self.spec.hidden * dtype.size()];
        let make = || {
            let wide = Source::new(dtype, inner, self.spec.hidden, &zeros)?;
            let down = Source::new(dtype, self.spec.hidden, inner, &zeros)?;
            Expert::pack(&wide, &wide, &down, 1, 0..1)
        };
        let start = Instant::now();
        let mut units = Vec::with_capacity(count);
        while units.len() < count && (units.len() < 2 || start.elapsed() < BUDGET / 2) {
            let Ok(expert) = make() else { break };
            let unit = Unit { block: 0, expert: 0, slice: Slice::whole(1) };
            units.push(Arc::new(UnitWeights { unit, expert }));
        }
        (units, wanted as f64 / inner as f64)
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
