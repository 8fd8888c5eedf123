//! From options and a model to workers: roles, slabs, KV pages, slots, placement. Plain arithmetic, printed by
//! `inspect` and checked before anything is claimed.

use std::sync::Arc;

use bytesize::ByteSize;
use sluice_core::config::{HostConfig, Policy, RankConfig, Shape, WorkerConfig};
use sluice_core::cost::Costs;
use sluice_core::ids::{MICRO, Nanos, SECOND, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::slab::SlabLayout;
use sluice_planner::{Replicas, Request};

use super::start::StartError;
use crate::cli::{EngineOptions, KvSize, Layout, Routing};
use crate::model::spec::ModelSpec;

/// Landing rows each rank gets at each expert worker, at most: a step's worth.
const RING: u32 = 1024;
/// Bytes in a message that say whose a row is, at most, with its part of what begins the message.
const ITEM: usize = 64;
/// The cycle until one was measured.
const FIRST_CYCLE: u64 = 20_000 * MICRO;

/// One worker to be.
#[derive(Clone, Debug)]
pub struct WorkerPlan {
    /// What its core is told; cost curves come from the backend.
    pub config: WorkerConfig,
    /// `attention`, `experts` or `hybrid`.
    pub role: &'static str,
    /// Compute threads.
    pub threads: usize,
}

/// The whole engine to be.
#[derive(Clone, Debug)]
pub struct Sizing {
    /// By worker id.
    pub workers: Vec<WorkerPlan>,
    /// The first placement.
    pub placement: Vec<Arc<PlacementSlice>>,
    /// Tokens that a rank's KV pool holds.
    pub kv_tokens: u64,
}

/// What the model costs in memory, as the backend lays it out.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Bytes of a KV page over all blocks.
    pub kv_page: u64,
    /// Bytes that can be had, before any weights are loaded.
    pub available: u64,
    /// Bytes of what a rank has of the weights: all but the experts.
    pub rank: u64,
    /// Bytes of all experts.
    pub experts: u64,
}

impl Footprint {
    /// Of modelled devices.
    pub const WEIGHTLESS: Self = Self { kv_page: 1, available: u64::MAX, rank: 0, experts: 0 };
}

/// Of what weights leave, KV pools of a size that nobody gave take at most one part in so many; experts that nobody has
/// counted leave as much.
const PARTS: u64 = 4;

/// Units: a slice of an expert each.
fn units(shape: &Shape, slices: u8) -> u32 {
    shape.moe.iter().filter(|m| **m).count() as u32 * u32::from(shape.experts) * u32::from(slices)
}

fn shape(spec: &ModelSpec, segments: u8) -> Shape {
    let moe = spec.blocks.iter().map(|b| b.feed_forward.moe());
    let first = moe.clone().flatten().next();
    Shape {
        moe: moe.map(|m| m.is_some()).collect(),
        experts: first.map_or(0, |m| m.experts as u16),
        top_k: first.map_or(0, |m| m.top_k as u8),
        segments,
    }
}

/// What one worker holds and whom it serves.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// It runs attention.
    pub is_rank: bool,
    /// It holds experts.
    pub is_host: bool,
    /// Other ranks that it has landing rows for.
    pub ranks: u32,
    /// A peer that holds something and gives no sign for so long is masked.
    pub patience: Nanos,
    /// See [`RankConfig::probe_every`].
    pub probe_every: Option<Nanos>,
    /// Bytes of a message to another worker, at most.
    pub message: usize,
}

/// Units that a worker alone in its process is to have room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// As the options want it.
    pub given: Option<u32>,
    /// Units that the table gives it at its start.
    pub units: u32,
    /// Segments of those, added up.
    pub segments: u32,
}

/// What a worker takes of its host.
#[derive(Clone, Copy, Debug)]
struct Claim {
    slots: u32,
    pages: u32,
    threads: usize,
}

/// Sizes an engine.
///
/// # Errors
/// What does not fit, in the words of the options.
pub fn size(spec: &ModelSpec, o: &EngineOptions, memory: Footprint) -> Result<Sizing, StartError> {
    let shape = shape(spec, o.segments);
    let hybrid = o.layout == Layout::Hybrid;
    let count = o.workers();
    let is_rank = |i: u32| hybrid || i < o.attention_ranks;
    let is_host = |i: u32| hybrid || i >= o.attention_ranks;
    let ranks = (0..count).filter(|i| is_rank(*i)).count() as u32;
    // Workers of one process share what they hold.
    let pages = kv_pages(spec, o, memory, memory.rank + memory.experts, ranks)?;
    let (slots, placement) = place(&shape, o, (0..count).filter(|i| is_host(*i)))?;
    let threads = (o.threads.map_or_else(cores, |t| t as usize) / count as usize).max(1);
    let workers = (0..count).map(|i| {
        let room = Room {
            is_rank: is_rank(i),
            is_host: is_host(i),
            ranks: ranks - u32::from(is_rank(i)),
            // Workers of one process stop and go on together: none is ever taken for lost, and a
            // slow one has the same cores as its siblings.
            patience: Nanos::MAX,
            probe_every: None,
            message: usize::MAX,
        };
        worker(WorkerId(i), &shape, o, room, Claim { slots, pages, threads })
    });
    let workers: Vec<WorkerPlan> = workers.collect::<Result<_, _>>()?;
    Ok(Sizing { workers, placement, kv_tokens: u64::from(pages) * u64::from(o.page_size) })
}

/// Sizes a worker that is alone in its process.
///
/// # Errors
/// What does not fit, in the words of the options.
pub fn size_one(
    spec: &ModelSpec,
    o: &EngineOptions,
    memory: Footprint,
    id: WorkerId,
    room: Room,
    slots: Slots,
) -> Result<WorkerPlan, StartError> {
    // What an expert step returns to a rank goes in one message.
    let most = room.message / (spec.hidden * size_of::<f32>() + ITEM);
    if room.is_host && o.max_expert_rows as usize > most {
        return Err(StartError::ExpertRows {
            rows: o.max_expert_rows,
            most,
            message: ByteSize(room.message as u64),
        });
    }
    let shape = shape(spec, o.segments);
    let (count, bytes) = if room.is_host { host(spec, o, memory, &shape, room, slots) } else { (0, 0) };
    let pages = match room.is_rank {
        true => kv_pages(spec, o, memory, memory.rank.saturating_add(bytes), 1)?,
        false => 0,
    };
    let threads = o.threads.map_or_else(cores, |t| t as usize);
    worker(id, &shape, o, room, Claim { slots: count, pages, threads })
}

/// Slots of a worker, and the bytes that experts take when all are full.
fn host(
    spec: &ModelSpec,
    o: &EngineOptions,
    memory: Footprint,
    shape: &Shape,
    room: Room,
    slots: Slots,
) -> (u32, u64) {
    let expert = memory.experts / u64::from(units(shape, 1).max(1));
    // Of the units that are known, their mean; of others, what they are cut into.
    let slot = match u64::from(slots.units) {
        0 => expert / u64::from(o.slices.max(1)),
        known => expert * u64::from(slots.segments) / known / u64::from(o.segments.max(1)),
    };
    let count = match slots {
        Slots { given: Some(given), .. } => given,
        // Nothing is known of what is to come: all of it, if there is memory.
        Slots { units: 0, .. } => {
            let least = match o.kv {
                KvSize::Bytes(bytes) => bytes,
                KvSize::Tokens(tokens) => tokens.div_ceil(o.page_size.into()).saturating_mul(memory.kv_page),
                KvSize::Auto => longest(spec, o).saturating_mul(memory.kv_page),
            };
            let taken = if room.is_rank { memory.rank.saturating_add(least) } else { 0 };
            let fit = memory.available.saturating_sub(taken) / PARTS * (PARTS - 1) / slot.max(1);
            units(shape, o.slices).min(u32::try_from(fit).unwrap_or(u32::MAX))
        }
        // Room to move.
        Slots { units, .. } => units.saturating_add(units.div_ceil(2)),
    };
    (count, slot.saturating_mul(count.into()).min(memory.experts))
}

fn worker(
    id: WorkerId,
    shape: &Shape,
    o: &EngineOptions,
    room: Room,
    claim: Claim,
) -> Result<WorkerPlan, StartError> {
    let (r, h) = (room.is_rank, room.is_host);
    let rank = RankConfig {
        pages: claim.pages,
        page_size: o.page_size,
        // A draw of experts is a sequence's own: equal prefixes do not have equal keys and values then.
        prefix_reuse: o.prefix_cache && o.routing == Routing::Model,
        // Room for every running sequence to go on for a page, as far as the pool allows.
        watermark: o.max_sequences.min(claim.pages / 16),
        max_sequences: o.max_sequences,
        prefill_chunk: o.prefill_chunk,
        prefill_tokens: o.prefill_tokens.max(o.prefill_chunk),
        probe_every: room.probe_every,
    };
    let tokens = rank.max_sequences.saturating_add(rank.prefill_tokens);
    let ring = tokens.min(RING);
    let slab = SlabLayout {
        tokens: if r { tokens } else { 0 },
        groups: if r { tokens } else { 0 },
        top_k: shape.top_k.into(),
        parts: o.slices.into(),
        landing: if h { ring.saturating_mul(room.ranks) } else { 0 },
        outputs: if h { o.max_expert_rows } else { 0 },
    };
    let policy = if r { o.schedulers.attention } else { o.schedulers.experts };
    let config = WorkerConfig {
        id,
        shape: shape.clone(),
        slab,
        waves: o.waves,
        rank: r.then_some(rank),
        host: h.then_some(HostConfig { slots: claim.slots, ring, linger: SECOND }),
        policy,
        max_step_rows: o.max_step_tokens,
        max_expert_rows: o.max_expert_rows,
        spans: o.spans && policy != Policy::Sync,
        costs: Costs::default(),
        release_cycles: o.release_cycles,
        initial_cycle: FIRST_CYCLE,
        patience: room.patience,
    };
    config.check()?;
    let role = match (r, h) {
        (true, true) => "hybrid",
        (true, false) => "attention",
        _ => "experts",
    };
    Ok(WorkerPlan { config, role, threads: claim.threads })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// KV pages of the longest sequence.
fn longest(spec: &ModelSpec, o: &EngineOptions) -> u64 {
    (spec.max_positions as u64).div_ceil(o.page_size.into())
}

/// KV pages of each rank, beside so many bytes of weights.
fn kv_pages(
    spec: &ModelSpec,
    o: &EngineOptions,
    memory: Footprint,
    weights: u64,
    ranks: u32,
) -> Result<u32, StartError> {
    let page = u64::from(o.page_size);
    let longest = longest(spec, o);
    let pages = match o.kv {
        KvSize::Tokens(t) => t.div_ceil(page),
        KvSize::Bytes(b) => b / memory.kv_page.max(1),
        KvSize::Auto => {
            let (ranks, page) = (u64::from(ranks.max(1)), memory.kv_page.max(1));
            let left = memory.available.saturating_sub(weights) / ranks / page;
            if left < longest {
                return Err(StartError::Memory {
                    available: ByteSize(memory.available),
                    weights: ByteSize(weights),
                    kv: ByteSize(longest * page * ranks),
                });
            }
            (left / PARTS).min(longest * u64::from(o.max_sequences)).max(longest)
        }
    };
    match u32::try_from(pages) {
        Ok(pages) if pages > 0 => Ok(pages),
        _ => Err(StartError::Kv { pages, page_size: o.page_size }),
    }
}

/// Slots per worker, and the placement that fills them.
fn place(
    shape: &Shape,
    o: &EngineOptions,
    hosts: impl Iterator<Item = u32>,
) -> Result<(u32, Vec<Arc<PlacementSlice>>), StartError> {
    let hosts: Vec<u32> = hosts.collect();
    let units = units(shape, o.slices);
    let slots = units.saturating_mul(o.replicas).div_ceil(hosts.len().max(1) as u32);
    let worker = |i: &u32| sluice_planner::Worker { id: WorkerId(*i), slots };
    let mut request = Request::new(shape.moe.clone(), shape.experts, hosts.iter().map(worker).collect());
    (request.segments, request.slices) = (o.segments, o.slices);
    request.replicas = Replicas::exactly(o.replicas);
    if units == 0 {
        return Ok((0, vec![]));
    }
    let plan = sluice_planner::plan(&request)?;
    let blocks = shape.blocks();
    Ok((slots, plan.placement(blocks, blocks, 1).into_iter().map(Arc::new).collect()))
}
