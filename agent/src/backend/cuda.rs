//! The CUDA backend: a worker on a GPU, in bf16.
//!
//! The hidden states stay on the device, in the worker's slab; the host sends row numbers and reads back ids and logits. All
//! workers of a device share its one stream, so that no two of their launches, whose blocks wait for one another, share its
//! multiprocessors. Tokens are drawn by the CPU's sampler from the logits: the same draws as on every other backend.

mod attention;
mod calibrate;
mod experts;
mod head;
mod limits;
mod lists;
mod merge;
mod slab;
mod units;
mod weights;

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use sluice_core::cost::Costs;
use sluice_core::ids::{Row, SeqHandle};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{Outcome, Step};
use sluice_kernels::cpu::PAGE;
use sluice_kernels::cuda::{
    Attention, AttentionPlan, Buffer, Dense, Device, Error, KvCache, KvCall, KvShape, Merge, PlanLimits,
    RopeAppend, Route, RowOps, Tiles,
};

use super::error::StepError;
use super::routing::SkewedRouting;
use super::{Backend, Probe, SampledLogprobs};
use crate::model::spec::ModelSpec;
use crate::sampling::{Sampler, SamplerScratch, SequenceSampling};

pub use limits::NotYet;
pub use weights::{LoadError, RankWeights, UnitWeights, WeightStore};

use limits::STRIP;
use lists::Lists;
use slab::WorkerSlab;
use units::Units;

/// Tokens of a KV page.
pub const PAGE_TOKENS: u32 = PAGE as u32;
/// Segments of a step, at most.
const MAX_SEGMENTS: usize = 1024;
/// Positions of a chunk of attention that may be computed apart.
const CHUNK: usize = 512;
/// Parts of decode's attention that may wait for the others of their tile, and of prefill's.
const PARTS: [usize; 2] = [4096, 256];
/// Rows whose logits are held at a time: a large vocabulary's logits take room.
const HEAD_ROWS: usize = 64;

/// What a worker on a GPU is made of.
#[derive(Clone, Debug)]
pub struct CudaConfig {
    /// The slab's regions.
    pub layout: SlabLayout,
    /// Segments of an expert's inner dimension, the deployment's G.
    pub segments: u8,
    /// Slices that an expert is held in, at the fewest: a slot has room for one of them.
    pub slices: u8,
    /// Slots for units.
    pub slots: u32,
    /// Rows of an expert step at most.
    pub expert_rows: u32,
    /// KV pages; 0 where no attention runs here.
    pub kv_pages: u32,
    /// Replaces the router's choices.
    pub routing: Option<Arc<SkewedRouting>>,
}

/// Bytes of one KV page over all blocks, where the model runs on a GPU.
pub fn kv_page_bytes(spec: &ModelSpec) -> usize {
    kv_shape(spec, 1).map_or(0, |shape| shape.page_bytes())
}

fn kv_shape(spec: &ModelSpec, pages: u32) -> Result<KvShape, NotYet> {
    let shape = limits::blocks(spec)?;
    let heads = shape.attention.kv_heads;
    Ok(KvShape { blocks: spec.blocks.len(), pages: pages as usize, heads, head_dim: shape.head })
}

/// What a worker with attention has on the device.
struct RankParts {
    weights: Arc<RankWeights>,
    kv: KvCache,
    call: KvCall,
    decode: AttentionPlan,
    prefill: AttentionPlan,
    /// Columns of all query heads, and of a row of queries, keys and values.
    query_columns: usize,
    qkv_columns: usize,
    heads: usize,
    /// Query heads over one key head.
    group: usize,
    qkv: Buffer<bf16>,
    attended: Buffer<bf16>,
    router_logits: Buffer<f32>,
    /// The chosen experts, for each block of the longest span.
    ids: Vec<Buffer<i32>>,
    weights_of_choices: Buffer<f32>,
    gaps: Buffer<f32>,
    logits: Buffer<f32>,
}

/// Rows of a step, in its order, each for one purpose.
struct Buffers {
    /// The residual stream.
    x: Buffer<bf16>,
    normed: Buffer<bf16>,
    delta: Buffer<bf16>,
    merged: Buffer<bf16>,
    /// Outputs of a span's experts, and a row of zeros.
    outputs: Buffer<f32>,
    merge_weights: Buffer<f32>,
}

/// The kernels.
struct Ops {
    rows: RowOps,
    dense: Dense,
    rope: RopeAppend,
    route: Route,
    merge: Merge,
}

/// One worker on a GPU.
pub struct CudaBackend {
    spec: Arc<ModelSpec>,
    device: Arc<Device>,
    layout: SlabLayout,
    segments: u8,
    experts: usize,
    routing: Option<Arc<SkewedRouting>>,
    ops: Ops,
    slab: WorkerSlab,
    rank: Option<RankParts>,
    units: Units,
    lists: Lists,
    buffers: Buffers,
    samplers: Vec<Option<Sampler>>,
    /// The router's weights of each token at home, K each.
    weights: Vec<f32>,
    sampler_scratch: SamplerScratch,
    logprobs: Vec<SampledLogprobs>,
    probe: Option<Box<dyn Probe>>,
    outcome: Option<Outcome>,
    /// Why the worker cannot go on: what came up where no outcome could be given.
    broken: Option<String>,
}

impl std::fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaBackend")
            .field("device", &self.device.name())
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl CudaBackend {
    /// Claims all memory. `rank` is given where attention runs here.
    pub fn new(
        spec: &Arc<ModelSpec>,
        device: &Arc<Device>,
        rank: Option<Arc<RankWeights>>,
        config: &CudaConfig,
    ) -> Result<Self, LoadError> {
        let shape = limits::blocks(spec)?;
        let (experts, top_k, inner) = (shape.moe.experts, shape.moe.top_k, shape.moe.expert.inner);
        if top_k != config.layout.top_k as usize {
            return Err(limits::other_top_k(top_k).into());
        }
        let claim = || {
            let pairs = (config.layout.tokens as usize * top_k).max(config.expert_rows as usize).max(1);
            let units = Units::new(device, spec, inner, experts, pairs, config)?;
            let rank = rank.map(|weights| rank_parts(spec, device, weights, config)).transpose()?;
            let rows = (config.layout.tokens as usize).max(1) * spec.hidden;
            let parts = top_k * config.layout.parts.max(1) as usize;
            let is_rank = rank.is_some();
            let span_rows = if is_rank { config.layout.tokens as usize * parts + 1 } else { 1 };
            Ok(Self {
                ops: Ops {
                    rows: RowOps::new(device)?,
                    dense: Dense::new(device)?,
                    rope: RopeAppend::new(device)?,
                    route: Route::new(device)?,
                    merge: Merge::new(device)?,
                },
                slab: WorkerSlab::new(device, config.layout, spec.hidden)?,
                lists: Lists::new(device, pairs * 4)?,
                buffers: Buffers {
                    x: device.zeros(rows)?,
                    normed: device.zeros(rows)?,
                    delta: device.zeros(rows)?,
                    merged: device.zeros(rows)?,
                    outputs: device.zeros(span_rows * spec.hidden)?,
                    merge_weights: device.zeros((config.layout.tokens as usize * top_k).max(1))?,
                },
                samplers: Vec::new(),
                weights: vec![0.0; config.layout.tokens as usize * top_k],
                sampler_scratch: SamplerScratch::default(),
                logprobs: Vec::new(),
                probe: None,
                outcome: None,
                broken: None,
                layout: config.layout,
                segments: config.segments,
                routing: config.routing.clone(),
                experts,
                units,
                rank,
                spec: Arc::clone(spec),
                device: Arc::clone(device),
            })
        };
        claim().map_err(|source| LoadError::Device { what: "memory and kernels of a worker".into(), source })
    }

    fn run(&mut self, step: &Step) -> Result<Outcome, StepError> {
        let outcome = match step {
            Step::Attention(step) => self.attention(step),
            Step::Experts(step) => self.experts(step),
            Step::Head(step) => self.head(step),
        }?;
        self.device.synchronize()?;
        Ok(outcome)
    }

    fn sampler(&self, seq: SeqHandle) -> Result<&Sampler, StepError> {
        self.samplers.get(seq.0 as usize).and_then(Option::as_ref).ok_or(StepError::NotOpen(seq.0))
    }

    /// Keeps the first error of what has no outcome.
    fn note(&mut self, done: Result<(), String>) {
        if let Err(why) = done {
            tracing::error!("{why}");
            self.broken.get_or_insert(why);
        }
    }
}

fn rank_parts(
    spec: &ModelSpec,
    device: &Device,
    weights: Arc<RankWeights>,
    config: &CudaConfig,
) -> Result<RankParts, Error> {
    let unsupported = |not: NotYet| sluice_kernels::Error::Unsupported { what: not.to_string() };
    let shape = limits::blocks(spec).map_err(unsupported)?;
    let kv = kv_shape(spec, config.kv_pages).map_err(unsupported)?;
    let (heads, tokens) = (shape.attention.heads, config.layout.tokens as usize);
    let (group, top_k) = (heads / kv.heads, shape.moe.top_k);
    let attention = Attention {
        heads,
        scale: shape.attention.scale,
        window: shape.attention.sliding_window.map(|window| window as u32),
    };
    let chunks = spec.max_positions.div_ceil(CHUNK).max(1);
    let plan = |tiles, queries: usize, parts| {
        // A tile of every few rows of a segment, each cut into chunks at most.
        let units = (tokens / (queries / group).max(1) + MAX_SEGMENTS.min(tokens)) * (chunks + 1);
        AttentionPlan::new(device, kv, attention, tiles, PlanLimits { units, parts })
    };
    // More query heads over a key head than decode's tiles take go by prefill's.
    let (few, queries) = if group <= 8 { (Tiles::Decode, 8) } else { (Tiles::Prefill, 128) };
    let query_columns = heads * kv.head_dim;
    let qkv_columns = (heads + 2 * kv.heads) * kv.head_dim;
    let entries = tokens + config.kv_pages as usize;
    let page_entries = entries + MAX_SEGMENTS.min(tokens) * spec.max_positions.div_ceil(PAGE);
    Ok(RankParts {
        kv: KvCache::new(device, kv)?,
        call: KvCall::new(device, MAX_SEGMENTS.min(tokens.max(1)), tokens, page_entries)?,
        decode: plan(few, queries, PARTS[0] / if group <= 8 { 1 } else { 16 })?,
        prefill: plan(Tiles::Prefill, 128, PARTS[1])?,
        query_columns,
        qkv_columns,
        heads,
        group,
        qkv: device.zeros(tokens * qkv_columns)?,
        attended: device.zeros(tokens * query_columns)?,
        router_logits: device.zeros(tokens * shape.moe.experts)?,
        ids: (0..spec.blocks.len()).map(|_| device.zeros(tokens * top_k)).collect::<Result<_, _>>()?,
        weights_of_choices: device.zeros(tokens * top_k)?,
        gaps: device.zeros(tokens)?,
        logits: device.zeros(HEAD_ROWS * spec.vocab.next_multiple_of(STRIP))?,
        weights,
    })
}

impl Backend for CudaBackend {
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
        let done = self.units.install(&self.device, slot, &unit);
        self.note(done.map_err(|e| format!("{} could not be put into slot {slot}: {e}", unit.unit)));
    }

    fn free_slot(&mut self, slot: u32) {
        self.units.free(slot);
    }

    fn submit(&mut self, step: Step) {
        let outcome = match &self.broken {
            Some(why) => Outcome::Failed(why.clone()),
            None => self.run(&step).unwrap_or_else(|error| Outcome::Failed(error.to_string())),
        };
        self.outcome = Some(outcome);
    }

    fn poll(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    fn busy_until(&self) -> Option<Instant> {
        None
    }

    fn read_rows(&mut self, rows: &[Row], into: &mut Vec<f32>) {
        let wanted = into.len() + rows.len() * self.spec.hidden;
        let done = self.slab.read(&self.device, rows, into);
        into.resize(wanted, f32::NAN);
        self.note(done.map_err(|e| format!("rows could not be read: {e}")));
    }

    fn write_rows(&mut self, rows: &[Row], values: &[f32]) {
        let done = self.slab.write(&self.device, rows, values);
        self.note(done.map_err(|e| format!("rows could not be written: {e}")));
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
