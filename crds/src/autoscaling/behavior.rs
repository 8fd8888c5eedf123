//! How fast a role is scaled: the semantics, names and defaults of HorizontalPodAutoscaler v2.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How fast a role is scaled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Behavior {
    /// Up.
    pub scale_up: ScaleUp,
    /// Down.
    pub scale_down: ScaleDown,
}

/// How fast a role grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScaleUp {
    /// The least that was asked for within so many seconds counts.
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: i32,
    /// Which of `policies` counts: the one that allows most (`Max`) or least (`Min`), or no growth at all (`Disabled`).
    pub select_policy: SelectPolicy,
    /// How many pods may come in a time.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<ScalingPolicy>,
    /// A metric within so many percent of its target asks for nothing.
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: i32,
}

impl Default for ScaleUp {
    fn default() -> Self {
        let policy = |r#type, value| ScalingPolicy { r#type, value, period_seconds: 15 };
        Self {
            stabilization_window_seconds: 0,
            select_policy: SelectPolicy::Max,
            policies: vec![policy(ScalingPolicyType::Pods, 4), policy(ScalingPolicyType::Percent, 100)],
            tolerance_percent: 10,
        }
    }
}

/// How fast a role shrinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScaleDown {
    /// The most that was asked for within so many seconds counts.
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: i32,
    /// Which of `policies` counts: the one that allows most (`Max`) or least (`Min`), or no shrinking at all (`Disabled`).
    pub select_policy: SelectPolicy,
    /// How many pods may go in a time.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<ScalingPolicy>,
    /// A metric within so many percent of its target asks for nothing.
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: i32,
}

impl Default for ScaleDown {
    fn default() -> Self {
        Self {
            stabilization_window_seconds: 300,
            select_policy: SelectPolicy::Max,
            policies: vec![ScalingPolicy {
                r#type: ScalingPolicyType::Percent,
                value: 100,
                period_seconds: 15,
            }],
            tolerance_percent: 10,
        }
    }
}

/// How many pods may come or go in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingPolicy {
    /// Of what `value` is a number: `Pods`, or `Percent` of the role's.
    pub r#type: ScalingPolicyType,
    /// How many.
    #[schemars(range(min = 1, max = 10000))]
    pub value: i32,
    /// In how many seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// Of what a policy's value is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingPolicyType {
    /// Of pods.
    Pods,
    /// Of hundredths of the role's pods.
    Percent,
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows most.
    #[default]
    Max,
    /// The one that allows least.
    Min,
    /// None: no scaling in this direction.
    Disabled,
}
