//! The CPU backend: steps run to their end inside [`Backend::submit`], on the caller and its compute threads.
//!
//! Every step copies nothing that a kernel can gather or scatter by row number, and works in buffers that grow to the
//! largest step and stay.

mod attention;
mod calibrate;
mod experts;
mod feed_forward;
mod head;
mod merge;
mod rows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::cost::Costs;
use sluice_core::ids::{Row, SeqHandle};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{Outcome, Step};
use sluice_kernels::Error as KernelError;
use sluice_kernels::cpu::{Cpu, Isa, KvCache, KvShape, PAGE, Pool, Routed};

use super::error::StepError;
use super::holdings::Holdings;
use super::routing::SkewedRouting;
use super::weights::{RankWeights, UnitWeights};
use super::{Backend, Probe, SampledLogprobs};
use crate::model::spec::ModelSpec;
use crate::sampling::{Sampler, SamplerScratch, SequenceSampling};

use merge::MergePlan;
use rows::{Scratch, WorkerSlab};

/// Tokens of a KV page: what the pages of an attention step hold.
pub const PAGE_TOKENS: u32 = PAGE as u32;

/// What a CPU worker is made of.
#[derive(Clone, Debug)]
pub struct CpuConfig {
    /// The instruction set; it changes no bit.
    pub isa: Isa,
    /// Compute threads, the worker's own included.
    pub threads: usize,
    /// How long idle compute threads spin before they sleep.
    pub spin: Duration,
    /// The slab's regions.
    pub layout: SlabLayout,
    /// Segments of an expert's inner dimension, the deployment's G.
    pub segments: u8,
    /// Slots for units.
    pub slots: u32,
    /// KV pages; 0 where no attention runs here.
    pub kv_pages: u32,
    /// Replaces the router's choices.
    pub routing: Option<Arc<SkewedRouting>>,
}

/// Bytes of one KV page over all blocks.
pub fn kv_page_bytes(spec: &ModelSpec) -> usize {
    kv_shape(spec, 1).map_or(0, |shape| shape.page_bytes())
}

fn kv_shape(spec: &ModelSpec, pages: u32) -> Result<KvShape, KernelError> {
    let Some(first) = spec.blocks.first().map(|block| &block.attention) else {
        return Err(KernelError::Unsupported { what: "a model without blocks".to_owned() });
    };
    let same = |block: &crate::model::spec::BlockSpec| {
        (block.attention.kv_heads, block.attention.head_dim) == (first.kv_heads, first.head_dim)
    };
    if !spec.blocks.iter().all(same) {
        let what =
            "blocks whose key heads differ in number or length: the KV pages hold one shape".to_owned();
        return Err(KernelError::Unsupported { what });
    }
    let (blocks, pages) = (spec.blocks.len(), pages as usize);
    Ok(KvShape { blocks, pages, heads: first.kv_heads, head_dim: first.head_dim })
}

/// Intermediate rows, each for one purpose.
#[derive(Debug, Default)]
struct Buffers {
    normed: Scratch,
    qkv: Scratch,
    attended: Scratch,
    router: Scratch,
    gate: Scratch,
    network: Scratch,
    outputs: Scratch,
    combined: Scratch,
    logits: Scratch,
}

/// One worker on the CPU.
pub struct CpuBackend {
    spec: Arc<ModelSpec>,
    rank: Option<Arc<RankWeights>>,
    layout: SlabLayout,
    segments: u8,
    routing: Option<Arc<SkewedRouting>>,
    cpu: Cpu,
    slab: WorkerSlab,
    kv: KvCache,
    slots: Vec<Option<Arc<UnitWeights>>>,
    holdings: Holdings,
    samplers: Vec<Option<Sampler>>,
    /// The router's weights of each token at home, K each.
    weights: Vec<f32>,
    buffers: Buffers,
    batch: attention::Batch,
    routed: Routed,
    merge: MergePlan,
    expert_rows: Vec<sluice_kernels::cpu::ExpertRow>,
    sampler_scratch: SamplerScratch,
    logprobs: Vec<SampledLogprobs>,
    probe: Option<Box<dyn Probe>>,
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBackend")
            .field("cpu", &self.cpu)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl CpuBackend {
    /// Claims the slab, the KV pages and the compute threads. `rank` is given where attention runs here.
    pub fn new(
        spec: Arc<ModelSpec>,
        rank: Option<Arc<RankWeights>>,
        config: CpuConfig,
    ) -> Result<Self, KernelError> {
        let CpuConfig { isa, threads, spin, layout, segments, slots, kv_pages, routing } = config;
        let moes = || spec.blocks.iter().filter_map(|block| block.feed_forward.moe());
        if moes().any(|moe| moe.top_k != layout.top_k as usize) {
            let what =
                format!("blocks that route to other than the slab's {} experts per token", layout.top_k);
            return Err(KernelError::Unsupported { what });
        }
        let kv = KvCache::new(kv_shape(&spec, kv_pages)?)?;
        Ok(Self {
            cpu: Cpu::new(isa, Pool::new(threads, spin)?)?,
            slab: WorkerSlab::new(layout, spec.hidden),
            kv,
            slots: vec![None; slots as usize],
            holdings: Holdings::new(&spec, segments),
            samplers: Vec::new(),
            weights: vec![0.0; (layout.tokens * layout.top_k) as usize],
            buffers: Buffers::default(),
            batch: attention::Batch::default(),
            routed: Routed::default(),
            merge: MergePlan::default(),
            expert_rows: Vec::new(),
            sampler_scratch: SamplerScratch::default(),
            logprobs: Vec::new(),
            probe: None,
            outcome: None,
            spec,
            rank,
            layout,
            segments,
            routing,
        })
    }

    fn run(&mut self, step: &Step) -> Result<Outcome, StepError> {
        match step {
            Step::Attention(step) => self.attention(step),
            Step::Experts(step) => self.experts(step),
            Step::Head(step) => self.head(step),
        }
    }

    fn rank(&self) -> Result<Arc<RankWeights>, StepError> {
        self.rank.clone().ok_or(StepError::NoRank)
    }

    fn sampler(&self, seq: SeqHandle) -> Result<&Sampler, StepError> {
        self.samplers.get(seq.0 as usize).and_then(Option::as_ref).ok_or(StepError::NotOpen(seq.0))
    }
}

impl Backend for CpuBackend {
    type Unit = UnitWeights;

    fn open(&mut self, seq: SeqHandle, sampling: SequenceSampling) {
        let index = seq.0 as usize;
        if index >= self.samplers.len() {
            self.samplers.resize_with(index + 1, || None);
        }
        self.samplers[index] = Some(Sampler::new(sampling));
    }

    fn close(&mut self, seq: SeqHandle) {
        if let Some(sampler) = self.samplers.get_mut(seq.0 as usize) {
            *sampler = None;
        }
    }

    fn install(&mut self, slot: u32, unit: Arc<UnitWeights>) {
        self.free_slot(slot);
        if let Some(held) = self.slots.get_mut(slot as usize) {
            self.holdings.add(unit.unit, slot);
            *held = Some(unit);
        }
    }

    fn free_slot(&mut self, slot: u32) {
        if let Some(held) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.holdings.remove(held.unit, slot);
        }
    }

    fn submit(&mut self, step: Step) {
        self.outcome = Some(self.run(&step).unwrap_or_else(|error| Outcome::Failed(error.to_string())));
    }

    fn poll(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    fn busy_until(&self) -> Option<Instant> {
        None
    }

    fn read_rows(&mut self, rows: &[Row], into: &mut Vec<f32>) {
        for &row in rows {
            match self.slab.row(row) {
                Some(values) => into.extend_from_slice(values),
                None => into.resize(into.len() + self.spec.hidden, f32::NAN),
            }
        }
    }

    fn write_rows(&mut self, rows: &[Row], values: &[f32]) {
        for (&row, values) in rows.iter().zip(values.chunks_exact(self.spec.hidden)) {
            if let Some(held) = self.slab.row_mut(row) {
                held.copy_from_slice(values);
            }
        }
    }

    fn row_len(&self) -> usize {
        self.spec.hidden
    }

    fn take_logprobs(&mut self) -> Vec<SampledLogprobs> {
        std::mem::take(&mut self.logprobs)
    }

    fn set_probe(&mut self, probe: Option<Box<dyn Probe>>) {
        self.probe = probe;
    }

    fn calibrate(&mut self) -> Costs {
        self.measure()
    }
}
