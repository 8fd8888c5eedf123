//! What the operator says of a deployment.

use crate::Layout;
use crate::schemas::{LABEL, conditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator says. It is written only when something a person would notice changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MoEDeploymentStatus {
    /// The generation of the spec that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Progressing`, `Degraded` and others, with reasons.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// The layout in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Workers of all roles.
    pub workers: Counts,
    /// Gateway pods.
    pub gateways: Counts,
    /// Units that should be placed and those that are active.
    pub units: Counts,
    /// The newest generation of any of the deployment's ExpertPlacements.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub placement_generation: Option<i64>,
    /// What the agents report, in sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureSummary>,
    /// The image that new workers and gateways run. It stays when the operator is upgraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub agent_image: Option<String>,
    /// The sets of workers that give the same bits: one, and during a change of what decides bits the one before.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub cohorts: Vec<Cohort>,
}

/// All workers of one numerics id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cohort {
    /// The operator's name for it, as in ExpertPlacements and RoleScalers.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub name: String,
    /// The numerics id as its workers report it: the hash of all that decides bits. None until the first of them does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub numerics_id: Option<String>,
    /// The image of its workers.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// Whether requests go to it: `Starting` (not yet), `Serving`, or `Draining` (no new ones).
    pub state: CohortState,
    /// Its workers.
    #[serde(default)]
    pub workers: Counts,
}

/// Whether requests go to a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CohortState {
    /// Not yet.
    Starting,
    /// They do.
    Serving,
    /// No new ones.
    Draining,
}

/// How many there should be and how many serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// How many there should be.
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// How many serve.
    #[schemars(range(min = 0))]
    pub ready: i32,
}

/// Pressure in sum, coarse enough not to change every second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PressureSummary {
    /// KV blocks in use over all attention ranks, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub kv_used_percent: i32,
    /// Requests that wait for a rank.
    #[schemars(range(min = 0))]
    pub waiting_requests: i32,
}
