//! The attention rank: owns sequences, their KV pages and their tokens; runs attention; dispatches to experts and
//! merges what comes back.
//!
//! The way of a token: [`admit`] takes its sequence in and cuts segments; [`attend`] runs them through attention;
//! [`dispatch`] sends routed tokens to experts; [`returns`] takes outputs until the token is whole; then it enters
//! the next block's queue, and after the last block [`attend`] samples.

mod admit;
mod attend;
mod check;
mod dispatch;
mod pace;
mod peers;
mod queues;
mod returns;
mod segments;

use crate::clock::Clock;
use crate::config::{Policy, RankConfig, Shape, WorkerConfig};
use crate::cycle::Cycle;
use crate::ids::{Attempt, GatewayId, IDLE, Nanos, Progress, SeqKey, Slice, WorkerId};
use crate::kv::{KvPool, Table};
use crate::pool::TokenPool;
use crate::routing::RoutingTable;
use crate::sequence::{Bind, StopRule};
use crate::slab::SlabLayout;
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) use dispatch::{Ask, Dest};
pub use queues::AttentionQueue;
pub(crate) use queues::AttentionQueues;
pub(crate) use segments::Segment;

/// A sequence that was taken in.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub key: SeqKey,
    pub attempt: Attempt,
    pub gateway: GatewayId,
    pub age: u64,
    pub ids: Vec<u32>,
    pub produced: u32,
    pub stop: StopRule,
    pub deadline: Option<Nanos>,
    pub table: Table,
    /// The next prompt position to put into a segment.
    pub next: u32,
    /// Its segments under way, in order of position.
    pub segments: Vec<u32>,
    /// It is over, but a running step still uses it.
    pub closing: bool,
}

/// What the running step was made of.
#[derive(Debug)]
pub(crate) enum Running {
    Attention { blocks: std::ops::Range<u16>, span: bool, segments: Vec<u32> },
    Head { segments: Vec<u32> },
}

#[derive(Debug)]
pub(crate) struct Rank {
    pub me: WorkerId,
    pub config: RankConfig,
    pub shape: Shape,
    pub slab: SlabLayout,
    pub kv: KvPool,
    pub pool: TokenPool,
    pub routing: RoutingTable,
    pub queues: AttentionQueues,
    /// Per class: the decode waves, then prefill.
    pub clocks: Vec<Clock>,
    pub cycle: Cycle,
    patience: Nanos,
    pub sequences: Vec<Option<Sequence>>,
    free_handles: Vec<u32>,
    by_key: HashMap<SeqKey, u32>,
    /// (age, key): replays and preempted sequences that wait for room.
    waiting: BTreeMap<(u64, SeqKey), Bind>,
    /// (age, handle): prompts not yet cut into segments whole.
    prefilling: BTreeSet<(u64, u32)>,
    /// (age, handle): decoding, but without a page for the next token. The segment that waits.
    starved: BTreeMap<(u64, u32), u32>,
    deadlines: BTreeSet<(Nanos, u32)>,
    pub segments: Vec<Option<Segment>>,
    free_segments: Vec<u32>,
    free_tokens: Vec<u32>,
    token_segment: Vec<u32>,
    token_group: Vec<u32>,
    prefill_rows: u32,
    /// Per peer.
    pub dests: Vec<Dest>,
    /// Before this no destination is late or overdue.
    watch: Nanos,
    /// Before this no slow worker's probe is due.
    next_probe: Nanos,
    /// Per class: the frontier that all destinations have been told, unless `unsaid`.
    published: Vec<Progress>,
    /// Some may have to be told more than that.
    unsaid: bool,
    /// Items for experts that nobody holds.
    orphans: Vec<Ask>,
    /// Items whose worker is behind this rank's table: tried again at that time.
    retries: Vec<(Nanos, Ask)>,
    pub running: Option<Running>,
    /// An expert step runs on this same worker.
    pub hosting: bool,
    /// Orphans are tried again when it is over.
    reslices: bool,
    draining: bool,
    /// Rows per (block, expert) since the start.
    pub loads: Vec<u64>,
    chosen: Vec<(Slice, WorkerId)>,
    taken: Vec<queues::Entry>,
    /// Pages named by the last attention step, so that the next one is made with room for as many.
    usual_pages: usize,
    /// Per (group, k): the expert that was asked last.
    asked: Vec<u16>,
    /// Per (group, k, first segment of the slice): the peer that was asked last.
    asked_of: Vec<u32>,
    /// Items for units held by this same worker.
    pub local: Vec<Ask>,
    /// The time of the present event.
    pub now: Nanos,
    /// Per class: the pass last told to other ranks.
    told_pass: Vec<Progress>,
}

const NONE: u32 = u32::MAX;

impl Rank {
    pub fn new(config: &WorkerConfig, rank: &RankConfig) -> Self {
        let (shape, slab) = (&config.shape, &config.slab);
        // A baseline, which waits for every worker.
        let is_barrier = config.policy == Policy::Sync;
        let classes = config.classes();
        Self {
            me: config.id,
            config: RankConfig { probe_every: rank.probe_every.filter(|_| !is_barrier), ..rank.clone() },
            shape: shape.clone(),
            slab: *slab,
            kv: KvPool::new(rank.pages, rank.page_size, rank.prefix_reuse),
            pool: TokenPool::new(slab.groups, shape.top_k, shape.segments),
            routing: RoutingTable::new(shape, slab.parts),
            queues: AttentionQueues::new(shape.blocks(), classes),
            clocks: (0..classes).map(|_| Clock::new(shape.blocks())).collect(),
            cycle: Cycle::new(config.initial_cycle),
            patience: if is_barrier { Nanos::MAX } else { config.patience },
            sequences: vec![],
            free_handles: vec![],
            by_key: HashMap::new(),
            waiting: BTreeMap::new(),
            prefilling: BTreeSet::new(),
            starved: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            segments: vec![],
            free_segments: vec![],
            free_tokens: (0..slab.tokens).rev().collect(),
            token_segment: vec![NONE; slab.tokens as usize],
            token_group: vec![NONE; slab.tokens as usize],
            prefill_rows: 0,
            dests: vec![],
            watch: 0,
            next_probe: Nanos::MAX,
            published: vec![IDLE; classes as usize],
            unsaid: false,
            orphans: vec![],
            retries: vec![],
            running: None,
            hosting: false,
            reslices: false,
            draining: false,
            loads: vec![0; shape.moe.len() * shape.experts as usize],
            chosen: vec![],
            taken: vec![],
            usual_pages: 0,
            asked: vec![0; slab.groups as usize * shape.top_k as usize],
            asked_of: vec![NONE; slab.groups as usize * shape.top_k as usize * shape.segments as usize],
            local: vec![],
            now: 0,
            told_pass: vec![0; classes as usize],
        }
    }

    /// The class of prefill segments.
    pub fn prefill_class(&self) -> u8 {
        self.clocks.len() as u8 - 1
    }

    /// Sequences under way and waiting.
    pub fn load(&self) -> (u32, u32) {
        (self.by_key.len() as u32, self.waiting.len() as u32)
    }

    /// Whether it has anything to do, now or later.
    pub fn is_busy(&self) -> bool {
        !self.by_key.is_empty() || !self.waiting.is_empty() || self.running.is_some()
    }

    /// It takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Items for experts that nobody holds.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// Rows that a span's experts ran.
    pub fn count_span(&mut self, loads: &[u32]) {
        if let Some(Running::Attention { blocks, .. }) = &self.running {
            let first = blocks.start as usize * self.shape.experts as usize;
            for (sum, n) in self.loads[first..].iter_mut().zip(loads) {
                *sum += u64::from(*n);
            }
        }
    }

    /// Nothing is held for anybody: no sequence, row, group or page.
    pub fn is_empty(&self) -> bool {
        !self.is_busy()
            && self.sequences.iter().all(Option::is_none)
            && self.free_tokens.len() == self.slab.tokens as usize
            && self.pool.used() == 0
            && self.kv.used_pages() == 0
            && self.kv.promised_pages() == 0
    }

    pub(crate) fn sequence(&mut self, handle: u32) -> &mut Sequence {
        self.sequences[handle as usize].as_mut().expect("a live handle")
    }

    pub(crate) fn segment(&mut self, id: u32) -> &mut Segment {
        self.segments[id as usize].as_mut().expect("a live segment")
    }

    /// When something must be looked at again even if nothing arrives.
    pub fn wake(&mut self) -> Option<Nanos> {
        let watch = self.next_overdue().into_iter().chain(self.next_late()).min();
        self.watch = watch.unwrap_or(Nanos::MAX);
        let deadline = self.deadlines.first().map(|(t, _)| *t);
        let waiting = self.waiting.values().filter_map(|b| b.deadline).min();
        let retry = self.retries.iter().map(|(t, _)| *t).min();
        let doubt = self.routing.hearsay();
        [deadline, waiting, retry, doubt, watch].into_iter().flatten().min()
    }
}
