//! A worker on a modelled device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::cost::Costs;
use sluice_core::ids::{Row, SeqHandle, Unit};
use sluice_core::step::{AttentionStep, ExpertStep, HeadStep, Outcome, Sample, SegmentStep, Step};

use super::cost::{AttentionWork, CostModel};
use crate::backend::routing::{DrawKey, SkewedRouting};
use crate::backend::{Backend, Probe, RoutedToken, SampledLogprobs};
use crate::sampling::SequenceSampling;
use crate::sampling::random::{Stream, unit, words};

/// What a modelled worker is made of.
#[derive(Clone, Debug)]
pub struct ModelledConfig {
    /// The costs.
    pub costs: Arc<CostModel>,
    /// Where tokens go.
    pub routing: Arc<SkewedRouting>,
    /// Segments of an expert's inner dimension, the deployment's G.
    pub segments: u8,
    /// Slices that experts are held in, which the cost curves are of.
    pub slices: u8,
    /// Tells the jitter of this device from others'.
    pub device: u32,
}

/// A worker on a modelled device: a step's outcome is there once its time has passed.
pub struct ModelledBackend {
    config: ModelledConfig,
    sequences: Vec<Option<Sequence>>,
    slots: Vec<Option<Unit>>,
    /// What rows hold, as far as any was ever read or written: moved as a real backend's are, and never looked at.
    slab: Vec<f32>,
    steps: u32,
    running: Option<(Instant, Outcome)>,
    probe: Option<Box<dyn Probe>>,
}

#[derive(Clone, Debug)]
struct Sequence {
    seed: u64,
    choice: u16,
    stop_ids: Vec<u32>,
}

impl std::fmt::Debug for ModelledBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelledBackend").field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl ModelledBackend {
    /// An idle device.
    pub fn new(config: ModelledConfig) -> Self {
        Self {
            config,
            sequences: Vec::new(),
            slots: Vec::new(),
            slab: Vec::new(),
            steps: 0,
            running: None,
            probe: None,
        }
    }

    /// One row of the slab.
    fn row(&mut self, row: Row) -> &mut [f32] {
        let len = self.row_len();
        let start = row as usize * len;
        if self.slab.len() < start + len {
            self.slab.resize(start + len, 0.0);
        }
        &mut self.slab[start..start + len]
    }

    /// A step's outcome and how long it takes, in seconds, without jitter.
    fn plan(&mut self, step: &Step) -> Result<(Outcome, f64), String> {
        match step {
            Step::Attention(step) => self.attention(step),
            Step::Experts(step) => self.experts(step),
            Step::Head(step) => self.head(step),
        }
    }

    fn sequence(&self, seq: SeqHandle) -> Result<&Sequence, String> {
        let sequence = self.sequences.get(seq.0 as usize).and_then(Option::as_ref);
        sequence.ok_or_else(|| format!("sequence {} is not open", seq.0))
    }

    fn attention(&mut self, step: &AttentionStep) -> Result<(Outcome, f64), String> {
        let costs = Arc::clone(&self.config.costs);
        let work = |segment: &SegmentStep| AttentionWork { start: segment.start, len: segment.len };
        let work: Vec<AttentionWork> = step.segments.iter().map(work).collect();
        if !step.span {
            let experts = self.route(step, step.blocks.start)?;
            return Ok((Outcome::Routed(experts), costs.attention(work)));
        }
        let (per_block, last) = (costs.model.experts, costs.model.blocks - 1);
        let mut rows = vec![0u32; step.blocks.len() * per_block];
        for (block, rows) in step.blocks.clone().zip(rows.chunks_exact_mut(per_block)) {
            let experts = self.route(step, block)?;
            for (row, experts) in step.rows.iter().zip(experts.chunks_exact(costs.model.top_k)) {
                if row.wanted || usize::from(block) != last {
                    experts.iter().for_each(|&expert| rows[usize::from(expert)] += 1);
                }
            }
        }
        let time = costs.span(&work, rows.chunks_exact(per_block));
        Ok((Outcome::Spanned(rows), time))
    }

    /// K experts for each row of a step.
    fn route(&mut self, step: &AttentionStep, block: u16) -> Result<Vec<u16>, String> {
        let top_k = self.config.costs.model.top_k;
        let mut experts = Vec::with_capacity(step.rows.len() * top_k);
        for segment in &step.segments {
            let &Sequence { seed, choice, .. } = self.sequence(segment.seq)?;
            for position in segment.start..segment.start + segment.len {
                self.config.routing.draw(DrawKey { seed, choice, position, block }, &mut experts);
                if let Some(probe) = &mut self.probe {
                    let experts = &experts[experts.len() - top_k..];
                    probe.routed(RoutedToken {
                        seq: segment.seq,
                        position,
                        block,
                        experts,
                        gap: f32::INFINITY,
                    });
                }
            }
        }
        Ok(experts)
    }

    fn experts(&mut self, step: &ExpertStep) -> Result<(Outcome, f64), String> {
        for batch in &step.units {
            if self.slots.get(batch.slot as usize).copied().flatten() != Some(batch.unit) {
                return Err(format!("slot {} does not hold {}", batch.slot, batch.unit));
            }
        }
        let costs = &self.config.costs;
        let units = step.units.iter().map(|batch| {
            let slice = batch.unit.slice;
            (batch.items.end - batch.items.start, costs.part(slice.lo..slice.hi, self.config.segments))
        });
        Ok((Outcome::Experts, costs.experts(units)))
    }

    fn head(&mut self, step: &HeadStep) -> Result<(Outcome, f64), String> {
        let vocab = self.config.costs.model.vocab as u32;
        let sample = |row: &sluice_core::step::HeadRow| {
            let sequence = self.sequence(row.seq)?;
            let [mut id, ..] = words(sequence.seed, Stream::Modelled, row.index, u32::from(sequence.choice));
            id %= vocab;
            // A made-up token ends nothing: lengths are the client's.
            for _ in 0..=sequence.stop_ids.len() {
                if sequence.stop_ids.contains(&id) {
                    id = (id + 1) % vocab;
                }
            }
            Ok(Sample::Token(id))
        };
        let samples = step.rows.iter().map(sample).collect::<Result<Vec<_>, String>>()?;
        Ok((Outcome::Sampled(samples), self.config.costs.head(step.rows.len() as u32)))
    }

    /// `1 + x` of the next step.
    fn jitter(&mut self) -> f64 {
        let jitter = self.config.costs.jitter;
        let [a, b, ..] = words(jitter.seed, Stream::Jitter, self.steps, self.config.device);
        self.steps = self.steps.wrapping_add(1);
        1.0 - jitter.mean * (1.0 - unit(a, b)).ln()
    }
}

impl Backend for ModelledBackend {
    type Unit = Unit;

    fn open(&mut self, seq: SeqHandle, sampling: SequenceSampling) {
        let index = seq.0 as usize;
        if index >= self.sequences.len() {
            self.sequences.resize(index + 1, None);
        }
        let SequenceSampling { params, choice, stop_ids, .. } = sampling;
        self.sequences[index] = Some(Sequence { seed: params.seed, choice, stop_ids });
    }

    fn close(&mut self, seq: SeqHandle) {
        if let Some(sequence) = self.sequences.get_mut(seq.0 as usize) {
            *sequence = None;
        }
    }

    fn install(&mut self, slot: u32, unit: Arc<Unit>) {
        let index = slot as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = Some(*unit);
    }

    fn free_slot(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            *slot = None;
        }
    }

    fn submit(&mut self, step: Step) {
        let start = Instant::now();
        self.running = Some(match self.plan(&step) {
            Ok((outcome, seconds)) => {
                let time = Duration::try_from_secs_f64(seconds * self.jitter()).unwrap_or(Duration::MAX / 4);
                (start + time, outcome)
            }
            Err(why) => (start, Outcome::Failed(why)),
        });
    }

    fn poll(&mut self) -> Option<Outcome> {
        let (end, _) = self.running.as_ref()?;
        if Instant::now() < *end {
            return None;
        }
        self.running.take().map(|(_, outcome)| outcome)
    }

    fn busy_until(&self) -> Option<Instant> {
        self.running.as_ref().map(|(end, _)| *end)
    }

    fn read_rows(&mut self, rows: &[Row], into: &mut Vec<f32>) {
        for &row in rows {
            into.extend_from_slice(self.row(row));
        }
    }

    fn write_rows(&mut self, rows: &[Row], values: &[f32]) {
        let len = self.row_len().max(1);
        for (&row, values) in rows.iter().zip(values.chunks_exact(len)) {
            self.row(row).copy_from_slice(values);
        }
    }

    fn row_len(&self) -> usize {
        self.config.costs.row_values
    }

    fn take_logprobs(&mut self) -> Vec<SampledLogprobs> {
        Vec::new()
    }

    fn set_probe(&mut self, probe: Option<Box<dyn Probe>>) {
        self.probe = probe;
    }

    fn calibrate(&mut self) -> Costs {
        self.config.costs.curves(1.0 / f64::from(self.config.slices.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::routing::Routing;
    use sluice_core::ids::Slice;
    use sluice_core::step::{Entry, ExpertItem, HeadRow, TokenRow, UnitBatch};

    fn backend(slow_down: f64) -> ModelledBackend {
        let text = include_str!("../../../costs/mixtral-8x7b-h100.toml");
        let costs = CostModel { slow_down, ..CostModel::parse(text).unwrap() };
        let (blocks, experts) = (costs.model.blocks, costs.model.experts);
        let routing = Routing::Skew { share: 0.4, seed: 1 };
        let routing = SkewedRouting::new(routing, blocks, experts, 2, 8).unwrap().unwrap();
        let config = ModelledConfig {
            costs: Arc::new(costs),
            routing: Arc::new(routing),
            segments: 8,
            slices: 1,
            device: 0,
        };
        let mut backend = ModelledBackend::new(config);
        for seq in 0..2 {
            let mut sampling = SequenceSampling::greedy(vec![1].into());
            sampling.params.seed = u64::from(seq);
            backend.open(SeqHandle(seq), sampling);
        }
        backend
    }

    fn finish(backend: &mut ModelledBackend, step: Step) -> Outcome {
        backend.submit(step);
        loop {
            if let Some(outcome) = backend.poll() {
                assert_eq!(backend.busy_until(), None);
                return outcome;
            }
        }
    }

    fn attention(blocks: std::ops::Range<u16>, span: bool, seqs: &[u32], start: u32) -> Step {
        let segment = |&seq: &u32| SegmentStep { seq: SeqHandle(seq), start, len: 1, pages: 0..0 };
        Step::Attention(AttentionStep {
            blocks,
            span,
            segments: seqs.iter().map(segment).collect(),
            rows: vec![TokenRow { token: 0, entry: Entry::Embed(0), wanted: true }; seqs.len()],
            slicing: Vec::new(),
            pages: Vec::new(),
        })
    }

    #[test]
    fn tokens_and_routes_do_not_depend_on_the_batch() {
        let mut backend = backend(1e-3);
        let Outcome::Routed(both) = finish(&mut backend, attention(3..4, false, &[0, 1], 7)) else {
            panic!()
        };
        let Outcome::Routed(one) = finish(&mut backend, attention(3..4, false, &[1], 7)) else { panic!() };
        assert_eq!(both[2..], one);
        let Outcome::Spanned(rows) = finish(&mut backend, attention(3..5, true, &[1], 7)) else { panic!() };
        assert_eq!(rows.len(), 16);
        assert!(one.iter().all(|&expert| rows[usize::from(expert)] == 1));
        let head = |seq, index| HeadRow { token: 0, entry: Entry::Carry, seq: SeqHandle(seq), index };
        let rows = vec![head(0, 4), head(1, 4)];
        let Outcome::Sampled(a) = finish(&mut backend, Step::Head(HeadStep { rows, slicing: vec![] })) else {
            panic!()
        };
        let rows = vec![head(1, 4)];
        let Outcome::Sampled(b) = finish(&mut backend, Step::Head(HeadStep { rows, slicing: vec![] })) else {
            panic!()
        };
        assert_eq!(a[1..], b);
        assert_ne!(a[0], a[1]);
    }

    #[test]
    fn a_unit_must_be_in_its_slot_and_a_step_takes_its_time() {
        let mut backend = backend(1.0);
        let unit = Unit { block: 0, expert: 1, slice: Slice { lo: 0, hi: 2 } };
        let step = || {
            let units = vec![UnitBatch { unit, slot: 2, items: 0..1 }];
            Step::Experts(ExpertStep { block: 0, units, items: vec![ExpertItem { src: 0, dst: 1 }] })
        };
        assert!(matches!(finish(&mut backend, step()), Outcome::Failed(why) if why.contains("slot 2")));
        backend.install(2, Arc::new(unit));
        let before = Instant::now();
        backend.submit(step());
        let end = backend.busy_until().unwrap();
        let expected = backend.config.costs.experts([(1, 0.25)]);
        assert!((end - before).as_secs_f64() >= expected);
        assert_eq!(finish(&mut backend, step()), Outcome::Experts);
    }

    #[test]
    fn rows_are_as_wide_as_the_file_says() {
        let mut backend = backend(1.0);
        let mut read = vec![];
        backend.write_rows(&[3, 1], &[]);
        backend.read_rows(&[3, 1], &mut read);
        assert_eq!((backend.row_len(), read.len()), (0, 0), "nothing travels unless the file wants it");
        Arc::make_mut(&mut backend.config.costs).row_values = 2;
        backend.write_rows(&[3, 1], &[1.0, 2.0, 3.0, 4.0]);
        backend.read_rows(&[1, 7, 3], &mut read);
        assert_eq!(read, [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn jitter_has_its_mean() {
        let mut backend = backend(1.0);
        Arc::make_mut(&mut backend.config.costs).jitter.mean = 0.2;
        let draws: Vec<f64> = (0..20_000).map(|_| backend.jitter()).collect();
        assert!(draws.iter().all(|&x| x >= 1.0));
        assert!((draws.iter().sum::<f64>() / draws.len() as f64 - 1.2).abs() < 0.01);
    }
}
