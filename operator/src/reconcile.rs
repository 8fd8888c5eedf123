//! One reconcile, top to bottom: what there is, what there should be, the difference, and what is said about it.

use crate::apply::WriteError;
use crate::build::{access, gateway, guard};
use crate::certificates::CertificateError;
use crate::context::Context;
use crate::names::{self, FIRST_COHORT, PEER_PORT};
use crate::placement;
use crate::placing::Problem;
use crate::pods::is_ready;
use crate::pressure::{Gateways, Page};
use crate::roles::{RoleView, is_rank, roles};
use crate::stores::Guard;
use crate::workers::{self, RoleState, apply, is_leaving};
use crate::{finalize, status};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::ResourceExt;
use kube::api::Patch;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use sluice_crds::{Counts, MoEDeployment, PressureSummary, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A deployment at rest is looked at so often: certificates are renewed in time, and nothing is missed for good.
const AT_REST: Duration = Duration::from_secs(300);
/// What was not heard for so long is not believed any more.
const STALE: Duration = Duration::from_secs(15);

/// The deployment that a reconcile is of.
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    /// It.
    pub moe: &'a MoEDeployment,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// When the reconcile began.
    pub now: Timestamp,
    /// Its pods as they were then, by name.
    pub pods: &'a Pods,
}

/// Pods by name.
pub type Pods = BTreeMap<String, Arc<Pod>>;

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A write.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Kubernetes' own types do not take what the manifest says.
    #[error("an object cannot be built from the manifest: {0}")]
    Build(#[source] serde_json::Error),
    /// The cache does not show yet what was written.
    #[error("the cache is behind: {0} is there, and not seen yet")]
    Stale(String),
}

impl ReconcileError {
    /// How soon to try again.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Stale(_) => Duration::from_millis(200),
            Self::Write(e) if e.is_conflict() => Duration::from_millis(200),
            _ => Duration::from_secs(5),
        }
    }

    /// What it is counted as.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Write(e) if e.is_conflict() => "conflict",
            Self::Write(_) => "write",
            Self::Certificate(_) => "certificate",
            Self::Build(_) => "build",
            Self::Stale(_) => "stale",
        }
    }
}

/// Reconciles, and measures it.
///
/// # Errors
/// What has to be tried again.
pub async fn run(guard: Arc<Guard<MoEDeployment>>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let moe = match &guard.0 {
        Ok(moe) => moe,
        Err(why) => {
            // It was written past the API's checks, or by a newer release. Its next edit brings us here again.
            tracing::error!(name = guard.name_any(), "a MoEDeployment cannot be read: {}", why.error);
            return Ok(Action::await_change());
        }
    };
    let started = std::time::Instant::now();
    let done = reconcile(moe, &ctx).await;
    let result = if done.is_ok() { "ok" } else { "error" };
    ctx.admin.reconciles.with_label_values(&[result]).observe(started.elapsed().as_secs_f64());
    done
}

async fn reconcile(moe: &MoEDeployment, ctx: &Context) -> Result<Action, ReconcileError> {
    let (namespace, name) = (moe.namespace().unwrap_or_default(), moe.name_any());
    let pods = ctx.stores.pods_of(&namespace, &name);
    let of = Of { moe, namespace: &namespace, name: &name, now: Timestamp::now(), pods: &pods };
    if is_leaving(moe) {
        return finalize::finalize(ctx, of).await;
    }
    if let Some(patch) = finalize::held(moe) {
        ctx.writer.patch::<MoEDeployment>((&namespace, &name), None, &patch).await?;
    }
    let image = image(ctx, moe);
    let (views, common) = roles(&moe.spec);

    surroundings(ctx, of, &image, &views).await?;
    let mut states: Vec<(Role, RoleState)> = vec![];
    // One worker at a time, over all roles: the placement is at rest, and no other role has anything in motion.
    let mut may_exchange = moe.status.as_ref().is_some_and(|s| is_true(&s.conditions, "Ready"));
    for view in &views {
        let state =
            workers::reconcile(ctx, of, (view, &common), (&image, FIRST_COHORT), may_exchange).await?;
        may_exchange &= !state.is_moving;
        states.push((view.role, state));
    }
    let page = heard(ctx, of)?;
    let placed = placement::reconcile(ctx, of, FIRST_COHORT, &page).await?;
    gates(ctx, of, &placed).await?;
    revoke(ctx, of).await?;
    say(ctx, of, (&image, &views), &states, &placed, &page).await?;
    let again = states.iter().filter_map(|(_, s)| s.again).min();
    let again = again.and_then(|at| Duration::try_from(at.duration_since(of.now)).ok());
    Ok(Action::requeue(again.unwrap_or(AT_REST).clamp(Duration::from_millis(100), AT_REST)))
}

/// The image that agents run: what the manifest says, else what it was made with, else the operator's own.
fn image(ctx: &Context, moe: &MoEDeployment) -> String {
    let pinned = moe.status.as_ref().and_then(|s| s.agent_image.clone());
    moe.spec.image.clone().or(pinned).unwrap_or_else(|| ctx.agent_image.clone())
}

/// All that is not a worker: accounts, the gateway, budgets, policies.
async fn surroundings(
    ctx: &Context,
    of: Of<'_>,
    image: &str,
    views: &[RoleView<'_>],
) -> Result<(), ReconcileError> {
    let (moe, build) = (of.moe, ReconcileError::Build);
    apply(ctx, &access::account(moe)).await?;
    apply(ctx, &access::role(moe).map_err(build)?).await?;
    apply(ctx, &access::binding(moe, of.namespace).map_err(build)?).await?;
    apply(ctx, &guard::network(moe, &ctx.namespace).map_err(build)?).await?;
    for component in views.iter().map(|v| v.role.name()).chain([gateway::COMPONENT]) {
        apply(ctx, &guard::budget(moe, component).map_err(build)?).await?;
    }
    let (identity, front) = (names::gateways(of.namespace, of.name), names::gateway(of.name));
    workers::certify(ctx, of, (&front, gateway::COMPONENT), &identity, names::owner(moe)).await?;
    apply(ctx, &gateway::service(moe).map_err(build)?).await?;
    apply(ctx, &gateway::deployment(moe, of.namespace, image).map_err(build)?).await?;
    Ok(())
}

/// What the gateways say, if it is not too long ago; and whom to ask from now on.
fn heard(ctx: &Context, of: Of<'_>) -> Result<Arc<Page>, ReconcileError> {
    let gateways = of.pods.values().filter(|p| {
        p.labels().get("app.kubernetes.io/component").is_some_and(|c| c == gateway::COMPONENT)
            && !is_leaving(&***p)
    });
    let ip = |p: &Arc<Pod>| p.status.as_ref().and_then(|s| s.pod_ip.clone()).filter(|ip| !ip.is_empty());
    let addresses: Vec<String> = gateways.filter_map(ip).map(|ip| format!("{ip}:{PEER_PORT}")).collect();
    let identity = names::gateways(of.namespace, of.name);
    let tls = ctx.client(of.namespace, of.name)?;
    ctx.pressure.follow(of.namespace, of.name, Gateways { addresses, identity, tls });
    let heard = ctx.pressure.heard(of.namespace, of.name).filter(|h| h.at.elapsed() < STALE);
    Ok(heard.map(|h| h.page).unwrap_or_default())
}

/// The readiness gates of workers.
async fn gates(ctx: &Context, of: Of<'_>, placed: &placement::State) -> Result<(), ReconcileError> {
    for (name, pod) in of.pods {
        if !pod.labels().contains_key(names::ROLE) {
            continue;
        }
        let (is_loaded, why) = placed.gate(name);
        workers::gate(ctx, of, pod, is_loaded, why).await?;
    }
    Ok(())
}

/// Certificates of pods that are neither there nor on record.
async fn revoke(ctx: &Context, of: Of<'_>) -> Result<(), ReconcileError> {
    let mut kept: BTreeSet<String> = of.pods.keys().map(|n| names::certificate(n)).collect();
    kept.insert(names::certificate(&names::gateway(of.name)));
    for role in Role::ALL {
        let name = names::scaler(of.name, role);
        let scaler = ctx.scalers.newest(ctx.stores.scaler(of.namespace, &name), of.namespace, &name);
        let records = scaler.and_then(|s| s.status).map(|s| s.pods).unwrap_or_default();
        kept.extend(records.iter().map(|r| names::certificate(&r.name)));
    }
    Ok(workers::revoke(ctx, of, &kept).await?)
}

/// The status, and an event when its reason changes.
async fn say(
    ctx: &Context,
    of: Of<'_>,
    (image, views): (&str, &[RoleView<'_>]),
    states: &[(Role, RoleState)],
    placed: &placement::State,
    page: &Page,
) -> Result<(), ReconcileError> {
    let front =
        ctx.stores.gateways.get(&ObjectRef::<Deployment>::new(&names::gateway(of.name)).within(of.namespace));
    let gateways_ready = front.and_then(|d| d.status.as_ref()?.ready_replicas).unwrap_or(0);
    let sum = |f: fn(&RoleState) -> i32| states.iter().map(|(_, s)| f(s)).sum();
    let ranks = of.pods.iter().filter(|(_, p)| {
        let role = p.labels().get(names::ROLE);
        is_ready(p) && views.iter().any(|v| is_rank(v.role) && role.is_some_and(|r| r == v.role.name()))
    });
    let troubles: Vec<(String, String)> = of
        .pods
        .iter()
        .filter(|(_, p)| !is_leaving(&***p))
        .filter_map(|(name, p)| status::trouble(name, p))
        .chain(page.workers.iter().filter_map(|w| {
            let member = w.member.as_ref()?;
            let why = w.failure.clone().or_else(|| member.problem.clone())?;
            Some(("WorkerFails".to_owned(), format!("{}: {why}", member.name)))
        }))
        .collect();
    let facts = status::Facts {
        generation: of.moe.metadata.generation,
        layout: of.moe.spec.effective_layout(),
        image,
        workers: Counts { desired: sum(|s| s.replicas), ready: sum(|s| s.ready) },
        ranks_ready: i32::try_from(ranks.count()).unwrap_or(i32::MAX),
        gateways: Counts { desired: of.moe.spec.gateway.replicas, ready: gateways_ready },
        units: placed.units,
        placement_generation: placed.generation,
        is_settled: placed.is_settled,
        problem: placed.problem.as_ref(),
        troubles: &troubles,
        ignored: states.iter().find_map(|(_, s)| s.ignored.clone()),
        cohort: FIRST_COHORT,
        numerics: page.workers.iter().find_map(|w| w.member.as_ref()?.numerics.clone()),
        pressure: summary(page),
        now: of.now,
    };
    let status = status::status(&facts, of.moe.status.as_ref());
    if of.moe.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let reason = |s: &sluice_crds::MoEDeploymentStatus, kind: &str| {
        s.conditions
            .iter()
            .find(|c| c.type_ == kind)
            .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
    };
    for kind in ["Ready", "Degraded"] {
        let before = of.moe.status.as_ref().and_then(|s| reason(s, kind));
        let Some((now, why, note)) = reason(&status, kind) else { continue };
        let is_news = before.is_none_or(|(s, r, _)| (&s, &r) != (&now, &why));
        let is_bad = (kind == "Degraded") == (now == "True");
        if !is_news || (kind == "Degraded" && now == "False") {
            continue;
        }
        let type_ = if is_bad && kind == "Degraded" { EventType::Warning } else { EventType::Normal };
        let event =
            Event { type_, reason: why, note: Some(note), action: "Reconcile".into(), secondary: None };
        if let Err(e) = ctx.recorder.publish(&event, &of.moe.object_ref(&())).await {
            tracing::debug!("an event is lost: {e}");
        }
    }
    let patch = json!({ "status": status });
    ctx.writer.patch::<MoEDeployment>((of.namespace, of.name), Some("status"), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Coarse, so that it does not change every second.
fn summary(page: &Page) -> Option<PressureSummary> {
    let ranks: Vec<_> = page.workers.iter().map(|w| w.kv_pages).filter(|k| k.total > 0).collect();
    if page.workers.is_empty() {
        return None;
    }
    let (used, total) =
        ranks.iter().fold((0_u64, 0_u64), |(u, t), k| (u + u64::from(k.used), t + u64::from(k.total)));
    let percent = (used * 10).checked_div(total).unwrap_or(0) * 10;
    let waiting = page.front.map_or(0, |f| f.waiting + f.waiting_replays);
    let coarse = if waiting < 10 { waiting } else { waiting.next_power_of_two() };
    Some(PressureSummary {
        kv_used_percent: i32::try_from(percent.min(100)).unwrap_or(100),
        waiting_requests: i32::try_from(coarse).unwrap_or(i32::MAX),
    })
}

fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

/// What is not placed, in words for pods.
pub fn waits(problem: Option<&Problem>) -> &'static str {
    match problem {
        Some(Problem::Unknown | Problem::NoWorker) => "the placement waits for workers",
        Some(Problem::Different(_) | Problem::Unplaceable(_)) => "the experts cannot be placed",
        None => "experts are loading",
    }
}
