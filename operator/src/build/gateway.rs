//! The gateway: a Deployment and a Service.

use super::Built;
use super::agent::{self, Surroundings};
use super::pod::{Container, model_directory, settle, spec};
use crate::names::{self, ADMIN_PORT, API_PORT, PEER_PORT};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use serde_json::json;
use sluice_crds::MoEDeployment;
use std::collections::BTreeMap;

/// What gateways are labelled with.
pub const COMPONENT: &str = "gateway";
/// Seconds that a gateway serves on after its deletion, until the load balancers know.
const LINGER: i64 = 5;

/// The gateway's Deployment.
pub fn deployment(moe: &MoEDeployment, namespace: &str, image: &str) -> Built<Deployment> {
    let (name, front) = (moe.name_any(), &moe.spec.gateway);
    let at = Surroundings::pod(model_directory(&moe.spec.model));
    let container = Container {
        args: agent::gateway((moe, namespace), "$(POD_NAME)", &at),
        image,
        pull_policy: json!(moe.spec.image_pull_policy),
        resources: json!(front.resources),
        ports: json!([
            { "name": "api", "containerPort": API_PORT },
            { "name": "peer", "containerPort": PEER_PORT },
            { "name": "admin", "containerPort": ADMIN_PORT },
        ]),
        lifecycle: Some(json!({ "preStop": { "sleep": { "seconds": LINGER } } })),
    };
    let mut spec = spec(moe, &front.pod, container, &names::certificate(&names::gateway(&name)))?;
    let agent = &mut spec["containers"][0];
    let pod_name =
        json!({ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } });
    if let Some(env) = agent["env"].as_array_mut() {
        env.insert(0, pod_name);
    }
    if let Some(keys) = &front.api_keys_secret {
        let mount = json!({ "name": "api-keys", "mountPath": "/etc/sluice/api-keys", "readOnly": true });
        let volume =
            json!({ "name": "api-keys", "secret": { "secretName": keys.name, "defaultMode": 0o440 } });
        agent["volumeMounts"].as_array_mut().into_iter().for_each(|all| all.push(mount.clone()));
        spec["volumes"].as_array_mut().into_iter().for_each(|all| all.push(volume.clone()));
    }
    let selector = names::selector(&name, COMPONENT);
    let mut labels = Some(names::labels(&name, COMPONENT));
    settle(&mut labels, &front.pod.labels, &BTreeMap::new());
    let built = json!({
        "metadata": names::owned(moe, names::gateway(&name), COMPONENT),
        "spec": {
            "replicas": front.replicas,
            "selector": { "matchLabels": selector },
            // Never one less than there should be: a stream is cut with its gateway.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": {
                "metadata": { "labels": labels, "annotations": front.pod.annotations },
                "spec": spec,
            },
        },
    });
    serde_json::from_value(built)
}

/// The Service that clients reach it by.
pub fn service(moe: &MoEDeployment) -> Built<Service> {
    let (name, asked) = (moe.name_any(), &moe.spec.gateway.service);
    let mut metadata = names::owned(moe, name.clone(), COMPONENT);
    metadata.annotations = (!asked.annotations.is_empty()).then(|| asked.annotations.clone());
    let mut port = json!({ "name": "http", "port": asked.port, "targetPort": "api", "protocol": "TCP" });
    if let Some(node_port) = asked.node_port {
        port["nodePort"] = json!(node_port);
    }
    let mut spec = json!({
        "type": asked.r#type,
        "selector": names::selector(&name, COMPONENT),
        "ports": [port],
    });
    if let Some(class) = &asked.load_balancer_class {
        spec["loadBalancerClass"] = json!(class);
    }
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec }))
}
