//! Every pod is admitted where the Pod Security level `restricted` is enforced; the suite runs in such namespaces.

use super::manifests;
use crate::install;
use crate::objects::{Space, is_ready};
use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::ResourceExt;
use std::time::Duration;

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    // The level is enforced at all: a plain pod is refused.
    let plain = ["run", "plain", "--image=sluice.local/busybox:1", "--dry-run=server"];
    let refused = space.kubectl(&plain).output().await?;
    ensure!(!refused.ok && refused.stderr.contains("violates PodSecurity"), "taken: {}", refused.all());
    space.apply(&manifests::tiny("tiny")).await?;
    space.served("tiny", Duration::from_secs(180)).await?;
    for (role, count) in [("attention", 1), ("experts", 2), ("gateway", 1)] {
        space.ready("tiny", role, count, Duration::from_secs(30)).await?;
    }
    let operators: Api<Pod> = Api::namespaced(space.world.client.clone(), install::NAMESPACE);
    let (own, theirs) =
        (space.pods().list(&Default::default()).await?, operators.list(&Default::default()).await?);
    for pod in own.iter().chain(&theirs) {
        ensure!(is_ready(pod), "{} is not Ready", pod.name_any());
        hardened(pod)?;
    }
    space.gone("tiny", Duration::from_secs(90)).await
}

/// More than the level asks: a root that can't be written to.
fn hardened(pod: &Pod) -> anyhow::Result<()> {
    let name = pod.name_any();
    let Some(spec) = &pod.spec else { anyhow::bail!("{name} has no spec") };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let root = container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem);
        ensure!(root == Some(true), "{name}: the root of {} can be written to", container.name);
    }
    Ok(())
}
