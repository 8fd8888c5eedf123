//! The CEL rules, run as the API server runs them: on the object with its defaults.

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};
use sluice_crds::{Layout, MoEDeployment, MoEDeploymentSpec, Placement, SchedulerPolicy};

fn schema() -> Value {
    let version = MoEDeployment::crd().spec.versions.remove(0);
    serde_json::to_value(version.schema.and_then(|schema| schema.open_api_v3_schema))
        .expect("a schema is JSON")
}

fn minimal() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": { "name": "qwen" },
        "spec": { "model": { "source": { "huggingFace": { "repository": "Qwen/Qwen3-30B-A3B" } } } },
    })
}

/// The minimal object with other values at some pointers; `null` removes.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut object = minimal();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let mut at = &mut object;
        for step in parent.split('/').skip(1) {
            at = &mut at[step];
        }
        if value.is_null() {
            at.as_object_mut().expect("an object").remove(key);
        } else {
            at[key] = value.clone();
        }
    }
    object
}

fn messages(object: &Value, old: Option<&Value>) -> Vec<String> {
    let found = Validator::new().validate_with_defaults(&schema(), object, old);
    found
        .err()
        .map_or_else(Vec::new, |errors| errors.into_vec().into_iter().map(|error| error.message).collect())
}

fn refused(changes: &[(&str, Value)], message: &str) {
    let found = messages(&with(changes), None);
    assert!(found.iter().any(|found| found.contains(message)), "{changes:?}: {found:?}");
}

fn accepted(changes: &[(&str, Value)]) {
    assert_eq!(messages(&with(changes), None), Vec::<String>::new(), "{changes:?}");
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
fn tolerations_are_those_of_kubernetes() {
    let toleration = |value: Value| [("/spec/hybrid", json!({ "pod": { "tolerations": [value] } }))];
    accepted(&toleration(json!({ "operator": "Exists" })));
    accepted(&toleration(json!({ "key": "gpu", "value": "yes" })));
    refused(
        &toleration(json!({ "key": "gpu", "operator": "Exists", "value": "yes" })),
        "value is for the operator",
    );
    refused(&toleration(json!({ "value": "yes" })), "needs a key");
}

#[test]
fn names_leave_room_for_those_of_pods() {
    accepted(&[("/metadata/name", json!("n".repeat(40)))]);
    refused(&[("/metadata/name", json!("n".repeat(41)))], "must not exceed 40 characters");
}

#[test]
fn what_decides_bits_is_immutable() {
    let token = json!({ "name": "hub" });
    type Changes<'a> = &'a [(&'a str, Value)];
    let cases: &[(&str, Changes, &str)] = &[
        ("repository", &[("/spec/model/source/huggingFace/repository", json!("a/b"))], "source is immutable"),
        ("revision", &[("/spec/model/source/huggingFace/revision", json!("v2"))], "source is immutable"),
        (
            "kind of source",
            &[
                ("/spec/model/source/huggingFace", Value::Null),
                ("/spec/model/source/hostPath", json!({ "path": "/models" })),
            ],
            "source is immutable",
        ),
        ("dtype", &[("/spec/model/dtype", json!("F32"))], "dtype is immutable"),
        ("segments", &[("/spec/placement", json!({ "segments": 4 }))], "segments is immutable"),
        ("token", &[("/spec/model/source/huggingFace/tokenSecret", token)], ""),
        ("slices", &[("/spec/placement", json!({ "slices": 8 }))], ""),
        ("image", &[("/spec/image", json!("sluice:2"))], ""),
    ];
    // The stored object has its defaults.
    let old = kube::core::cel::apply_defaults(&schema(), &minimal());
    for (what, changes, message) in cases {
        let found = messages(&with(changes), Some(&old));
        if message.is_empty() {
            assert_eq!(found, Vec::<String>::new(), "{what}");
        } else {
            assert!(found.iter().any(|found| found.contains(message)), "{what}: {found:?}");
        }
    }
}

#[test]
fn other_sources_are_immutable_too() {
    let source = |source: Value| with(&[("/spec/model/source", source)]);
    let cases = [
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
    ];
    for (old, new, fine) in cases {
        let old = kube::core::cel::apply_defaults(&schema(), &source(old));
        let found = messages(&source(new.clone()), Some(&old));
        assert_eq!(found.is_empty(), fine, "{new}: {found:?}");
    }
}

/// What the API server fills in is what the types fill in.
#[test]
fn defaults_of_schema_and_types_agree() {
    let served = kube::core::cel::apply_defaults(&schema(), &minimal());
    let by_server: MoEDeployment = serde_json::from_value(served).expect("an object with its defaults");
    let by_types: MoEDeployment = serde_json::from_value(minimal()).expect("an object without them");
    assert_eq!(by_server, by_types);
    assert_eq!(by_types.spec.placement, Placement::default());
    let roles = [("/spec/attention", json!({})), ("/spec/experts", json!({ "scheduler": {} }))];
    let by_types: MoEDeployment = serde_json::from_value(with(&roles)).expect("roles without values");
    let served = kube::core::cel::apply_defaults(&schema(), &with(&roles));
    let by_server: MoEDeployment = serde_json::from_value(served).expect("roles with their defaults");
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

#[test]
fn samples_are_valid() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("samples") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let typed: MoEDeployment =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let raw: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(messages(&raw, None), Vec::<String>::new(), "{}", path.display());
        // Nothing written in the sample is lost on the way through the types.
        let back = serde_json::to_value(&typed).expect("JSON");
        contains(&back, &raw, &path.display().to_string());
        count += 1;
    }
    assert!(count >= 3, "{count} samples found");
}

fn contains(whole: &Value, part: &Value, at: &str) {
    match part {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| contains(&whole[key], value, &format!("{at}.{key}")));
        }
        Value::Array(items) => {
            assert_eq!(whole.as_array().map(Vec::len), Some(items.len()), "{at}");
            items.iter().enumerate().for_each(|(i, item)| contains(&whole[i], item, &format!("{at}[{i}]")));
        }
        _ => assert_eq!(whole, part, "{at}"),
    }
}
