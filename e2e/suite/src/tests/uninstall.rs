//! The chart goes while a MoEDeployment is there; what stays is said; a release of another name takes the CRDs over.

use super::manifests;
use crate::install;
use crate::objects::Space;
use anyhow::ensure;
use std::time::Duration;

const KINDS: &str = "pods,services,deployments,secrets,serviceaccounts,roles,rolebindings,networkpolicies,\
                     poddisruptionbudgets,leases,configmaps";

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let world = space.world;
    let notes = world
        .tools
        .helm(["--namespace", install::NAMESPACE, "get", "notes", install::RELEASE])
        .text()
        .await?;
    ensure!(notes.contains("kubectl delete crd"), "the notes don't say how to remove the CRDs: {notes}");
    space.apply(&manifests::tiny("tiny")).await?;
    space.served("tiny", Duration::from_secs(180)).await?;
    install::away(world).await?;
    // Nobody reconciles now: what serves goes on, and its owner is in the API.
    for role in ["attention", "experts", "gateway"] {
        ensure!(!space.role("tiny", role).await?.is_empty(), "the {role} pods went with the operator");
    }
    let finalizers =
        space.kubectl(&["get", "moe", "tiny", "-o", "jsonpath={.metadata.finalizers}"]).text().await?;
    ensure!(finalizers.is_empty(), "nobody is left to take off {finalizers}");
    let left = world.tools.kubectl(["get", KINDS, "-n", install::NAMESPACE, "-o", "name"]).text().await?;
    // The CA, for agents that serve on, and the Lease, which the operator that ends may have written last: both are said
    // on the chart's page.
    let known =
        ["configmap/kube-root-ca.crt", "serviceaccount/default", "lease.coordination.k8s.io/sluice-operator"];
    let left: Vec<_> =
        left.lines().filter(|name| !known.contains(name) && !name.contains("sluice-ca")).collect();
    ensure!(left.is_empty(), "left in {}: {left:?}", install::NAMESPACE);
    let roles =
        ["get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/instance=sluice", "-o", "name"];
    let roles = world.tools.kubectl(roles).text().await?;
    ensure!(roles.trim().is_empty(), "left: {roles}");
    ensure!(owner(space).await? == install::RELEASE, "the CRDs are gone, or someone else's");

    let other =
        ["install", "other", "charts/sluice", "--namespace", install::NAMESPACE, "--wait", "--timeout=120s"];
    let refused = world.tools.helm(other).args(install::values(world)).output().await?;
    ensure!(!refused.ok && refused.stderr.contains("ownership"), "taken over unasked: {}", refused.all());
    world.tools.helm(other).arg("--take-ownership").args(install::values(world)).text().await?;
    ensure!(owner(space).await? == "other", "the CRDs were not taken over");
    // The new operator knows what the old one left.
    space.served("tiny", Duration::from_secs(60)).await?;
    space.gone("tiny", Duration::from_secs(120)).await?;
    let away = ["uninstall", "other", "--namespace", install::NAMESPACE, "--wait", "--timeout=120s"];
    world.tools.helm(away).text().await.map(drop)
}

/// The release that a CRD belongs to.
async fn owner(space: &Space<'_>) -> anyhow::Result<String> {
    let path = "jsonpath={.metadata.annotations.meta\\.helm\\.sh/release-name}";
    space.world.tools.kubectl(["get", "crd", "moedeployments.sluice.dev", "-o", path]).text().await
}
