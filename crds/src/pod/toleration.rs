//! Taints that pods accept.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A taint that is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.operator == 'Equal' || size(self.value) == 0")
        .message("value is for the operator Equal"),
    validation = Rule::new("self.operator == 'Exists' || size(self.key) > 0")
        .message("the operator Equal needs a key"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')")
        .message("tolerationSeconds is for the effect NoExecute")
)]
pub struct Toleration {
    /// The taint's key. With `Exists`, none stands for every taint.
    #[serde(default)]
    #[schemars(length(max = 316))]
    pub key: String,
    /// How the value is compared: `Equal`, or `Exists` for any value.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub value: String,
    /// The effect; none stands for every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TolerationEffect>,
    /// Seconds that a pod stays after the taint has come; none for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub toleration_seconds: Option<i64>,
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

/// The effect of the taint; none stands for every effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationEffect {
    /// Keeps new pods away.
    NoSchedule,
    /// Prefers other nodes.
    PreferNoSchedule,
    /// Removes pods as well.
    NoExecute,
}
