//! The end of a deployment: its gateway first, so that what runs may finish; then the rows of its placement, so that workers
//! know that nobody needs them; then garbage collection takes the rest.

use crate::build::gateway::COMPONENT;
use crate::context::Context;
use crate::names::{self, FINALIZER};
use crate::placement;
use crate::reconcile::{Of, ReconcileError};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Patch;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use sluice_crds::MoEDeployment;
use std::time::Duration;

/// Gateways have this longer than their own grace period.
const MARGIN: i64 = 30;

/// Deletes the gateway, waits until its pods are gone or their time is over, and lets the deployment go. It makes nothing
/// new, so it works in a namespace that is being deleted.
///
/// # Errors
/// What could not be written.
pub async fn finalize(ctx: &Context, of: Of<'_>) -> Result<Action, ReconcileError> {
    let Some(patch) = let_go(of.moe) else { return Ok(Action::await_change()) };
    ctx.writer.delete::<Deployment>(of.namespace, &names::gateway(of.name)).await?;
    let is_served = of
        .pods
        .values()
        .any(|p| p.labels().get("app.kubernetes.io/component").is_some_and(|c| c == COMPONENT));
    let since = of.moe.metadata.deletion_timestamp.as_ref().map_or(of.now, |t| t.0);
    let waited = of.now.duration_since(since).as_secs();
    let grace: i64 = of.moe.spec.gateway.pod.termination_grace_period_seconds.into();
    if is_served && waited < grace + MARGIN {
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    ctx.pressure.forget(of.namespace, of.name);
    // Nobody asks for experts any more: workers that are told to go need not wait for others to take them over.
    if placement::clear(ctx, of).await? {
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    ctx.writer.patch::<MoEDeployment>((of.namespace, of.name), None, &patch).await?;
    Ok(Action::await_change())
}

/// Puts the operator's finalizer on an object; nothing if it is there.
pub fn held(object: &impl Resource) -> Option<Patch<Value>> {
    if is_held(object) {
        return None;
    }
    let all: Vec<&str> = object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    Some(finalizers(object, &all))
}

/// Takes the operator's finalizer off an object; nothing if it is not there.
pub fn let_go(object: &impl Resource) -> Option<Patch<Value>> {
    if !is_held(object) {
        return None;
    }
    let all = object.finalizers().iter().map(String::as_str);
    let rest: Vec<&str> = all.filter(|f| *f != FINALIZER).collect();
    Some(finalizers(object, &rest))
}

fn is_held(object: &impl Resource) -> bool {
    object.finalizers().iter().any(|f| f == FINALIZER)
}

/// With the version of the object: of two who write at once, one finds out.
fn finalizers(object: &impl Resource, all: &[&str]) -> Patch<Value> {
    let version = object.meta().resource_version.as_ref();
    Patch::Merge(json!({ "metadata": { "finalizers": all, "resourceVersion": version } }))
}
