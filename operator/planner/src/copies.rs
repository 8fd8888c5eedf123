//! More copies than the minimum, where the load asks for them and slots are left.
//!
//! The block with the greatest excess of its busiest worker over its mean goes first. One round gives copies of the
//! busiest worker's heaviest units to the idlest workers until the block's longest step is shorter (several workers
//! may be equally busy, as the holders of one expert's slices are); a round that does not get there is undone, and
//! the block is done.

use crate::pack::Packing;
use crate::site::Site;
use crate::spread::Spread;

/// A round must shorten the block's longest step by this part: a copy is a slot's weights to load.
const WORTH: f64 = 0.01;

/// A copy beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Copy {
    pub unit: usize,
    pub worker: usize,
}

/// Adds copies, and replans the blocks that got some.
pub(crate) fn add(site: &Site, packing: &mut Packing, spreads: &mut [Spread]) -> Vec<Copy> {
    let ranges: Vec<_> = site.blocks().collect();
    let mut open: Vec<usize> = (0..ranges.len()).collect();
    let mut copies = Vec::new();
    let excess = |spread: &Spread| {
        spread.longest() - spread.times.iter().sum::<f64>() / spread.times.len().max(1) as f64
    };
    while let Some(at) =
        (0..open.len()).rev().max_by(|&a, &b| excess(&spreads[open[a]]).total_cmp(&excess(&spreads[open[b]])))
    {
        let block = open[at];
        match round(site, packing, ranges[block].clone(), &spreads[block]) {
            Some((spread, added)) => {
                spreads[block] = spread;
                copies.extend(added);
            }
            None => {
                open.remove(at);
            }
        }
    }
    copies
}

fn round(
    site: &Site,
    packing: &mut Packing,
    range: std::ops::Range<usize>,
    before: &Spread,
) -> Option<(Spread, Vec<Copy>)> {
    let goal = before.longest() * (1.0 - WORTH);
    let undo = packing.clone();
    let mut added = Vec::new();
    let mut now = before.clone();
    for _ in 0..site.workers.len() {
        let Some(copy) = next(site, packing, range.clone(), &now) else { break };
        packing.free[copy.worker] -= 1;
        let holders = &mut packing.holders[copy.unit];
        holders.push(copy.worker);
        holders.sort_unstable();
        added.push(copy);
        let (holders, rows) = (&packing.holders[range.clone()], &site.rows[range.clone()]);
        now = Spread::by_load(holders, rows, site.workers.len(), site.cost);
        if now.longest() <= goal {
            return Some((now, added));
        }
    }
    *packing = undo;
    None
}

/// The busiest worker's unit with the most rows there that may have one more copy, and the idlest worker that can
/// take it.
fn next(site: &Site, packing: &Packing, range: std::ops::Range<usize>, now: &Spread) -> Option<Copy> {
    let busy = now.busiest()?;
    let mut units: Vec<(usize, f64)> = Vec::new();
    for unit in range.clone() {
        let Some(at) = packing.holders[unit].iter().position(|&worker| worker == busy) else { continue };
        let rows = site.rows[unit] * now.fractions[unit - range.start][at];
        if rows > 0.0 && packing.holders[unit].len() < site.bounds[unit].max as usize {
            units.push((unit, rows));
        }
    }
    units.sort_by(|a, b| b.1.total_cmp(&a.1));
    units.into_iter().find_map(|(unit, _)| {
        let apart = if packing.shared { unit..unit + 1 } else { site.siblings(unit) };
        let holds = |worker: &usize| packing.holders[apart.clone()].iter().any(|held| held.contains(worker));
        let can = |worker: &usize| packing.free[*worker] > 0 && !holds(worker);
        let worker =
            (0..now.times.len()).filter(can).min_by(|&a, &b| now.times[a].total_cmp(&now.times[b]))?;
        (now.times[worker] < now.times[busy]).then_some(Copy { unit, worker })
    })
}
