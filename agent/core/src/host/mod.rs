//! The expert worker: holds units in slots, sorts arriving tokens into μ-queues, runs them, and returns the outputs
//! to their home ranks.

mod queues;
mod rings;
mod run;
mod slots;

use crate::config::{HostConfig, WorkerConfig};
use crate::counters::Counters;
use crate::event::Action;
use crate::frame::{Body, Redirect, ReturnItem, TokenBatch};
use crate::frontier::Frontier;
use crate::ids::{FAR, Nanos, Unit};
use crate::net::Net;
use crate::placement::PlacementSlice;
use crate::rank::Ask;
use crate::slab::SlabLayout;
use rings::Rings;
use std::collections::VecDeque;
use std::sync::Arc;

pub use queues::ExpertQueue;
pub(crate) use queues::{ExpertQueues, Item};
pub(crate) use run::RunningExperts;

/// No landing row: the token is at home here.
pub(crate) const LOCAL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldState {
    Loading,
    Ready,
    /// Not in the placement any more: freed when its queues are empty and nobody asks for it.
    Leaving,
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub unit: Unit,
    pub slot: u32,
    pub state: HeldState,
    /// Items among the block's last some thousand rows.
    items: f32,
    /// When its last token came, or it began to leave.
    used: Nanos,
}

#[derive(Debug)]
pub(crate) struct Host {
    slab: SlabLayout,
    segments: u8,
    experts: u16,
    classes: u8,
    /// Units by index; an index is stable while the unit is held.
    pub held: Vec<Option<Held>>,
    by_expert: Vec<Vec<u32>>,
    /// Ready or leaving units per block.
    per_block: Vec<u32>,
    free_slots: Vec<u32>,
    /// Units that are leaving, by index.
    leaving: Vec<u32>,
    linger: Nanos,
    /// Wanted by the placement, without a slot yet.
    wanted: VecDeque<Unit>,
    /// Wanted, could not be loaded, and when to try again.
    failed: Vec<(Nanos, Unit)>,
    pub placement: Vec<Option<Arc<PlacementSlice>>>,
    pub queues: ExpertQueues,
    rings: Rings,
    /// Ranks that no ring was left for, in the order of their coming.
    ringless: Vec<usize>,
    pub frontier: Frontier,
    pub running: Option<RunningExperts>,
    bank: u32,
    taken: Vec<Item>,
    #[cfg(feature = "plant")]
    waiting: Vec<(usize, crate::frame::ReturnBatch)>,
    /// Per block: the placement names nobody else, and everything is ready.
    pub whole: Vec<bool>,
    /// Rows of attention steps whose items came here, per block.
    block_rows: Vec<f32>,
    prior: f64,
}

/// Rows over which a unit's share is taken.
const SHARE_ROWS: f32 = 8192.0;

impl Host {
    pub fn new(config: &WorkerConfig, host: &HostConfig) -> Self {
        let (shape, classes) = (&config.shape, config.classes());
        let blocks = shape.blocks();
        Self {
            slab: config.slab,
            segments: shape.segments,
            experts: shape.experts,
            classes,
            held: vec![],
            by_expert: vec![vec![]; blocks as usize * shape.experts as usize],
            per_block: vec![0; blocks as usize],
            leaving: vec![],
            linger: host.linger,
            free_slots: (0..host.slots).rev().collect(),
            wanted: VecDeque::new(),
            failed: vec![],
            placement: vec![None; blocks as usize],
            queues: ExpertQueues::new(blocks, classes),
            rings: Rings::new(host.ring, config.slab.landing, shape),
            ringless: vec![],
            frontier: Frontier::new(classes, config.initial_cycle),
            running: None,
            bank: 0,
            taken: vec![],
            #[cfg(feature = "plant")]
            waiting: vec![],
            whole: vec![false; blocks as usize],
            block_rows: vec![0.0; blocks as usize],
            prior: f64::from(shape.top_k) / f64::from(shape.experts.max(1)),
        }
    }

    /// A peer's connection is new. A rank gets a landing ring, or waits for one if all are taken.
    pub fn peer_up(&mut self, peer: usize, is_rank: bool, net: &mut Net) {
        self.frontier.forget(peer);
        self.rings.know(peer);
        if is_rank && !self.lend(peer, net) {
            self.ringless.push(peer);
            net.out.push(Action::NoRing { worker: net.peers[peer].id });
        }
    }

    /// Opens a rank's ring and tells it the rows that it may put into. False if the slab has no room for another.
    fn lend(&mut self, peer: usize, net: &mut Net) -> bool {
        let Some(rows) = self.rings.open(peer) else { return false };
        if !rows.is_empty() {
            net.send(peer, Body::Credit(rows));
        }
        true
    }

    /// Rings of ranks that have left are for those that have none.
    pub fn offer_rings(&mut self, net: &mut Net) {
        while let Some(&peer) = self.ringless.first() {
            if !self.lend(peer, net) {
                return;
            }
            self.ringless.remove(0);
        }
    }

    /// A peer's connection is closed: what it asked for is given up, since nothing can be returned.
    pub fn peer_down(&mut self, peer: usize) {
        self.frontier.forget(peer);
        self.ringless.retain(|p| *p != peer);
        self.queues.forget(peer as u32);
        let running = self.running.as_mut().map(|r| r.lose(peer));
        self.rings.close(peer, running.unwrap_or_default());
    }

    fn find(&self, block: u16, expert: u16, slice: crate::ids::Slice) -> Option<u32> {
        let of = self.by_expert.get(block as usize * self.experts as usize + expert as usize)?;
        of.iter().copied().find(|u| {
            let h = self.held[*u as usize].as_ref();
            h.is_some_and(|h| h.unit.slice == slice && h.state != HeldState::Loading)
        })
    }

    /// The receptor: sorts a batch into μ-queues. Fills `landing` with the rows that are wanted.
    pub fn receive(
        &mut self,
        now: Nanos,
        peer: usize,
        batch: &TokenBatch,
        landing: &mut Vec<(u32, u32)>,
        net: &mut Net,
        n: &mut Counters,
    ) {
        let (class, block) = (batch.class.0, batch.block);
        let ring_size = self.rings.size(peer);
        let sound = ring_size > 0
            && class < self.classes
            && batch.progress < FAR
            && (block as usize) < self.placement.len()
            && batch.rows.iter().all(|r| r.dst < ring_size)
            && batch.items.iter().all(|i| (i.row as usize) < batch.rows.len() && i.expert < self.experts)
            && self.rings.may_use(peer, batch);
        if !sound {
            n.bad_frames += 1;
            return;
        }
        if self.frontier.below(peer, class, batch.progress) {
            n.late += batch.items.len() as u64;
        }
        let ring = self.rings.of(peer);
        let base = ring.base;
        landing.reserve(batch.rows.len());
        for (i, r) in batch.rows.iter().enumerate() {
            landing.push((i as u32, self.slab.landing(base + r.dst)));
        }
        let mut strange = vec![];
        for item in &batch.items {
            let dst = batch.rows[item.row as usize].dst;
            let Some(unit) = self.find(block, item.expert, item.slice) else {
                strange.push(ReturnItem { back: item.back, slice: item.slice });
                continue;
            };
            self.rings.of(peer).uses[dst as usize] += 1;
            let src = self.slab.landing(base + dst);
            let (home, back, progress) = (peer as u32, item.back, batch.progress);
            self.queues.push(
                block,
                unit,
                class,
                Item { src, home, back, landing: dst, progress, since: now },
            );
            if let Some(h) = &mut self.held[unit as usize] {
                h.used = now;
                h.items += if batch.step_rows > 0 { 1.0 } else { 0.0 };
            }
        }
        self.count_rows(block, batch.step_rows);
        if !strange.is_empty() {
            n.redirects_sent += strange.len() as u64;
            let uses = &self.rings.of(peer).uses;
            let freed = batch.rows.iter().map(|r| r.dst).filter(|d| uses[*d as usize] == 0).collect();
            let slice = self.placement[block as usize].clone().filter(|s| s.generation > batch.generation);
            net.send(peer, Body::Redirect(Redirect { items: strange, freed, slice }));
        }
    }

    /// Counts the rows that a block's items came out of. Old ones fade.
    fn count_rows(&mut self, block: u16, rows: u32) {
        let seen = &mut self.block_rows[block as usize];
        *seen += rows as f32;
        if *seen > SHARE_ROWS {
            *seen /= 2.0;
            for h in self.held.iter_mut().flatten().filter(|h| h.unit.block == block) {
                h.items /= 2.0;
            }
        }
    }

    /// Items of a unit per token of its block: as seen, or even shares until enough was seen.
    pub fn share(&self, unit: u32) -> f64 {
        let Some(h) = &self.held[unit as usize] else { return 0.0 };
        let rows = self.block_rows[h.unit.block as usize];
        if rows < SHARE_ROWS / 16.0 { self.prior } else { f64::from(h.items / rows) }
    }

    /// A token of this same worker. Given back if the unit is not held.
    pub fn receive_local(&mut self, now: Nanos, ask: Ask, src: u32) -> Result<(), Ask> {
        let Some(unit) = self.find(ask.block, ask.expert, ask.slice) else { return Err(ask) };
        let (home, back, progress) = (crate::net::SELF as u32, ask.back, ask.progress);
        let item = Item { src, home, back, landing: LOCAL, progress, since: now };
        if let Some(h) = &mut self.held[unit as usize] {
            h.used = now;
        }
        self.queues.push(ask.block, unit, ask.class, item);
        Ok(())
    }

    /// Units held of a block.
    pub fn units_of(&self, block: u16) -> u32 {
        self.per_block[block as usize]
    }

    /// Whether anything waits or runs.
    pub fn is_busy(&self) -> bool {
        self.running.is_some() || self.queues.active().next().is_some()
    }
}
