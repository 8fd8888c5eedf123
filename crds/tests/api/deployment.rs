//! The rules of MoEDeployments.

use crate::support::{Changes, Kind};
use serde_json::{Value, json};
use sluice_crds::{Layout, MoEDeployment, MoEDeploymentSpec, Placement, SchedulerPolicy};
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<MoEDeployment>(json!({
            "metadata": { "name": "qwen" },
            "spec": { "model": { "source": { "huggingFace": { "repository": "Qwen/Qwen3-30B-A3B" } } } },
        }))
    });
    &KIND
}

fn with(changes: Changes) -> Value {
    kind().with(changes)
}

fn refused(changes: Changes, message: &str) {
    kind().refused(changes, message);
}

fn accepted(changes: Changes) {
    kind().accepted(changes);
}

#[test]
fn exactly_one_source() {
    accepted(&[]);
    let message = "exactly one of";
    refused(&[("/spec/model/source/huggingFace", Value::Null)], message);
    for source in [
        ("/spec/model/source/hostPath", json!({ "path": "/models" })),
        ("/spec/model/source/persistentVolumeClaim", json!({ "claimName": "models" })),
        ("/spec/model/source/image", json!({ "reference": "models/qwen" })),
    ] {
        refused(std::slice::from_ref(&source), message);
        accepted(&[source, ("/spec/model/source/huggingFace", Value::Null)]);
    }
}

#[test]
fn roles_fit_the_layout() {
    let (attention, experts, hybrid) = (
        ("/spec/attention", json!({})),
        ("/spec/experts", json!({ "replicas": 4 })),
        ("/spec/hybrid", json!({ "replicas": 2 })),
    );
    let layout = |layout: &str| ("/spec/layout", json!(layout));
    accepted(&[attention.clone(), experts.clone()]);
    accepted(&[layout("Disaggregated"), attention.clone(), experts.clone()]);
    accepted(std::slice::from_ref(&hybrid));
    accepted(&[layout("Hybrid"), hybrid.clone()]);
    accepted(&[layout("Hybrid")]);
    refused(&[layout("Disaggregated")], "needs attention and experts");
    refused(&[layout("Disaggregated"), hybrid.clone()], "needs attention and experts");
    refused(&[layout("Hybrid"), attention.clone(), experts.clone()], "has no roles attention and experts");
    refused(std::slice::from_ref(&attention), "given together");
    refused(std::slice::from_ref(&experts), "given together");
    refused(&[attention, experts, hybrid], "give either hybrid");
}

#[test]
fn sync_is_for_all_workers() {
    let role = |policy: &str| json!({ "scheduler": { "policy": policy } });
    let roles = |a: &str, e: &str| [("/spec/attention", role(a)), ("/spec/experts", role(e))];
    accepted(&roles("Sync", "Sync"));
    accepted(&roles("Flfs", "Mtfs"));
    refused(&roles("Sync", "Mtfs"), "both roles must have it");
    refused(&roles("Frontier", "Sync"), "both roles must have it");
    refused(&[("/spec/attention", json!({})), ("/spec/experts", role("Sync"))], "both roles must have it");
}

#[test]
fn placement_is_consistent() {
    let placement = |value: Value| [("/spec/placement", value)];
    accepted(&placement(json!({ "minReplicas": 3, "maxReplicas": 3 })));
    refused(&placement(json!({ "minReplicas": 9 })), "must not exceed maxReplicas");
    accepted(&placement(json!({ "segments": 4, "slices": 4 })));
    refused(&placement(json!({ "segments": 4, "slices": 8 })), "more slices than it has segments");
    let pins = json!([{ "block": 0, "expert": 3, "workers": ["a"] }]);
    accepted(&placement(json!({ "policy": "Pinned", "pins": pins })));
    refused(&placement(json!({ "policy": "Pinned" })), "pins are for the policy Pinned");
    refused(&placement(json!({ "policy": "Balanced", "pins": pins })), "pins are for the policy Pinned");
}

#[test]
fn names_leave_room_for_those_of_pods() {
    accepted(&[("/metadata/name", json!("n".repeat(40)))]);
    refused(&[("/metadata/name", json!("n".repeat(41)))], "must not exceed 40 characters");
}

#[test]
fn what_decides_bits_is_immutable() {
    let fixed: &[(Changes, &str)] = &[
        (&[("/spec/model/source/huggingFace/repository", json!("a/b"))], "source is immutable"),
        (&[("/spec/model/source/huggingFace/revision", json!("v2"))], "source is immutable"),
        (
            &[
                ("/spec/model/source/huggingFace", Value::Null),
                ("/spec/model/source/hostPath", json!({ "path": "/models" })),
            ],
            "source is immutable",
        ),
        (&[("/spec/model/dtype", json!("F32"))], "dtype is immutable"),
        (&[("/spec/placement", json!({ "segments": 4 }))], "segments is immutable"),
    ];
    for (changes, message) in fixed {
        kind().may_not_become(&[], changes, message);
    }
    let free: &[Changes] = &[
        &[("/spec/model/source/huggingFace/tokenSecret", json!({ "name": "hub" }))],
        &[("/spec/model/source/huggingFace/endpoint", json!("http://mirror:8080/hub"))],
        &[("/spec/model/source/huggingFace/cache", json!({ "hostPath": { "path": "/cache" } }))],
        &[("/spec/model/servedName", json!("qwen3"))],
        &[("/spec/placement", json!({ "slices": 8 }))],
        &[("/spec/image", json!("sluice:2"))],
    ];
    for changes in free {
        kind().may_become(&[], changes);
    }
}

#[test]
fn other_sources_are_immutable_too() {
    let source = |source: &Value| [("/spec/model/source", source.clone())];
    for (old, new, fine) in [
        (json!({ "hostPath": { "path": "/a" } }), json!({ "hostPath": { "path": "/b" } }), false),
        (
            json!({ "persistentVolumeClaim": { "claimName": "a" } }),
            json!({ "persistentVolumeClaim": { "claimName": "a", "path": "b" } }),
            false,
        ),
        (json!({ "image": { "reference": "a" } }), json!({ "image": { "reference": "b" } }), false),
        (
            json!({ "image": { "reference": "a" } }),
            json!({ "image": { "reference": "a", "path": "b" } }),
            false,
        ),
        (
            json!({ "image": { "reference": "a" } }),
            json!({ "image": { "reference": "a", "pullPolicy": "Always" } }),
            true,
        ),
    ] {
        let (old, new) = (source(&old), source(&new));
        if fine {
            kind().may_become(&old, &new);
        } else {
            kind().may_not_become(&old, &new, "source is immutable");
        }
    }
}

#[test]
fn paths_stay_within() {
    let source = |value: Value| [("/spec/model/source", value)];
    for path in ["a/../b", "..", "../a", "a/.."] {
        let message = "must not contain '..'";
        refused(&source(json!({ "hostPath": { "path": format!("/{path}") } })), message);
        refused(&source(json!({ "image": { "reference": "a", "path": path } })), message);
        refused(&source(json!({ "persistentVolumeClaim": { "claimName": "a", "path": path } })), message);
    }
    accepted(&source(json!({ "hostPath": { "path": "/a/..b/c../.d" } })));
    accepted(&source(json!({ "image": { "reference": "a", "path": "a/..b" } })));
    accepted(&source(json!({ "persistentVolumeClaim": { "claimName": "a", "path": "...a" } })));
}

#[test]
fn the_hub_is_named_and_cached_in_one_place() {
    let hub = |key: &str, value: Value| {
        let mut source = json!({ "repository": "a/b" });
        source[key] = value;
        [("/spec/model/source/huggingFace", source)]
    };
    accepted(&hub("endpoint", json!("https://hub.example.com/mirror")));
    refused(&hub("endpoint", json!("hub.example.com")), "does not match");
    refused(&hub("repository", json!("b")), "does not match");
    accepted(&hub("revision", json!("refs/pr/3")));
    refused(&hub("revision", json!("-x")), "does not match");
    let (path, claim) = (json!({ "path": "/cache" }), json!({ "claimName": "cache" }));
    let message = "exactly one of hostPath and persistentVolumeClaim";
    accepted(&hub("cache", json!({ "hostPath": path })));
    accepted(&hub("cache", json!({ "persistentVolumeClaim": claim })));
    refused(&hub("cache", json!({})), message);
    refused(&hub("cache", json!({ "hostPath": path, "persistentVolumeClaim": claim })), message);
}

#[test]
fn the_service_has_what_its_type_has() {
    let service = |value: Value| [("/spec/gateway", json!({ "service": value }))];
    accepted(&service(json!({ "type": "NodePort", "nodePort": 30080 })));
    accepted(&service(json!({ "type": "LoadBalancer", "nodePort": 30080, "loadBalancerClass": "a.b/c" })));
    refused(&service(json!({ "nodePort": 30080 })), "nodePort is for the types NodePort and LoadBalancer");
    refused(
        &service(json!({ "type": "NodePort", "loadBalancerClass": "a.b/c" })),
        "loadBalancerClass is for the type LoadBalancer",
    );
    refused(&service(json!({ "type": "ExternalName" })), "is none of");
    refused(&service(json!({ "annotations": { "sluice.dev/a": "b" } })), "are the operator's own");
}

#[test]
fn limits_fit_each_other() {
    let limits = |value: Value| [("/spec/gateway", json!({ "limits": value }))];
    accepted(&limits(json!({ "choices": 8, "waitingSequences": 8 })));
    refused(&limits(json!({ "waitingSequences": 8 })), "choices must not exceed waitingSequences");
    refused(&[("/spec/gateway", json!({ "replicas": 0 }))], "is less than 1");
}

#[test]
fn at_most_one_more_pod_at_a_time() {
    let surge = |surge: i32| [("/spec/updateStrategy", json!({ "maxSurge": surge }))];
    accepted(&surge(1));
    refused(&surge(2), "is more than 1");
}

/// What the API server fills in is what the types fill in.
#[test]
fn defaults_of_schema_and_types_agree() {
    let by_server: MoEDeployment =
        serde_json::from_value(kind().stored(&[])).expect("an object with its defaults");
    let by_types: MoEDeployment = serde_json::from_value(with(&[])).expect("an object without them");
    assert_eq!(by_server, by_types);
    assert_eq!(by_types.spec.placement, Placement::default());
    let roles = [("/spec/attention", json!({})), ("/spec/experts", json!({ "scheduler": {} }))];
    let by_types: MoEDeployment = serde_json::from_value(with(&roles)).expect("roles without values");
    let by_server: MoEDeployment =
        serde_json::from_value(kind().stored(&roles)).expect("roles with their defaults");
    assert_eq!(by_server, by_types);
    assert_eq!(by_types.spec.attention.map(|role| role.scheduler.policy), Some(SchedulerPolicy::Frontier));
}

#[test]
fn the_layout_follows_the_roles() {
    let spec = |changes: &[(&str, Value)]| {
        let object: MoEDeployment = serde_json::from_value(with(changes)).expect("a deployment");
        MoEDeploymentSpec::effective_layout(&object.spec)
    };
    let roles = [("/spec/attention", json!({})), ("/spec/experts", json!({}))];
    assert_eq!(spec(&[]), Layout::Hybrid);
    assert_eq!(spec(&roles), Layout::Disaggregated);
    assert_eq!(spec(&[("/spec/layout", json!("Hybrid"))]), Layout::Hybrid);
    assert_eq!(spec(&[("/spec/layout", json!("Disaggregated"))]), Layout::Disaggregated);
}

#[test]
fn unknown_fields_are_errors_to_us() {
    for pointer in ["/spec/replicas", "/spec/model/path", "/spec/placement"] {
        let object = with(&[(pointer, json!({ "nonsense": 1 }))]);
        assert!(serde_json::from_value::<MoEDeployment>(object).is_err(), "{pointer}");
    }
}
