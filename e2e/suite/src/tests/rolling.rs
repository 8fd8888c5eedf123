//! Another image of the same numerics: workers are exchanged one at a time, and the gateway behind its Service.

use super::{faults, manifests};
use crate::check::until;
use crate::objects::{Space, is_ready};
use anyhow::ensure;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use std::time::Duration;

const NAME: &str = "tiny";
/// The image of the agents, and the name that it gets besides.
const IMAGE: [&str; 2] = ["sluice.local/agent:dev", "sluice.local/agent:next"];

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    for node in Api::<Node>::all(space.world.client.clone()).list(&ListParams::default()).await? {
        let tag = ["-a", "/run/containerd/containerd.sock", "-n", "k8s.io", "images", "tag", "--force"];
        let name = node.name_any();
        let verb: Vec<&str> = ["node-sh", &name, "--", "ctr"].into_iter().chain(tag).chain(IMAGE).collect();
        space.world.cluster.verb(&verb).await?;
    }
    // Clients go on while the gateway is exchanged: by the Service.
    let manifest = manifests::tiny(NAME) + "  gateway:\n    service: { type: NodePort }\n";
    faults::under(space, &manifest, async || {
        let patch = json!({ "spec": { "image": IMAGE[1] } }).to_string();
        space.kubectl(&["patch", "moe", NAME, "--type=merge", "-p", &patch]).text().await?;
        until("all pods have the other image", Duration::from_secs(300), async || {
            one_at_a_time(space).await?;
            let mut all = true;
            for (role, count) in [("attention", 1), ("experts", 2), ("gateway", 1)] {
                let pods = space.role(NAME, role).await?;
                all &= pods.len() == count && pods.iter().all(|p| is_ready(p) && image(p) == Some(IMAGE[1]));
            }
            Ok(all.then_some(()))
        })
        .await
    })
    .await
}

/// Of the workers there should be, no two are missing.
async fn one_at_a_time(space: &Space<'_>) -> anyhow::Result<()> {
    let mut ready = 0;
    for role in ["attention", "experts"] {
        ready += space.role(NAME, role).await?.iter().filter(|p| is_ready(p)).count();
    }
    ensure!(ready >= 2, "only {ready} of 3 workers are Ready");
    Ok(())
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.containers.first()).and_then(|c| c.image.as_deref())
}
