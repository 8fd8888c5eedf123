//! What the autoscaler says.

use crate::schemas::conditions;
use crate::{MetricType, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the autoscaler says. It is written when it scales, or when a condition changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MoEAutoscalingPolicyStatus {
    /// The generation of the spec that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// `ScalingActive`, `AbleToScale`, `ScalingLimited` and others, with reasons.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Devices of all roles.
    #[schemars(range(min = 0))]
    pub devices: i32,
    /// The roles that are scaled.
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["role"]))]
    pub roles: Vec<RoleScalingStatus>,
}

/// What the autoscaler says of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleScalingStatus {
    /// The role.
    pub role: Role,
    /// Pods there were when it was last looked at.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub current_replicas: i32,
    /// Pods there should be.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desired_replicas: i32,
    /// When that last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// What was measured then.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub metrics: Vec<MetricValue>,
}

/// What was measured. A metric that nobody reported is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricValue {
    /// The metric.
    pub r#type: MetricType,
    /// In percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub current_percent: Option<i32>,
    /// In milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub current_milliseconds: Option<i32>,
}
