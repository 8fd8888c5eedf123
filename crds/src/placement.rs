//! Which worker holds which expert.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How experts are laid over the workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("minReplicas must not exceed maxReplicas"),
    validation = Rule::new("self.slices <= self.segments")
        .message("an expert cannot be held in more slices than it has segments"),
    validation = Rule::new("(self.policy == 'Pinned') == (size(self.pins) > 0)")
        .message("pins are for the policy Pinned, which needs at least one")
)]
pub struct Placement {
    /// Who decides. `Balanced`: the operator, as if all experts were equal. `LoadAware`: the operator, by measured load.
    /// `Pinned`: `pins`, and the operator for what they do not name.
    #[serde(default)]
    pub policy: PlacementPolicy,
    /// Replicas every expert has.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub min_replicas: i32,
    /// Replicas an expert has at most; those beyond the minimum go where the load is.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 64))]
    pub max_replicas: i32,
    /// Parts of an expert's inner dimension, the grain of slicing. It decides bits, so it cannot be changed.
    #[serde(default = "eight")]
    #[schemars(extend("enum" = [1, 2, 4, 8]))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("segments is immutable"))]
    pub segments: i32,
    /// Parts an expert is held in, each by a worker of its own where there are enough. It decides no bits.
    #[serde(default = "one")]
    #[schemars(extend("enum" = [1, 2, 4, 8]))]
    pub slices: i32,
    /// What is placed stays as long as the busiest worker's step is at most this much longer than a new placement's, in
    /// percent.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: i32,
    /// The node label whose values replicas of one expert are spread over.
    #[serde(default = "hostname")]
    #[schemars(length(min = 1, max = 317))]
    pub spread_key: String,
    /// Experts with fixed workers; the others are placed by load.
    #[serde(default)]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["block", "expert"]))]
    pub pins: Vec<Pin>,
}

fn one() -> i32 {
    1
}

fn five() -> i32 {
    5
}

fn eight() -> i32 {
    8
}

fn hostname() -> String {
    "kubernetes.io/hostname".into()
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            policy: PlacementPolicy::default(),
            min_replicas: one(),
            max_replicas: eight(),
            segments: eight(),
            slices: one(),
            tolerance_percent: five(),
            spread_key: hostname(),
            pins: Vec::new(),
        }
    }
}

/// Who decides where experts are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementPolicy {
    /// The operator, as if all experts were equal.
    Balanced,
    /// The operator, by measured load.
    #[default]
    LoadAware,
    /// `pins`, and the operator for what they do not name.
    Pinned,
}

/// One expert with fixed workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    /// The block.
    #[schemars(range(min = 0, max = 65535))]
    pub block: i32,
    /// The expert within the block.
    #[schemars(range(min = 0, max = 65535))]
    pub expert: i32,
    /// Names of the workers that hold it, as in the ExpertPlacement.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub workers: Vec<String>,
}
