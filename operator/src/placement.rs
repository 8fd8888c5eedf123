//! The ExpertPlacements of a deployment: read, decided on, written.

use crate::context::Context;
use crate::names::{self, PEER_PORT};
use crate::placing::{Moved, Placed, Problem, Site, SliceNow, There, place, spec};
use crate::pressure::Page;
use crate::reconcile::{Of, ReconcileError, waits};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Patch;
use serde_json::json;
use sluice_crds::{
    Counts, ExpertPlacement, ExpertPlacementSpec, ExpertPlacementStatus, PlacedUnit, PlacedWorker, Role,
    UnitState,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// How far the placement is.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Units of the model, and those that take tokens.
    pub units: Counts,
    /// The newest generation.
    pub generation: Option<i64>,
    /// Nothing is on its way.
    pub is_settled: bool,
    /// Why not all is placed.
    pub problem: Option<Problem>,
    /// Workers of the list, and whether something of theirs is joining.
    joining: BTreeMap<String, bool>,
}

impl State {
    /// Whether a worker holds what it should, and why not.
    pub fn gate(&self, worker: &str) -> (bool, &'static str) {
        match self.joining.get(worker) {
            Some(false) if self.problem.is_none() => (true, "what the placement gives it takes tokens"),
            Some(_) => (false, waits(self.problem.as_ref())),
            None => (false, "it is not in the placement yet"),
        }
    }
}

/// Makes the placement what it should be, a table at a time.
///
/// # Errors
/// What could not be written; a conflict, if somebody else wrote first.
pub async fn reconcile(
    ctx: &Context,
    of: Of<'_>,
    cohort: &str,
    page: &Page,
) -> Result<State, ReconcileError> {
    let objects = objects(ctx, of, cohort);
    let list_name = names::workers(of.name, cohort);
    let list = objects.get(&list_name).and_then(|o| o.spec.workers.clone()).unwrap_or_default();
    let mut slices: Vec<SliceNow> = objects.values().filter_map(slice).collect();
    slices.sort_by_key(|s| s.blocks.start);
    let worker = |(name, pod): (&String, &Arc<Pod>)| {
        let role = Role::named(pod.labels().get(names::ROLE)?)?;
        Some((name.clone(), There::pod(role, pod, PEER_PORT)))
    };
    let there: BTreeMap<String, There> = of.pods.iter().filter_map(worker).collect();
    let site = Site {
        wanted: &of.moe.spec.placement,
        list: &list,
        slices: &slices,
        there: &there,
        pages: &page.by_name(),
        of: (of.namespace, of.name),
    };
    let placed = place(&site);

    let segments = of.moe.spec.placement.segments;
    let mut generation = None;
    let mut put =
        async |name: String, workers: Option<&[PlacedWorker]>, rows: Option<(&Range<u16>, &[PlacedUnit])>| {
            let mut wanted = spec(of.name, cohort, segments, 0);
            wanted.workers = workers.map(<[_]>::to_vec);
            wanted.blocks = rows.map(|(b, _)| [b.start.into(), b.end.into()]);
            wanted.units = rows.map(|(_, u)| u.to_vec()).unwrap_or_default();
            let written = write(ctx, of, objects.get(&name), name, wanted).await?;
            generation = generation.max(Some(written));
            Ok::<_, ReconcileError>(())
        };
    // The list first: no row names a worker that the list lacks.
    put(list_name, Some(&placed.list), None).await?;
    for (blocks, units) in &placed.slices {
        put(names::rows(of.name, cohort, blocks.start), None, Some((blocks, units))).await?;
    }
    if !placed.moves.is_empty() {
        let (namespace, deployment) = (of.namespace, of.name);
        tracing::info!(
            namespace,
            deployment,
            generation,
            "the placement changes: {}",
            summary(&placed.moves)
        );
        placed.moves.iter().for_each(|m| tracing::debug!(namespace, deployment, "{m}"));
    }
    Ok(state(&placed, generation))
}

/// The moves of a table, counted: `4 joins, 12 takes tokens`.
fn summary(moves: &[Moved]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    moves.iter().for_each(|m| *counts.entry(m.what).or_default() += 1);
    let parts: Vec<String> = counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
    format!("of its units {}", parts.join(", "))
}

fn state(placed: &Placed, generation: Option<i64>) -> State {
    let mut joining: BTreeMap<String, bool> = placed.list.iter().map(|w| (w.name.clone(), false)).collect();
    for unit in placed.slices.iter().flat_map(|(_, units)| units) {
        if unit.state == UnitState::Joining {
            joining.insert(unit.worker.clone(), true);
        }
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    State {
        units: Counts { desired: count(placed.units.0), ready: count(placed.units.1) },
        generation,
        is_settled: placed.is_settled,
        problem: placed.problem.clone(),
        joining,
    }
}

/// The cohort's objects by name, as they were last written.
fn objects(ctx: &Context, of: Of<'_>, cohort: &str) -> BTreeMap<String, ExpertPlacement> {
    let cached = ctx.stores.placements_of(of.namespace, of.name).into_iter();
    let cached = cached.filter(|p| p.spec.cohort == cohort && p.metadata.deletion_timestamp.is_none());
    cached
        .filter_map(|p| {
            let name = p.name_any();
            Some((name.clone(), ctx.placements.newest(Some(p), of.namespace, &name)?))
        })
        .collect()
}

fn slice(object: &ExpertPlacement) -> Option<SliceNow> {
    let [first, end] = object.spec.blocks?;
    Some(SliceNow {
        blocks: u16::try_from(first).ok()?..u16::try_from(end).ok()?,
        generation: object.spec.generation.cast_unsigned(),
        units: object.spec.units.clone(),
    })
}

/// Takes all rows of a deployment away. Whether there were any.
///
/// # Errors
/// What could not be written.
pub async fn clear(ctx: &Context, of: Of<'_>) -> Result<bool, ReconcileError> {
    let mut any = false;
    for cached in ctx.stores.placements_of(of.namespace, of.name) {
        let name = cached.name_any();
        let Some(now) = ctx.placements.newest(Some(cached), of.namespace, &name) else { continue };
        if now.spec.units.is_empty() || now.metadata.deletion_timestamp.is_some() {
            continue;
        }
        any = true;
        let mut changed = now;
        changed.spec.generation += 1;
        changed.spec.units.clear();
        let written = ctx.writer.replace(&changed).await?;
        ctx.placements.wrote(&written);
    }
    Ok(any)
}

/// Writes an object if its spec is another. Returns its generation.
async fn write(
    ctx: &Context,
    of: Of<'_>,
    now: Option<&ExpertPlacement>,
    name: String,
    mut wanted: ExpertPlacementSpec,
) -> Result<i64, ReconcileError> {
    // An object made anew is newer than whatever had its name: its generations begin at the clock.
    wanted.generation = now.map_or(of.now.as_second(), |n| n.spec.generation);
    let written = match now {
        Some(now) if now.spec == wanted => {
            count(ctx, of, now).await?;
            return Ok(wanted.generation);
        }
        Some(now) => {
            wanted.generation += 1;
            let mut changed = now.clone();
            changed.spec = wanted;
            ctx.writer.replace(&changed).await?
        }
        None => {
            let cohort = wanted.cohort.clone();
            let mut fresh = ExpertPlacement::new(&name, wanted);
            fresh.metadata = names::owned(of.moe, name.clone(), "placement");
            fresh.labels_mut().insert(names::COHORT.into(), cohort);
            ctx.writer.create(&fresh).await?.ok_or(ReconcileError::Stale(name))?
        }
    };
    ctx.placements.wrote(&written);
    count(ctx, of, &written).await?;
    Ok(written.spec.generation)
}

/// Its rows, counted for people.
async fn count(ctx: &Context, of: Of<'_>, object: &ExpertPlacement) -> Result<(), ReconcileError> {
    let of_state = |state| {
        let all = object.spec.units.iter().filter(|u| u.state == state).count();
        i32::try_from(all).unwrap_or(i32::MAX)
    };
    let status = ExpertPlacementStatus {
        observed_generation: object.metadata.generation,
        workers: object.spec.workers.as_ref().map(|w| i32::try_from(w.len()).unwrap_or(i32::MAX)),
        active: of_state(UnitState::Active),
        joining: of_state(UnitState::Joining),
        draining: of_state(UnitState::Draining),
    };
    if object.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = Patch::Merge(json!({ "status": status }));
    ctx.writer.patch::<ExpertPlacement>((of.namespace, &object.name_any()), Some("status"), &patch).await?;
    Ok(())
}
