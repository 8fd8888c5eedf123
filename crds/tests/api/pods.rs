//! The rules of what people may say about pods, and that it is said as Kubernetes says it.

use crate::support::Kind;
use k8s_openapi::api::core::v1::{Affinity, EnvVar, Toleration, Volume, VolumeMount};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_crds::{MoEDeployment, PodSettings};
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<MoEDeployment>(json!({
            "metadata": { "name": "qwen" },
            "spec": {
                "model": { "source": { "hostPath": { "path": "/models" } } },
                "hybrid": { "pod": {} },
            },
        }))
    });
    &KIND
}

fn accepted(key: &str, value: &Value) {
    kind().accepted(&[(&format!("/spec/hybrid/pod/{key}"), value.clone())]);
    kind().accepted(&[(&format!("/spec/gateway/pod/{key}"), value.clone())]);
}

fn refused(key: &str, value: &Value, message: &str) {
    kind().refused(&[(&format!("/spec/hybrid/pod/{key}"), value.clone())], message);
    kind().refused(&[(&format!("/spec/gateway/pod/{key}"), value.clone())], message);
}

#[test]
fn tolerations_are_those_of_kubernetes() {
    let accepted = |toleration: Value| accepted("tolerations", &json!([toleration]));
    let refused = |toleration: Value, message: &str| refused("tolerations", &json!([toleration]), message);
    accepted(json!({ "operator": "Exists" }));
    accepted(json!({ "key": "gpu", "value": "yes" }));
    accepted(json!({ "key": "gpu", "effect": "NoExecute", "tolerationSeconds": 5 }));
    refused(json!({ "key": "gpu", "operator": "Exists", "value": "yes" }), "value is for the operator");
    refused(json!({ "value": "yes" }), "needs a key");
    for effect in [
        json!({ "key": "gpu", "tolerationSeconds": 5 }),
        json!({ "key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 5 }),
    ] {
        refused(effect, "tolerationSeconds is for the effect NoExecute");
    }
}

#[test]
fn labels_and_annotations_are_not_ours() {
    for key in ["labels", "annotations"] {
        accepted(key, &json!({ "example.com/team": "a", "sluice.development": "b" }));
        refused(key, &json!({ "sluice.dev/role": "a" }), "are the operator's own");
    }
    refused("labels", &json!({ "team": "a".repeat(64) }), "is more than 63");
}

#[test]
fn variables_have_one_value() {
    let accepted = |variable: Value| accepted("env", &json!([variable]));
    let refused = |variable: Value, message: &str| refused("env", &json!([variable]), message);
    let (secret, field) = (json!({ "name": "a", "key": "b" }), json!({ "fieldPath": "status.podIP" }));
    accepted(json!({ "name": "A" }));
    accepted(json!({ "name": "A", "value": "b" }));
    accepted(json!({ "name": "A", "valueFrom": { "secretKeyRef": secret } }));
    accepted(json!({ "name": "A", "valueFrom": { "configMapKeyRef": secret } }));
    accepted(json!({ "name": "A", "valueFrom": { "fieldRef": field } }));
    refused(
        json!({ "name": "A", "value": "b", "valueFrom": { "fieldRef": field } }),
        "give either value or valueFrom",
    );
    let message = "exactly one of secretKeyRef, configMapKeyRef and fieldRef";
    refused(json!({ "name": "A", "valueFrom": {} }), message);
    refused(json!({ "name": "A", "valueFrom": { "fieldRef": field, "secretKeyRef": secret } }), message);
    refused(json!({ "name": "SLUICE_SEGMENTS", "value": "4" }), "are the operator's own");
    refused(json!({ "name": "A-B", "value": "4" }), "does not match");
}

#[test]
fn volumes_have_one_source() {
    let accepted = |volume: Value| accepted("volumes", &json!([volume]));
    let refused = |volume: Value, message: &str| refused("volumes", &json!([volume]), message);
    let message = "exactly one of configMap, secret, emptyDir, persistentVolumeClaim and hostPath";
    for (source, value) in [
        ("configMap", json!({ "name": "a" })),
        ("secret", json!({ "secretName": "a" })),
        ("emptyDir", json!({})),
        ("persistentVolumeClaim", json!({ "claimName": "a" })),
        ("hostPath", json!({ "path": "/a" })),
    ] {
        let mut volume = json!({ "name": "a" });
        refused(volume.clone(), message);
        volume[source] = value;
        accepted(volume.clone());
        let other = if source == "emptyDir" { "configMap" } else { "emptyDir" };
        volume[other] = if other == "emptyDir" { json!({}) } else { json!({ "name": "a" }) };
        refused(volume, message);
    }
    refused(json!({ "name": "sluice-tls", "emptyDir": {} }), "are the operator's own");
    refused(json!({ "name": "a", "hostPath": { "path": "/a/../b" } }), "must not contain '..'");
    refused(json!({ "name": "a", "emptyDir": { "medium": "Tape" } }), "is none of");
}

#[test]
fn mounts_are_of_volumes() {
    let pod = |mount: Value| {
        let pod = json!({ "volumes": [{ "name": "a", "emptyDir": {} }], "volumeMounts": [mount] });
        [("/spec/hybrid/pod", pod)]
    };
    kind().accepted(&pod(json!({ "name": "a", "mountPath": "/a", "subPath": "b/c" })));
    kind().refused(
        &pod(json!({ "name": "b", "mountPath": "/a" })),
        "every volumeMount must name one of volumes",
    );
    kind().refused(&pod(json!({ "name": "a", "mountPath": "a" })), "does not match");
    kind().refused(&pod(json!({ "name": "a", "mountPath": "/a/.." })), "must not contain '..'");
    kind()
        .refused(&pod(json!({ "name": "a", "mountPath": "/a", "subPath": "../b" })), "must not contain '..'");
}

#[test]
fn operators_have_their_values() {
    let nodes = |requirement: Value| {
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [requirement] }],
        } } })
    };
    let pods = |requirement: Value| {
        json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "zone",
            "labelSelector": { "matchExpressions": [requirement] },
        }] } })
    };
    let requirement =
        |operator: &str, values: &[&str]| json!({ "key": "a", "operator": operator, "values": values });
    for (operator, values) in
        [("In", &["b", "c"][..]), ("NotIn", &["b"]), ("Exists", &[]), ("DoesNotExist", &[])]
    {
        accepted("affinity", &nodes(requirement(operator, values)));
        accepted("affinity", &pods(requirement(operator, values)));
    }
    for (operator, values) in [("In", &[][..]), ("NotIn", &[]), ("Exists", &["b"]), ("DoesNotExist", &["b"])]
    {
        refused("affinity", &nodes(requirement(operator, values)), "In, NotIn, Gt and Lt need values");
        refused("affinity", &pods(requirement(operator, values)), "In and NotIn need values");
    }
    accepted("affinity", &nodes(requirement("Gt", &["1"])));
    refused("affinity", &nodes(requirement("Lt", &["1", "2"])), "exactly one value");
    refused("affinity", &nodes(requirement("Lt", &[])), "need values");
    refused("affinity", &pods(requirement("Gt", &["1"])), "is none of");
}

/// Every field of ours is one of Kubernetes' own, under the same name and of the same type.
#[test]
fn pods_are_described_as_kubernetes_does() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/samples/pods.yaml")).unwrap();
    let sample: MoEDeployment = serde_saphyr::from_str(&text).unwrap();
    let (attention, experts) = (sample.spec.attention.unwrap().pod, sample.spec.experts.unwrap().pod);
    let PodSettings { tolerations, env, volumes, volume_mounts, .. } = &experts;
    assert!(attention.affinity.is_some() && experts.affinity.is_some());
    for affinity in [&attention.affinity, &experts.affinity].into_iter().flatten() {
        understood::<Affinity>(affinity);
    }
    tolerations.iter().for_each(understood::<Toleration>);
    env.iter().for_each(understood::<EnvVar>);
    volumes.iter().for_each(understood::<Volume>);
    volume_mounts.iter().for_each(understood::<VolumeMount>);
}

fn understood<Theirs: Serialize + DeserializeOwned>(ours: &impl Serialize) {
    let ours = serde_json::to_value(ours).expect("JSON");
    let theirs: Theirs =
        serde_json::from_value(ours.clone()).unwrap_or_else(|error| panic!("{ours}: {error}"));
    kept(&ours, &serde_json::to_value(theirs).expect("JSON"), &ours);
}

/// Empty lists and maps may be left out.
fn kept(ours: &Value, theirs: &Value, whole: &Value) {
    match ours {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| kept(field, &theirs[name], whole)),
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| kept(item, &theirs[i], whole)),
        Value::Number(_) => assert!(!theirs.is_null(), "{whole}"),
        _ => assert_eq!(ours, theirs, "{whole}"),
    }
}
