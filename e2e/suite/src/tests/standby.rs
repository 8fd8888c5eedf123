//! Two operators: both are Ready, one leads; `helm test` says that it works.

use crate::install::{CHART, NAMESPACE, RELEASE, values};
use crate::objects::Space;
use anyhow::ensure;
use std::time::Duration;

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let world = space.world;
    let mut flags = vec!["replicas=2"];
    if world.cluster.own.is_some() {
        flags.push("test.image=sluice.local/busybox:1");
    }
    let upgrade = ["upgrade", RELEASE, CHART, "--namespace", NAMESPACE, "--wait", "--timeout=120s"];
    let upgrade = world.tools.helm(upgrade).args(values(world)).args(["--set", &flags.join(",")]);
    upgrade.limit(Duration::from_secs(130)).text().await?;
    let test = world.tools.helm(["test", RELEASE, "--namespace", NAMESPACE, "--timeout=60s"]).text().await?;
    ensure!(test.contains("Succeeded"), "{test}");
    let holder = ["get", "lease", "-n", NAMESPACE, "-o", "jsonpath={.items[*].spec.holderIdentity}"];
    let holder = world.tools.kubectl(holder).text().await?;
    ensure!(holder.starts_with(RELEASE), "nobody leads: {holder:?}");
    // As the quickstart has it, for those that follow.
    let back = ["upgrade", RELEASE, CHART, "--namespace", NAMESPACE, "--wait", "--timeout=120s"];
    world.tools.helm(back).args(values(world)).limit(Duration::from_secs(130)).text().await.map(drop)
}
