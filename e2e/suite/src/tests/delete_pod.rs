//! An expert pod is deleted while answers stream.

use super::manifests;
use crate::chat::Streams;
use crate::objects::Space;
use anyhow::ensure;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    space.apply(&manifests::tiny("tiny")).await?;
    space.served("tiny", Duration::from_secs(180)).await?;
    let before = space.ready("tiny", "experts", 2, LIMIT).await?;
    let streams = Streams::begin(space, "tiny", 8).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Gone at once, as its node's power would take it; then, with time to hand over, as a person would delete it.
    for (victim, how) in [(&before[0], "--grace-period=0"), (&before[1], "--grace-period=300")] {
        let force = if how == "--grace-period=0" { "--force" } else { "--wait=true" };
        space.kubectl(&["delete", "pod", victim, how, force]).limit(Duration::from_secs(330)).text().await?;
        let now = space.ready("tiny", "experts", 2, LIMIT).await?;
        ensure!(!now.contains(victim), "{victim} is still there");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    streams.end(20).await?;
    space.gone("tiny", Duration::from_secs(90)).await
}
