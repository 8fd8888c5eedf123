//! `kubectl scale` of a role, up and down, while answers stream.

use super::manifests;
use crate::chat::Streams;
use crate::objects::Space;
use anyhow::ensure;
use std::time::Duration;

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    space.apply(&manifests::tiny("tiny")).await?;
    space.served("tiny", Duration::from_secs(180)).await?;
    let streams = Streams::begin(space, "tiny", 32).await?;
    for (role, steps) in [("experts", [4, 2]), ("attention", [3, 1])] {
        for count in steps {
            let replicas = format!("--replicas={count}");
            space.kubectl(&["scale", &format!("rsc/tiny-{role}"), &replicas]).text().await?;
            space.ready("tiny", role, count, Duration::from_secs(120)).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }
    streams.end(20).await?;
    // The scaler's number is the truth from now on; the manifest, applied again unchanged, does not take it back.
    space.kubectl(&["scale", "rsc/tiny-experts", "--replicas=3"]).text().await?;
    space.ready("tiny", "experts", 3, Duration::from_secs(120)).await?;
    space.apply(&manifests::tiny("tiny")).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let pods = space.role("tiny", "experts").await?.len();
    ensure!(pods == 3, "applying the same manifest again made 3 pods {pods}");
    space.gone("tiny", Duration::from_secs(90)).await
}
