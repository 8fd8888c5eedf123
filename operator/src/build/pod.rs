//! Pods: what those of workers and gateways have in common, and workers themselves.

use super::Built;
use super::agent::{self, Surroundings};
use crate::names::{self, ADMIN_PORT, COHORT, LOADED, PEER_PORT, ROLE, TEMPLATE};
use crate::roles::{Common, RoleView};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;
use serde_json::{Value, json};
use sluice_crds::{
    HuggingFaceSource, MoEDeployment, Model, PodSettings, Resources, RoleScaler, VolumeClaimSource,
};
use std::collections::BTreeMap;

/// Agents run as this user and group.
const USER: i64 = 65532;
/// Where a model is mounted.
const MODEL: &str = "/model";
/// Pods of nodes that were lost go elsewhere after so many seconds.
const LOST_NODE: i64 = 30;

/// A pod of a role.
#[derive(Clone, Copy, Debug)]
pub struct WorkerPod<'a> {
    /// The deployment, and its namespace.
    pub moe: (&'a MoEDeployment, &'a str),
    /// The role.
    pub role: (&'a RoleView<'a>, &'a Common<'a>),
    /// The pod's name and its cohort.
    pub name: (&'a str, &'a str),
    /// The agent's image.
    pub image: &'a str,
    /// What it is made from.
    pub template: &'a str,
}

/// Builds a worker's pod, owned by its role's scaler.
pub fn worker(of: &WorkerPod<'_>, scaler: &RoleScaler) -> Built<Pod> {
    let ((moe, _), (role, common), (name, cohort)) = (of.moe, of.role, of.name);
    let component = role.role.name();
    let at = Surroundings::pod(model_directory(&moe.spec.model));
    let args = agent::worker(of.moe, (role, common), of.name, &at);
    let mut metadata = names::owned(moe, name.into(), component);
    metadata.owner_references = Some(names::owner(scaler).into_iter().collect());
    let own = BTreeMap::from(
        [(ROLE, component), (COHORT, cohort), (TEMPLATE, of.template)].map(|(k, v)| (k.into(), v.into())),
    );
    settle(&mut metadata.labels, &role.pod.labels, &own);
    let safe = BTreeMap::from([("cluster-autoscaler.kubernetes.io/safe-to-evict".into(), "true".into())]);
    settle(&mut metadata.annotations, &role.pod.annotations, &safe);
    let container = Container {
        args,
        image: of.image,
        pull_policy: json!(moe.spec.image_pull_policy),
        resources: with_devices(role),
        ports: json!([
            { "name": "peer", "containerPort": PEER_PORT },
            { "name": "admin", "containerPort": ADMIN_PORT },
        ]),
        lifecycle: None,
    };
    let mut spec = spec(moe, role.pod, container, &names::certificate(name))?;
    spec["readinessGates"] = json!([{ "conditionType": LOADED }]);
    if role.devices_per_pod > 0 && !role.devices.claims.is_empty() {
        spec["resourceClaims"] = role
            .devices
            .claims
            .iter()
            .map(|c| {
                let mut claim = json!({ "name": c.name });
                if let Some(template) = &c.resource_claim_template_name {
                    claim["resourceClaimTemplateName"] = json!(template);
                }
                if let Some(name) = &c.resource_claim_name {
                    claim["resourceClaimName"] = json!(name);
                }
                claim
            })
            .collect();
    }
    Ok(Pod { metadata, spec: Some(serde_json::from_value::<PodSpec>(spec)?), status: None })
}

/// What a worker's pod is made from, as a label: pods with another one are exchanged. Fields at their defaults do not
/// count, so that a newer operator with more fields finds the same.
pub fn template(moe: &MoEDeployment, role: &RoleView<'_>, common: &Common<'_>, image: &str) -> String {
    let mut resources = json!(role.resources);
    let mut pod = json!(role.pod);
    prune(&mut resources, &json!(Resources::default()));
    prune(&mut pod, &json!(PodSettings::default()));
    let at = Surroundings::pod(model_directory(&moe.spec.model));
    let args = agent::worker((moe, "-"), (role, common), ("-", "-"), &at);
    let devices = json!([role.devices_per_pod, role.devices.resource, role.devices.claims]);
    let made_of = json!([image, args, resources, pod, devices, moe.spec.model.source]).to_string();
    blake3::hash(made_of.as_bytes()).to_hex()[..10].to_owned()
}

/// Removes what is as in `default`.
fn prune(value: &mut Value, default: &Value) {
    if let (Value::Object(map), Value::Object(defaults)) = (value, default) {
        map.retain(|key, v| defaults.get(key) != Some(v));
        for (key, v) in map.iter_mut() {
            if let Some(default) = defaults.get(key) {
                prune(v, default);
            }
        }
    }
}

/// The one container of a pod.
pub(super) struct Container<'a> {
    pub args: Vec<String>,
    pub image: &'a str,
    pub pull_policy: Value,
    pub resources: Value,
    pub ports: Value,
    pub lifecycle: Option<Value>,
}

/// The spec of a pod of an agent.
pub(super) fn spec(
    moe: &MoEDeployment,
    settings: &PodSettings,
    container: Container<'_>,
    certificate: &str,
) -> Result<Value, serde_json::Error> {
    let deployment = moe.name_any();
    let (mut volumes, mut mounts) = (
        vec![
            json!({ "name": "tls", "secret": { "secretName": certificate, "defaultMode": 0o440 } }),
            json!({ "name": "state", "emptyDir": {} }),
            json!({ "name": "tmp", "emptyDir": {} }),
        ],
        vec![
            json!({ "name": "tls", "mountPath": "/etc/sluice/tls", "readOnly": true }),
            json!({ "name": "state", "mountPath": "/var/lib/sluice" }),
            json!({ "name": "tmp", "mountPath": "/tmp" }),
        ],
    );
    volumes.push(model_volume(&moe.spec.model));
    mounts.push(json!({ "name": "model", "mountPath": MODEL, "readOnly": true }));
    volumes.extend(settings.volumes.iter().map(|v| json!(v)));
    mounts.extend(settings.volume_mounts.iter().map(|v| json!(v)));
    let probe = |path: &str, period: i32, failures: i32| {
        json!({
            "httpGet": { "path": path, "port": "admin" },
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    let mut agent = json!({
        "name": "agent",
        "image": container.image,
        "imagePullPolicy": container.pull_policy,
        "command": ["/usr/local/bin/sluice-agent"],
        "args": container.args,
        "env": settings.env,
        "ports": container.ports,
        "resources": container.resources,
        "volumeMounts": mounts,
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/healthz", 10, 6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    if let Some(lifecycle) = container.lifecycle {
        agent["lifecycle"] = lifecycle;
    }
    let mut tolerations: Vec<Value> = settings.tolerations.iter().map(|t| json!(t)).collect();
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if !settings.tolerations.iter().any(|t| json!(t)["key"] == taint) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE,
            }));
        }
    }
    let fetch = moe.spec.model.source.hugging_face.as_ref();
    let fetch = fetch.map(|hub| fetch_container(hub, &agent, &model_directory(&moe.spec.model)));
    if let Some(token) = moe.spec.model.source.hugging_face.as_ref().and_then(|h| h.token_secret.as_ref()) {
        let items = json!([{ "key": token.key, "path": "token" }]);
        let secret = json!({ "secretName": token.name, "items": items, "defaultMode": 0o440 });
        volumes.push(json!({ "name": "hub-token", "secret": secret }));
    }
    let mut spec = json!({
        "initContainers": fetch.into_iter().collect::<Vec<_>>(),
        "containers": [agent],
        "volumes": volumes,
        "tolerations": tolerations,
        "serviceAccountName": names::agent(&deployment),
        // Variables for every Service of the namespace could be taken for the agent's own.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": settings.termination_grace_period_seconds,
        "nodeSelector": settings.node_selector,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    match &settings.affinity {
        Some(affinity) => spec["affinity"] = json!(affinity),
        None => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1,
                "topologyKey": moe.spec.placement.spread_key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": { names::DEPLOYMENT: deployment } },
            }]);
        }
    }
    if let Some(class) = &settings.priority_class_name {
        spec["priorityClassName"] = json!(class);
    }
    if let Some(class) = &settings.runtime_class_name {
        spec["runtimeClassName"] = json!(class);
    }
    if !settings.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] =
            settings.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    }
    Ok(spec)
}

/// The step before an agent of a model from a hub: it brings the files to where the agent reads them.
fn fetch_container(hub: &HuggingFaceSource, agent: &Value, out: &str) -> Value {
    let mut args = vec![
        "fetch".to_owned(),
        format!("--repository={}", hub.repository),
        format!("--revision={}", hub.revision),
        format!("--endpoint={}", hub.endpoint),
        format!("--out={out}"),
    ];
    let mut mounts =
        vec![json!({ "name": "model", "mountPath": MODEL }), json!({ "name": "tmp", "mountPath": "/tmp" })];
    if hub.token_secret.is_some() {
        args.push("--token-file=/etc/sluice/hub/token".into());
        mounts.push(json!({ "name": "hub-token", "mountPath": "/etc/sluice/hub", "readOnly": true }));
    }
    let mut fetch = json!({ "name": "fetch", "args": args, "volumeMounts": mounts });
    for same in ["image", "imagePullPolicy", "command", "env", "securityContext", "terminationMessagePolicy"]
    {
        fetch[same] = agent[same].clone();
    }
    fetch
}

/// Requests and limits, with the devices.
fn with_devices(role: &RoleView<'_>) -> Value {
    let mut resources = json!(role.resources);
    if role.devices_per_pod > 0 {
        if role.devices.claims.is_empty() {
            resources["limits"][&role.devices.resource] = json!(role.devices_per_pod.to_string());
        } else {
            resources["claims"] = role
                .devices
                .claims
                .iter()
                .map(|c| match &c.request {
                    Some(request) => json!({ "name": c.name, "request": request }),
                    None => json!({ "name": c.name }),
                })
                .collect();
        }
    }
    resources
}

/// The model directory within a pod.
pub(super) fn model_directory(model: &Model) -> String {
    let s = &model.source;
    if let Some(hub) = &s.hugging_face {
        // A cache has the files of many repositories; a path of its own for each revision, since files may differ.
        let path = hub.cache.as_ref().map(|cache| {
            let within = cache.persistent_volume_claim.as_ref().map_or("", |c| &c.path);
            let of = format!("{}/{}", hub.repository.replace('/', "--"), hub.revision);
            if within.is_empty() { of } else { format!("{within}/{of}") }
        });
        return format!("{MODEL}/{}", path.as_deref().unwrap_or("files"));
    }
    let path = s.persistent_volume_claim.as_ref().map(|c| &c.path).or(s.image.as_ref().map(|i| &i.path));
    match path.map(String::as_str) {
        None | Some("") => MODEL.into(),
        Some(path) => format!("{MODEL}/{path}"),
    }
}

fn model_volume(model: &Model) -> Value {
    let s = &model.source;
    let cache = s.hugging_face.as_ref().and_then(|h| h.cache.as_ref());
    let claim = |c: &VolumeClaimSource, read_only: bool| json!({ "persistentVolumeClaim": { "claimName": c.claim_name, "readOnly": read_only } });
    let mut volume = if let Some(c) = &s.persistent_volume_claim {
        claim(c, true)
    } else if let Some(host) = &s.host_path {
        json!({ "hostPath": { "path": host.path, "type": "Directory" } })
    } else if let Some(image) = &s.image {
        json!({ "image": { "reference": image.reference, "pullPolicy": image.pull_policy } })
    } else if let Some(c) = cache.and_then(|c| c.persistent_volume_claim.as_ref()) {
        claim(c, false)
    } else if let Some(host) = cache.and_then(|c| c.host_path.as_ref()) {
        json!({ "hostPath": { "path": host.path, "type": "DirectoryOrCreate" } })
    } else {
        json!({ "emptyDir": {} })
    };
    volume["name"] = json!("model");
    volume
}

/// The operator's own labels stand, whatever else is asked for.
pub(super) fn settle(
    all: &mut Option<BTreeMap<String, String>>,
    asked: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) {
    let mut settled = asked.clone();
    settled.extend(all.take().unwrap_or_default());
    settled.extend(own.clone());
    *all = Some(settled);
}
