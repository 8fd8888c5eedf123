//! The pods of each role.

use crate::Scheduler;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Pods that run attention and hold the KV cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AttentionRole {
    /// Pods to begin with; from then on the RoleScaler `attention` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one attention rank on each. 0 runs on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// Prompt tokens of one sequence per step at most.
    #[schemars(range(min = 1, max = 65536))]
    pub prefill_chunk: i32,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for AttentionRole {
    fn default() -> Self {
        let HybridRole { replicas, devices_per_pod, prefill_chunk, scheduler, resources, pod, .. } =
            HybridRole::default();
        Self { replicas, devices_per_pod, prefill_chunk, scheduler, resources, pod }
    }
}

/// Pods that hold experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExpertRole {
    /// Pods to begin with; from then on the RoleScaler `experts` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one worker on each. 0 runs on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// Units each worker has room for. Without it, as many as fit the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub slots: Option<i32>,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for ExpertRole {
    fn default() -> Self {
        let HybridRole { replicas, devices_per_pod, slots, scheduler, resources, pod, .. } =
            HybridRole::default();
        Self { replicas, devices_per_pod, slots, scheduler, resources, pod }
    }
}

/// Pods that do both: every worker is an attention rank and holds experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HybridRole {
    /// Pods to begin with; from then on the RoleScaler `hybrid` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one worker on each. 0 runs on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// Units each worker has room for. Without it, as many as fit the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub slots: Option<i32>,
    /// Prompt tokens of one sequence per step at most.
    #[schemars(range(min = 1, max = 65536))]
    pub prefill_chunk: i32,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for HybridRole {
    fn default() -> Self {
        Self {
            replicas: 1,
            devices_per_pod: 1,
            slots: None,
            prefill_chunk: 512,
            scheduler: Scheduler::default(),
            resources: Resources::default(),
            pod: PodSettings::default(),
        }
    }
}

/// Requests and limits of a pod's one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What the scheduler of the cluster reserves.
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, IntOrString>,
    /// What the container may not exceed.
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, IntOrString>,
}

/// What a pod may be given beside what the operator sets itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSettings {
    /// Labels in addition to the operator's own.
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the operator's own.
    #[schemars(schema_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// Labels a node must have.
    #[schemars(schema_with = "labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are accepted.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// The PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// The RuntimeClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Secrets with registry credentials.
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub image_pull_secrets: Vec<String>,
    /// Environment variables of the container.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    strings(63)
}

fn annotations(_: &mut SchemaGenerator) -> Schema {
    strings(4096)
}

fn strings(longest: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": longest },
    })
}

/// As in every other Kubernetes object, `cpu: 4` is as good as `cpu: "4"`.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+|[numkKMGTPE]i?)?$",
        },
    })
}

/// A taint that is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.operator == 'Equal' || size(self.value) == 0")
        .message("value is for the operator Equal"),
    validation = Rule::new("self.operator == 'Exists' || size(self.key) > 0")
        .message("the operator Equal needs a key")
)]
pub struct Toleration {
    /// The taint's key. With `Exists`, none stands for every taint.
    #[serde(default)]
    #[schemars(length(max = 316))]
    pub key: String,
    /// How the value is compared.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub value: String,
    /// The effect; none stands for every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TolerationEffect>,
}

/// How a toleration compares values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// Key and value are equal.
    #[default]
    Equal,
    /// The key is there.
    Exists,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationEffect {
    /// Keeps new pods away.
    NoSchedule,
    /// Prefers other nodes.
    PreferNoSchedule,
    /// Removes pods as well.
    NoExecute,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name. Those that begin with `SLUICE_` are the agent's own.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub value: String,
}
