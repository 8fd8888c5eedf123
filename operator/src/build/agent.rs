//! The command lines of agents: the same for a pod's container and for a process on this machine.

use crate::names::{ADMIN_PORT, API_PORT, PEER_PORT};
use crate::roles::{Common, RoleView, is_rank};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use sluice_crds::{MoEDeployment, MoEDeploymentSpec, SchedulerPolicy};
use std::fmt::Display;

/// Where an agent finds its files, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The model directory.
    pub model: String,
    /// The directory of its certificate.
    pub tls: String,
    /// Where it finds the placement.
    pub placement: PlacementFrom,
    /// The address that its ports are on.
    pub host: String,
    /// Ports of peers, pages and, of gateways, clients.
    pub ports: Ports,
}

/// The ports of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of peers.
    pub peer: i32,
    /// Of health and metrics.
    pub admin: i32,
    /// Of clients.
    pub api: i32,
}

impl Default for Ports {
    fn default() -> Self {
        Self { peer: PEER_PORT, admin: ADMIN_PORT, api: API_PORT }
    }
}

/// Where an agent finds the placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementFrom {
    /// ExpertPlacements of the API server, kept in a file.
    Cluster {
        /// That file.
        cache: String,
    },
    /// A file that the operator writes.
    File(String),
}

impl Surroundings {
    /// Those of a pod.
    pub fn pod(model: String) -> Self {
        Self {
            model,
            tls: "/etc/sluice/tls".into(),
            placement: PlacementFrom::Cluster { cache: "/var/lib/sluice/placement.yaml".into() },
            host: "0.0.0.0".into(),
            ports: Ports::default(),
        }
    }
}

/// The command line of a worker, the program's name excepted.
pub fn worker(
    (moe, namespace): (&MoEDeployment, &str),
    (role, common): (&RoleView<'_>, &Common<'_>),
    (name, cohort): (&str, &str),
    at: &Surroundings,
) -> Vec<String> {
    let spec = &moe.spec;
    let mut args = Args(vec![role.role.name().into()]);
    args.node((moe, namespace), (name, Some(cohort)), at);
    args.add("peer-listen", format!("{}:{}", at.host, at.ports.peer));
    args.add("admin-listen", format!("{}:{}", at.host, at.ports.admin));
    args.add("max-ranks", ranks(spec));
    args.maybe("slots", role.slots);
    args.maybe("threads", role.threads);
    args.add("segments", spec.placement.segments);
    args.add("slices", spec.placement.slices);
    args.add(
        "scheduler",
        format!("attention={},experts={}", policy(common.attention.policy), policy(common.experts.policy)),
    );
    let urgent = if is_rank(role.role) { common.attention } else { common.experts };
    args.add("release-cycles", urgent.urgent_cycles);
    args.add("waves", common.batching.waves);
    args.add("prefill-chunk", common.batching.prefill_chunk);
    args.maybe("prefill-tokens", common.batching.prefill_tokens);
    args.add("max-sequences", common.batching.max_sequences);
    args.maybe("max-step-tokens", common.batching.max_step_tokens);
    args.add("max-expert-rows", common.max_expert_rows);
    if let Some(kv) = role.kv_cache {
        args.maybe("kv-tokens", kv.tokens);
        args.maybe("kv-memory", kv.memory.as_ref().and_then(bytes));
        args.add("page-size", kv.page_size);
        args.add("prefix-cache", if kv.prefix_cache { "on" } else { "off" });
    }
    // The rest of the time is for what the process does after it has drained.
    let grace = role.pod.termination_grace_period_seconds;
    args.add("shutdown-grace", format!("{}s", grace - grace / 10));
    args.0
}

/// The command line of a gateway; its name is the pod's.
pub fn gateway((moe, namespace): (&MoEDeployment, &str), name: &str, at: &Surroundings) -> Vec<String> {
    let (front, limits) = (&moe.spec.gateway, &moe.spec.gateway.limits);
    let mut args = Args(vec!["gateway".into()]);
    args.node((moe, namespace), (name, None), at);
    args.add("listen", format!("{}:{}", at.host, at.ports.api));
    args.add("peer-listen", format!("{}:{}", at.host, at.ports.peer));
    args.add("admin-listen", format!("{}:{}", at.host, at.ports.admin));
    let served = moe.spec.model.served_name.clone().or_else(|| moe.metadata.name.clone());
    args.maybe("served-model-name", served);
    if front.api_keys_secret.is_some() {
        args.add("api-key-file", "/etc/sluice/api-keys");
    }
    args.add("max-body", limits.body_bytes);
    args.maybe("max-prompt-tokens", limits.prompt_tokens);
    args.add("max-schema", limits.schema_bytes);
    args.add("max-choices", limits.choices);
    args.add("max-stops", limits.stops);
    args.add("max-concurrency", limits.concurrent_requests);
    args.add("max-queue", limits.waiting_sequences);
    args.add("max-connections", limits.connections);
    args.add("request-timeout", format!("{}s", limits.request_seconds));
    args.add("write-timeout", format!("{}s", limits.write_seconds));
    let grace = front.pod.termination_grace_period_seconds;
    args.add("shutdown-grace", format!("{}s", grace - grace / 10));
    args.0
}

struct Args(Vec<String>);

impl Args {
    fn add(&mut self, flag: &str, value: impl Display) {
        self.0.push(format!("--{flag}={value}"));
    }

    fn maybe(&mut self, flag: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(flag, value);
        }
    }

    fn node(
        &mut self,
        (moe, namespace): (&MoEDeployment, &str),
        (name, cohort): (&str, Option<&str>),
        at: &Surroundings,
    ) {
        let deployment = moe.name_any();
        self.add("name", name);
        self.add("deployment", format!("{namespace}/{deployment}"));
        match &at.placement {
            PlacementFrom::Cluster { cache } => {
                self.add("placement", deployment);
                self.maybe("cohort", cohort);
                self.add("placement-cache", cache);
            }
            PlacementFrom::File(table) => self.add("table", table),
        }
        self.add("tls", &at.tls);
        self.add("model", &at.model);
    }
}

/// Ranks that each expert worker has landing rows for: changing it later would roll them all.
fn ranks(spec: &MoEDeploymentSpec) -> i32 {
    let given = spec.attention.as_ref().map_or(0, |a| a.replicas);
    let given = given.max(spec.hybrid.as_ref().map_or(0, |h| h.replicas));
    (2 * given.max(8)).cast_unsigned().next_power_of_two().cast_signed()
}

const fn policy(policy: SchedulerPolicy) -> &'static str {
    match policy {
        SchedulerPolicy::Frontier => "frontier",
        SchedulerPolicy::Defrag => "defrag",
        SchedulerPolicy::Mtfs => "mtfs",
        SchedulerPolicy::Flfs => "flfs",
        SchedulerPolicy::Sync => "sync",
    }
}

/// The bytes of a quantity.
fn bytes(quantity: &IntOrString) -> Option<u64> {
    let text = match quantity {
        IntOrString::Int(n) => return u64::try_from(*n).ok(),
        IntOrString::String(text) => text,
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|n| (n * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bytes() {
        let of = |text: &str| bytes(&IntOrString::String(text.into()));
        assert_eq!(of("40Gi"), Some(40 << 30));
        assert_eq!(of("1.5k"), Some(1500));
        assert_eq!(of("7"), Some(7));
        assert_eq!(of("7m"), None);
        assert_eq!(bytes(&IntOrString::Int(9)), Some(9));
    }
}
