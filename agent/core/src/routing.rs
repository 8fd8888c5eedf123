//! The routing table of one attention rank: for each expert, who holds it, in which slices, and how much each
//! replica should get.

use crate::config::Shape;
use crate::ids::{Nanos, SECOND, Slice, Unit, WorkerId};
use crate::placement::{PlacementSlice, Replica, ReplicaState};
use crate::plant::{self, Plant};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

mod siblings;

use siblings::Siblings;

/// A holder that does not have its unit yet is tried again after at most so many times the first wait.
const LONGEST_WAIT: u64 = 1 << 10;

/// One holder, with how far behind its planned share it is.
#[derive(Clone, Debug)]
struct Holder {
    worker: WorkerId,
    fraction: f32,
    behind: f32,
    lacks: Lacks,
}

impl Holder {
    fn new(worker: WorkerId, fraction: f32) -> Self {
        Self { worker, fraction, behind: 0.0, lacks: Lacks::default() }
    }
}

/// The worker sent a token back: it does not hold the unit, whatever the table says. It may be loading it.
#[derive(Clone, Copy, Debug, Default)]
struct Lacks {
    /// It is not asked before, if somebody else serves the unit.
    until: Nanos,
    /// For how long that was, the last time.
    wait: Nanos,
}

/// What a peer has said of the placement counts for so long if the own table does not come to say it too: by then the
/// peer was wrong, or says it again.
const HEARSAY: Nanos = 10 * SECOND;

/// Whom to ask for a slice that was asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This worker.
    Worker(WorkerId),
    /// Nobody but who is not to be asked now.
    Wait,
    /// Nobody serves that slice, or others serve the expert in another slicing while its holders lack it.
    Nobody,
}

/// Holders that together make the whole expert, all in slices of one width.
#[derive(Clone, Debug)]
struct Cover {
    slices: u8,
    fraction: f32,
    behind: f32,
    /// Per slice.
    holders: Vec<Vec<Holder>>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// What the own table says.
    own: Option<Arc<PlacementSlice>>,
    /// What a peer says, which is newer.
    heard: Option<Arc<PlacementSlice>>,
    /// Per expert.
    covers: Vec<Vec<Cover>>,
    /// All experts are held by this worker alone.
    sole: Option<WorkerId>,
}

impl Block {
    /// What counts.
    fn table(&self) -> Option<&Arc<PlacementSlice>> {
        self.heard.as_ref().or(self.own.as_ref())
    }
}

/// Who holds which expert, as this rank knows it.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    segments: u8,
    /// The most slices of an expert that there are return rows for: it is not asked for in more.
    parts: u32,
    experts: u16,
    blocks: Vec<Block>,
    /// Workers that can be reached. The others are masked: the table names them, and nobody asks them.
    reached: BTreeSet<WorkerId>,
    /// Per (block, expert): the only holder of the whole expert, if there is just one. Most lookups end here, in one
    /// read of a table that stays in the cache.
    only: Vec<u32>,
    siblings: Siblings,
    /// How much of its planned fractions a worker gets: 1, unless it is slower than its siblings.
    scales: BTreeMap<WorkerId, f32>,
    /// From then on no holder lacks anything.
    lacking: Nanos,
    /// Until when peers are believed.
    hearsay: Option<Nanos>,
    now: Nanos,
}

impl RoutingTable {
    /// An empty table, and nobody to reach: every expert is an orphan.
    pub fn new(shape: &Shape, parts: u32) -> Self {
        let Shape { experts, segments, .. } = *shape;
        let blocks = shape.blocks();
        let empty = Block { covers: vec![vec![]; experts as usize], ..Block::default() };
        let only = vec![0; blocks as usize * experts as usize];
        Self {
            segments,
            parts,
            experts,
            blocks: vec![empty; blocks as usize],
            reached: BTreeSet::new(),
            only,
            siblings: Siblings::default(),
            scales: BTreeMap::new(),
            lacking: 0,
            hearsay: None,
            now: 0,
        }
    }

    /// The time of what follows.
    pub fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Takes a slice of the own table. False if the blocks are known in this generation or a newer one.
    pub fn update(&mut self, slice: &Arc<PlacementSlice>) -> bool {
        let older = |known: Option<&Arc<PlacementSlice>>| {
            known.is_none_or(|t| t.generation < slice.generation) || plant::is(Plant::StaleGeneration)
        };
        let mut fresh = vec![];
        for b in slice.blocks.start..slice.blocks.end.min(self.blocks.len() as u16) {
            let block = &mut self.blocks[b as usize];
            if !older(block.own.as_ref()) {
                continue;
            }
            block.own = Some(Arc::clone(slice));
            if block.heard.take_if(|h| h.generation <= slice.generation).is_some() || block.heard.is_none() {
                fresh.push(b);
            }
        }
        self.rebuild(slice, &fresh);
        !fresh.is_empty()
    }

    /// Takes a slice that a peer has sent. It counts for blocks that the own table has in an older generation, until
    /// that catches up, or does not for too long. False if there are none.
    pub fn hear(&mut self, slice: &Arc<PlacementSlice>) -> bool {
        let blocks = slice.blocks.start..slice.blocks.end.min(self.blocks.len() as u16);
        let older = |t: &Arc<PlacementSlice>| t.generation < slice.generation;
        let newer = |b: &u16| self.blocks[*b as usize].table().is_some_and(older);
        let fresh: Vec<u16> = blocks.filter(newer).collect();
        for b in &fresh {
            self.blocks[*b as usize].heard = Some(Arc::clone(slice));
        }
        if !fresh.is_empty() {
            self.hearsay = Some(self.now.saturating_add(HEARSAY));
        }
        self.rebuild(slice, &fresh);
        !fresh.is_empty()
    }

    /// When the own table counts again, whatever peers have said.
    pub fn hearsay(&self) -> Option<Nanos> {
        self.hearsay
    }

    /// The own table counts again, if it is time. True if it says anything else.
    pub fn doubt(&mut self) -> bool {
        if self.hearsay.take_if(|at| *at <= self.now).is_none() {
            return false;
        }
        let all = 0..self.blocks.len() as u16;
        let changed: Vec<u16> = all.filter(|b| self.blocks[*b as usize].heard.take().is_some()).collect();
        self.rebuild_all(&changed);
        !changed.is_empty()
    }

    /// A worker can be reached, or not any more. True if that says something new of any expert.
    pub fn reach(&mut self, worker: WorkerId, can: bool) -> bool {
        let new = if can { self.reached.insert(worker) } else { self.reached.remove(&worker) };
        if !new {
            return false;
        }
        let mut seen: Vec<(&Arc<PlacementSlice>, bool)> = vec![];
        let names = |b: &u16| {
            let Some(table) = self.blocks[*b as usize].table() else { return false };
            if let Some((_, names)) = seen.iter().find(|(slice, _)| Arc::ptr_eq(slice, table)) {
                return *names;
            }
            let names = table.replicas.iter().any(|r| r.worker == worker);
            seen.push((table, names));
            names
        };
        let changed: Vec<u16> = (0..self.blocks.len() as u16).filter(names).collect();
        self.rebuild_all(&changed);
        !changed.is_empty()
    }

    /// Sums up some blocks anew, each by the slice that counts for it.
    fn rebuild_all(&mut self, blocks: &[u16]) {
        let mut slices: Vec<(Arc<PlacementSlice>, Vec<u16>)> = vec![];
        for &b in blocks {
            let Some(table) = self.blocks[b as usize].table() else { continue };
            match slices.iter_mut().find(|(slice, _)| Arc::ptr_eq(slice, table)) {
                Some((_, of)) => of.push(b),
                None => slices.push((Arc::clone(table), vec![b])),
            }
        }
        for (slice, blocks) in &slices {
            self.rebuild(slice, blocks);
        }
    }

    /// Sums up anew who holds the experts of some blocks of a slice.
    fn rebuild(&mut self, slice: &PlacementSlice, blocks: &[u16]) {
        if blocks.is_empty() {
            return;
        }
        let range = slice.blocks.start..slice.blocks.end.min(self.blocks.len() as u16);
        let rows = by_expert(slice, &range, self.experts, &self.reached);
        let experts = self.experts as usize;
        for &b in blocks {
            let block = &mut self.blocks[b as usize];
            let rows = &rows[(b - range.start) as usize * experts..][..experts];
            block.covers = rows.iter().map(|r| covers(r, self.segments, self.parts)).collect();
            block.sole = sole(&block.covers);
            for (only, covers) in self.only[b as usize * experts..].iter_mut().zip(&block.covers) {
                *only = match covers.as_slice() {
                    [Cover { slices: 1, holders, .. }] if holders[0].len() == 1 => holders[0][0].worker.0 + 1,
                    _ => 0,
                };
            }
        }
        let covers = self.blocks.iter().flat_map(|b| &b.covers).flatten();
        self.siblings = Siblings::of(covers.flat_map(|c| &c.holders).map(Vec::as_slice));
    }

    /// Workers that can be reached and hold a unit that this one holds too.
    pub fn siblings(&self, worker: WorkerId) -> impl Iterator<Item = WorkerId> + '_ {
        self.siblings.iter(worker)
    }

    /// From now on a worker gets so much of its planned fractions, between 0 and 1; what is left goes to its siblings.
    pub fn scale(&mut self, worker: WorkerId, scale: f32) {
        if scale < 1.0 {
            self.scales.insert(worker, scale);
        } else {
            self.scales.remove(&worker);
        }
    }

    /// Workers that get less than their planned fractions, and how much of them.
    pub fn scales(&self) -> impl Iterator<Item = (WorkerId, f32)> + '_ {
        self.scales.iter().map(|(worker, scale)| (*worker, *scale))
    }

    /// Per block: the slice of the own table.
    pub fn own_tables(&self) -> impl Iterator<Item = Option<&Arc<PlacementSlice>>> {
        self.blocks.iter().map(|b| b.own.as_ref())
    }

    /// The generation of a block's rows; 0 when nothing is known.
    pub fn generation(&self, block: u16) -> u64 {
        self.blocks[block as usize].table().map_or(0, |t| t.generation)
    }

    /// The worker that alone holds all experts of a block.
    pub fn sole_holder(&self, block: u16) -> Option<WorkerId> {
        self.blocks[block as usize].sole
    }

    /// The worker that alone holds an expert, whole.
    pub fn only_holder(&self, block: u16, expert: u16) -> Option<WorkerId> {
        // An expert that is none would be one of the next block.
        if expert >= self.experts {
            return None;
        }
        let at = block as usize * self.experts as usize + expert as usize;
        self.only.get(at)?.checked_sub(1).map(WorkerId)
    }

    /// A worker sent a token of a unit back. Until `wait` has passed, or the table changes, it is asked for that unit
    /// only if nobody else serves it; then again, and if it sends that back too, after twice as long.
    pub fn lacks(&mut self, worker: WorkerId, unit: Unit, wait: Nanos) {
        let now = self.now;
        let Some(holder) = self.holders(unit).and_then(|h| h.iter_mut().find(|h| h.worker == worker)) else {
            return;
        };
        // What comes back of several tokens sent together says one thing.
        if now < holder.lacks.until {
            return;
        }
        let wait = (2 * holder.lacks.wait).clamp(wait, wait.saturating_mul(LONGEST_WAIT));
        let until = now.saturating_add(wait);
        holder.lacks = Lacks { until, wait };
        self.lacking = self.lacking.max(until);
    }

    /// A worker has a unit now.
    pub fn has(&mut self, worker: WorkerId, unit: Unit) {
        for h in self.holders(unit).into_iter().flatten().filter(|h| h.worker == worker) {
            h.lacks = Lacks::default();
        }
    }

    fn holders(&mut self, unit: Unit) -> Option<&mut Vec<Holder>> {
        let Unit { block, expert, slice } = unit;
        let slices = slice.count(self.segments);
        let covers = self.blocks.get_mut(block as usize)?.covers.get_mut(expert as usize)?;
        covers.iter_mut().find(|c| c.slices == slices)?.of_mut(slice)
    }

    /// Chooses the replicas for one token of an expert: pushes a worker for each slice, and gives the number of
    /// slices; 0 when nobody holds the expert whole.
    pub fn choose(&mut self, block: u16, expert: u16, out: &mut Vec<(Slice, WorkerId)>) -> u8 {
        let now = self.lack_time();
        let Some(covers) = self.blocks[block as usize].covers.get_mut(expert as usize) else { return 0 };
        let served = now.filter(|_| covers.iter().any(|c| c.serves(now)));
        let Some(i) = next(covers, &self.scales, |c| c.serves(served)) else { return 0 };
        let cover = &mut covers[i];
        let width = self.segments / cover.slices;
        for (s, holders) in cover.holders.iter_mut().enumerate() {
            let has = next(holders, &self.scales, |h| h.serves(now));
            let Some(h) = has.or_else(|| next(holders, &self.scales, |_| true)) else { return 0 };
            let lo = s as u8 * width;
            out.push((Slice { lo, hi: lo + width }, holders[h].worker));
        }
        cover.slices
    }

    /// Chooses a replica for one slice of a cover that was chosen before, another one than `except`. Without an
    /// exception, who lacks the unit is asked if nobody else is left.
    pub fn choose_slice(&mut self, unit: Unit, except: Option<WorkerId>) -> Next {
        let Unit { block, expert, slice } = unit;
        let (now, slices) = (self.lack_time(), slice.count(self.segments));
        let Some(covers) = self.blocks[block as usize].covers.get_mut(expert as usize) else {
            return Next::Nobody;
        };
        let others = now.is_some() && covers.iter().any(|c| c.slices != slices && c.serves(now));
        let cover = covers.iter_mut().find(|c| c.slices == slices);
        let Some(holders) = cover.and_then(|c| c.of_mut(slice)) else { return Next::Nobody };
        let has = next(holders, &self.scales, |h| Some(h.worker) != except && h.serves(now));
        match has
            .or_else(|| if others || except.is_some() { None } else { next(holders, &self.scales, |_| true) })
        {
            Some(h) => Next::Worker(holders[h].worker),
            None if others => Next::Nobody,
            None => Next::Wait,
        }
    }

    /// The time, if somebody lacks something now.
    fn lack_time(&self) -> Option<Nanos> {
        Some(self.now).filter(|now| *now < self.lacking)
    }
}

impl Holder {
    /// It has the unit, as far as is known. `now` only if somebody lacks something.
    fn serves(&self, now: Option<Nanos>) -> bool {
        now.is_none_or(|now| self.lacks.until <= now)
    }
}

impl Cover {
    /// The holders of a slice of its width.
    fn of_mut(&mut self, slice: Slice) -> Option<&mut Vec<Holder>> {
        self.holders.get_mut((slice.lo / (slice.hi - slice.lo)) as usize)
    }

    /// Each slice has a holder that has it.
    fn serves(&self, now: Option<Nanos>) -> bool {
        self.holders.iter().all(|slice| slice.iter().any(|h| h.serves(now)))
    }
}

/// Something that takes turns by its planned part.
trait Turn {
    fn planned(&self) -> f32;
    /// The same, with workers that are slower than their siblings scaled down.
    fn scaled(&self, scales: &BTreeMap<WorkerId, f32>) -> f32;
    fn behind(&mut self) -> &mut f32;
}

impl Turn for Holder {
    fn planned(&self) -> f32 {
        self.fraction
    }

    fn scaled(&self, scales: &BTreeMap<WorkerId, f32>) -> f32 {
        self.fraction * scales.get(&self.worker).unwrap_or(&1.0)
    }

    fn behind(&mut self) -> &mut f32 {
        &mut self.behind
    }
}

impl Turn for Cover {
    fn planned(&self) -> f32 {
        self.fraction
    }

    /// As much less as its slowest slice.
    fn scaled(&self, scales: &BTreeMap<WorkerId, f32>) -> f32 {
        let slice = |all: &Vec<Holder>| all.iter().map(|h| h.scaled(scales)).sum();
        self.fraction * self.holders.iter().map(slice).fold(1.0, f32::min)
    }

    fn behind(&mut self) -> &mut f32 {
        &mut self.behind
    }
}

/// Whose turn it is of those that may be chosen. They earn what they are to get, and who is furthest behind is chosen
/// and pays one. One candidate needs no books.
fn next<T: Turn>(all: &mut [T], scales: &BTreeMap<WorkerId, f32>, may: impl Fn(&T) -> bool) -> Option<usize> {
    if all.len() <= 1 {
        return all.iter().position(may);
    }
    let count = all.iter().filter(|t| may(t)).count();
    let sum = |part: &dyn Fn(&T) -> f32| -> Option<f32> {
        Some(all.iter().filter(|t| may(t)).map(part).sum()).filter(|sum| *sum > 0.0)
    };
    let scaled = if scales.is_empty() { None } else { sum(&|t| t.scaled(scales)) };
    let planned = if count == all.len() { Some(1.0) } else { sum(&T::planned) };
    let mut best: Option<(usize, f32)> = None;
    for (i, t) in all.iter_mut().enumerate().filter(|(_, t)| may(t)) {
        let part = match (scaled, planned) {
            (Some(sum), _) => t.scaled(scales) / sum,
            (None, Some(sum)) => t.planned() / sum,
            (None, None) => 1.0 / count as f32,
        };
        let behind = t.behind();
        *behind += part;
        if best.is_none_or(|(_, most)| *behind > most) {
            best = Some((i, *behind));
        }
    }
    let (i, _) = best?;
    *all[i].behind() -= 1.0;
    Some(i)
}

/// The rows of each (block, expert) of some blocks whose workers can be reached, in their order.
fn by_expert<'a>(
    slice: &'a PlacementSlice,
    blocks: &Range<u16>,
    experts: u16,
    reached: &BTreeSet<WorkerId>,
) -> Vec<Vec<&'a Replica>> {
    let mut rows = vec![vec![]; blocks.len() * experts as usize];
    for r in slice.replicas.iter().filter(|r| reached.contains(&r.worker)) {
        if !blocks.contains(&r.unit.block) || r.unit.expert >= experts {
            continue;
        }
        let block = (r.unit.block - blocks.start) as usize;
        rows[block * experts as usize + r.unit.expert as usize].push(r);
    }
    rows
}

/// The covers that the rows of one expert make, in so many parts at most.
fn covers(rows: &[&Replica], segments: u8, parts: u32) -> Vec<Cover> {
    let of = |states: &[ReplicaState]| -> Vec<Cover> {
        [1u8, 2, 4, 8]
            .into_iter()
            .filter(|s| u32::from(*s) <= parts && segments.is_multiple_of(*s))
            .filter_map(|slices| {
                let mut holders: Vec<Vec<Holder>> = vec![vec![]; slices as usize];
                for r in rows {
                    let u = r.unit;
                    if u.slice.cuts(segments)
                        && u.slice.count(segments) == slices
                        && states.contains(&r.state)
                    {
                        let i = (u.slice.lo / (u.slice.hi - u.slice.lo)) as usize;
                        holders[i].push(Holder::new(r.worker, r.fraction.max(0.0)));
                    }
                }
                if holders.iter().any(Vec::is_empty) {
                    return None;
                }
                let fraction =
                    holders.iter().map(|h| h.iter().map(|x| x.fraction).sum()).fold(f32::MAX, f32::min);
                for h in &mut holders {
                    normalise(h.iter_mut().map(|x| &mut x.fraction).collect());
                }
                Some(Cover { slices, fraction, behind: 0.0, holders })
            })
            .collect()
    };
    // A draining replica serves on only where nobody else can.
    let mut found = of(&[ReplicaState::Active]);
    if found.is_empty() {
        found = of(&[ReplicaState::Active, ReplicaState::Draining]);
    }
    normalise(found.iter_mut().map(|c| &mut c.fraction).collect());
    found
}

/// Scales to a sum of 1; equal parts if there is nothing to scale.
fn normalise(mut parts: Vec<&mut f32>) {
    let (sum, n) = (parts.iter().map(|x| **x).sum::<f32>(), parts.len() as f32);
    for x in &mut parts {
        **x = if sum > 0.0 && sum.is_finite() { **x / sum } else { 1.0 / n };
    }
}

fn sole(covers: &[Vec<Cover>]) -> Option<WorkerId> {
    let mut all =
        covers.iter().flat_map(|c| c.iter()).flat_map(|c| c.holders.iter()).flatten().map(|h| h.worker);
    let first = all.next()?;
    (covers.iter().all(|c| !c.is_empty()) && all.all(|w| w == first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Unit;

    fn replica(worker: u32, expert: u16, lo: u8, hi: u8, state: ReplicaState, fraction: f32) -> Replica {
        let unit = Unit { block: 0, expert, slice: Slice { lo, hi } };
        Replica { worker: WorkerId(worker), unit, state, fraction }
    }

    fn table(generation: u64, replicas: Vec<Replica>) -> Arc<PlacementSlice> {
        Arc::new(PlacementSlice { blocks: 0..1, generation, replicas })
    }

    /// A table of a rank that reaches all workers.
    fn reached(blocks: u16, experts: u16, segments: u8) -> RoutingTable {
        let shape = Shape { moe: vec![true; blocks as usize], experts, top_k: 1, segments };
        let mut t = RoutingTable::new(&shape, segments.into());
        assert!((0..100).all(|w| !t.reach(WorkerId(w), true)));
        t
    }

    fn draw(t: &mut RoutingTable, n: usize) -> Vec<Vec<(Slice, WorkerId)>> {
        let mut all = vec![];
        for _ in 0..n {
            let mut out = vec![];
            let s = t.choose(0, 0, &mut out);
            assert_eq!(s as usize, out.len());
            all.push(out);
        }
        all
    }

    /// Who is asked for a slice of the only expert.
    fn slice(t: &mut RoutingTable, slice: Slice) -> Option<WorkerId> {
        match t.choose_slice(Unit { block: 0, expert: 0, slice }, None) {
            Next::Worker(worker) => Some(worker),
            Next::Wait => panic!("nobody is to be left out"),
            Next::Nobody => None,
        }
    }

    use ReplicaState::{Active, Draining, Joining};

    #[test]
    fn replicas_get_their_planned_fractions() {
        let mut t = reached(1, 1, 1);
        let w = Slice::whole(1);
        assert!(
            t.update(&table(1, vec![replica(1, 0, 0, 1, Active, 0.75), replica(2, 0, 0, 1, Active, 0.25)]))
        );
        let got = draw(&mut t, 100);
        assert_eq!(got.iter().filter(|x| x[0] == (w, WorkerId(1))).count(), 75);
        assert!(t.sole_holder(0).is_none());
        // Fractions of zero mean: not now.
        assert!(
            t.update(&table(2, vec![replica(1, 0, 0, 1, Active, 0.0), replica(2, 0, 0, 1, Active, 1.0)]))
        );
        assert!(draw(&mut t, 50).iter().all(|x| x[0].1 == WorkerId(2)));
    }

    #[test]
    fn an_expert_that_is_none_has_no_holder() {
        let mut t = reached(2, 1, 1);
        let of = |block| Replica {
            unit: Unit { block, expert: 0, slice: Slice::whole(1) },
            ..replica(7, 0, 0, 1, Active, 1.0)
        };
        let all = PlacementSlice { blocks: 0..2, generation: 1, replicas: vec![of(0), of(1)] };
        assert!(t.update(&Arc::new(all)));
        assert_eq!(t.only_holder(0, 0), Some(WorkerId(7)));
        assert_eq!((t.only_holder(0, 1), t.choose(0, 1, &mut vec![])), (None, 0));
    }

    #[test]
    fn an_older_generation_changes_nothing() {
        let mut t = reached(1, 1, 1);
        assert!(t.update(&table(5, vec![replica(1, 0, 0, 1, Active, 1.0)])));
        assert!(!t.update(&table(5, vec![])));
        assert!(!t.update(&table(4, vec![])));
        assert_eq!((t.generation(0), draw(&mut t, 1)[0][0].1), (5, WorkerId(1)));
    }

    #[test]
    fn what_a_peer_says_counts_until_the_own_table_catches_up_or_does_not() {
        let by = |generation, worker| table(generation, vec![replica(worker, 0, 0, 1, Active, 1.0)]);
        let mut t = reached(1, 1, 1);
        assert!(!t.hear(&by(9, 1)), "it is newer than something");
        assert!(t.update(&by(5, 1)) && !t.hear(&by(5, 2)));
        assert!(t.hear(&by(7, 2)) && !t.hear(&by(7, 3)));
        assert_eq!(
            (t.generation(0), t.only_holder(0, 0), t.hearsay()),
            (7, Some(WorkerId(2)), Some(HEARSAY))
        );
        assert!(!t.update(&by(6, 3)), "the own table is on its way");
        assert_eq!(t.only_holder(0, 0), Some(WorkerId(2)));
        assert!(t.update(&by(7, 4)), "the own table is right");
        assert_eq!(t.only_holder(0, 0), Some(WorkerId(4)));
        t.at(HEARSAY - 1);
        assert!(t.hear(&by(u64::MAX, 2)) && !t.update(&by(8, 5)) && !t.doubt());
        assert_eq!(t.only_holder(0, 0), Some(WorkerId(2)));
        t.at(2 * HEARSAY - 2);
        assert!(!t.doubt());
        t.at(2 * HEARSAY - 1);
        assert!(t.doubt() && !t.doubt());
        assert_eq!((t.generation(0), t.only_holder(0, 0), t.hearsay()), (8, Some(WorkerId(5)), None));
    }

    #[test]
    fn only_whole_covers_count_and_joining_takes_none() {
        let mut t = reached(1, 1, 4);
        let halves = vec![replica(1, 0, 0, 2, Active, 1.0), replica(2, 0, 2, 4, Joining, 1.0)];
        assert!(t.update(&table(1, halves)));
        assert!(draw(&mut t, 1)[0].is_empty());
        let halves = vec![replica(1, 0, 0, 2, Active, 1.0), replica(2, 0, 2, 4, Draining, 1.0)];
        assert!(t.update(&table(2, halves)));
        let (a, b) = (Slice { lo: 0, hi: 2 }, Slice { lo: 2, hi: 4 });
        assert_eq!(
            draw(&mut t, 1)[0],
            [(a, WorkerId(1)), (b, WorkerId(2))],
            "draining serves where nobody else can"
        );
        assert!(
            t.update(&table(3, vec![replica(3, 0, 0, 4, Active, 1.0), replica(4, 0, 0, 4, Draining, 1.0)]))
        );
        assert!(draw(&mut t, 20).iter().all(|x| x[0].1 == WorkerId(3)));
        assert_eq!(t.sole_holder(0), Some(WorkerId(3)));
        assert_eq!(slice(&mut t, a), None);
    }

    #[test]
    fn what_is_no_cut_or_too_fine_a_one_is_not_asked_for() {
        let mut t = reached(1, 1, 8);
        let at = |w: u32, lo, hi| replica(w, 0, lo, hi, Active, 1.0);
        let quarters = |shift| (0..4).map(move |i| at(i + 1, 2 * i as u8 + shift, 2 * i as u8 + 2 + shift));
        assert!(t.update(&table(1, quarters(1).chain([at(9, 0, 3)]).collect())));
        assert!(draw(&mut t, 1)[0].is_empty(), "[1, 3] is not the first of four");
        assert!(t.update(&table(2, quarters(0).collect())));
        assert_eq!(draw(&mut t, 1)[0].len(), 4);
        t.parts = 2;
        assert!(t.update(&table(3, quarters(0).collect())));
        assert!(draw(&mut t, 1)[0].is_empty(), "there are return rows for halves only");
        assert!(t.update(&table(4, quarters(0).chain([at(7, 0, 4), at(8, 4, 8)]).collect())));
        assert_eq!(draw(&mut t, 1)[0].len(), 2);
    }

    #[test]
    fn each_block_of_a_slice_has_its_own_rows_and_no_other() {
        let mut t = reached(4, 2, 1);
        let at = |block, expert, worker| Replica {
            unit: Unit { block, expert, slice: Slice::whole(1) },
            ..replica(worker, 0, 0, 1, Active, 1.0)
        };
        let mut rows: Vec<Replica> =
            (1..5).flat_map(|b| [at(b, 0, 10 * u32::from(b)), at(b, 1, 9)]).collect();
        rows.push(at(0, 1, 7));
        rows.push(at(2, 1, 8));
        assert!(t.update(&Arc::new(PlacementSlice { blocks: 1..9, generation: 3, replicas: rows })));
        let only = |block, expert| t.only_holder(block, expert).map(|w| w.0);
        assert_eq!([0, 1, 2, 3].map(|b| only(b, 0)), [None, Some(10), Some(20), Some(30)]);
        assert_eq!([0, 1, 2, 3].map(|b| only(b, 1)), [None, Some(9), None, Some(9)], "two hold one");
        assert_eq!([0, 1, 3].map(|b| t.generation(b)), [0, 3, 3]);
        let newer = PlacementSlice { blocks: 2..4, generation: 4, replicas: vec![at(3, 0, 5), at(3, 1, 5)] };
        assert!(t.update(&Arc::new(newer)));
        assert_eq!([1, 2, 3].map(|b| t.sole_holder(b)), [None, None, Some(WorkerId(5))]);
        assert_eq!([1, 2, 3].map(|b| t.generation(b)), [3, 4, 4]);
    }

    #[test]
    fn a_block_has_a_sole_holder_only_if_one_worker_holds_all_of_it() {
        let sole = |rows| {
            let mut t = reached(1, 2, 2);
            assert!(t.update(&table(1, rows)));
            t.sole_holder(0).map(|w| w.0)
        };
        let whole = |worker, expert| replica(worker, expert, 0, 2, Active, 1.0);
        assert_eq!(sole(vec![whole(1, 0), whole(1, 1)]), Some(1));
        assert_eq!(sole(vec![whole(1, 0), whole(2, 1)]), None);
        assert_eq!(sole(vec![whole(1, 0)]), None, "expert 1 has no holder");
        let halves = [replica(1, 1, 0, 1, Active, 1.0), replica(1, 1, 1, 2, Active, 1.0)];
        assert_eq!(sole([vec![whole(1, 0)], halves.to_vec()].concat()), Some(1), "in slices, but all here");
        assert_eq!(sole(vec![whole(1, 0), whole(1, 1), whole(2, 1)]), None);
    }

    #[test]
    fn covers_share_by_their_fractions_and_slices_go_to_their_holders() {
        let mut t = reached(1, 1, 4);
        let rows = vec![
            replica(1, 0, 0, 4, Active, 0.5),
            replica(2, 0, 0, 2, Active, 1.5),
            replica(3, 0, 2, 4, Active, 1.5),
            replica(4, 0, 2, 5, Active, 9.0),
            replica(5, 0, 2, 2, Active, 9.0),
        ];
        assert!(t.update(&table(1, rows)));
        let (low, high) = (Slice { lo: 0, hi: 2 }, Slice { lo: 2, hi: 4 });
        let drawn = draw(&mut t, 40);
        let halves = vec![(low, WorkerId(2)), (high, WorkerId(3))];
        assert_eq!(drawn.iter().filter(|d| **d == halves).count(), 30, "three of four");
        assert_eq!(drawn.iter().filter(|d| **d == [(Slice::whole(4), WorkerId(1))]).count(), 10);
        assert_eq!(t.only_holder(0, 0), None);
        assert_eq!([low, high].map(|s| slice(&mut t, s)), [Some(WorkerId(2)), Some(WorkerId(3))]);
        assert_eq!(slice(&mut t, Slice { lo: 0, hi: 1 }), None);
    }

    #[test]
    fn where_no_fraction_is_planned_replicas_take_turns_from_the_first() {
        for fraction in [0.0, -1.0, f32::INFINITY, 2.0] {
            let mut t = reached(1, 1, 1);
            let rows = (1..=4).map(|w| replica(w, 0, 0, 1, Active, fraction)).collect();
            assert!(t.update(&table(1, rows)));
            let drawn: Vec<u32> = draw(&mut t, 8).iter().map(|d| d[0].1.0).collect();
            assert_eq!(drawn, [1, 2, 3, 4, 1, 2, 3, 4], "{fraction}");
        }
    }

    #[test]
    fn a_slow_worker_gets_a_part_of_its_fraction_and_its_siblings_the_rest() {
        let mut t = reached(1, 1, 1);
        let rows = [(1, 0.5), (2, 0.25), (3, 0.25)].map(|(w, f)| replica(w, 0, 0, 1, Active, f));
        assert!(t.update(&table(1, rows.to_vec())));
        assert_eq!(t.siblings(WorkerId(2)).map(|w| w.0).collect::<Vec<_>>(), [1, 3]);
        let count = |t: &mut RoutingTable, n| {
            let drawn = draw(t, n);
            [1, 2, 3].map(|w| drawn.iter().filter(|d| d[0].1 == WorkerId(w)).count())
        };
        assert_eq!(count(&mut t, 40), [20, 10, 10]);
        // 0.25, 0.25 and 0.25 of what is left.
        t.scale(WorkerId(1), 0.5);
        assert_eq!(count(&mut t, 30), [10, 10, 10]);
        t.scale(WorkerId(1), 0.0);
        assert_eq!(count(&mut t, 30), [0, 15, 15]);
        t.scale(WorkerId(2), 0.0);
        assert_eq!(slice(&mut t, Slice::whole(1)), Some(WorkerId(3)));
        t.scale(WorkerId(3), 0.0);
        assert_eq!(count(&mut t, 40)[0], 20, "somebody has to");
        [1, 2, 3].into_iter().for_each(|w| t.scale(WorkerId(w), 1.0));
        assert_eq!(count(&mut t, 40), [20, 10, 10]);
    }

    #[test]
    fn who_lacks_a_unit_gets_none_of_it_for_a_time_that_doubles() {
        let mut t = reached(1, 1, 1);
        let of = |generation, rows: &[(u32, f32)]| {
            table(generation, rows.iter().map(|&(w, f)| replica(w, 0, 0, 1, Active, f)).collect())
        };
        assert!(t.update(&of(1, &[(1, 0.5), (2, 0.5), (3, 0.0)])));
        let whole = Unit { block: 0, expert: 0, slice: Slice::whole(1) };
        let count = |t: &mut RoutingTable| {
            let drawn = draw(t, 20);
            [1, 2, 3].map(|w| drawn.iter().filter(|d| d[0].1 == WorkerId(w)).count())
        };
        let mut now = 0;
        for wait in [10, 20, 40] {
            t.lacks(WorkerId(1), whole, 10);
            t.lacks(WorkerId(1), whole, 10);
            t.at(now + wait - 1);
            assert_eq!(count(&mut t), [0, 20, 0], "{wait}");
            assert_eq!(t.choose_slice(whole, Some(WorkerId(2))), Next::Worker(WorkerId(3)));
            now += wait;
            t.at(now);
            let [a, b, _] = count(&mut t);
            assert!(a.abs_diff(b) <= 2, "and then its part, not what it has missed: {a} {b}");
        }
        t.lacks(WorkerId(1), whole, 10);
        t.lacks(WorkerId(2), whole, 10);
        assert_eq!(count(&mut t), [0, 0, 20], "planned or not");
        t.has(WorkerId(2), whole);
        assert_eq!(count(&mut t)[1], 20);
        assert!(t.update(&of(2, &[(1, 0.5), (2, 0.5)])));
        assert_eq!(count(&mut t), [10, 10, 0], "the table says so anew");
        [1, 2].into_iter().for_each(|w| t.lacks(WorkerId(w), whole, 10));
        assert_eq!(count(&mut t), [10, 10, 0], "somebody has to");
        assert_eq!(t.choose_slice(whole, Some(WorkerId(1))), Next::Wait);
        assert!(matches!(t.choose_slice(whole, None), Next::Worker(_)));
    }

    #[test]
    fn an_expert_is_asked_in_another_slicing_while_a_slice_of_one_is_lacking() {
        let mut t = reached(1, 1, 2);
        let [a, b] = [0, 1].map(|lo| Unit { block: 0, expert: 0, slice: Slice { lo, hi: lo + 1 } });
        let rows = [(1, 0, 1), (2, 1, 2), (3, 0, 2)].map(|(w, lo, hi)| replica(w, 0, lo, hi, Active, 1.0));
        assert!(t.update(&table(1, rows.to_vec())));
        t.lacks(WorkerId(2), b, 10);
        assert!(draw(&mut t, 20).iter().all(|d| d[..] == [(Slice::whole(2), WorkerId(3))]));
        assert_eq!(t.choose_slice(a, None), Next::Worker(WorkerId(1)), "the other half is there");
        assert_eq!(t.choose_slice(b, Some(WorkerId(2))), Next::Nobody);
        assert_eq!(t.choose_slice(b, None), Next::Nobody);
        t.lacks(WorkerId(3), Unit { slice: Slice::whole(2), ..a }, 10);
        assert_eq!(t.choose_slice(b, Some(WorkerId(2))), Next::Wait);
        assert_eq!(t.choose_slice(b, None), Next::Worker(WorkerId(2)));
        assert_eq!(draw(&mut t, 20).iter().filter(|d| d.len() == 2).count(), 10);
    }

    #[test]
    fn a_cover_is_as_slow_as_its_slowest_slice() {
        let mut t = reached(1, 1, 2);
        let rows = [(1, 0, 2, 0.5), (2, 0, 1, 0.5), (3, 1, 2, 0.5)];
        let rows = rows.map(|(w, lo, hi, f)| replica(w, 0, lo, hi, Active, f));
        assert!(t.update(&table(1, rows.to_vec())));
        let whole = |t: &mut RoutingTable| draw(t, 30).iter().filter(|d| d.len() == 1).count();
        assert_eq!(whole(&mut t), 15);
        t.scale(WorkerId(3), 0.5);
        assert_eq!(whole(&mut t), 20);
        t.scale(WorkerId(3), 0.0);
        assert_eq!(whole(&mut t), 30);
        t.scale(WorkerId(1), 0.0);
        assert_eq!(whole(&mut t), 15, "all are slow");
        assert_eq!(t.siblings(WorkerId(1)).count(), 0, "it holds another unit");
    }

    #[test]
    fn who_cannot_be_reached_is_not_asked() {
        let mut t = reached(1, 1, 4);
        let (a, b) = (Slice { lo: 0, hi: 2 }, Slice { lo: 2, hi: 4 });
        let whole = replica(3, 0, 0, 4, Active, 0.0);
        let rows = [(1, a), (2, b), (4, b)].map(|(w, s)| replica(w, 0, s.lo, s.hi, Active, 1.0));
        assert!(t.update(&table(1, rows.into_iter().chain([whole]).collect())));
        assert_eq!(draw(&mut t, 1)[0][0], (a, WorkerId(1)));
        assert!(t.reach(WorkerId(2), false) && !t.reach(WorkerId(2), false));
        assert!(draw(&mut t, 9).iter().all(|x| x[..] == [(a, WorkerId(1)), (b, WorkerId(4))]));
        assert!(t.reach(WorkerId(1), false));
        assert_eq!(slice(&mut t, a), None, "a half of it is nowhere");
        assert_eq!(draw(&mut t, 1)[0], [(Slice::whole(4), WorkerId(3))]);
        assert_eq!((t.only_holder(0, 0), t.sole_holder(0)), (Some(WorkerId(3)), Some(WorkerId(3))));
        assert!(t.reach(WorkerId(3), false) && draw(&mut t, 1)[0].is_empty());
        assert!(t.reach(WorkerId(1), true) && !t.reach(WorkerId(9), false));
        assert_eq!(draw(&mut t, 1)[0][0], (a, WorkerId(1)));
    }
}
