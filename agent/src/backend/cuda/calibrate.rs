//! Measuring the cost curves that the schedulers decide by.

use std::time::{Duration, Instant};

use sluice_core::cost::{Costs, Curve};
use sluice_core::ids::{SeqHandle, Slice};
use sluice_core::step::{AttentionStep, Entry, SegmentStep, TokenRow};

use super::units::Item;
use super::{CudaBackend, StepError};

/// Numbers of rows that are measured.
const ROWS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Runs of each point, of which the least is taken, after one that is not.
const RUNS: u32 = 5;

impl CudaBackend {
    pub(super) fn measure(&mut self) -> Costs {
        let (probe, routing) = (self.probe.take(), self.routing.take());
        let attention = if self.rank.is_some() { self.measure_attention() } else { Vec::new() };
        let unit = self.measure_units(1);
        // Two units of a row in one launch cost a launch less than apart.
        let (one, two) = (self.time_units(1, 1), self.time_units(2, 1));
        let launch = match (one, two) {
            (Some(one), Some(two)) => (2 * one).saturating_sub(two.max(one)),
            _ => Duration::ZERO,
        };
        (self.probe, self.routing) = (probe, routing);
        let launch = launch.as_nanos() as f64;
        let net = |(rows, nanos): (f64, f64)| (rows, (nanos - launch).max(1.0));
        Costs {
            attention: Curve::new(attention),
            unit: Curve::new(unit.into_iter().map(net).collect()),
            launch: launch as u64,
        }
    }

    fn measure_attention(&mut self) -> Vec<(f64, f64)> {
        let pages = self.rank.as_ref().map_or(0, |rank| rank.kv.shape().pages) as u32;
        let most = self.layout.tokens.min(pages);
        let points = ROWS.into_iter().filter(|rows| *rows <= most).map(|rows| {
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
            let took = self.least(|backend| backend.attention(&step).map(|_| ()));
            took.map(|took| (f64::from(rows), took.as_nanos() as f64))
        });
        points.map_while(|point| point).collect()
    }

    fn measure_units(&mut self, units: u16) -> Vec<(f64, f64)> {
        let points = ROWS
            .into_iter()
            .map(|rows| self.time_units(units, rows).map(|took| (f64::from(rows), took.as_nanos() as f64)));
        points.collect::<Vec<_>>().into_iter().map_while(|point| point).collect()
    }

    /// Of some units of `rows` rows each, whatever their slots hold.
    fn time_units(&mut self, units: u16, rows: u32) -> Option<Duration> {
        let slots = self.units.slots();
        let outputs = self.slab.zero_row();
        if u32::from(units) * rows > outputs.min(self.units.pairs() as u32) || usize::from(units) > slots {
            return None;
        }
        let slice = Slice { lo: 0, hi: self.units.widest() };
        let item = |i: u32| {
            let unit = (i / rows) as u16;
            Item { slice, expert: unit, slot: u32::from(unit), src: 0, dst: i }
        };
        let items: Vec<Item> = (0..u32::from(units) * rows).map(item).collect();
        self.least(|backend| {
            backend.units.workspace(&backend.device, slice)?;
            let (slab, lists) = (&mut backend.slab, &mut backend.lists);
            backend.units.run(&backend.device, lists, &items, &slab.inputs, &mut slab.outputs)
        })
    }

    fn least(&mut self, mut run: impl FnMut(&mut Self) -> Result<(), StepError>) -> Option<Duration> {
        let mut least = None;
        for i in 0..=RUNS {
            let start = Instant::now();
            let done = run(self).and_then(|()| Ok(self.device.synchronize()?));
            if let Err(error) = done {
                // The first step says the same, and then as a failure.
                tracing::warn!(%error, "a step could not be measured");
                return None;
            }
            let took = start.elapsed();
            if i > 0 {
                least = Some(least.map_or(took, |least: Duration| least.min(took)));
            }
        }
        least
    }
}
