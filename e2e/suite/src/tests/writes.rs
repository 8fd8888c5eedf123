//! The operator ends before and after each of its writes in turn, and another one goes on from there: the same objects
//! come of it, none twice and none that belongs to nothing. Its pods find no node, so no kubelet has a part in it.

use super::manifests;
use crate::check::until;
use crate::cluster;
use crate::install;
use crate::objects::Space;
use crate::shell::{Group, Run};
use anyhow::{Context, bail, ensure};
use regex::Regex;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::Child;

const NAME: &str = "tiny";
const LIMIT: Duration = Duration::from_secs(60);
/// An operator that has written nothing for so long is done.
const DONE: Duration = Duration::from_secs(6);
const KINDS: &str = "pods,services,deployments,secrets,serviceaccounts,roles,rolebindings,networkpolicies,\
                     poddisruptionbudgets,rolescalers,expertplacements";

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let chart = async |replicas: &str| {
        let target = format!("deployment/{}", install::RELEASE);
        let scale = ["-n", install::NAMESPACE, "scale", &target, replicas];
        space.world.tools.kubectl(scale).text().await
    };
    // The chart's own operator stands aside.
    chart("--replicas=0").await?;
    let shown = all(space).await;
    chart("--replicas=1").await?;
    shown
}

async fn all(space: &Space<'_>) -> anyhow::Result<()> {
    let whole = made(space, None).await?.context("it ended")?;
    ended(space, None).await?;
    let (mut making, mut ending) = (0, 0);
    for at in 1.. {
        let Some(found) = made(space, Some(at)).await? else { break };
        ensure!(found == whole, "after point {at} of making:\n{found:#}\ninstead of\n{whole:#}");
        ended(space, None).await?;
        making = at;
    }
    for at in 1.. {
        made(space, None).await?;
        if !ended(space, Some(at)).await? {
            break;
        }
        ending = at;
    }
    println!("      {making} points while it is made, {ending} while it goes: the same each time");
    // Two writes per object, and each has a point before and one after it.
    ensure!(making > 30 && ending > 3, "so few points?");
    Ok(())
}

/// Makes the deployment by an operator that ends at a point, and by one that does not. What there is then; nothing if
/// there is no such point.
async fn made(space: &Space<'_>, at: Option<u32>) -> anyhow::Result<Option<Value>> {
    let nowhere = "    pod: { nodeSelector: { e2e.sluice.dev/none: none } }\n    replicas: ";
    let front = "  gateway:\n    pod: { nodeSelector: { e2e.sluice.dev/none: none } }\n";
    let manifest = manifests::tiny(NAME).replace("    replicas: ", nowhere) + front;
    space.apply(&manifest).await?;
    let mut is_point = true;
    if let Some(at) = at {
        is_point = crash(space, at, async || settled(space).await.map(drop)).await?;
    }
    let _running = operator(space, None)?;
    let found = settled(space).await?;
    if !is_point {
        ended_by(space, LIMIT).await?;
        return Ok(None);
    }
    Ok(Some(found))
}

/// Deletes the deployment under an operator that ends at a point, and one that does not. Whether there is such a point.
async fn ended(space: &Space<'_>, at: Option<u32>) -> anyhow::Result<bool> {
    space.kubectl(&["delete", "moe", NAME, "--wait=false"]).text().await?;
    let mut is_point = true;
    if let Some(at) = at {
        is_point = crash(space, at, async || ended_by(space, LIMIT).await).await?;
    }
    let _running = operator(space, None)?;
    ended_by(space, LIMIT).await?;
    Ok(is_point)
}

async fn ended_by(space: &Space<'_>, limit: Duration) -> anyhow::Result<()> {
    space.gone(NAME, limit).await
}

/// Runs an operator that ends at a point. False if `done` came true and it had not ended.
async fn crash(
    space: &Space<'_>,
    at: u32,
    done: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let (mut child, _group) = operator(space, Some(at))?;
    let is_done = async {
        let done = done().await;
        tokio::time::sleep(DONE).await;
        done
    };
    tokio::select! {
        status = child.wait() => {
            let status = status?;
            ensure!(status.code() == Some(137), "the operator ended by itself: {status}");
            Ok(true)
        }
        done = is_done => done.map(|()| false),
    }
}

/// Starts an operator of this namespace alone.
fn operator(space: &Space<'_>, crash_at: Option<u32>) -> anyhow::Result<(Child, Group)> {
    let given = std::env::var_os("SLUICE_OPERATOR").map(PathBuf::from);
    let program = given.unwrap_or_else(|| cluster::top().join("target/release/sluice-operator"));
    if !program.exists() {
        bail!("there is no {}: SLUICE_OPERATOR says where the operator is", program.display());
    }
    let own = space.namespace.as_str();
    // The same identity each time: the lease of the one before is its own.
    let flags = ["run", "--agent-image=sluice.local/agent:dev", "--identity=writes", "--listen=127.0.0.1:0"];
    let run = Run::new(std::path::absolute(program)?).args(flags);
    let run = run.args(["--namespace", own, "--own-namespace", own]);
    let run = run.env("KUBECONFIG", &space.world.tools.kubeconfig);
    crash_at.into_iter().fold(run, |run, at| run.env("SLUICE_CRASH_AT", at.to_string())).start()
}

/// The objects, once they do not change any more.
async fn settled(space: &Space<'_>) -> anyhow::Result<Value> {
    let mut last = (Value::Null, tokio::time::Instant::now());
    until("nothing changes any more", LIMIT, async || {
        let now = objects(space).await?;
        if now != last.0 {
            last = (now, tokio::time::Instant::now());
        }
        // The status comes last.
        let is_said = last.0.to_string().contains("WaitingForWorkers");
        Ok((is_said && last.1.elapsed() > Duration::from_secs(2)).then(|| last.0.clone()))
    })
    .await
}

/// All objects of the deployment, less what differs each time.
async fn objects(space: &Space<'_>) -> anyhow::Result<Value> {
    let label = format!("sluice.dev/deployment={NAME}");
    let text = space.kubectl(&["get", KINDS, "-l", &label, "-o", "json"]).text().await?;
    let moe = space.kubectl(&["get", "moe", NAME, "-o", "json"]).text().await?;
    let mut list: Value = serde_json::from_str(&text)?;
    let all = list["items"].as_array_mut().context("no list")?;
    all.push(serde_json::from_str(&moe)?);
    // The gateway's pods are made by its Deployment.
    all.retain(|o| o["kind"] != "Pod" || o["metadata"]["labels"]["app.kubernetes.io/component"] != "gateway");
    let names =
        Regex::new(&format!("{NAME}-(attention|experts)-[a-z0-9]{{5}}\\b|kube-api-access-[a-z0-9]+"))?;
    let mut lines: Vec<String> =
        all.iter().map(|o| names.replace_all(&bare(o).to_string(), "${1}-*").into()).collect();
    lines.sort();
    Ok(lines.into_iter().map(Value::from).collect())
}

/// An object, less what the API server, the clock and other controllers write.
fn bare(object: &Value) -> Value {
    let (kind, meta) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
    let owners = meta["ownerReferences"].as_array().into_iter().flatten();
    let owners: Vec<Value> = owners.map(|o| json!([o["kind"], o["name"]])).collect();
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let pods = object["status"]["pods"].as_array().into_iter().flatten();
    let content = match kind {
        // Drawn anew each time.
        "Secret" => object["data"].as_object().map(|d| d.keys().cloned().collect()).unwrap_or_default(),
        // Its generations begin at the clock.
        "ExpertPlacement" => json!([object["spec"]["workers"], object["spec"]["units"]]),
        "Service" => object["spec"]["ports"].clone(),
        _ => object["spec"].clone(),
    };
    let said = match kind {
        "MoEDeployment" => conditions.map(|c| json!([c["type"], c["status"], c["reason"]])).collect(),
        "RoleScaler" => pods.map(|p| json!([p["name"], p["phase"], p["failures"]])).collect(),
        _ => vec![],
    };
    json!([kind, meta["name"], meta["labels"], meta["finalizers"], owners, content, said])
}
