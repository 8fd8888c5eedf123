//! What agents may do in the API server: read the placement of their namespace, and nothing else.

use super::Built;
use crate::names;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use serde_json::json;
use sluice_crds::{GROUP, MoEDeployment};

/// What the objects are labelled with.
const COMPONENT: &str = "agent";

/// The agents' account.
pub fn account(moe: &MoEDeployment) -> ServiceAccount {
    ServiceAccount {
        metadata: names::owned(moe, names::agent(&moe.name_any()), COMPONENT),
        ..ServiceAccount::default()
    }
}

/// What it may do.
pub fn role(moe: &MoEDeployment) -> Built<Role> {
    serde_json::from_value(json!({
        "metadata": names::owned(moe, names::agent(&moe.name_any()), COMPONENT),
        "rules": [{
            "apiGroups": [GROUP],
            "resources": ["expertplacements"],
            "verbs": ["get", "list", "watch"],
        }],
    }))
}

/// That it may.
pub fn binding(moe: &MoEDeployment, namespace: &str) -> Built<RoleBinding> {
    let name = names::agent(&moe.name_any());
    serde_json::from_value(json!({
        "metadata": names::owned(moe, name.clone(), COMPONENT),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
    }))
}
