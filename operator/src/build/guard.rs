//! What keeps others from harming a deployment: disruption budgets and network policies.

use super::Built;
use crate::names::{self, ADMIN_PORT, API_PORT, DEPLOYMENT, PEER_PORT};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde_json::json;
use sluice_crds::MoEDeployment;

/// One pod of a component at a time may be evicted, and any that does not serve.
pub fn budget(moe: &MoEDeployment, component: &str) -> Built<PodDisruptionBudget> {
    let name = moe.name_any();
    serde_json::from_value(json!({
        "metadata": names::owned(moe, format!("{name}-{component}"), component),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": { "matchLabels": names::selector(&name, component) },
        },
    }))
}

/// Who may reach the pods of a deployment: each other on the peers' port, the operator there too, anybody on the port of
/// clients and on that of metrics.
pub fn network(moe: &MoEDeployment, operator_namespace: &str) -> Built<NetworkPolicy> {
    let name = moe.name_any();
    let operator = json!({
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": operator_namespace } },
        "podSelector": { "matchLabels": { "app.kubernetes.io/name": "sluice-operator" } },
    });
    serde_json::from_value(json!({
        "metadata": names::owned(moe, name.clone(), "network"),
        "spec": {
            "podSelector": { "matchLabels": { DEPLOYMENT: name } },
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{ "podSelector": { "matchLabels": { DEPLOYMENT: name } } }, operator],
                    "ports": [{ "port": PEER_PORT, "protocol": "TCP" }],
                },
                { "ports": [
                    { "port": API_PORT, "protocol": "TCP" },
                    { "port": ADMIN_PORT, "protocol": "TCP" },
                ] },
            ],
        },
    }))
}
