//! The chart: installed as the quickstart says, and taken away.

use crate::objects;
use crate::world::World;
use std::time::Duration;

pub const RELEASE: &str = "sluice";
pub const NAMESPACE: &str = "sluice-system";
pub const CHART: &str = "charts/sluice";

/// Whether the release is there.
///
/// # Errors
/// Helm's.
pub async fn there(world: &World) -> anyhow::Result<bool> {
    let list = world.tools.helm(["list", "--all-namespaces", "--short"]).text().await?;
    Ok(list.lines().any(|name| name == RELEASE))
}

/// The flags of the values that the command line names.
pub fn values(world: &World) -> Vec<String> {
    world.values.iter().flat_map(|file| ["--values".into(), file.display().to_string()]).collect()
}

/// Installs the chart, if it is not there: its CRDs can be used then, whether or not the operator runs.
///
/// # Errors
/// Helm's.
pub async fn chart(world: &World) -> anyhow::Result<()> {
    if there(world).await? {
        return Ok(());
    }
    objects::restricted(world, NAMESPACE).await?;
    // CRDs may be left of another release.
    let flags = ["install", RELEASE, CHART, "--namespace", NAMESPACE, "--take-ownership"];
    world.tools.helm(flags).args(values(world)).text().await.map(drop)
}

/// Installs the chart, if it is not there, and waits for the operator.
///
/// # Errors
/// Helm's, or the operator does not come up.
pub async fn operator(world: &World) -> anyhow::Result<()> {
    chart(world).await?;
    let target = format!("deployment/{RELEASE}");
    let wait = ["--namespace", NAMESPACE, "rollout", "status", &target, "--timeout=120s"];
    world.tools.kubectl(wait).limit(Duration::from_secs(130)).text().await.map(drop)
}

/// Uninstalls the chart, if it is there. Its CRDs stay.
///
/// # Errors
/// Helm's.
pub async fn away(world: &World) -> anyhow::Result<()> {
    if there(world).await? {
        let flags = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=120s"];
        world.tools.helm(flags).limit(Duration::from_secs(130)).text().await?;
    }
    Ok(())
}
