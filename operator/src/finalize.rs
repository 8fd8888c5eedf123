//! The end of a deployment: its gateway first, so that what runs may finish; then the rows of its placement, so that workers
//! know that nobody needs them; then garbage collection takes the rest.

use crate::build::gateway::COMPONENT;
use crate::context::Context;
use crate::names::{self, FINALIZER};
use crate::placement;
use crate::reconcile::{Of, ReconcileError};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::Patch;
use kube::runtime::controller::Action;
use serde_json::json;
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
    if !of.moe.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Action::await_change());
    }
    ctx.writer.delete::<Deployment>(of.namespace, &names::gateway(of.name)).await?;
    let pods = ctx.stores.pods_of(of.namespace, of.name);
    let is_served =
        pods.values().any(|p| p.labels().get("app.kubernetes.io/component").is_some_and(|c| c == COMPONENT));
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
    let rest: Vec<&String> = of.moe.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    let patch = json!({ "metadata": { "finalizers": rest, "resourceVersion": of.moe.resource_version() } });
    ctx.writer.patch::<MoEDeployment>((of.namespace, of.name), None, &Patch::Merge(patch)).await?;
    Ok(Action::await_change())
}
