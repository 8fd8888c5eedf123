//! The rules of RoleScalers.

use crate::support::Kind;
use serde_json::{Value, json};
use sluice_crds::{Role, RoleScaler};
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<RoleScaler>(json!({
            "metadata": { "name": "qwen-experts" },
            "spec": { "deployment": "qwen", "role": "experts", "replicas": 2 },
        }))
    });
    &KIND
}

#[test]
fn a_role_has_one() {
    kind().accepted(&[]);
    kind().accepted(&[("/metadata/name", json!("qwen-attention")), ("/spec/role", json!("attention"))]);
    for name in ["qwen", "qwen-attention", "other-experts"] {
        kind().refused(&[("/metadata/name", json!(name))], "its name must be DEPLOYMENT-ROLE");
    }
}

#[test]
fn only_replicas_change() {
    kind().may_become(&[], &[("/spec/replicas", json!(0))]);
    let other = |pointer: &'static str, value: &str, name: &str| {
        [(pointer, json!(value)), ("/metadata/name", json!(name))]
    };
    kind().may_not_become(&[], &other("/spec/role", "hybrid", "qwen-hybrid"), "role is immutable");
    kind().may_not_become(
        &[],
        &other("/spec/deployment", "mixtral", "mixtral-experts"),
        "deployment is immutable",
    );
}

#[test]
fn replicas_are_given_and_bounded() {
    kind().refused(&[("/spec/replicas", Value::Null)], "replicas is required");
    kind().refused(&[("/spec/replicas", json!(-1))], "is less than 0");
    kind().refused(&[("/spec/replicas", json!(1025))], "is more than 1024");
}

/// `kubectl scale`, HPA and PodDisruptionBudgets read these.
#[test]
fn it_has_the_subresource_scale() {
    use kube::CustomResourceExt;
    let version = RoleScaler::crd().spec.versions.remove(0);
    let subresources = version.subresources.unwrap();
    let scale = subresources.scale.unwrap();
    assert!(subresources.status.is_some());
    assert_eq!(scale.spec_replicas_path, ".spec.replicas");
    assert_eq!(scale.status_replicas_path, ".status.replicas");
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
}

#[test]
fn names_of_roles_are_those_of_manifests() {
    for role in Role::ALL {
        assert_eq!(serde_json::to_value(role).unwrap(), role.name());
    }
}

#[test]
fn the_status_has_the_pods() {
    let pod = json!({ "name": "qwen-experts-0", "cohort": "a1" });
    let status = json!({ "replicas": 1, "selector": "sluice.dev/role=experts", "pods": [pod] });
    let object: RoleScaler = serde_json::from_value(kind().stored(&[("/status", status.clone())])).unwrap();
    kind().accepted(&[("/status", status)]);
    assert_eq!(object.status.unwrap().pods[0].failures, 0);
    kind().refused(&[("/status", json!({ "pods": [{ "name": "qwen-experts-0" }] }))], "cohort is required");
}
