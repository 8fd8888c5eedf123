//! The roles of a deployment, seen alike: a hybrid role has all fields, the two others some of them.

use sluice_crds::{
    AttentionRole, Batching, Devices, ExpertRole, HybridRole, KvCache, Layout, MoEDeploymentSpec,
    PodSettings, Resources, Role, Scheduler,
};
use std::sync::LazyLock;

/// One role of a deployment.
#[derive(Clone, Debug)]
pub struct RoleView<'a> {
    /// Which.
    pub role: Role,
    /// Pods to begin with.
    pub replicas: i32,
    /// Devices of each pod; 0 for the CPU.
    pub devices_per_pod: i32,
    /// How they are asked for.
    pub devices: &'a Devices,
    /// Room for units, if it is given.
    pub slots: Option<i32>,
    /// The KV cache, of roles with attention.
    pub kv_cache: Option<&'a KvCache>,
    /// Compute threads.
    pub threads: Option<i32>,
    /// Requests and limits.
    pub resources: &'a Resources,
    /// The rest of the pod.
    pub pod: &'a PodSettings,
}

/// What all workers of a deployment have in common, whichever role they have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// How much attention takes at a time.
    pub batching: &'a Batching,
    /// Rows of an expert step.
    pub max_expert_rows: i32,
    /// Of attention.
    pub attention: &'a Scheduler,
    /// Of experts.
    pub experts: &'a Scheduler,
}

static ATTENTION: LazyLock<AttentionRole> = LazyLock::new(AttentionRole::default);
static EXPERTS: LazyLock<ExpertRole> = LazyLock::new(ExpertRole::default);
static HYBRID: LazyLock<HybridRole> = LazyLock::new(HybridRole::default);

/// The roles of a deployment, and what they have in common.
pub fn roles(spec: &MoEDeploymentSpec) -> (Vec<RoleView<'_>>, Common<'_>) {
    if spec.effective_layout() != Layout::Disaggregated {
        let h = spec.hybrid.as_ref().unwrap_or(&HYBRID);
        let view = RoleView {
            role: Role::Hybrid,
            replicas: h.replicas,
            devices_per_pod: h.devices_per_pod,
            devices: &h.devices,
            slots: h.slots,
            kv_cache: Some(&h.kv_cache),
            threads: h.threads,
            resources: &h.resources,
            pod: &h.pod,
        };
        let (batching, max_expert_rows) = (&h.batching, h.max_expert_rows);
        return (
            vec![view],
            Common { batching, max_expert_rows, attention: &h.scheduler, experts: &h.scheduler },
        );
    }
    let a = spec.attention.as_ref().unwrap_or(&ATTENTION);
    let e = spec.experts.as_ref().unwrap_or(&EXPERTS);
    let attention = RoleView {
        role: Role::Attention,
        replicas: a.replicas,
        devices_per_pod: a.devices_per_pod,
        devices: &a.devices,
        slots: None,
        kv_cache: Some(&a.kv_cache),
        threads: a.threads,
        resources: &a.resources,
        pod: &a.pod,
    };
    let experts = RoleView {
        role: Role::Experts,
        replicas: e.replicas,
        devices_per_pod: e.devices_per_pod,
        devices: &e.devices,
        slots: e.slots,
        kv_cache: None,
        threads: e.threads,
        resources: &e.resources,
        pod: &e.pod,
    };
    let (batching, max_expert_rows) = (&a.batching, e.max_expert_rows);
    (
        vec![attention, experts],
        Common { batching, max_expert_rows, attention: &a.scheduler, experts: &e.scheduler },
    )
}

/// Whether a role has attention ranks.
pub fn is_rank(role: Role) -> bool {
    role != Role::Experts
}

/// Whether a role holds experts.
pub fn is_host(role: Role) -> bool {
    role != Role::Attention
}
