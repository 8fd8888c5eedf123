//! Manifests that the API takes and that cannot run here: a condition and an event say why, and it serves when the cause is
//! gone.

use super::manifests;
use crate::check::until;
use crate::cluster::top;
use crate::objects::Space;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

const NAME: &str = "tiny";
const LIMIT: Duration = Duration::from_secs(120);
const TAINT: &str = "e2e.sluice.dev/kept=for-others:NoSchedule";
const SOURCE: &str = "      image:\n        reference: sluice.local/tiny-moe:1\n";
const CLAIM: &str = "      persistentVolumeClaim: { claimName: model }\n";

/// What is wrong.
#[derive(Clone, Copy)]
enum Cause {
    /// A part of the example's manifest, and what stands there instead.
    Manifest(&'static str, &'static str),
    /// There is no such claim.
    Claim,
    /// The claim's volume has no model in it yet.
    Model,
    /// A node is kept for others.
    Taint,
}

struct Case {
    what: &'static str,
    cause: Cause,
    reason: &'static str,
    words: &'static [&'static str],
}

const CASES: [Case; 5] = [
    Case {
        what: "no such volume claim",
        cause: Cause::Claim,
        reason: "Unschedulable",
        words: &["finds no node", "\"model\" not found"],
    },
    Case { what: "not a model", cause: Cause::Model, reason: "CrashLoopBackOff", words: &["config.json"] },
    Case {
        what: "no room",
        cause: Cause::Manifest("cpu: 100m", "cpu: 500"),
        reason: "Unschedulable",
        words: &["finds no node", "Insufficient cpu"],
    },
    Case {
        what: "too few GPUs",
        cause: Cause::Manifest("devicesPerPod: 0", "devicesPerPod: 1"),
        reason: "Unschedulable",
        words: &["finds no node", "Insufficient nvidia.com/gpu"],
    },
    Case {
        what: "a taint that is not tolerated",
        cause: Cause::Taint,
        reason: "Unschedulable",
        words: &["finds no node", "untolerated taint"],
    },
];

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    for case in &CASES {
        let shown = one(space, case).await.with_context(|| case.what);
        // Neither is of the namespace.
        if let Cause::Taint = case.cause {
            let off = format!("{TAINT}-");
            space.world.tools.kubectl(["taint", "node", "n1", &off]).output().await?;
        }
        space.world.tools.kubectl(["delete", "pv", "e2e-model", "--ignore-not-found"]).text().await?;
        shown?;
    }
    Ok(())
}

async fn one(space: &Space<'_>, case: &Case) -> anyhow::Result<()> {
    let good = manifests::tiny(NAME);
    let pinned = "    pod: { nodeSelector: { kubernetes.io/hostname: n1 } }\n    replicas: ";
    let wrong = match case.cause {
        Cause::Manifest(part, instead) => good.replace(part, instead),
        Cause::Claim | Cause::Model => good.replace(SOURCE, CLAIM),
        Cause::Taint => good.replace("    replicas: ", pinned),
    };
    ensure!(wrong != good, "the example is another one by now");
    let model = top().join("models/tiny-moe");
    let empty = space.world.out.join("no-model");
    let _ = std::fs::remove_dir_all(&empty);
    std::fs::create_dir_all(&empty)?;
    match case.cause {
        Cause::Manifest(..) | Cause::Claim => {}
        Cause::Model => claim(space, &empty).await?,
        Cause::Taint => drop(space.world.tools.kubectl(["taint", "node", "n1", TAINT]).text().await?),
    }
    said(space, &wrong, case).await?;
    match case.cause {
        Cause::Manifest(..) => space.apply(&good).await?,
        Cause::Claim => claim(space, &model).await?,
        Cause::Model => {
            let copy = space.world.tools.run("cp").arg("-r").arg(model.join(".")).arg(&empty);
            copy.text().await?;
        }
        Cause::Taint => {
            let off = format!("{TAINT}-");
            space.world.tools.kubectl(["taint", "node", "n1", &off]).text().await?;
        }
    }
    // A container that has failed a few times is not started again at once.
    space.served(NAME, 2 * LIMIT).await?;
    until("nothing is said to be wrong any more", LIMIT, async || {
        let degraded = degraded(space).await?;
        Ok((degraded["status"] == "False").then_some(()))
    })
    .await?;
    space.gone(NAME, LIMIT).await?;
    let claims = ["delete", "persistentvolumeclaim", "model", "--ignore-not-found"];
    space.kubectl(&claims).text().await.map(drop)
}

/// A volume over a directory, which all nodes have here, and a claim of it.
async fn claim(space: &Space<'_>, directory: &std::path::Path) -> anyhow::Result<()> {
    let directory: PathBuf = directory.canonicalize()?;
    let namespace = &space.namespace;
    let path = directory.display();
    space
        .apply(&format!(
            "apiVersion: v1
kind: PersistentVolume
metadata: {{ name: e2e-model }}
spec:
  accessModes: [ReadOnlyMany]
  capacity: {{ storage: 1Gi }}
  hostPath: {{ path: {path} }}
  storageClassName: \"\"
  claimRef: {{ namespace: {namespace}, name: model }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: model }}
spec:
  accessModes: [ReadOnlyMany]
  resources: {{ requests: {{ storage: 1Gi }} }}
  storageClassName: \"\"
  volumeName: e2e-model
"
        ))
        .await
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
