//! A model, served.

use crate::{
    AttentionRole, ExpertRole, Gateway, HybridRole, ImagePullPolicy, MoEDeploymentStatus, Model, Placement,
    UpdateStrategy,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Mixture-of-Experts model, served by asynchronous expert parallelism.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "MoEDeployment",
    plural = "moedeployments",
    shortname = "moe",
    category = "sluice",
    namespaced,
    status = "MoEDeploymentStatus",
    derive = "PartialEq",
    doc = "A Mixture-of-Experts model, served by asynchronous expert parallelism.",
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("the name must not exceed 40 characters: names of pods and certificates are made from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Layout", type_ = "string", json_path = ".status.layout"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers.ready"),
    printcolumn(name = "Gateways", type_ = "integer", json_path = ".status.gateways.ready"),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".spec.model.source.huggingFace.repository",
        priority = 1
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.agentImage", priority = 1),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".status.placementGeneration", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.hybrid) || (!has(self.attention) && !has(self.experts))")
        .message("hybrid pods do both: give either hybrid, or attention and experts"),
    validation = Rule::new("has(self.attention) == has(self.experts)")
        .message("attention and experts are given together"),
    validation = Rule::new("self.layout != 'Disaggregated' || has(self.attention)")
        .message("the layout Disaggregated needs attention and experts"),
    validation = Rule::new("self.layout != 'Hybrid' || !has(self.attention)")
        .message("the layout Hybrid has no roles attention and experts"),
    validation = Rule::new(
        "!has(self.attention) || !has(self.experts) || (self.attention.scheduler.policy == 'Sync') == (self.experts.scheduler.policy == 'Sync')"
    ).message("the scheduler Sync is a barrier over all workers: both roles must have it, or none")
)]
pub struct MoEDeploymentSpec {
    /// Which model.
    pub model: Model,
    /// Whether the same workers run attention and experts (`Hybrid`) or not (`Disaggregated`). `Auto` goes by the roles
    /// that are given: disaggregated with attention and experts, otherwise hybrid.
    #[serde(default)]
    pub layout: Layout,
    /// Pods that run attention, where the layout is disaggregated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionRole>,
    /// Pods that hold experts, where the layout is disaggregated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertRole>,
    /// Pods that do both, where the layout is hybrid. Without any role, one such pod with the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hybrid: Option<HybridRole>,
    /// How experts are laid over the workers.
    #[serde(default)]
    pub placement: Placement,
    /// The OpenAI-compatible front.
    #[serde(default)]
    pub gateway: Gateway,
    /// The image of workers and gateways. Without it, the operator's own; status.agentImage pins it, so that an
    /// upgrade of the operator rolls nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// When nodes pull it: if they lack it, at every start, or never.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// How running workers are exchanged for others.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
}

/// Whether the same workers run attention and experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Layout {
    /// By the roles that are given: disaggregated with attention and experts, otherwise hybrid.
    #[default]
    Auto,
    /// Every worker does both.
    Hybrid,
    /// Some workers run attention, others hold experts.
    Disaggregated,
}

impl MoEDeploymentSpec {
    /// The layout once `Auto` is resolved.
    pub fn effective_layout(&self) -> Layout {
        match self.layout {
            Layout::Auto if self.attention.is_some() => Layout::Disaggregated,
            Layout::Auto => Layout::Hybrid,
            given => given,
        }
    }
}
