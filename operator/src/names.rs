//! Names, labels and ports that the operator, its pods and their peers must agree on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use sluice_core::hello;
use sluice_crds::{MoEDeployment, Role};
use sluice_identity::Identity;
use std::collections::BTreeMap;

/// The field manager of everything that the operator writes.
pub const MANAGER: &str = "sluice-operator";
/// The finalizer of a MoEDeployment.
pub const FINALIZER: &str = "sluice.dev/drain";
/// The label that ties an object to its MoEDeployment.
pub const DEPLOYMENT: &str = "sluice.dev/deployment";
/// The label of a worker's role.
pub const ROLE: &str = "sluice.dev/role";
/// The label of a worker's cohort.
pub const COHORT: &str = "sluice.dev/cohort";
/// The first cohort of a deployment.
pub const FIRST_COHORT: &str = "c1";
/// The label that says what a pod was made from.
pub const TEMPLATE: &str = "sluice.dev/template";
/// The label of everything that the operator makes; it watches nothing else.
pub const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", MANAGER);
/// The readiness gate of workers: what the placement gives them is loaded and takes tokens.
pub const LOADED: &str = "sluice.dev/experts-loaded";
/// The annotation of a Secret: when its certificate has to be renewed.
pub const RENEW: &str = "sluice.dev/renew-at";
/// The annotation of a Secret: which CAs its bundle has.
pub const BUNDLE: &str = "sluice.dev/ca";

/// Where gateways take clients' requests.
pub const API_PORT: i32 = 8080;
/// Where workers and gateways are reached by peers.
pub const PEER_PORT: i32 = 7070;
/// Health and metrics.
pub const ADMIN_PORT: i32 = 9090;

/// The RoleScaler of a role.
pub fn scaler(deployment: &str, role: Role) -> String {
    format!("{deployment}-{}", role.name())
}

/// The gateway's Deployment.
pub fn gateway(deployment: &str) -> String {
    format!("{deployment}-gateway")
}

/// The agents' ServiceAccount, Role and RoleBinding.
pub fn agent(deployment: &str) -> String {
    format!("{deployment}-agent")
}

/// The Secret with a worker's or the gateways' certificate.
pub fn certificate(of: &str) -> String {
    format!("{of}-tls")
}

/// The ExpertPlacement with a cohort's list of workers.
pub fn workers(deployment: &str, cohort: &str) -> String {
    format!("{deployment}-{cohort}-workers")
}

/// The ExpertPlacement with the rows of a range of blocks.
pub fn rows(deployment: &str, cohort: &str, first: u16) -> String {
    format!("{deployment}-{cohort}-blocks-{first}")
}

/// Whom a worker's certificate is for.
pub fn worker(namespace: &str, deployment: &str, role: Role, worker: &str) -> Identity {
    let role = match role {
        Role::Attention => hello::Role::Attention,
        Role::Experts => hello::Role::Experts,
        Role::Hybrid => hello::Role::Hybrid,
    };
    Identity::new(namespace, deployment, role, Some(worker))
}

/// Whom the certificate of all gateways of a deployment is for.
pub fn gateways(namespace: &str, deployment: &str) -> Identity {
    Identity::new(namespace, deployment, hello::Role::Gateway, None)
}

/// Whom the certificate is for with which the operator asks agents of a deployment.
pub fn operator(namespace: &str, deployment: &str) -> Identity {
    Identity::new(namespace, deployment, hello::Role::Operator, None)
}

/// The labels of an object of a deployment.
pub fn labels(deployment: &str, component: &str) -> BTreeMap<String, String> {
    let all = [
        ("app.kubernetes.io/name", "sluice"),
        ("app.kubernetes.io/instance", deployment),
        ("app.kubernetes.io/component", component),
        MANAGED,
        (DEPLOYMENT, deployment),
    ];
    all.into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

/// The labels by which pods of a component are selected.
pub fn selector(deployment: &str, component: &str) -> BTreeMap<String, String> {
    let mut all = labels(deployment, component);
    all.retain(|key, _| key == DEPLOYMENT || key == "app.kubernetes.io/component");
    all
}

/// Metadata of an object that goes with its deployment.
pub fn owned(moe: &MoEDeployment, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: moe.namespace(),
        labels: Some(labels(&moe.name_any(), component)),
        owner_references: Some(owner(moe).into_iter().collect()),
        name: Some(name),
        ..ObjectMeta::default()
    }
}

/// A reference that lets garbage collection take what belongs to an object, after it.
pub fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Option<OwnerReference> {
    object.controller_owner_ref(&())
}
