//! Manifests that the API takes and that cannot run here: a condition and an event say why, and it serves when the cause is
//! gone.

use super::manifests;
use crate::check::until;
use crate::objects::Space;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::time::Duration;

const NAME: &str = "tiny";
const LIMIT: Duration = Duration::from_secs(120);
const TAINT: &str = "e2e.sluice.dev/kept=for-others:NoSchedule";

/// What is wrong: a part of the example's manifest and what stands there instead, and what is said of it.
struct Case {
    what: &'static str,
    part: (&'static str, &'static str),
    reason: &'static str,
    words: &'static [&'static str],
}

const SOURCE: &str = "      image:\n        reference: sluice.local/tiny-moe:1\n";

const CASES: [Case; 5] = [
    Case {
        what: "no such volume claim",
        part: (SOURCE, "      persistentVolumeClaim: { claimName: absent }\n"),
        reason: "Unschedulable",
        words: &["finds no node", "\"absent\" not found"],
    },
    Case {
        what: "not a model",
        part: (SOURCE, "      image:\n        reference: sluice.local/busybox:1\n"),
        reason: "CrashLoopBackOff",
        words: &["config.json"],
    },
    Case {
        what: "no room",
        part: ("cpu: 100m", "cpu: 500"),
        reason: "Unschedulable",
        words: &["finds no node", "Insufficient cpu"],
    },
    Case {
        what: "too few GPUs",
        part: ("devicesPerPod: 0", "devicesPerPod: 1"),
        reason: "Unschedulable",
        words: &["finds no node", "Insufficient nvidia.com/gpu"],
    },
    Case {
        what: "a taint that is not tolerated",
        part: ("    replicas: ", "    pod: { nodeSelector: { kubernetes.io/hostname: n1 } }\n    replicas: "),
        reason: "Unschedulable",
        words: &["finds no node", "untolerated taint"],
    },
];

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    for case in &CASES {
        one(space, case).await.with_context(|| case.what)?;
    }
    Ok(())
}

async fn one(space: &Space<'_>, case: &Case) -> anyhow::Result<()> {
    let (good, (part, wrong)) = (manifests::tiny(NAME), case.part);
    ensure!(good.contains(part), "the example has no {part:?}");
    let is_tainted = case.what.starts_with("a taint");
    if is_tainted {
        space.world.tools.kubectl(["taint", "node", "n1", TAINT]).text().await?;
    }
    let said = said(space, &good.replace(part, wrong), case).await;
    if is_tainted {
        // The cause is gone; the manifest stays.
        let back = format!("{TAINT}-");
        space.world.tools.kubectl(["taint", "node", "n1", &back]).text().await?;
    } else {
        space.apply(&good).await?;
    }
    said?;
    space.served(NAME, LIMIT).await?;
    until("nothing is said to be wrong any more", LIMIT, async || {
        let degraded = degraded(space).await?;
        Ok((degraded["status"] == "False").then_some(()))
    })
    .await?;
    space.gone(NAME, LIMIT).await
}

async fn said(space: &Space<'_>, manifest: &str, case: &Case) -> anyhow::Result<()> {
    space.apply(manifest).await?;
    until("a condition says why", LIMIT, async || {
        let degraded = degraded(space).await?;
        let message = degraded["message"].as_str().unwrap_or_default();
        let says = degraded["status"] == "True"
            && degraded["reason"] == case.reason
            && case.words.iter().all(|w| message.contains(w));
        ensure!(says, "it says {degraded}");
        Ok(Some(()))
    })
    .await?;
    until("an event says why", LIMIT, async || {
        let events = ["get", "events", "--field-selector", "involvedObject.kind=MoEDeployment,type=Warning"];
        let events = space.kubectl(&events).args(["-o", "jsonpath={.items[*].message}"]).text().await?;
        ensure!(case.words.iter().all(|w| events.contains(w)), "the events say {events:?}");
        Ok(Some(()))
    })
    .await
}

async fn degraded(space: &Space<'_>) -> anyhow::Result<Value> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Degraded\")]}";
    let text = space.kubectl(&["get", "moe", NAME, "-o", path]).text().await?;
    ensure!(!text.is_empty(), "no condition yet");
    Ok(serde_json::from_str(&text)?)
}
