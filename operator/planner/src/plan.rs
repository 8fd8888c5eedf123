//! The plan: how it is chosen, and what it says.

use crate::pack::{Packing, pack};
use crate::site::Site;
use crate::spread::Spread;
use crate::{PlanError, Request, copies};
use sluice_core::ids::{Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use std::collections::BTreeSet;
use std::fmt;

/// Who holds what, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Every unit, in order of block, expert and slice.
    pub units: Vec<PlannedUnit>,
    /// The predicted pass, in the unit of the cost curve: the sum over blocks of the busiest worker's time.
    pub pass: f64,
    /// The pass if every block's work were evenly divided over the workers with slots, over `pass`: 1 is perfect.
    pub balance: f64,
    /// Where the placement comes from, then what was done to it.
    pub reasons: Vec<Reason>,
}

/// One unit and its holders.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedUnit {
    /// The unit.
    pub unit: Unit,
    /// Distinct workers, in order of their ids.
    pub holders: Vec<Holder>,
}

/// One holder of a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holder {
    /// Who.
    pub worker: WorkerId,
    /// Its part of the unit's tokens: those of one unit sum to 1. A holder with 0 stands by.
    pub fraction: f64,
}

/// Which of the placements considered a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Packed as if all experts of a block were equal.
    Even,
    /// Packed by load.
    Load,
    /// The current one, with what it lacked.
    Current,
}

/// Why a plan is as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// Where the placement comes from.
    From {
        /// The placement taken.
        source: Source,
        /// The pass of each placement considered, before copies are added to the current one.
        passes: Vec<(Source, f64)>,
    },
    /// Some slices of one expert share a worker, for lack of room on distinct ones.
    SlicesShareWorkers {
        /// Experts (of a block) it happened to.
        experts: usize,
    },
    /// A copy beyond the minimum.
    Copied {
        /// The unit.
        unit: Unit,
        /// Where to.
        worker: WorkerId,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From { source, passes } => {
                let name = |source: &Source| match source {
                    Source::Even => "even",
                    Source::Load => "by load",
                    Source::Current => "current",
                };
                write!(f, "placement taken: {}; predicted pass", name(source))?;
                for (at, (source, pass)) in passes.iter().enumerate() {
                    write!(f, "{} {} {pass:.6}", if at == 0 { "" } else { "," }, name(source))?;
                }
                Ok(())
            }
            Self::SlicesShareWorkers { experts } => {
                write!(f, "slices of {experts} experts share a worker: too few workers have free slots")
            }
            Self::Copied { unit, worker } => {
                write!(f, "{unit} also on {worker}: it shortens the block's longest step")
            }
        }
    }
}

/// What must be loaded and what can go, between two placements.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// Held from now on.
    pub loads: Vec<(Unit, WorkerId)>,
    /// No longer held.
    pub drops: Vec<(Unit, WorkerId)>,
}

impl Plan {
    /// All (unit, holder) pairs, in order.
    pub fn held(&self) -> impl Iterator<Item = (Unit, WorkerId)> {
        self.units.iter().flat_map(|unit| unit.holders.iter().map(|holder| (unit.unit, holder.worker)))
    }

    /// What leads from `current` to this plan.
    pub fn changes(&self, current: &[(Unit, WorkerId)]) -> Changes {
        let old: BTreeSet<_> = current.iter().copied().collect();
        let new: BTreeSet<_> = self.held().collect();
        Changes {
            loads: new.difference(&old).copied().collect(),
            drops: old.difference(&new).copied().collect(),
        }
    }

    /// The plan as placement slices of `per_slice` blocks each (0 is taken for 1), over all `blocks` of the model,
    /// every replica active.
    pub fn placement(&self, blocks: u16, per_slice: u16, generation: u64) -> Vec<PlacementSlice> {
        let step = per_slice.max(1);
        let starts = (0..blocks).step_by(usize::from(step));
        starts
            .map(|start| {
                let range = start..start.saturating_add(step).min(blocks);
                let units = self.units.iter().filter(|unit| range.contains(&unit.unit.block));
                let replicas = units
                    .flat_map(|&PlannedUnit { unit, ref holders }| {
                        holders.iter().map(move |&Holder { worker, fraction }| Replica {
                            worker,
                            unit,
                            state: ReplicaState::Active,
                            fraction: fraction as f32,
                        })
                    })
                    .collect();
                PlacementSlice { blocks: range, generation, replicas }
            })
            .collect()
    }
}

/// A placement with its fractions.
struct Candidate {
    source: Source,
    packing: Packing,
    spreads: Vec<Spread>,
    copies: Vec<copies::Copy>,
}

impl Candidate {
    fn new(site: &Site, source: Source, packing: Packing) -> Self {
        let spread = if site.load_known { Spread::by_load } else { Spread::even };
        let spreads = site
            .blocks()
            .map(|block| {
                let (holders, rows) = (&packing.holders[block.clone()], &site.rows[block]);
                spread(holders, rows, site.workers.len(), site.cost)
            })
            .collect();
        Self { source, packing, spreads, copies: Vec::new() }
    }

    fn with_copies(mut self, site: &Site) -> Self {
        if site.load_known {
            self.copies = copies::add(site, &mut self.packing, &mut self.spreads);
        }
        self
    }

    fn pass(&self) -> f64 {
        self.spreads.iter().map(Spread::longest).sum()
    }
}

/// Makes a plan.
///
/// # Errors
/// If the request contradicts itself, or the workers' slots cannot hold the minimum of replicas; each says which and
/// by how much.
pub fn plan(request: &Request) -> Result<Plan, PlanError> {
    let site = Site::new(request)?;
    let fresh = |source, rows: &[f64]| {
        let packing = pack(&site, rows, &[]).ok_or_else(|| no_room(&site))?;
        Ok(Candidate::new(&site, source, packing).with_copies(&site))
    };
    let mut best = fresh(Source::Even, &vec![1.0; site.units.len()])?;
    let mut passes = vec![(Source::Even, best.pass())];
    if site.load_known {
        let by_load = fresh(Source::Load, &site.rows)?;
        passes.push((Source::Load, by_load.pass()));
        if by_load.pass() <= best.pass() {
            best = by_load;
        }
    }
    if let Some(packing) = seed(&site, request).and_then(|seed| pack(&site, &site.rows, &seed)) {
        let bar = best.pass() * (1.0 + request.tolerance);
        let kept = Candidate::new(&site, Source::Current, packing);
        passes.push((Source::Current, kept.pass()));
        let kept = if kept.pass() <= bar { kept } else { kept.with_copies(&site) };
        if kept.pass() <= bar {
            best = kept;
        }
    }
    Ok(finish(&site, &best, passes))
}

/// Cannot happen, since the site was checked; said rather than assumed.
fn no_room(site: &Site) -> PlanError {
    PlanError::TooFewSlots {
        needed: site.bounds.iter().map(|bounds| u64::from(bounds.min)).sum(),
        have: site.slots.iter().map(|&slots| u64::from(slots)).sum(),
    }
}

/// The current holders of each unit, if any is of this request.
fn seed(site: &Site, request: &Request) -> Option<Vec<Vec<usize>>> {
    let mut seed = vec![Vec::new(); site.units.len()];
    let current: BTreeSet<_> = request.current.iter().copied().collect();
    let mut any = false;
    for (unit, worker) in current {
        let at = (site.units.binary_search(&unit), site.workers.binary_search(&worker));
        if let (Ok(unit), Ok(worker)) = at {
            seed[unit].push(worker);
            any = true;
        }
    }
    any.then_some(seed)
}

fn finish(site: &Site, best: &Candidate, passes: Vec<(Source, f64)>) -> Plan {
    let mut reasons = vec![Reason::From { source: best.source, passes }];
    let sharing = |first: &usize| {
        let holders = best.packing.holders[site.siblings(*first)].iter().flatten();
        let all: Vec<_> = holders.collect();
        all.iter().collect::<BTreeSet<_>>().len() < all.len()
    };
    let experts = (0..site.units.len()).step_by(site.slices).filter(sharing).count();
    if experts > 0 {
        reasons.push(Reason::SlicesShareWorkers { experts });
    }
    for &copies::Copy { unit, worker } in &best.copies {
        reasons.push(Reason::Copied { unit: site.units[unit], worker: site.workers[worker] });
    }
    let fractions = best.spreads.iter().flat_map(|spread| &spread.fractions);
    let units = site.units.iter().zip(&best.packing.holders).zip(fractions);
    let units = units
        .map(|((&unit, holders), fractions)| PlannedUnit {
            unit,
            holders: holders
                .iter()
                .zip(fractions)
                .map(|(&worker, &fraction)| Holder { worker: site.workers[worker], fraction })
                .collect(),
        })
        .collect();
    let pass = best.pass();
    let work: f64 = best.spreads.iter().flat_map(|spread| &spread.times).sum();
    let able = site.slots.iter().filter(|&&slots| slots > 0).count();
    let balance = if pass > 0.0 { work / able as f64 / pass } else { 1.0 };
    Plan { units, pass, balance, reasons }
}
