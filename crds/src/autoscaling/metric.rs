//! What is measured, and what it should be.

use crate::schemas::rules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is measured, and what it should be. The role is scaled in the proportion of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([
    ("(self.type == 'KvUse') == has(self.targetPercent)", "KvUse has a targetPercent, and no other metric has one"),
    (
        "(self.type != 'KvUse') == has(self.targetMilliseconds)",
        "QueuePressure, TimeToFirstToken and InterTokenLatency have a targetMilliseconds, and KvUse has none",
    ),
])))]
pub struct Metric {
    /// What is measured. `QueuePressure`: the work that waits in the μ-queues of a worker (rows by the time they take), in
    /// the mean over the role. `KvUse`: the part of the KV cache that is in use, in the mean over the role.
    /// `TimeToFirstToken`, `InterTokenLatency`: what clients see, at a percentile.
    pub r#type: MetricType,
    /// What it should be, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_percent: Option<i32>,
    /// What it should be, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub target_milliseconds: Option<i32>,
    /// `TimeToFirstToken`, `InterTokenLatency`: so many of a hundred requests are to be below the target.
    #[serde(default = "most")]
    #[schemars(range(min = 1, max = 99))]
    pub percentile: i32,
}

fn most() -> i32 {
    95
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MetricType {
    /// The work that waits in a worker's μ-queues: rows by the time they take.
    QueuePressure,
    /// The part of the KV cache that is in use.
    KvUse,
    /// From a request to its first token.
    TimeToFirstToken,
    /// From one token of an answer to the next.
    InterTokenLatency,
}
