//! Which nodes, and beside or away from which pods.

use crate::schemas::{labels, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which nodes, and beside or away from which pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Affinity {
    /// Which nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// Beside which pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<PodAffinity>,
    /// Away from which pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_anti_affinity: Option<PodAffinity>,
}

/// Which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeAffinity {
    /// Nodes that alone will do.
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        skip_serializing_if = "Option::is_none"
    )]
    pub required: Option<NodeSelector>,
    /// Nodes that are better, by weight.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub preferred: Vec<PreferredNodes>,
}

/// Nodes that meet one of some terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSelector {
    /// One of these must be met.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// What nodes must be, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeSelectorTerm {
    /// By labels.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<NodeRequirement>,
    /// By fields: `metadata.name`.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_fields: Vec<NodeRequirement>,
}

/// What one label or field of a node must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([
    (
        "self.operator in ['Exists', 'DoesNotExist'] ? size(self.values) == 0 : size(self.values) > 0",
        "In, NotIn, Gt and Lt need values, Exists and DoesNotExist have none",
    ),
    (
        "!(self.operator in ['Gt', 'Lt']) || size(self.values) == 1",
        "Gt and Lt compare with exactly one value",
    ),
])))]
pub struct NodeRequirement {
    /// The label or field.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How it is compared: `In`, `NotIn`, `Exists`, `DoesNotExist`, or as a number `Gt`, `Lt`.
    pub operator: NodeOperator,
    /// With what.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

/// How a node's label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeOperator {
    /// It is one of the values.
    In,
    /// It is none of them.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is a number greater than the value.
    Gt,
    /// It is a number less than the value.
    Lt,
}

/// Nodes that are better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreferredNodes {
    /// How much better, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// Which.
    pub preference: NodeSelectorTerm,
}

/// Beside (or away from) which pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PodAffinity {
    /// Every one of these must be met.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub required: Vec<PodAffinityTerm>,
    /// These are better, by weight.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub preferred: Vec<WeightedPodAffinityTerm>,
}

/// Pods, and what it is to be beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodAffinityTerm {
    /// Which pods; without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// The node label by whose values nodes are one place.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// Of which namespaces; none is the pod's own.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub namespaces: Vec<String>,
    /// Of which namespaces, by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// Pods that are better to be beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedPodAffinityTerm {
    /// How much better, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// Which.
    pub pod_affinity_term: PodAffinityTerm,
}

/// Objects by their labels. An empty one selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LabelSelector {
    /// Labels and their values.
    #[schemars(schema_with = "labels")]
    pub match_labels: BTreeMap<String, String>,
    /// What labels must be.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// What one label must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "self.operator in ['Exists', 'DoesNotExist'] ? size(self.values) == 0 : size(self.values) > 0",
    "In and NotIn need values, Exists and DoesNotExist have none",
)])))]
pub struct LabelRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How it is compared: `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: LabelOperator,
    /// With what.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// It is one of the values.
    In,
    /// It is none of them.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}
