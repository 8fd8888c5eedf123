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
    let mut added: Vec<Copy> = Vec::new();
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
    for Copy { unit, worker } in added {
        packing.holders[unit].retain(|&holder| holder != worker);
        packing.free[worker] += 1;
    }
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
        if packing.holders[unit].len() < site.bounds[unit].max as usize {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bounds;
    use crate::cost::Cost;
    use sluice_core::cost::Curve;
    use sluice_core::ids::{Slice, Unit, WorkerId};

    static ROWS: std::sync::LazyLock<Curve> = std::sync::LazyLock::new(Curve::default);

    /// A step takes as long as it has rows; every unit may have three holders; expert i of each block is on worker i.
    fn site(blocks: &[&[f64]], free: Vec<u32>) -> (Site<'static>, Packing) {
        let per_block = blocks[0].len();
        let unit =
            |block, expert| Unit { block: block as u16, expert: expert as u16, slice: Slice::whole(1) };
        let site = Site {
            cost: Cost(&ROWS),
            workers: (0..free.len() as u32).map(WorkerId).collect(),
            slots: free.iter().map(|free| free + blocks.len() as u32).collect(),
            units: (0..blocks.len()).flat_map(|b| (0..per_block).map(move |e| unit(b, e))).collect(),
            bounds: vec![Bounds { min: 1, max: 3 }; blocks.len() * per_block],
            rows: blocks.concat(),
            load_known: true,
            per_block,
            slices: 1,
        };
        let holders = (0..blocks.len() * per_block).map(|unit| vec![unit % per_block]).collect();
        (site, Packing { holders, free, shared: false })
    }

    fn spreads(site: &Site, packing: &Packing) -> Vec<Spread> {
        let spread = |block: std::ops::Range<usize>| {
            let (holders, rows) = (&packing.holders[block.clone()], &site.rows[block]);
            Spread::by_load(holders, rows, site.workers.len(), site.cost)
        };
        site.blocks().map(spread).collect()
    }

    fn added(blocks: &[&[f64]], free: Vec<u32>) -> Vec<Copy> {
        let (site, mut packing) = site(blocks, free);
        let mut spreads = spreads(&site, &packing);
        let before = packing.free.iter().sum::<u32>();
        let copies = add(&site, &mut packing, &mut spreads);
        assert_eq!(before - packing.free.iter().sum::<u32>(), copies.len() as u32);
        let held: usize = packing.holders.iter().map(Vec::len).sum();
        assert_eq!(held, site.units.len() + copies.len());
        copies
    }

    #[test]
    fn the_last_slot_goes_where_most_is_lost() {
        // 10 over the mean, and 50.
        let copies = added(&[&[100.0, 90.0, 90.0, 80.0], &[80.0, 20.0, 10.0, 10.0]], vec![0, 0, 0, 1]);
        assert_eq!(copies, [Copy { unit: 4, worker: 3 }]);
        // 150 over the mean, and 90.
        let copies = added(&[&[300.0, 100.0, 100.0, 100.0], &[120.0, 0.0, 0.0, 0.0]], vec![0, 0, 0, 1]);
        assert_eq!(copies, [Copy { unit: 0, worker: 3 }]);
    }

    #[test]
    fn slots_and_maxima_are_kept() {
        let copies = added(&[&[100.0, 10.0, 10.0, 10.0]], vec![0, 1, 1, 1]);
        assert_eq!(copies.iter().filter(|copy| copy.unit == 0).count(), 2);
        let copies = added(&[&[100.0, 90.0, 10.0, 10.0]], vec![0, 0, 0, 1]);
        assert_eq!(copies, [Copy { unit: 0, worker: 3 }]);
    }

    #[test]
    fn a_round_without_gain_leaves_no_trace() {
        // Two are equally busy and only one of them can be helped.
        assert_eq!(added(&[&[100.0, 100.0, 10.0, 10.0]], vec![0, 0, 1, 0]), []);
        assert_eq!(added(&[&[50.0, 50.0, 50.0, 50.0]], vec![1; 4]), []);
    }

    #[test]
    fn the_heaviest_part_on_the_busiest_worker_is_copied_to_the_idlest() {
        let (mut site, mut packing) = site(&[&[90.0, 200.0, 10.0, 20.0]], vec![9; 4]);
        packing.holders[1] = vec![0, 1];
        let now = Spread {
            fractions: vec![vec![1.0], vec![0.25, 0.75], vec![1.0], vec![1.0]],
            times: vec![160.0, 150.0, 10.0, 20.0],
        };
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 0, worker: 2 }));
        // Of 90 and 100 rows on worker 0, the 100.
        let now = Spread { fractions: vec![vec![1.0], vec![0.5, 0.5], vec![1.0], vec![1.0]], ..now };
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 1, worker: 2 }));
        site.bounds[1].max = 2;
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 0, worker: 2 }));
        packing.free[2] = 0;
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 0, worker: 3 }));
        packing.free = vec![9, 0, 0, 0];
        assert_eq!(next(&site, &packing, 0..4, &now), None);
        packing.free = vec![9; 4];
        let level = Spread { times: vec![160.0; 4], ..now };
        assert_eq!(next(&site, &packing, 0..4, &level), None, "nobody is idler");
    }

    #[test]
    fn slices_of_one_expert_stay_apart_unless_they_share_already() {
        let (mut site, mut packing) = site(&[&[90.0, 90.0, 10.0, 10.0]], vec![9; 4]);
        site.slices = 2;
        packing.holders = vec![vec![0], vec![2], vec![1], vec![3]];
        let now = Spread { fractions: vec![vec![1.0]; 4], times: vec![90.0, 40.0, 10.0, 30.0] };
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 0, worker: 3 }));
        packing.shared = true;
        assert_eq!(next(&site, &packing, 0..4, &now), Some(Copy { unit: 0, worker: 2 }));
    }
}
