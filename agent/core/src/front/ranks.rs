//! The attention ranks as a gateway sees them: their last report, and what it sent them since.

use crate::ids::{Attempt, Nanos, SeqKey, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// What a rank reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RankLoad {
    /// KV blocks that are free, or hold only prefixes nobody uses.
    pub free_blocks: u32,
    /// KV blocks of the pool.
    pub pool_blocks: u32,
    /// Positions per KV block.
    pub block_tokens: u32,
    /// Sequences that wait in the rank.
    pub queue: u32,
    /// It takes nothing new.
    pub draining: bool,
}

impl RankLoad {
    /// Tokens the pool holds.
    pub const fn room(&self) -> u32 {
        self.pool_blocks.saturating_mul(self.block_tokens)
    }
}

/// What a sequence asks of a rank.
pub(super) struct Ask<'a> {
    /// The only numerics id that will do.
    pub(super) cohort: Option<u64>,
    /// Tokens it may need in all.
    pub(super) need: u32,
    /// Tokens it needs at once.
    pub(super) tokens: usize,
    pub(super) replay: bool,
    pub(super) excluded: &'a BTreeMap<WorkerId, u32>,
    /// Ranks that an earlier sequence waits for.
    pub(super) awaited: &'a BTreeSet<WorkerId>,
    /// The rank that has its prefix.
    pub(super) hint: Option<WorkerId>,
}

#[derive(Debug)]
struct Rank {
    cohort: u64,
    load: RankLoad,
    /// Blocks asked for less blocks given back since the last report.
    asked: i64,
    /// Blocks asked for by binds without an answer.
    unanswered_blocks: i64,
    /// Binds without an answer.
    unanswered: usize,
    /// It said `Busy`: left alone until then.
    busy_until: Option<Nanos>,
    /// The same for replays, which it should take always.
    shut_until: Option<Nanos>,
    bound: BTreeMap<u64, (SeqKey, i64)>,
}

impl Rank {
    fn blocks(&self, tokens: usize) -> i64 {
        i64::from(u32::try_from(tokens).unwrap_or(u32::MAX).div_ceil(self.load.block_tokens.max(1)))
    }

    /// An estimate, and only that: the rank decides.
    fn free(&self) -> i64 {
        (i64::from(self.load.free_blocks) - self.asked).clamp(0, i64::from(self.load.pool_blocks))
    }

    /// Whether a bind is worth sending. New work is offered one by one when the rank seems full.
    fn open(&self, ask: &Ask) -> bool {
        if ask.replay {
            return self.shut_until.is_none();
        }
        self.busy_until.is_none() && (self.unanswered == 0 || self.free() >= self.blocks(ask.tokens))
    }

    fn reopen(&mut self) {
        self.busy_until = None;
        self.shut_until = None;
    }
}

#[derive(Debug)]
struct Orphans {
    until: Nanos,
    seqs: Vec<(SeqKey, Attempt)>,
}

#[derive(Debug)]
pub(super) struct Ranks {
    busy_hold: Nanos,
    ranks: BTreeMap<WorkerId, Rank>,
    /// What ranks that are away may still run.
    orphans: BTreeMap<WorkerId, Orphans>,
}

impl Ranks {
    pub(super) fn new(busy_hold: Nanos) -> Self {
        Self { busy_hold, ranks: BTreeMap::new(), orphans: BTreeMap::new() }
    }

    pub(super) fn contains(&self, rank: WorkerId) -> bool {
        self.ranks.contains_key(&rank)
    }

    /// Gives back what it may still run from before it went away.
    pub(super) fn up(&mut self, rank: WorkerId, cohort: u64, load: RankLoad) -> Vec<(SeqKey, Attempt)> {
        let new = Rank {
            cohort,
            load,
            asked: 0,
            unanswered_blocks: 0,
            unanswered: 0,
            busy_until: None,
            shut_until: None,
            bound: BTreeMap::new(),
        };
        self.ranks.insert(rank, new);
        self.orphans.remove(&rank).map_or_else(Vec::new, |orphans| orphans.seqs)
    }

    pub(super) fn down(&mut self, rank: WorkerId, seqs: Vec<(SeqKey, Attempt)>, now: Nanos, until: Nanos) {
        self.orphans.retain(|_, orphans| orphans.until > now);
        self.ranks.remove(&rank);
        if !seqs.is_empty() {
            self.orphans.insert(rank, Orphans { until, seqs });
        }
    }

    /// Gives back the report before, if the rank is known.
    pub(super) fn report(&mut self, rank: WorkerId, load: RankLoad) -> Option<RankLoad> {
        let rank = self.ranks.get_mut(&rank)?;
        let old = std::mem::replace(&mut rank.load, load);
        rank.asked = rank.unanswered_blocks;
        rank.reopen();
        Some(old)
    }

    pub(super) fn cohort(&self, rank: WorkerId) -> Option<u64> {
        self.ranks.get(&rank).map(|rank| rank.cohort)
    }

    /// Tokens the largest pool holds; nothing without ranks.
    pub(super) fn largest_room(&self) -> Option<u32> {
        self.ranks.values().map(|rank| rank.load.room()).max()
    }

    pub(super) fn bound(&self, rank: WorkerId) -> impl Iterator<Item = SeqKey> + '_ {
        self.ranks.get(&rank).into_iter().flat_map(|rank| rank.bound.values().map(|(key, _)| *key))
    }

    pub(super) fn bind(&mut self, rank: WorkerId, age: u64, key: SeqKey, tokens: usize) {
        let Some(rank) = self.ranks.get_mut(&rank) else { return };
        let blocks = rank.blocks(tokens);
        rank.bound.insert(age, (key, blocks));
        rank.unanswered += 1;
        rank.unanswered_blocks += blocks;
        rank.asked += blocks;
    }

    /// The rank took a bind.
    pub(super) fn answered(&mut self, rank: WorkerId, age: u64) {
        let Some(rank) = self.ranks.get_mut(&rank) else { return };
        let blocks = rank.bound.get(&age).map_or(0, |(_, blocks)| *blocks);
        rank.unanswered -= 1;
        rank.unanswered_blocks -= blocks;
    }

    pub(super) fn unbind(&mut self, rank: WorkerId, age: u64, unanswered: bool) {
        if unanswered {
            self.answered(rank, age);
        }
        let Some(rank) = self.ranks.get_mut(&rank) else { return };
        if let Some((_, blocks)) = rank.bound.remove(&age) {
            rank.asked -= blocks;
        }
    }

    pub(super) fn busy(&mut self, rank: WorkerId, now: Nanos, replay: bool) {
        let until = Some(now.saturating_add(self.busy_hold));
        if let Some(rank) = self.ranks.get_mut(&rank) {
            rank.busy_until = until;
            if replay {
                rank.shut_until = until;
            }
        }
    }

    pub(super) fn draining(&mut self, rank: WorkerId) {
        if let Some(rank) = self.ranks.get_mut(&rank) {
            rank.load.draining = true;
        }
    }

    /// A sequence left: there may be room.
    pub(super) fn opened(&mut self, rank: WorkerId) {
        if let Some(rank) = self.ranks.get_mut(&rank) {
            rank.reopen();
        }
    }

    /// Ranks that were busy long enough.
    pub(super) fn reopen(&mut self, now: Nanos) {
        for rank in self.ranks.values_mut() {
            if rank.busy_until.is_some_and(|until| until <= now) {
                rank.reopen();
            }
        }
    }

    /// When the next busy rank is tried again.
    pub(super) fn next_open(&self) -> Option<Nanos> {
        self.ranks.values().filter_map(|rank| rank.busy_until).min()
    }

    /// Whether no rank outside a set takes anything.
    pub(super) fn all_within(&self, set: &BTreeSet<WorkerId>) -> bool {
        self.ranks.iter().all(|(id, rank)| rank.load.draining || set.contains(id))
    }

    /// Ranks that could hold a sequence, now or later.
    pub(super) fn candidates<'a>(
        &'a self,
        cohort: Option<u64>,
        need: u32,
        excluded: &'a BTreeMap<WorkerId, u32>,
    ) -> impl Iterator<Item = WorkerId> + 'a {
        self.ranks
            .iter()
            .filter(move |(id, rank)| {
                !rank.load.draining
                    && cohort.is_none_or(|cohort| cohort == rank.cohort)
                    && rank.load.room() >= need
                    && !excluded.contains_key(id)
            })
            .map(|(id, _)| *id)
    }

    /// The largest pool of the living ranks, if there are any and none is large enough.
    pub(super) fn too_small(
        &self,
        cohort: Option<u64>,
        need: u32,
        excluded: &BTreeMap<WorkerId, u32>,
    ) -> Option<u32> {
        let living =
            || self.ranks.iter().filter(|(_, rank)| cohort.is_none_or(|cohort| cohort == rank.cohort));
        if living().any(|(id, rank)| rank.load.room() >= need && !excluded.contains_key(id)) {
            return None;
        }
        living().map(|(id, rank)| excluded.get(id).copied().unwrap_or(rank.load.room())).max()
    }

    /// The open rank with the most free KV blocks; the hint if it has at most an eighth of its pool less free.
    pub(super) fn choose(&self, ask: &Ask) -> Option<WorkerId> {
        let open = || {
            self.candidates(ask.cohort, ask.need, ask.excluded)
                .filter(|id| !ask.awaited.contains(id))
                .filter_map(|id| Some((id, self.ranks.get(&id)?)))
                .filter(|(_, rank)| rank.open(ask))
        };
        let (best, most) = open()
            .map(|(id, rank)| (id, rank.free(), rank.load.queue as usize + rank.bound.len()))
            .reduce(|a, b| if (b.1, std::cmp::Reverse(b.2)) > (a.1, std::cmp::Reverse(a.2)) { b } else { a })
            .map(|(id, free, _)| (id, free))?;
        let hinted = open().find(|(id, rank)| {
            Some(*id) == ask.hint && rank.free() + i64::from(rank.load.pool_blocks / 8) >= most
        });
        Some(hinted.map_or(best, |(id, _)| id))
    }
}
