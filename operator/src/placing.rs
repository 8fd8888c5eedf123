//! Who is in the list of workers, and who holds which unit: decided from the placement as it is, the pods there are, and
//! what agents report. The list names a worker before a row does, and no row names it any more when it leaves the list.

use crate::names;
use crate::pods::is_agent_ready;
use crate::pressure::WorkerPage;
use k8s_openapi::api::core::v1::Pod;
use sluice_core::ids::{Slice, Unit, WorkerId};
use sluice_core::placement::{Replica, ReplicaState};
use sluice_crds::{
    ExpertPlacementSpec, PlacedUnit, PlacedWorker, Placement, PlacementPolicy, Role, UnitState,
};
use sluice_planner::{Held, Move, Replicas, Request, Situation, Worker, next_table, plan as planned};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// Rows of an object at most, where the model allows: the API takes 8,192, and half of that leaves room to grow.
const ROWS: usize = 4096;

/// What placement is decided from.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// What the manifest asks for.
    pub wanted: &'a Placement,
    /// The workers as listed.
    pub list: &'a [PlacedWorker],
    /// The rows as they are, by object.
    pub slices: &'a [SliceNow],
    /// The workers there are, by name.
    pub there: &'a BTreeMap<String, There>,
    /// What their agents said last, by name.
    pub pages: &'a BTreeMap<&'a str, &'a WorkerPage>,
    /// The deployment's namespace and name.
    pub of: (&'a str, &'a str),
}

/// A worker that is there: a pod, or a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct There {
    /// What it does.
    pub role: Role,
    /// `HOST:PORT` of its peers' port, once it has one.
    pub address: Option<String>,
    /// It was told to go.
    pub is_leaving: bool,
    /// It says that it serves.
    pub is_ready: bool,
}

impl There {
    /// A pod, whose peers' port is `port`.
    pub fn pod(role: Role, pod: &Pod, port: i32) -> Self {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
        let host = ip.map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() });
        Self {
            role,
            address: host.map(|host| format!("{host}:{port}")),
            is_leaving: pod.metadata.deletion_timestamp.is_some(),
            is_ready: is_agent_ready(pod),
        }
    }
}

/// The rows of a range of blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceNow {
    /// Which blocks.
    pub blocks: Range<u16>,
    /// Its generation.
    pub generation: u64,
    /// Its rows.
    pub units: Vec<PlacedUnit>,
}

/// What it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placed {
    /// The list of workers.
    pub list: Vec<PlacedWorker>,
    /// The rows by range of blocks; none where nothing can be said yet.
    pub slices: Vec<(Range<u16>, Vec<PlacedUnit>)>,
    /// What changes.
    pub moves: Vec<Moved>,
    /// Units that the model has, and those of them that take tokens.
    pub units: (usize, usize),
    /// Why not all of it can be placed.
    pub problem: Option<Problem>,
    /// Nothing is on its way.
    pub is_settled: bool,
}

/// One change of the placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// What becomes of it, of several units.
    pub what: &'static str,
    /// Which.
    pub unit: Unit,
    /// On which worker.
    pub worker: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.unit, self.worker, self.what)
    }
}

/// Why experts are not placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No agent has said what the model is.
    Unknown,
    /// Agents disagree about what the model is.
    Different(String),
    /// There is no worker that could hold them.
    NoWorker,
    /// It does not fit.
    Unplaceable(String),
}

/// Decides.
pub fn place(site: &Site<'_>) -> Placed {
    let list = listed(site);
    let numbers: BTreeMap<&str, WorkerId> =
        list.iter().map(|w| (w.name.as_str(), WorkerId(w.number.cast_unsigned()))).collect();
    let mut placed = Placed { list: list.clone(), ..Placed::default() };
    // What is placed stays, and is what there is to say: that nobody was heard of may be the gateways' doing.
    let keep = |placed: &mut Placed, problem: Problem| {
        placed.slices = site.slices.iter().map(|s| (s.blocks.clone(), s.units.clone())).collect();
        let rows = || site.slices.iter().flat_map(|s| &s.units);
        let units =
            |rows: &mut dyn Iterator<Item = &PlacedUnit>| rows.filter_map(unit).collect::<BTreeSet<_>>();
        let active = units(&mut rows().filter(|u| u.state == UnitState::Active));
        placed.units = (units(&mut rows()).len(), active.len());
        let is_silence = matches!(problem, Problem::Unknown | Problem::NoWorker) && placed.units.0 > 0;
        placed.problem = Some(problem).filter(|_| !is_silence);
    };
    let model = match model(site) {
        Ok(model) => model,
        Err(problem) => {
            keep(&mut placed, problem);
            return placed;
        }
    };
    let names: BTreeMap<WorkerId, &str> = numbers.iter().map(|(name, n)| (*n, *name)).collect();
    let rows = rows(site, &numbers);
    let slots = slots(site, &numbers, &rows);
    let plan = match request(site, &model, &rows, (&numbers, &slots)).map(|r| planned(&r)) {
        None => {
            keep(&mut placed, Problem::NoWorker);
            return placed;
        }
        Some(Err(why)) => {
            keep(&mut placed, Problem::Unplaceable(why.to_string()));
            return placed;
        }
        Some(Ok(plan)) => plan,
    };
    let (loaded, emptied) = (loaded(site, &numbers), emptied(site, &numbers));
    let now = Situation { rows: &rows, slots: &slots, loaded: &loaded, emptied: &emptied };
    let next = next_table(&now, &plan);
    let active = next.rows.iter().filter(|r| r.state == ReplicaState::Active);
    let active: BTreeSet<Unit> = active.map(|r| r.unit).collect();
    placed.units = (plan.units.len(), plan.units.iter().filter(|u| active.contains(&u.unit)).count());
    placed.is_settled = next.is_settled;
    placed.moves = next.moves.iter().map(|m| said(m, &names)).collect();
    if !next.blocked.is_empty()
        && next.moves.is_empty()
        && next.rows.iter().all(|r| r.state == ReplicaState::Active)
    {
        let why = format!("{} of its units find no free slot", next.blocked.len());
        placed.problem = Some(Problem::Unplaceable(why));
    }
    placed.slices = ranges(site, &model)
        .into_iter()
        .map(|blocks| {
            let of = next.rows.iter().filter(|r| blocks.contains(&r.unit.block));
            let units = of.filter_map(|r| Some(placed_unit(r, names.get(&r.worker)?))).collect();
            (blocks, units)
        })
        .collect();
    placed
}

/// The list: workers stay under their numbers as long as a pod of the name is there or a row names them.
fn listed(site: &Site<'_>) -> Vec<PlacedWorker> {
    let named: BTreeSet<&str> =
        site.slices.iter().flat_map(|s| &s.units).map(|u| u.worker.as_str()).collect();
    let incarnation = |name: &str| {
        let member = site.pages.get(name)?.member.as_ref()?;
        i64::try_from(member.incarnation).ok()
    };
    let mut list: Vec<PlacedWorker> = site
        .list
        .iter()
        .filter(|w| site.there.contains_key(&w.name) || named.contains(w.name.as_str()))
        .cloned()
        .collect();
    for w in &mut list {
        let now = site.there.get(&w.name).and_then(|t| t.address.clone());
        w.address = now.unwrap_or_else(|| w.address.clone());
        w.incarnation = incarnation(&w.name).max(w.incarnation);
    }
    for (name, there) in site.there {
        let is_known = there.is_leaving || list.iter().any(|w| w.name == *name);
        let Some(address) = there.address.clone().filter(|_| !is_known) else { continue };
        let taken: BTreeSet<i32> = list.iter().map(|w| w.number).collect();
        let Some(number) = (0..=i32::from(u16::MAX)).find(|n| !taken.contains(n)) else { continue };
        list.push(PlacedWorker {
            number,
            name: name.clone(),
            role: there.role,
            address,
            incarnation: incarnation(name),
            tls_name: names::worker(site.of.0, site.of.1, there.role, name).uri(),
        });
    }
    list.sort_by_key(|w| w.number);
    list
}

/// What the model is, as its agents say: for each block whether it has experts, and how many.
struct Shape {
    moe: Vec<bool>,
    experts: u16,
}

fn model(site: &Site<'_>) -> Result<Shape, Problem> {
    let mut found: Option<(&str, &crate::pressure::ModelPage)> = None;
    for (name, page) in site.pages {
        let Some(model) = page.member.as_ref().and_then(|m| m.model.as_ref()) else { continue };
        match found {
            None => found = Some((name, model)),
            Some((_, first)) if first == model => {}
            Some((first, _)) => return Err(Problem::Different(format!("{first} and {name}"))),
        }
    }
    let (_, model) = found.ok_or(Problem::Unknown)?;
    Ok(Shape { moe: model.moe.clone(), experts: model.experts })
}

fn hosts<'a>(site: &'a Site<'_>) -> impl Iterator<Item = (&'a String, &'a There)> {
    site.there.iter().filter(|(_, there)| crate::roles::is_host(there.role))
}

/// The rows as the planner sees them.
fn rows(site: &Site<'_>, numbers: &BTreeMap<&str, WorkerId>) -> Vec<Replica> {
    let all = site.slices.iter().flat_map(|s| &s.units);
    all.filter_map(|u| {
        let (worker, unit) = (*numbers.get(u.worker.as_str())?, unit(u)?);
        let state = match u.state {
            UnitState::Joining => ReplicaState::Joining,
            UnitState::Active => ReplicaState::Active,
            UnitState::Draining => ReplicaState::Draining,
        };
        Some(Replica { worker, unit, state, fraction: u.fraction as f32 / 10000.0 })
    })
    .collect()
}

fn unit(u: &PlacedUnit) -> Option<Unit> {
    let [lo, hi] = u.slice;
    let slice = Slice { lo: u8::try_from(lo).ok()?, hi: u8::try_from(hi).ok()? };
    Some(Unit { block: u16::try_from(u.block).ok()?, expert: u16::try_from(u.expert).ok()?, slice })
}

/// What the planner is asked: over the workers that stay, and that are heard of or at least ready. Of those that have not
/// said how much room they have, what they hold is all of it.
fn request(
    site: &Site<'_>,
    model: &Shape,
    rows: &[Replica],
    (numbers, slots): (&BTreeMap<&str, WorkerId>, &BTreeMap<WorkerId, u32>),
) -> Option<Request> {
    let mut workers: Vec<Worker> = vec![];
    for (name, there) in hosts(site).filter(|(_, there)| !there.is_leaving) {
        let Some((id, slots)) = numbers.get(name.as_str()).and_then(|id| slots.get_key_value(id)) else {
            continue;
        };
        if *slots > 0 && (there.is_ready || site.pages.contains_key(name.as_str())) {
            workers.push(Worker { id: *id, slots: *slots });
        }
    }
    if workers.is_empty() {
        return None;
    }
    let count = |n: i32| n.max(1).cast_unsigned();
    let most = u32::try_from(workers.len()).unwrap_or(u32::MAX);
    // Fewer workers than replicas: as many as there are.
    let least = count(site.wanted.min_replicas).min(most);
    let mut request = Request::new(model.moe.clone(), model.experts, workers);
    request.segments = u8::try_from(site.wanted.segments).unwrap_or(8);
    request.slices = u8::try_from(site.wanted.slices).unwrap_or(1);
    request.replicas = match site.wanted.policy {
        PlacementPolicy::LoadAware => {
            Replicas::between(least, count(site.wanted.max_replicas).clamp(least, most.max(least)))
        }
        PlacementPolicy::Balanced | PlacementPolicy::Pinned => Replicas::exactly(least),
    };
    request.tolerance = f64::from(site.wanted.tolerance_percent) / 100.0;
    request.current =
        rows.iter().filter(|r| r.state != ReplicaState::Draining).map(|r| (r.unit, r.worker)).collect();
    Some(request)
}

/// The slots of every worker that counts: its pod is there. One that has not said how many it has keeps what it holds.
fn slots(site: &Site<'_>, numbers: &BTreeMap<&str, WorkerId>, rows: &[Replica]) -> BTreeMap<WorkerId, u32> {
    hosts(site)
        .filter_map(|(name, _)| {
            let id = *numbers.get(name.as_str())?;
            let said = site.pages.get(name.as_str()).and_then(|p| p.member.as_ref()).and_then(|m| m.slots);
            let held = rows.iter().filter(|r| r.worker == id).count();
            Some((id, said.unwrap_or(u32::try_from(held).unwrap_or(u32::MAX))))
        })
        .collect()
}

/// What is loaded: what takes tokens, unless its worker says otherwise or is not heard of while its pod is not ready
/// either; and what joins, once its worker knows the newest rows and misses nothing of it.
fn loaded(site: &Site<'_>, numbers: &BTreeMap<&str, WorkerId>) -> BTreeSet<Held> {
    let mut all = BTreeSet::new();
    for slice in site.slices {
        for u in &slice.units {
            let (Some(id), Some(unit)) = (numbers.get(u.worker.as_str()), unit(u)) else { continue };
            let Some(there) = site.there.get(&u.worker) else { continue };
            let page = site.pages.get(u.worker.as_str());
            let table = page.and_then(|p| p.table(&slice.blocks));
            let misses = table.map(|t| t.misses(u.block, u.expert, u.slice));
            let is_loaded = match (u.state, table) {
                (UnitState::Joining, None) => false,
                (UnitState::Joining, Some(t)) => t.generation >= slice.generation && misses == Some(false),
                (_, Some(_)) => misses != Some(true),
                // Restarted, or out of reach: others mask it meanwhile.
                (_, None) => page.is_some() || there.is_ready,
            };
            if is_loaded {
                all.insert((unit, *id));
            }
        }
    }
    all
}

/// Draining rows that every attention rank there is has read of: nothing new goes there.
fn emptied(site: &Site<'_>, numbers: &BTreeMap<&str, WorkerId>) -> BTreeSet<Held> {
    let ranks = || site.there.iter().filter(|(_, t)| crate::roles::is_rank(t.role)).map(|(name, _)| name);
    let mut all = BTreeSet::new();
    for slice in site.slices {
        let knows = |name: &String| {
            let table = site.pages.get(name.as_str()).and_then(|p| p.table(&slice.blocks));
            // Who is not heard of sends nothing, or will read of it before it does.
            table.is_none_or(|t| t.generation >= slice.generation)
        };
        if !ranks().all(knows) {
            continue;
        }
        let draining = slice.units.iter().filter(|u| u.state == UnitState::Draining);
        all.extend(draining.filter_map(|u| Some((unit(u)?, *numbers.get(u.worker.as_str())?))));
    }
    all
}

/// The ranges of blocks: those there are, or, at first, as many blocks together as fit an object.
fn ranges(site: &Site<'_>, model: &Shape) -> Vec<Range<u16>> {
    if !site.slices.is_empty() {
        return site.slices.iter().map(|s| s.blocks.clone()).collect();
    }
    let of = |n: i32| usize::try_from(n).unwrap_or(1).max(1);
    let per_block = usize::from(model.experts) * of(site.wanted.slices) * of(site.wanted.max_replicas);
    let step = u16::try_from((ROWS / per_block.max(1)).max(1)).unwrap_or(u16::MAX);
    let end = u16::try_from(model.moe.len()).unwrap_or(u16::MAX);
    (0..end).step_by(usize::from(step)).map(|first| first..end.min(first.saturating_add(step))).collect()
}

fn placed_unit(row: &Replica, worker: &str) -> PlacedUnit {
    PlacedUnit {
        worker: worker.to_owned(),
        block: row.unit.block.into(),
        expert: row.unit.expert.into(),
        slice: [row.unit.slice.lo.into(), row.unit.slice.hi.into()],
        state: match row.state {
            ReplicaState::Joining => UnitState::Joining,
            ReplicaState::Active => UnitState::Active,
            ReplicaState::Draining => UnitState::Draining,
        },
        fraction: (row.fraction * 10000.0).round().clamp(0.0, 10000.0) as i32,
    }
}

fn said(what: &Move, names: &BTreeMap<WorkerId, &str>) -> Moved {
    let (kind, (unit, worker)) = match *what {
        Move::Drop(held) => ("are lost with their worker", held),
        Move::Release(held) => ("are released", held),
        Move::Drain(held) => ("drain", held),
        Move::Activate(held) => ("take tokens", held),
        Move::Join(held) => ("load", held),
        Move::Reload(held) => ("load again", held),
    };
    Moved {
        what: kind,
        unit,
        worker: names.get(&worker).map_or_else(|| worker.to_string(), |n| (*n).to_owned()),
    }
}

/// The objects that say a placement, as specs less their generations.
pub fn spec(deployment: &str, cohort: &str, segments: i32, generation: i64) -> ExpertPlacementSpec {
    ExpertPlacementSpec {
        deployment: deployment.into(),
        cohort: cohort.into(),
        segments,
        generation,
        workers: None,
        blocks: None,
        units: vec![],
    }
}

#[cfg(test)]
mod tests;
