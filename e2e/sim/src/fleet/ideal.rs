//! Ideal barrier-synchronous expert parallelism on the same placement and costs: nothing lost but its barriers.

use super::{SEGMENTS, Setting};
use crate::rng::{Rng, mix};
use sluice_planner::Plan;
use std::collections::HashMap;

/// Tokens per second.
///
/// # Errors
/// There is no placement.
pub fn throughput(s: &Setting, passes: u32) -> Result<f64, String> {
    let skew = s.skew();
    let plan = s.plan(&skew)?;
    let homes = homes(&plan);
    let mut rng = Rng::new(s.seed ^ 0x1DEA);
    let (ranks, devices) = (s.all_ranks() as usize, s.devices as usize);
    let bytes = s.costs.model.hidden * s.costs.model.activation_bytes;
    let row = if s.bandwidth > 0.0 { bytes / (s.bandwidth * 1e9) } else { 0.0 };
    let mut noise = |r: &mut Rng| if s.jitter > 0.0 { 1.0 + r.exp(s.jitter) } else { 1.0 };
    let mut behind: HashMap<(u16, u16, u8), Vec<f64>> = HashMap::new();
    let (mut total, mut experts) = (0.0, vec![]);
    for pass in 0..passes {
        for block in 0..s.blocks {
            let mut units: HashMap<(u32, u16, u8), f64> = HashMap::new();
            // Per device: rows out and in of the dispatch, out and in of the return.
            let mut wire = vec![[0.0f64; 4]; devices];
            for t in 0..s.tokens {
                let home = t as usize % ranks;
                experts.clear();
                skew.draw(mix(u64::from(t), u64::from(pass)), block, &mut experts);
                let mut seen = vec![];
                for &e in &experts {
                    for lo in (0..SEGMENTS).step_by((SEGMENTS / s.slices) as usize) {
                        let key = (block, e, lo);
                        let Some(holders) = homes.get(&key) else { continue };
                        let owed = behind.entry(key).or_insert_with(|| vec![0.0; holders.len()]);
                        for (o, h) in owed.iter_mut().zip(holders) {
                            *o += h.1;
                        }
                        let i = (0..owed.len()).max_by(|a, b| owed[*a].total_cmp(&owed[*b])).unwrap_or(0);
                        owed[i] -= 1.0;
                        let host = holders[i].0;
                        *units.entry((host, e, lo)).or_default() += 1.0;
                        if host as usize == home {
                            continue;
                        }
                        if !seen.contains(&host) {
                            seen.push(host);
                            wire[home][0] += 1.0;
                            wire[host as usize][1] += 1.0;
                        }
                        wire[host as usize][2] += 1.0;
                        wire[home][3] += 1.0;
                    }
                }
            }
            let own = f64::from(s.tokens) / ranks as f64;
            let attention =
                (0..ranks).map(|_| s.costs.attention(own, s.context) * noise(&mut rng)).fold(0.0, f64::max);
            let mut load = vec![0.0f64; devices];
            for ((host, _, _), rows) in units {
                load[host as usize] += s.costs.unit(rows, 1.0 / f64::from(s.slices));
            }
            let step = |l: f64, r: &mut Rng, n: &mut dyn FnMut(&mut Rng) -> f64| {
                if l > 0.0 { (l + s.costs.launch()) * n(r) } else { 0.0 }
            };
            let run = load.iter().map(|l| step(*l, &mut rng, &mut noise)).fold(0.0, f64::max);
            let longest = |i: usize| wire.iter().map(|w| w[i]).fold(0.0, f64::max);
            let rows = longest(0).max(longest(1)) + longest(2).max(longest(3));
            total += attention + run + 2.0 * s.hop as f64 / 1e9 + rows * row;
        }
    }
    Ok(f64::from(s.tokens) * f64::from(passes) / total)
}

fn homes(plan: &Plan) -> HashMap<(u16, u16, u8), Vec<(u32, f64)>> {
    let of = |u: &sluice_planner::PlannedUnit| {
        let holders = u.holders.iter().filter(|h| h.fraction > 0.0).map(|h| (h.worker.0, h.fraction));
        ((u.unit.block, u.unit.expert, u.unit.slice.lo), holders.collect())
    };
    plan.units.iter().map(of).collect()
}
