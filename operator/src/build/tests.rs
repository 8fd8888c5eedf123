//! What is built of manifests.

use super::*;
use crate::roles::roles;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sluice_crds::{MoEDeployment, Role, RoleScaler, RoleScalerSpec};

fn moe(changes: &[(&str, Value)]) -> MoEDeployment {
    let mut object = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": { "name": "m", "namespace": "ns", "uid": "u" },
        "spec": {
            "model": { "source": { "image": { "reference": "models/m:1", "path": "files" } } },
            "attention": { "devicesPerPod": 0 },
            "experts": { "replicas": 2 },
        },
    });
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn pod_of(moe: &MoEDeployment, role: Role) -> Pod {
    let (views, common) = roles(&moe.spec);
    let view = views.iter().find(|v| v.role == role).unwrap();
    let mut scaler = RoleScaler::new("s", RoleScalerSpec { deployment: "m".into(), role, replicas: 1 });
    scaler.metadata.uid = Some("s-uid".into());
    let of = pod::WorkerPod {
        moe: (moe, "ns"),
        role: (view, &common),
        name: ("m-x-1", "c1"),
        image: "agent:1",
        template: "t",
    };
    pod::worker(&of, &scaler).unwrap()
}

fn template(moe: &MoEDeployment, role: Role, image: &str) -> String {
    let (views, common) = roles(&moe.spec);
    pod::template(moe, views.iter().find(|v| v.role == role).unwrap(), &common, image)
}

#[test]
fn a_worker_runs_with_no_rights_and_says_who_it_is() {
    let pod = json!(pod_of(&moe(&[]), Role::Experts));
    let agent = &pod["spec"]["containers"][0];
    let args = agent["args"].as_array().unwrap();
    for arg in [
        "experts",
        "--name=m-x-1",
        "--deployment=ns/m",
        "--placement=m",
        "--cohort=c1",
        "--model=/model/files",
        "--segments=8",
        "--shutdown-grace=270s",
    ] {
        assert!(args.contains(&json!(arg)), "{arg}: {args:?}");
    }
    assert_eq!(agent["resources"]["limits"]["nvidia.com/gpu"], "1");
    // What the Pod Security level `restricted` asks for.
    let (own, of_pod) = (&agent["securityContext"], &pod["spec"]["securityContext"]);
    assert_eq!(own["allowPrivilegeEscalation"], false);
    assert_eq!(own["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        (&of_pod["runAsNonRoot"], &of_pod["seccompProfile"]["type"]),
        (&json!(true), &json!("RuntimeDefault"))
    );
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "s-uid");
    assert_eq!(pod["metadata"]["labels"]["sluice.dev/role"], "experts");
    assert_eq!(pod["spec"]["readinessGates"][0]["conditionType"], "sluice.dev/experts-loaded");
    assert!(
        json!(pod_of(&moe(&[]), Role::Attention))["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"].is_null()
    );
}

#[test]
fn labels_that_are_asked_for_do_not_take_the_operators_place() {
    let labels = json!({ "team": "a", "sluice.dev/role": "king" });
    let pod = pod_of(&moe(&[("/spec/experts/pod", json!({ "labels": labels }))]), Role::Experts);
    let labels = pod.metadata.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels["sluice.dev/role"].as_str()), ("a", "experts"));
}

#[test]
fn a_model_of_a_hub_is_fetched_first() {
    let hub = json!({ "huggingFace": {
        "repository": "o/r", "tokenSecret": { "name": "t", "key": "k" },
        "cache": { "hostPath": { "path": "/var/cache" } },
    } });
    let pod = json!(pod_of(&moe(&[("/spec/model/source", hub)]), Role::Experts));
    let fetch = &pod["spec"]["initContainers"][0];
    let args = fetch["args"].as_array().unwrap();
    for arg in ["fetch", "--repository=o/r", "--out=/model/o--r/main", "--token-file=/etc/sluice/hub/token"] {
        assert!(args.contains(&json!(arg)), "{arg}: {args:?}");
    }
    let agent = &pod["spec"]["containers"][0];
    assert!(agent["args"].as_array().unwrap().contains(&json!("--model=/model/o--r/main")));
    let writes = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().any(|m| m["name"] == "model" && m["readOnly"] != json!(true))
    };
    assert!(writes(fetch) && !writes(agent));
}

#[test]
fn pods_are_exchanged_for_what_they_are_made_from_and_nothing_else() {
    let (base, of) = (moe(&[]), Role::Experts);
    let same =
        |changes: &[(&str, Value)]| template(&moe(changes), of, "agent:1") == template(&base, of, "agent:1");
    assert!(same(&[("/spec/experts/replicas", json!(7))]));
    assert!(same(&[("/spec/gateway", json!({ "replicas": 3 }))]));
    assert!(same(&[("/spec/experts/pod", json!({ "tolerations": [] }))]), "a default is nothing");
    assert!(!same(&[("/spec/experts/threads", json!(3))]));
    assert!(!same(&[("/spec/experts/resources", json!({ "requests": { "cpu": 1 } }))]));
    assert!(!same(&[("/spec/attention/batching", json!({ "waves": 2 }))]), "experts know all waves");
    assert_ne!(template(&base, of, "agent:2"), template(&base, of, "agent:1"));
}

#[test]
fn the_gateway_is_one_that_clients_reach() {
    let keys = json!({ "apiKeysSecret": { "name": "keys" }, "service": { "port": 8000 } });
    let moe = moe(&[("/spec/gateway", keys)]);
    let built = json!(gateway::deployment(&moe, "ns", "agent:1").unwrap());
    let spec = &built["spec"]["template"]["spec"];
    let args = spec["containers"][0]["args"].as_array().unwrap();
    for arg in ["--name=$(POD_NAME)", "--api-key-file=/etc/sluice/api-keys", "--served-model-name=m"] {
        assert!(args.contains(&json!(arg)), "{arg}: {args:?}");
    }
    let selector = built["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let labels = built["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
    assert!(selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
    let service = json!(gateway::service(&moe).unwrap());
    assert_eq!(service["spec"]["ports"][0]["port"], 8000);
    assert_eq!(service["spec"]["selector"], built["spec"]["selector"]["matchLabels"]);
}
