//! What people may say about pods: a bounded part of Kubernetes' own pod template, under the same names, so that a
//! piece of one is a piece of the other.

mod affinity;
mod env;
mod toleration;
mod volume;

pub use affinity::{
    Affinity, LabelOperator, LabelRequirement, LabelSelector, NodeAffinity, NodeOperator, NodeRequirement,
    NodeSelector, NodeSelectorTerm, PodAffinity, PodAffinityTerm, PreferredNodes, WeightedPodAffinityTerm,
};
pub use env::{EnvSource, EnvVar, FieldRef, KeyRef};
pub use toleration::{Toleration, TolerationEffect, TolerationOperator};
pub use volume::{
    ConfigMapVolume, EmptyDirMedium, EmptyDirVolume, HostPathType, HostPathVolume,
    PersistentVolumeClaimVolume, SecretVolume, Volume, VolumeMount,
};

use crate::schemas::{labels, own_annotations, own_labels, quantities, rules};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "self.volumeMounts.all(mount, self.volumes.exists(volume, volume.name == mount.name))",
    "every volumeMount must name one of volumes",
)])))]
pub struct PodSettings {
    /// Labels in addition to the operator's own.
    #[schemars(schema_with = "own_labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the operator's own.
    #[schemars(schema_with = "own_annotations")]
    pub annotations: BTreeMap<String, String>,
    /// Labels a node must have.
    #[schemars(schema_with = "labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Which nodes, beside or away from which pods. With none of it, pods are spread over nodes where that is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints of nodes that are accepted. Those of lost nodes are accepted for 30 s in any case.
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
    /// Volumes in addition to the operator's own.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<Volume>,
    /// Where the container finds them.
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"])
    )]
    pub volume_mounts: Vec<VolumeMount>,
    /// Seconds that a pod has to hand over what it serves once it is deleted.
    #[schemars(range(min = 30, max = 3600))]
    pub termination_grace_period_seconds: i32,
}

impl Default for PodSettings {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            affinity: None,
            tolerations: Vec::new(),
            priority_class_name: None,
            runtime_class_name: None,
            image_pull_secrets: Vec::new(),
            env: Vec::new(),
            volumes: Vec::new(),
            volume_mounts: Vec::new(),
            termination_grace_period_seconds: 300,
        }
    }
}
