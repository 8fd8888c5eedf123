//! The workers of each role.

use crate::schemas::rules;
use crate::{Batching, Devices, KvCache, PodSettings, Resources, Scheduler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What workers do. The words are those of certificates, labels and the placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Attention.
    Attention,
    /// Experts.
    Experts,
    /// Both.
    Hybrid,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Experts, Self::Hybrid];

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// As in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Experts => "experts",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Both roles together have at most as many workers as one ExpertPlacement lists.
const SIZE: (&str, &str) = (
    "self.replicas * (self.devicesPerPod > 1 ? self.devicesPerPod : 1) <= 2048",
    "a role must not exceed 2048 workers: replicas times devicesPerPod",
);
const CLAIMS: (&str, &str) = (
    "size(self.devices.claims) == 0 || self.devicesPerPod > 0",
    "claims are for devices: devicesPerPod must be greater than 0",
);
const WAVES: (&str, &str) = (
    "self.scheduler.policy != 'Sync' || self.batching.waves == 1",
    "the scheduler Sync has one wave: batching.waves must be 1",
);

/// Pods that run attention and hold the KV cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([SIZE, CLAIMS, WAVES])))]
pub struct AttentionRole {
    /// Pods to begin with; from then on the RoleScaler `attention` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one attention rank on each. 0 runs one rank on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// How each pod asks for its devices.
    pub devices: Devices,
    /// How much a rank takes at a time.
    pub batching: Batching,
    /// The KV cache of each rank.
    pub kv_cache: KvCache,
    /// Compute threads of each pod. Without it, one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for AttentionRole {
    fn default() -> Self {
        let HybridRole {
            replicas,
            devices_per_pod,
            devices,
            batching,
            kv_cache,
            threads,
            scheduler,
            resources,
            pod,
            ..
        } = HybridRole::default();
        Self { replicas, devices_per_pod, devices, batching, kv_cache, threads, scheduler, resources, pod }
    }
}

/// Pods that hold experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([SIZE, CLAIMS])))]
pub struct ExpertRole {
    /// Pods to begin with; from then on the RoleScaler `experts` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one worker on each. 0 runs one worker on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// How each pod asks for its devices.
    pub devices: Devices,
    /// Units each worker has room for. Without it, as many as fit the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub slots: Option<i32>,
    /// Rows of one expert step at most.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_expert_rows: i32,
    /// Compute threads of each pod. Without it, one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for ExpertRole {
    fn default() -> Self {
        let HybridRole {
            replicas,
            devices_per_pod,
            devices,
            slots,
            max_expert_rows,
            threads,
            scheduler,
            resources,
            pod,
            ..
        } = HybridRole::default();
        Self {
            replicas,
            devices_per_pod,
            devices,
            slots,
            max_expert_rows,
            threads,
            scheduler,
            resources,
            pod,
        }
    }
}

/// Pods that do both: every worker is an attention rank and holds experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([SIZE, CLAIMS, WAVES])))]
pub struct HybridRole {
    /// Pods to begin with; from then on the RoleScaler `hybrid` counts.
    #[schemars(range(min = 0, max = 1024))]
    pub replicas: i32,
    /// Devices of each pod, one worker on each. 0 runs one worker on the CPU.
    #[schemars(range(min = 0, max = 16))]
    pub devices_per_pod: i32,
    /// How each pod asks for its devices.
    pub devices: Devices,
    /// Units each worker has room for. Without it, as many as fit the device beside the KV cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub slots: Option<i32>,
    /// Rows of one expert step at most.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_expert_rows: i32,
    /// How much a rank takes at a time.
    pub batching: Batching,
    /// The KV cache of each rank.
    pub kv_cache: KvCache,
    /// Compute threads of each pod. Without it, one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
    /// How its workers choose what runs next.
    pub scheduler: Scheduler,
    /// What each pod asks the node for, devices excepted.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for HybridRole {
    fn default() -> Self {
        Self {
            replicas: 1,
            devices_per_pod: 1,
            devices: Devices::default(),
            slots: None,
            max_expert_rows: 4096,
            batching: Batching::default(),
            kv_cache: KvCache::default(),
            threads: None,
            scheduler: Scheduler::default(),
            resources: Resources::default(),
            pod: PodSettings::default(),
        }
    }
}
