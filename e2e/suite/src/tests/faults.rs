//! Something goes wrong while answers stream: none of them may fail or be another one.

use super::manifests;
use crate::chat::Streams;
use crate::check::until;
use crate::install;
use crate::objects::{Space, is_ready};
use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::time::Duration;
use tokio::time::sleep;

const NAME: &str = "tiny";
const LIMIT: Duration = Duration::from_secs(180);
const CLIENTS: usize = 32;

/// What goes on before and after, so that there is something to compare.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(6);

/// The example serves, a fault comes and goes, and the example goes.
async fn through(space: &Space<'_>, fault: impl AsyncFnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    under(space, &manifests::tiny(NAME), fault).await
}

/// The same with another manifest of as many pods.
pub(super) async fn under(
    space: &Space<'_>,
    manifest: &str,
    fault: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    space.apply(manifest).await?;
    space.served(NAME, LIMIT).await?;
    whole(space).await?;
    let streams = Streams::begin(space, NAME, CLIENTS).await?;
    sleep(BEFORE).await;
    fault().await?;
    whole(space).await?;
    sleep(AFTER).await;
    streams.end(CLIENTS).await?;
    space.gone(NAME, LIMIT).await
}

/// Waits until every pod there should be is Ready.
async fn whole(space: &Space<'_>) -> anyhow::Result<()> {
    for (role, count) in [("attention", 1), ("experts", 2), ("gateway", 1)] {
        space.ready(NAME, role, count, LIMIT).await?;
    }
    Ok(())
}

async fn delete(space: &Space<'_>, pod: &str, flags: &[&str]) -> anyhow::Result<()> {
    let delete = space.kubectl(&["delete", "pod", pod]).args(flags);
    delete.limit(Duration::from_secs(330)).text().await?;
    until(&format!("{pod} is gone"), LIMIT, async || {
        Ok(space.pods().get_opt(pod).await?.is_none().then_some(()))
    })
    .await
}

/// One expert pod is gone at once, as with its node; when it is replaced, the other is deleted as a person does.
pub async fn expert(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let pods = space.ready(NAME, "experts", 2, LIMIT).await?;
        delete(space, &pods[0], &["--grace-period=0", "--force"]).await?;
        whole(space).await?;
        sleep(BEFORE).await;
        delete(space, &pods[1], &[]).await
    })
    .await
}

/// The only attention pod is gone at once: what it had under way is computed again on its successor.
pub async fn attention(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let pods = space.ready(NAME, "attention", 1, LIMIT).await?;
        delete(space, &pods[0], &["--grace-period=0", "--force"]).await
    })
    .await
}

/// The operator's pods are gone at once; another one takes the lease, and does what is to be done.
pub async fn operator(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let api: Api<Pod> = Api::namespaced(space.world.client.clone(), install::NAMESPACE);
        let labels = ListParams::default().labels("app.kubernetes.io/name=sluice-operator");
        let old: Vec<String> = api.list(&labels).await?.iter().map(ResourceExt::name_any).collect();
        ensure!(!old.is_empty(), "no operator");
        let flags = ["-n", install::NAMESPACE, "delete", "pod", "--grace-period=0", "--force"];
        space.world.tools.kubectl(flags).args(&old).text().await?;
        // Work that only a new leader can do.
        let pods = space.ready(NAME, "experts", 2, LIMIT).await?;
        delete(space, &pods[0], &["--grace-period=0", "--force"]).await?;
        until("a new operator is Ready", LIMIT, async || {
            let now = api.list(&labels).await?;
            Ok(now.iter().any(|pod| is_ready(pod) && !old.contains(&pod.name_any())).then_some(()))
        })
        .await
    })
    .await
}

/// A node with an expert pod, and without the gateway, whose streams would go with it.
async fn node(space: &Space<'_>) -> anyhow::Result<String> {
    let on = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let gateway = space.role(NAME, "gateway").await?;
    let front = gateway.first().and_then(on).context("the gateway has no node")?;
    let experts = space.role(NAME, "experts").await?;
    experts.iter().filter_map(on).find(|node| *node != front).context("all pods are on one node")
}

/// `kubectl drain`, and the node comes back.
pub async fn drain(space: &Space<'_>) -> anyhow::Result<()> {
    drained(space, &manifests::tiny(NAME)).await
}

/// The same where each expert is on one of the pods alone: what leaves is handed over first.
pub async fn only_replica(space: &Space<'_>) -> anyhow::Result<()> {
    let manifest = manifests::tiny(NAME).replace("minReplicas: 2", "minReplicas: 1");
    drained(space, &manifest).await
}

async fn drained(space: &Space<'_>, manifest: &str) -> anyhow::Result<()> {
    under(space, manifest, async || {
        let node = node(space).await?;
        let flags = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"];
        let drained = space.world.tools.kubectl(flags).limit(Duration::from_secs(250)).text().await;
        let back = space.world.tools.kubectl(["uncordon", &node]).text().await;
        drained.and(back).map(drop)
    })
    .await
}

/// A node's containerd is killed: its pods serve on, and are the same afterwards.
pub async fn containerd(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let before = uids(space).await?;
        let node = node(space).await?;
        space.world.cluster.verb(&["kill-containerd", &node]).await?;
        sleep(Duration::from_secs(15)).await;
        space.world.cluster.verb(&["start-containerd", &node]).await?;
        ensure!(uids(space).await? == before, "other pods than before");
        Ok(())
    })
    .await
}

/// A node loses its power and comes back.
pub async fn power(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let node = node(space).await?;
        space.world.cluster.verb(&["node-stop", &node]).await?;
        // Long enough that its pods are given up and made elsewhere.
        sleep(Duration::from_secs(60)).await;
        let elsewhere = whole(space).await;
        space.world.cluster.verb(&["node-start", &node]).await?;
        elsewhere
    })
    .await
}

/// A node is cut off for so long that its pods are made elsewhere, and comes back with the old ones.
pub async fn cut(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let node = node(space).await?;
        space.world.cluster.verb(&["link", &node, "down"]).await?;
        sleep(Duration::from_secs(100)).await;
        let elsewhere = whole(space).await;
        space.world.cluster.verb(&["link", &node, "up"]).await?;
        elsewhere?;
        // The kubelet hears that they are deleted.
        until("the old pods are gone", LIMIT, async || {
            let all = space.pods().list(&ListParams::default()).await?;
            Ok(all.iter().all(|p| p.metadata.deletion_timestamp.is_none()).then_some(()))
        })
        .await
    })
    .await
}

/// The API server is away for a minute; meanwhile an agent's container is restarted.
pub async fn apiserver(space: &Space<'_>) -> anyhow::Result<()> {
    through(space, async || {
        let node = node(space).await?;
        let cluster = &space.world.cluster;
        cluster.verb(&["kill-apiserver"]).await?;
        sleep(Duration::from_secs(10)).await;
        let kill = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/usr/local/bin/sluice-agent experts' && kill -9 ${p#/proc/} && exit 0; done; exit 1";
        let killed = cluster.verb(&["node-sh", &node, "--", "sh", "-c", kill]).await.context("no agent on the node");
        sleep(Duration::from_secs(50)).await;
        cluster.verb(&["start-apiserver"]).await?;
        killed.map(drop)
    })
    .await
}

async fn uids(space: &Space<'_>) -> anyhow::Result<Vec<String>> {
    let pods = space.pods().list(&ListParams::default()).await?;
    let mut uids: Vec<_> = pods.iter().filter_map(ResourceExt::uid).collect();
    uids.sort();
    Ok(uids)
}

/// A newer chart with changed CRDs: the operator is another one, and no agent is touched.
pub async fn upgrade(space: &Space<'_>) -> anyhow::Result<()> {
    let tools = &space.world.tools;
    let dir = space.world.out.join("chart");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&space.world.out)?;
    tools.run("cp").arg("-a").arg("charts/sluice").arg(&dir).text().await?;
    let file = dir.join("files/crds/sluice.dev_rolescalers.yaml");
    let (old, new) = ("How many pods there should be.", "How many pods there are to be.");
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains(old), "the CRD says something else");
    std::fs::write(&file, text.replace(old, new))?;
    through(space, async || {
        let before = uids(space).await?;
        let chart = dir.display().to_string();
        for (chart, says) in [(chart.as_str(), new), (install::CHART, old)] {
            let flags = ["upgrade", install::RELEASE, chart, "--namespace", install::NAMESPACE];
            // What rolls the operator's pods.
            let annotation = format!("podAnnotations.says={says}");
            let upgrade = tools.helm(flags).args(["--wait", "--timeout=120s", "--set-string", &annotation]);
            let upgrade = upgrade.args(install::values(space.world));
            upgrade.limit(Duration::from_secs(130)).text().await?;
            let explained = tools.kubectl(["explain", "rsc.spec.replicas"]).text().await?;
            ensure!(explained.contains(says), "the CRD was not upgraded: {explained}");
            sleep(BEFORE).await;
        }
        ensure!(uids(space).await? == before, "agents were rolled");
        Ok(())
    })
    .await
}
