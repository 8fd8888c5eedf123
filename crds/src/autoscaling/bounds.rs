//! Within what a deployment is scaled.

use crate::schemas::rules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many attention workers there may be for each hundred expert workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "self.minPercent <= self.maxPercent",
    "minPercent must not exceed maxPercent",
)])))]
pub struct RatioBounds {
    /// At the least.
    #[schemars(range(min = 1, max = 10000))]
    pub min_percent: i32,
    /// At most.
    #[schemars(range(min = 1, max = 10000))]
    pub max_percent: i32,
}

impl Default for RatioBounds {
    fn default() -> Self {
        Self { min_percent: 1, max_percent: 10000 }
    }
}

/// How many replicas experts may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([("self.min <= self.max", "min must not exceed max")])))]
pub struct ExpertReplicas {
    /// Of every expert that `experts` does not name, at the least.
    #[schemars(range(min = 1, max = 64))]
    pub min: i32,
    /// Of every expert that `experts` does not name, at most; those beyond the minimum go where the load is.
    #[schemars(range(min = 1, max = 64))]
    pub max: i32,
    /// Experts with bounds of their own.
    #[schemars(
        length(max = 1024),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["block", "expert"])
    )]
    pub experts: Vec<ExpertBounds>,
}

impl Default for ExpertReplicas {
    fn default() -> Self {
        Self { min: 1, max: 8, experts: Vec::new() }
    }
}

/// How many replicas one expert may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([("self.min <= self.max", "min must not exceed max")])))]
pub struct ExpertBounds {
    /// The block.
    #[schemars(range(min = 0, max = 65535))]
    pub block: i32,
    /// The expert within the block.
    #[schemars(range(min = 0, max = 65535))]
    pub expert: i32,
    /// Replicas at the least.
    #[schemars(range(min = 1, max = 64))]
    pub min: i32,
    /// Replicas at most.
    #[schemars(range(min = 1, max = 64))]
    pub max: i32,
}
