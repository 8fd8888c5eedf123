//! Who holds which unit, as agents are told it.

#![allow(clippy::duplicated_attributes, reason = "columns have types in common")]

use crate::Role;
use crate::schemas::{LABEL, NAME};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The workers of a cohort, or the rows of a range of its blocks, or both. All that a cohort has of them is its placement:
/// one object has the list of workers, and no block is in two. What an object says is replaced as a whole.
///
/// 8192 rows are 512 experts in 8 slices, twice, of one block, and some 1.2 MB; an object of etcd has 1.5 MB at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ExpertPlacement",
    plural = "expertplacements",
    shortname = "xp",
    category = "sluice",
    namespaced,
    status = "ExpertPlacementStatus",
    derive = "PartialEq",
    doc = "Which workers hold which experts: written by the operator, watched by agents.",
    selectable = ".spec.deployment",
    selectable = ".spec.cohort",
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.deployment"),
    printcolumn(name = "Cohort", type_ = "string", json_path = ".spec.cohort", priority = 1),
    printcolumn(name = "Blocks", type_ = "string", json_path = ".spec.blocks"),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".spec.generation"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.active"),
    printcolumn(name = "Joining", type_ = "integer", json_path = ".status.joining"),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.draining"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.generation > oldSelf.generation || self == oldSelf")
        .message("generation must rise with every change: read the newest and raise it"),
    validation = Rule::new(
        "has(self.blocks) == has(oldSelf.blocks) && (!has(self.blocks) || self.blocks == oldSelf.blocks)"
    ).message("blocks is immutable: other ranges are other objects"),
    validation = Rule::new("has(self.workers) || has(self.blocks)")
        .message("give the list of workers, or blocks and their units, or both"),
    validation = Rule::new("has(self.blocks) || size(self.units) == 0")
        .message("units need blocks, the range of blocks they are of"),
    validation = Rule::new(
"!has(self.blocks) || self.units.all(unit, unit.block >= self.blocks[0] && unit.block < self.blocks[1] && unit.slice[0] < unit.slice[1] && unit.slice[1] <= self.segments)"
    ).message("every unit must be of one of blocks, and its slice a range [lo, hi) of the segments")
)]
pub struct ExpertPlacementSpec {
    /// The MoEDeployment.
    #[schemars(length(min = 1, max = 40), regex(pattern = NAME))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("deployment is immutable"))]
    pub deployment: String,
    /// The cohort whose workers these are. Units of one are never asked of another.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cohort is immutable"))]
    pub cohort: String,
    /// Segments of an expert's inner dimension that units are slices of.
    #[schemars(extend("enum" = [1, 2, 4, 8]))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("segments is immutable"))]
    pub segments: i32,
    /// Rises with every change. A new object of the same name begins anew.
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_i64))]
    pub generation: i64,
    /// Every worker of the cohort, also those without units. An empty list says that there is none; without it, another
    /// object has the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "atomic"))]
    pub workers: Option<Vec<PlacedWorker>>,
    /// The blocks whose rows these are: the first, and one past the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = 0, max = 65535)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self[0] < self[1]").message("blocks are [first, one past the last]"))]
    pub blocks: Option<[i32; 2]>,
    /// Who holds what of these blocks, one row for each replica of each unit.
    #[serde(default)]
    #[schemars(length(max = 8192), extend("x-kubernetes-list-type" = "atomic"))]
    pub units: Vec<PlacedUnit>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacedWorker {
    /// What it goes by on the wire. No other worker of the deployment has it at the same time.
    #[schemars(range(min = 0, max = 65535))]
    pub number: i32,
    /// Its name, the same over restarts.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// What it does.
    pub role: Role,
    /// `HOST:PORT` where peers and gateways reach it.
    #[schemars(length(min = 3, max = 261), regex(pattern = r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):[0-9]{1,5}$"))]
    pub address: String,
    /// Its last start that the operator knows of, in microseconds of the clock; what an earlier one says does not count.
    /// None until the operator has heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub incarnation: Option<i64>,
    /// The URI that its certificate must have: `spiffe://sluice/ns/NS/moe/NAME/role/ROLE/worker/POD`.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^spiffe://sluice/ns/[^/]+/moe/[^/]+/role/[^/]+/worker/[^/]+$")
    )]
    pub tls_name: String,
}

/// One replica of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacedUnit {
    /// The name of the worker that holds it. While the list of workers lacks it, nothing is sent there.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub worker: String,
    /// The block.
    #[schemars(range(min = 0, max = 65535))]
    pub block: i32,
    /// The expert within the block.
    #[schemars(range(min = 0, max = 65535))]
    pub expert: i32,
    /// The segments of the expert's inner dimension: the first, and one past the last.
    #[schemars(inner(range(min = 0, max = 8)), extend("x-kubernetes-list-type" = "atomic"))]
    pub slice: [i32; 2],
    /// Whether tokens go there: `Joining` (not yet: it loads the weights), `Active`, or `Draining` (no new ones).
    #[serde(default)]
    pub state: UnitState,
    /// The part of the unit's tokens that goes there: this over the sum of all active replicas' of the unit.
    #[serde(default = "whole")]
    #[schemars(range(min = 0, max = 10000))]
    pub fraction: i32,
}

fn whole() -> i32 {
    10000
}

/// Whether tokens go to a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnitState {
    /// Not yet: it loads the weights.
    Joining,
    /// They do.
    #[default]
    Active,
    /// No new ones: it empties its queues.
    Draining,
}

/// The rows, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpertPlacementStatus {
    /// The `metadata.generation` that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Workers of the list; none where another object has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub workers: Option<i32>,
    /// Replicas that tokens go to.
    #[schemars(range(min = 0))]
    pub active: i32,
    /// Replicas that load their weights.
    #[schemars(range(min = 0))]
    pub joining: i32,
    /// Replicas that empty their queues.
    #[schemars(range(min = 0))]
    pub draining: i32,
}
