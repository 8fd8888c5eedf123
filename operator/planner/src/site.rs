//! A checked [`Request`] in index form.

use crate::cost::Cost;
use crate::{Bounds, PlanError, Request};
use sluice_core::ids::{Slice, Unit, WorkerId};
use std::cmp::Reverse;

/// A checked request. Units are numbered by (block, expert, slice), workers by their ids' order.
pub(crate) struct Site<'a> {
    pub cost: Cost<'a>,
    pub workers: Vec<WorkerId>,
    pub slots: Vec<u32>,
    pub units: Vec<Unit>,
    /// By unit.
    pub bounds: Vec<Bounds>,
    /// Rows per step, by unit; all 1 without a load.
    pub rows: Vec<f64>,
    pub load_known: bool,
    /// Units per block.
    pub per_block: usize,
    pub slices: usize,
}

impl<'a> Site<'a> {
    pub(crate) fn new(request: &'a Request) -> Result<Self, PlanError> {
        let &Request { segments, slices, experts, .. } = request;
        if ![1, 2, 4, 8].contains(&segments) {
            return Err(PlanError::Segments(segments));
        }
        if slices == 0 || !segments.is_multiple_of(slices) {
            return Err(PlanError::Slices { slices, segments });
        }
        if u16::try_from(request.moe.len()).is_err() {
            return Err(PlanError::Blocks(request.moe.len()));
        }
        let blocks: Vec<u16> =
            (0..).zip(&request.moe).filter(|&(_, &moe)| moe).map(|(block, _)| block).collect();
        if experts == 0 && !blocks.is_empty() {
            return Err(PlanError::NoExperts(blocks.len()));
        }
        if !request.tolerance.is_finite() || request.tolerance < 0.0 {
            return Err(PlanError::Tolerance(request.tolerance));
        }
        check_bounds(request)?;
        check_load(request)?;
        let (workers, slots) = workers(request)?;

        let width = segments / slices;
        let mut site = Self {
            cost: Cost(&request.cost),
            workers,
            slots,
            units: Vec::new(),
            bounds: Vec::new(),
            rows: Vec::new(),
            load_known: request.load.is_some(),
            per_block: usize::from(experts) * usize::from(slices),
            slices: usize::from(slices),
        };
        for block in blocks {
            let measured = request.load.as_ref().map(|load| &load.rows[usize::from(block)]);
            let measured = measured.filter(|rows| rows.iter().any(|&rows| rows > 0.0));
            for expert in 0..experts {
                for part in 0..slices {
                    let slice = Slice { lo: part * width, hi: (part + 1) * width };
                    site.units.push(Unit { block, expert, slice });
                    site.bounds.push(request.replicas.of(block, expert));
                    site.rows.push(measured.map_or(1.0, |rows| rows[usize::from(expert)]));
                }
            }
        }
        site.check_room()?;
        Ok(site)
    }

    /// The numbers of the units of each block.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let step = self.per_block.max(1);
        (0..self.units.len()).step_by(step).map(move |start| start..start + step)
    }

    /// The numbers of all slices of a unit's expert.
    pub(crate) fn siblings(&self, unit: usize) -> std::ops::Range<usize> {
        let first = unit - unit % self.slices;
        first..first + self.slices
    }

    fn check_room(&self) -> Result<(), PlanError> {
        let ready = self.slots.iter().filter(|&&slots| slots > 0).count();
        for (unit, bounds) in self.units.iter().zip(&self.bounds) {
            if bounds.min as usize > ready {
                let &Unit { block, expert, .. } = unit;
                return Err(PlanError::TooFewWorkers { block, expert, replicas: bounds.min, workers: ready });
            }
        }
        let needed = self.bounds.iter().map(|bounds| u64::from(bounds.min)).sum();
        let have = self.slots.iter().map(|&slots| u64::from(slots)).sum();
        if needed > have {
            return Err(PlanError::TooFewSlots { needed, have });
        }
        let mut demand = Demand::default();
        for bounds in &self.bounds {
            demand.add(bounds.min);
        }
        match demand.shortage(&self.slots) {
            None => Ok(()),
            Some((units, needed, have)) => Err(PlanError::SlotsTooUneven { units, needed, have }),
        }
    }
}

fn check_bounds(request: &Request) -> Result<(), PlanError> {
    let wrong = |bounds: &Bounds| bounds.min == 0 || bounds.min > bounds.max;
    let all = &request.replicas.all;
    if wrong(all) {
        return Err(PlanError::Bounds { what: "every expert".into(), min: all.min, max: all.max });
    }
    for (&(block, expert), bounds) in &request.replicas.experts {
        if request.moe.get(usize::from(block)) != Some(&true) || expert >= request.experts {
            return Err(PlanError::UnknownExpert { block, expert });
        }
        if wrong(bounds) {
            let what = format!("expert {expert} of block {block}");
            return Err(PlanError::Bounds { what, min: bounds.min, max: bounds.max });
        }
    }
    Ok(())
}

fn check_load(request: &Request) -> Result<(), PlanError> {
    let Some(load) = &request.load else { return Ok(()) };
    if load.rows.len() != request.moe.len() {
        return Err(PlanError::LoadBlocks { found: load.rows.len(), expected: request.moe.len() });
    }
    for (block, (rows, &moe)) in load.rows.iter().zip(&request.moe).enumerate() {
        let expected = if moe { usize::from(request.experts) } else { 0 };
        if rows.len() != expected {
            return Err(PlanError::LoadShape { block, found: rows.len(), expected });
        }
        for (expert, &value) in rows.iter().enumerate() {
            if !value.is_finite() || value < 0.0 {
                return Err(PlanError::LoadValue { block, expert, value });
            }
        }
    }
    Ok(())
}

fn workers(request: &Request) -> Result<(Vec<WorkerId>, Vec<u32>), PlanError> {
    let mut workers = request.workers.clone();
    workers.sort_by_key(|worker| worker.id);
    if let Some(pair) = workers.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(PlanError::DuplicateWorker(pair[0].id));
    }
    Ok(workers.iter().map(|worker| (worker.id, worker.slots)).unzip())
}

/// Things that each need a number of distinct workers, counted by that number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    counts: std::collections::BTreeMap<Reverse<u32>, u64>,
}

impl Demand {
    pub(crate) fn add(&mut self, workers: u32) {
        *self.counts.entry(Reverse(workers)).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, workers: u32) {
        if let Some(count) = self.counts.get_mut(&Reverse(workers)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether everything fits workers with this much room: by Gale and Ryser, if for every k the k greatest demands
    /// find room when no worker gives more than one slot to each. Returns the first k that does not, with what it
    /// needs and can have. The room is concave in k, so it is enough to look where the demand changes.
    pub(crate) fn shortage(&self, room: &[u32]) -> Option<(u64, u64, u64)> {
        let (mut things, mut needed) = (0, 0);
        for (&Reverse(workers), &count) in &self.counts {
            things += count;
            needed += count * u64::from(workers);
            let have = room.iter().map(|&room| u64::from(room).min(things)).sum();
            if needed > have {
                return Some((things, needed, have));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the demands fit, by trying everything.
    fn fits(demands: &[u32], room: &mut [u32]) -> bool {
        let Some((&first, rest)) = demands.split_first() else { return true };
        (0u32..1 << room.len()).filter(|set| set.count_ones() == first).any(|set| {
            let chosen: Vec<usize> = (0..room.len()).filter(|&w| set >> w & 1 == 1).collect();
            if chosen.iter().any(|&w| room[w] == 0) {
                return false;
            }
            chosen.iter().for_each(|&w| room[w] -= 1);
            let fits = fits(rest, room);
            chosen.iter().for_each(|&w| room[w] += 1);
            fits
        })
    }

    proptest! {
        #[test]
        fn shortage_is_exact(
            demands in proptest::collection::vec(1u32..4, 0..5),
            mut room in proptest::collection::vec(0u32..5, 0..4),
        ) {
            let mut demand = Demand::default();
            demand.add(2);
            demands.iter().for_each(|&workers| demand.add(workers));
            demand.remove(2);
            prop_assert_eq!(demand.shortage(&room).is_none(), fits(&demands, &mut room));
        }
    }
}
