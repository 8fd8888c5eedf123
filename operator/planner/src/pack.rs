//! Packing copies of units into slots.
//!
//! Block by block and heaviest first, a copy goes to the worker with the least work in its block, then in all
//! blocks so far. Three things bound that choice: copies of one unit are on distinct workers; slices of one expert
//! are too, where there is room for it; and a block uses no more of a worker's slots than its part, as long as
//! others have room, so that the last blocks still have a choice.

use crate::site::{Demand, Site};

/// Who holds what, in indices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packing {
    /// By unit.
    pub holders: Vec<Vec<usize>>,
    /// Free slots, by worker.
    pub free: Vec<u32>,
    /// Whether slices of one expert may share a worker.
    pub shared: bool,
}

/// What must go to distinct workers: the missing copies of one unit, or of all slices of one expert.
struct Ask {
    copies: Vec<usize>,
    rows: f64,
    time: f64,
}

/// Packs at least the minimum of copies, keeping what `seed` holds. `rows` is what each unit counts for. `None` if
/// the seed leaves no room; without a seed there always is, since the site was checked.
pub(crate) fn pack(site: &Site, rows: &[f64], seed: &[Vec<usize>]) -> Option<Packing> {
    pack_how(site, rows, seed, false).or_else(|| pack_how(site, rows, seed, true))
}

fn pack_how(site: &Site, rows: &[f64], seed: &[Vec<usize>], shared: bool) -> Option<Packing> {
    let mut packing =
        Packing { holders: vec![Vec::new(); site.units.len()], free: site.slots.clone(), shared };
    packing.keep(site, seed);
    let blocks: Vec<Vec<Ask>> = site.blocks().map(|block| packing.asks(site, rows, block)).collect();
    let mut demand = Demand::default();
    blocks.iter().flatten().for_each(|ask| demand.add(ask.copies.len() as u32));
    if demand.shortage(&packing.free).is_some() {
        return None;
    }
    let open = packing.free.clone();
    let total: u64 = blocks.iter().flatten().map(|ask| ask.copies.len() as u64).sum();
    let mut placed = 0;
    let mut everywhere = vec![0.0; site.workers.len()];
    for (range, asks) in site.blocks().zip(&blocks) {
        placed += asks.iter().map(|ask| ask.copies.len() as u64).sum::<u64>();
        let quota: Vec<u64> =
            open.iter().map(|&open| (u64::from(open) * placed).div_ceil(total.max(1))).collect();
        let mut work = Work { time: vec![0.0; open.len()], rows: vec![0.0; open.len()] };
        for unit in range {
            let part = rows[unit] / packing.holders[unit].len().max(1) as f64;
            for &worker in &packing.holders[unit] {
                work.add(worker, site.cost.time(part), part);
            }
        }
        for ask in asks {
            demand.remove(ask.copies.len() as u32);
            let taken: Vec<bool> =
                (0..open.len()).map(|w| u64::from(open[w] - packing.free[w]) >= quota[w]).collect();
            let order = packing.order(site, ask, &work, &everywhere, &taken);
            let chosen = packing.choose(ask.copies.len(), &order, &demand)?;
            for (&unit, worker) in ask.copies.iter().zip(chosen) {
                packing.free[worker] -= 1;
                packing.holders[unit].push(worker);
                work.add(worker, ask.time, ask.rows);
            }
        }
        everywhere.iter_mut().zip(&work.time).for_each(|(sum, time)| *sum += time);
    }
    packing.holders.iter_mut().for_each(|holders| holders.sort_unstable());
    Some(packing)
}

/// What a block gives each worker to do.
struct Work {
    time: Vec<f64>,
    rows: Vec<f64>,
}

impl Work {
    fn add(&mut self, worker: usize, time: f64, rows: f64) {
        self.time[worker] += time;
        self.rows[worker] += rows;
    }
}

impl Packing {
    /// Takes over what `seed` holds, as far as slots and maxima allow.
    fn keep(&mut self, site: &Site, seed: &[Vec<usize>]) {
        for (unit, held) in seed.iter().enumerate() {
            for &worker in held {
                let holders = &mut self.holders[unit];
                let room = holders.len() < site.bounds[unit].max as usize && self.free[worker] > 0;
                if room && !holders.contains(&worker) {
                    holders.push(worker);
                    self.free[worker] -= 1;
                }
            }
        }
    }

    /// What is missing in a block, heaviest first.
    fn asks(&self, site: &Site, rows: &[f64], block: std::ops::Range<usize>) -> Vec<Ask> {
        let width = if self.shared { 1 } else { site.slices };
        let mut asks = Vec::new();
        for first in block.step_by(width) {
            let units = first..first + width;
            let missing =
                |unit: usize| (site.bounds[unit].min as usize).saturating_sub(self.holders[unit].len());
            let rounds = units.clone().map(missing).max().unwrap_or(0);
            let copies: Vec<usize> = (0..rounds)
                .flat_map(|round| units.clone().filter(move |&unit| round < missing(unit)))
                .collect();
            if !copies.is_empty() {
                let rows = rows[first] / f64::from(site.bounds[first].min);
                asks.push(Ask { copies, rows, time: site.cost.time(rows) });
            }
        }
        asks.sort_by(|a, b| b.time.total_cmp(&a.time).then(b.rows.total_cmp(&a.rows)));
        asks
    }

    /// The workers that could take a copy, best first.
    fn order(&self, site: &Site, ask: &Ask, work: &Work, everywhere: &[f64], over: &[bool]) -> Vec<usize> {
        let unit = ask.copies[0];
        let mut held = vec![0u32; self.free.len()];
        for sibling in site.siblings(unit) {
            self.holders[sibling].iter().for_each(|&worker| held[worker] += 1);
        }
        let barred = |worker: &usize| {
            if self.shared { self.holders[unit].contains(worker) } else { held[*worker] > 0 }
        };
        let mut order: Vec<usize> =
            (0..self.free.len()).filter(|w| self.free[*w] > 0 && !barred(w)).collect();
        order.sort_by(|&a, &b| {
            (held[a], over[a])
                .cmp(&(held[b], over[b]))
                .then(work.time[a].total_cmp(&work.time[b]))
                .then(work.rows[a].total_cmp(&work.rows[b]))
                .then(everywhere[a].total_cmp(&everywhere[b]))
        });
        order
    }

    /// The first `count` of `order`, but for as many as must give way to workers with more room so that the rest of
    /// the demand still fits. With the most roomy ones it does, if it fitted before (Ryser), so there is an answer
    /// unless a seed bars it.
    fn choose(&self, count: usize, order: &[usize], rest: &Demand) -> Option<Vec<usize>> {
        let (chosen, others) = order.split_at_checked(count)?;
        let (mut chosen, mut others) = (chosen.to_vec(), others.to_vec());
        loop {
            let mut left = self.free.clone();
            chosen.iter().for_each(|&worker| left[worker] -= 1);
            if rest.shortage(&left).is_none() {
                return Some(chosen);
            }
            let room = |&worker: &usize| self.free[worker];
            // Of equally roomy ones the best by order.
            let gain = (0..others.len()).rev().max_by_key(|&i| room(&others[i]))?;
            let give = (0..chosen.len()).rev().find(|&i| room(&chosen[i]) < room(&others[gain]))?;
            std::mem::swap(&mut chosen[give], &mut others[gain]);
        }
    }
}
