//! How many pods a role has, and which.

use crate::Role;
use crate::schemas::{LABEL, NAME, conditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many pods a role of a deployment has. The operator makes it from the deployment's own number; from then on this
/// one counts. It owns the pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "RoleScaler",
    plural = "rolescalers",
    shortname = "rsc",
    category = "sluice",
    namespaced,
    status = "RoleScalerStatus",
    derive = "PartialEq",
    doc = "How many pods a role of a MoEDeployment has: the target of kubectl scale, HPA and KEDA.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".spec.deployment",
    selectable = ".spec.role",
    validation = Rule::new("self.metadata.name == self.spec.deployment + '-' + self.spec.role")
        .message("a role has one RoleScaler: its name must be DEPLOYMENT-ROLE"),
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.deployment"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleScalerSpec {
    /// The MoEDeployment.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("deployment is immutable"))]
    pub deployment: String,
    /// The role.
    #[x_kube(validation = Rule::new("self == oldSelf").message("role is immutable"))]
    pub role: Role,
    /// How many pods there should be.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
}

/// Which pods there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleScalerStatus {
    /// The generation of the spec that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Pods there are, those that leave excepted.
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Pods that serve.
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
    /// The labels of the pods, as a selector in text.
    #[schemars(length(max = 1024))]
    pub selector: String,
    /// `Ready`, `Progressing`, `ReplicasIgnored` and others, with reasons.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// The pods, by the names they have or will have: a name is here before its pod is made, so that it is made once.
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "atomic"))]
    pub pods: Vec<PodRecord>,
}

/// A pod of the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// The cohort it is of.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub cohort: String,
    /// `Planned` (its name only, as yet), `Running` (made, whether or not it serves) or `Leaving` (it hands over what it
    /// serves, or is stuck).
    #[serde(default)]
    pub phase: PodPhase,
    /// Failures one after the other of it and of those whose place it took.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures: i32,
    /// It is not made before, for those failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodPhase {
    /// It has a name.
    #[default]
    Planned,
    /// It was made.
    Running,
    /// It hands over what it serves, or is stuck.
    Leaving,
}
