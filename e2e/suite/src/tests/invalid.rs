//! Manifests that are wrong are refused at admission, by a message that says what to write. A person sees what is asserted
//! here: kubectl's own output.

use crate::objects::Space;
use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

/// A change to the object, by JSON pointer (`null` removes), and what is said of it.
struct Case(&'static str, Vec<(&'static str, Value)>, &'static str);

fn deployment() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "MoEDeployment", "metadata": { "name": "base" },
        "spec": {
            "model": { "source": { "hostPath": { "path": "/models/tiny" } } },
            "attention": { "replicas": 0, "devicesPerPod": 0 },
            "experts": { "replicas": 0, "devicesPerPod": 0 },
        },
    })
}

fn scaler() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "RoleScaler", "metadata": { "name": "base-experts" },
        "spec": { "deployment": "base", "role": "experts", "replicas": 2 },
    })
}

fn policy() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "MoEAutoscalingPolicy", "metadata": { "name": "base" },
        "spec": {
            "deployment": "base",
            "attention": {
                "minReplicas": 1, "maxReplicas": 4, "metrics": [{ "type": "KvUse", "targetPercent": 75 }],
            },
        },
    })
}

fn placement() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "ExpertPlacement", "metadata": { "name": "base-rows" },
        "spec": {
            "deployment": "base", "cohort": "a1", "segments": 4, "generation": 1, "blocks": [0, 2],
            "units": [{ "worker": "base-experts-0", "block": 1, "expert": 0, "slice": [0, 4] }],
        },
    })
}

fn of_deployments() -> Vec<Case> {
    let source = |value: Value| vec![("/spec/model/source", value)];
    let pod = |value: Value| vec![("/spec/experts/pod", value)];
    vec![
        Case(
            "no source",
            source(json!({})),
            "exactly one of persistentVolumeClaim, hostPath, image and huggingFace",
        ),
        Case(
            "two sources",
            vec![("/spec/model/source/image", json!({ "reference": "a" }))],
            "exactly one of persistentVolumeClaim, hostPath, image and huggingFace must be given",
        ),
        Case("no model", vec![("/spec/model", Value::Null)], "spec.model: Required value"),
        Case("a path upwards", source(json!({ "hostPath": { "path": "/a/../b" } })), "must not contain '..'"),
        Case(
            "a path that is not absolute",
            source(json!({ "hostPath": { "path": "models" } })),
            "should match '^/'",
        ),
        Case("no owner", source(json!({ "huggingFace": { "repository": "mixtral" } })), "should match"),
        Case(
            "a type of weights",
            vec![("/spec/model/dtype", json!("Q4"))],
            "supported values: \"Checkpoint\", \"BF16\"",
        ),
        Case("a misspelt field", vec![("/spec/expert", json!({}))], "unknown field \"spec.expert\""),
        Case("a long name", vec![("/metadata/name", json!("n".repeat(41)))], "must not exceed 40 characters"),
        Case(
            "too many roles",
            vec![("/spec/hybrid", json!({}))],
            "give either hybrid, or attention and experts",
        ),
        Case(
            "half of the roles",
            vec![("/spec/experts", Value::Null)],
            "attention and experts are given together",
        ),
        Case(
            "roles of another layout",
            vec![("/spec/layout", json!("Hybrid"))],
            "has no roles attention and experts",
        ),
        Case("a negative number", vec![("/spec/experts/replicas", json!(-1))], "greater than or equal to 0"),
        Case("a number as text", vec![("/spec/experts/replicas", json!("two"))], "must be of type integer"),
        Case(
            "too many workers",
            vec![("/spec/experts", json!({ "replicas": 1024, "devicesPerPod": 4 }))],
            "2048 workers",
        ),
        Case(
            "a barrier for one role",
            vec![("/spec/experts/scheduler", json!({ "policy": "Sync" }))],
            "both roles must have it, or none",
        ),
        Case(
            "a share of replicas",
            vec![("/spec/placement", json!({ "minReplicas": 9 }))],
            "minReplicas must not exceed maxReplicas",
        ),
        Case("three segments", vec![("/spec/placement", json!({ "segments": 3 }))], "segments"),
        Case(
            "more slices than segments",
            vec![("/spec/placement", json!({ "segments": 2, "slices": 4 }))],
            "an expert cannot be held in more slices than it has segments",
        ),
        Case(
            "pins without pins",
            vec![("/spec/placement", json!({ "policy": "Pinned" }))],
            "needs at least one",
        ),
        Case(
            "a port of another type",
            vec![("/spec/gateway", json!({ "service": { "nodePort": 30080 } }))],
            "nodePort is for the types NodePort and LoadBalancer",
        ),
        Case(
            "the operator's variables",
            pod(json!({ "env": [{ "name": "SLUICE_NAME", "value": "x" }] })),
            "variables that begin with SLUICE_ are the operator's own",
        ),
        Case(
            "a mount of nothing",
            pod(json!({ "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }] })),
            "every volumeMount must name one of volumes",
        ),
        Case(
            "a toleration",
            pod(json!({ "tolerations": [{ "key": "a", "operator": "Exists", "value": "b" }] })),
            "value is for the operator Equal",
        ),
        Case(
            "an amount",
            vec![("/spec/experts/resources", json!({ "requests": { "memory": "many" } }))],
            "memory",
        ),
        Case(
            "two sizes of a cache",
            vec![("/spec/attention/kvCache", json!({ "tokens": 1024, "memory": "1Gi" }))],
            "give the size either in tokens or in memory",
        ),
    ]
}

fn of_others() -> Vec<(Value, Case)> {
    let metric = |value: Value| vec![("/spec/attention/metrics", json!([value]))];
    vec![
        (
            scaler(),
            Case("another name", vec![("/metadata/name", json!("mine"))], "its name must be DEPLOYMENT-ROLE"),
        ),
        (scaler(), Case("no number", vec![("/spec/replicas", Value::Null)], "spec.replicas: Required value")),
        (
            scaler(),
            Case("no such role", vec![("/spec/role", json!("router"))], "supported values: \"attention\""),
        ),
        (
            policy(),
            Case(
                "nothing to scale",
                vec![("/spec/attention", Value::Null)],
                "give the roles that are scaled",
            ),
        ),
        (
            policy(),
            Case("bounds", vec![("/spec/attention/minReplicas", json!(5))], "must not exceed maxReplicas"),
        ),
        (
            policy(),
            Case("a metric", metric(json!({ "type": "Latency" })), "supported values: \"QueuePressure\""),
        ),
        (placement(), Case("no rows", vec![("/spec/blocks", Value::Null)], "units need blocks")),
        (
            placement(),
            Case(
                "a row elsewhere",
                vec![("/spec/units/0/block", json!(2))],
                "every unit must be of one of blocks",
            ),
        ),
    ]
}

/// Changes of what is there.
fn of_updates() -> Vec<(Value, Case)> {
    vec![
        (
            deployment(),
            Case(
                "another model",
                vec![("/spec/model/source/hostPath/path", json!("/b"))],
                "the model source is immutable",
            ),
        ),
        (deployment(), Case("another type", vec![("/spec/model/dtype", json!("F32"))], "dtype is immutable")),
        (
            placement(),
            Case(
                "a row, silently",
                vec![("/spec/units", json!([]))],
                "generation must rise with every change",
            ),
        ),
    ]
}

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    for object in [deployment(), scaler(), policy(), placement()] {
        // What cases are made from is taken.
        create(space, &object).await.with_context(|| object["kind"].to_string())?;
    }
    for object in [deployment(), placement()] {
        space.apply(&object.to_string()).await?;
    }
    let mut cases: Vec<_> = of_deployments().into_iter().map(|case| ("create", deployment(), case)).collect();
    cases.extend(of_others().into_iter().map(|(base, case)| ("create", base, case)));
    cases.extend(of_updates().into_iter().map(|(base, case)| ("replace", base, case)));
    ensure!(cases.len() >= 30, "only {} cases", cases.len());
    let count = cases.len();
    let wrong: Vec<String> = stream::iter(cases)
        .map(async |(verb, base, case)| refused(space, verb, base, &case).await)
        .buffer_unordered(4)
        .try_filter_map(async |wrong| Ok(wrong))
        .try_collect()
        .await?;
    space.kubectl(&["delete", "moe,xp", "--all", "--timeout=60s"]).text().await?;
    ensure!(
        wrong.is_empty(),
        "{} of {count} are not refused as they should be:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("      {count} manifests refused");
    Ok(())
}

async fn create(space: &Space<'_>, object: &Value) -> anyhow::Result<()> {
    let create = space.kubectl(&["create", "--dry-run=server", "-f", "-"]);
    create.input(object.to_string()).text().await.map(drop)
}

/// What is wrong about a refusal, if anything is.
async fn refused(space: &Space<'_>, verb: &str, base: Value, case: &Case) -> anyhow::Result<Option<String>> {
    let Case(what, changes, message) = case;
    let mut object = base;
    for (pointer, value) in changes {
        change(&mut object, pointer, value.clone()).with_context(|| format!("{what}: {pointer}"))?;
    }
    let said =
        space.kubectl(&[verb, "--dry-run=server", "-f", "-"]).input(object.to_string()).output().await?;
    Ok(if said.ok {
        Some(format!("{what}: taken"))
    } else if said.stderr.contains(message) {
        None
    } else {
        Some(format!("{what}: no word of {message:?} in: {}", said.stderr.trim()))
    })
}

fn change(object: &mut Value, pointer: &str, value: Value) -> anyhow::Result<()> {
    let (parent, key) = pointer.rsplit_once('/').context("no pointer")?;
    let parent =
        object.pointer_mut(parent).context("no such parent")?.as_object_mut().context("no object")?;
    match value {
        Value::Null => drop(parent.remove(key)),
        value => drop(parent.insert(key.into(), value)),
    }
    Ok(())
}
