//! How a deployment follows its load.

#![allow(clippy::duplicated_attributes, reason = "columns have types in common")]

mod behavior;
mod bounds;
mod metric;
mod status;

pub use behavior::{Behavior, ScaleDown, ScaleUp, ScalingPolicy, ScalingPolicyType, SelectPolicy};
pub use bounds::{ExpertBounds, ExpertReplicas, RatioBounds};
pub use metric::{Metric, MetricType};
pub use status::{MetricValue, MoEAutoscalingPolicyStatus, RoleScalingStatus};

use crate::schemas::{NAME, rules};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the RoleScalers of a deployment, and the replicas of its experts, follow its load. Of two policies for one
/// deployment the elder counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "MoEAutoscalingPolicy",
    plural = "moeautoscalingpolicies",
    shortname = "moeap",
    category = "sluice",
    namespaced,
    status = "MoEAutoscalingPolicyStatus",
    derive = "PartialEq",
    doc = "How the roles of a MoEDeployment, and the replicas of its experts, follow its load.",
    selectable = ".spec.deployment",
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.deployment"),
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ScalingActive')].status"
    ),
    printcolumn(
        name = "Limited",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ScalingLimited')].status"
    ),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices"),
    printcolumn(name = "Budget", type_ = "integer", json_path = ".spec.deviceBudget"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ScalingActive')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.attention) || has(self.experts) || has(self.hybrid)")
        .message("give the roles that are scaled: attention, experts, or hybrid"),
    validation = Rule::new("!has(self.hybrid) || (!has(self.attention) && !has(self.experts))")
        .message("hybrid pods do both: give either hybrid, or attention and experts"),
    validation = Rule::new("!has(self.experts) || self.experts.metrics.all(metric, metric.type != 'KvUse')")
        .message("experts have no KV cache: KvUse is a metric of attention and hybrid"),
    validation = Rule::new(
        "!has(self.attention) || !has(self.experts) || (self.attention.minReplicas == 0) == (self.experts.minReplicas == 0)"
    ).message("a deployment sleeps as a whole: minReplicas is 0 for attention and experts, or for neither"),
    validation = Rule::new("!has(self.ratio) || (has(self.attention) && has(self.experts))")
        .message("ratio is for policies that scale attention and experts")
)]
pub struct MoEAutoscalingPolicySpec {
    /// The MoEDeployment.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("deployment is immutable"))]
    pub deployment: String,
    /// How attention pods are scaled; without it, they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<RoleScaling>,
    /// How expert pods are scaled; without it, they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<RoleScaling>,
    /// How pods that do both are scaled; without it, they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hybrid: Option<RoleScaling>,
    /// Devices (GPUs) that all roles together may have. Without it, as many as the roles' own bounds allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32768))]
    pub device_budget: Option<i32>,
    /// How many attention workers there may be for the expert workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioBounds>,
    /// How many replicas experts may have. Without it, as many as the deployment's `placement` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_replicas: Option<ExpertReplicas>,
    /// Seconds without a request after which roles whose `minReplicas` is 0 go there. The next request wakes them.
    #[serde(default = "quarter_hour")]
    #[schemars(range(min = 30, max = 604_800))]
    pub idle_seconds: i32,
    /// What a pod reports in its first seconds of service does not count.
    #[serde(default = "minute")]
    #[schemars(range(min = 0, max = 3600))]
    pub warm_up_seconds: i32,
}

fn quarter_hour() -> i32 {
    900
}

fn minute() -> i32 {
    60
}

/// How the pods of a role are scaled: to what the most demanding of its metrics asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "self.minReplicas <= self.maxReplicas",
    "minReplicas must not exceed maxReplicas",
)])))]
pub struct RoleScaling {
    /// Pods at the least. With 0, the deployment sleeps when it is idle.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1024))]
    pub min_replicas: i32,
    /// Pods at most.
    #[schemars(range(min = 1, max = 1024))]
    pub max_replicas: i32,
    /// What is measured, and what it should be.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub metrics: Vec<Metric>,
    /// How fast.
    #[serde(default)]
    pub behavior: Behavior,
}

fn one() -> i32 {
    1
}
