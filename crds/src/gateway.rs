//! The OpenAI-compatible front.

use crate::schemas::{own_annotations, rules};
use crate::{PodSettings, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The OpenAI-compatible front: a Deployment and a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Pods. Never 0: at scale zero of the workers, they hold the requests.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: i32,
    /// How clients reach it.
    pub service: GatewayService,
    /// A Secret whose values are the accepted API keys, and whose keys name them. Without it, none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret: Option<SecretName>,
    /// What requests may ask for.
    pub limits: GatewayLimits,
    /// What each pod asks the node for.
    pub resources: Resources,
    /// Anything else about the pods.
    pub pod: PodSettings,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            replicas: 1,
            service: GatewayService::default(),
            api_keys_secret: None,
            limits: GatewayLimits::default(),
            resources: Resources::default(),
            pod: PodSettings::default(),
        }
    }
}

/// The Service of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([
    ("!has(self.nodePort) || self.type != 'ClusterIP'", "nodePort is for the types NodePort and LoadBalancer"),
    ("!has(self.loadBalancerClass) || self.type == 'LoadBalancer'", "loadBalancerClass is for the type LoadBalancer"),
])))]
pub struct GatewayService {
    /// Whence it is reached: from the cluster, a port of every node, or a load balancer.
    pub r#type: ServiceType,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The port of the nodes. Without it, the cluster chooses one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
    /// Who provides the load balancer. Without it, the cluster's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub load_balancer_class: Option<String>,
    /// Annotations in addition to the operator's own.
    #[schemars(schema_with = "own_annotations")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for GatewayService {
    fn default() -> Self {
        Self {
            r#type: ServiceType::ClusterIP,
            port: 80,
            node_port: None,
            load_balancer_class: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// Whence a Service is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From the cluster.
    #[default]
    ClusterIP,
    /// From a port of every node as well.
    NodePort,
    /// From a load balancer as well.
    LoadBalancer,
}

/// A Secret in the deployment's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretName {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What requests may ask for. More is refused with a 4xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "self.choices <= self.waitingSequences",
    "choices must not exceed waitingSequences: those of one request may all have to wait",
)])))]
pub struct GatewayLimits {
    /// Bytes of a request's body.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub body_bytes: i32,
    /// Tokens of a prompt. Without it, what the model's context leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub prompt_tokens: Option<i32>,
    /// Bytes of a JSON schema, regular expression or grammar.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub schema_bytes: i32,
    /// Choices of one request (`n`), over all its prompts.
    #[schemars(range(min = 1, max = 128))]
    pub choices: i32,
    /// Stop strings.
    #[schemars(range(min = 0, max = 64))]
    pub stops: i32,
    /// Requests served and waiting at one gateway.
    #[schemars(range(min = 1, max = 65536))]
    pub concurrent_requests: i32,
    /// Sequences that wait at one gateway for an attention rank.
    #[schemars(range(min = 1, max = 65536))]
    pub waiting_sequences: i32,
    /// Connections of clients to one gateway.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub connections: i32,
    /// Seconds after which a request ends in any case. Clients may ask for less.
    #[schemars(range(min = 1, max = 86400))]
    pub request_seconds: i32,
    /// Seconds after which a client that takes nothing of its answer is let go.
    #[schemars(range(min = 1, max = 86400))]
    pub write_seconds: i32,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            prompt_tokens: None,
            schema_bytes: 256 << 10,
            choices: 16,
            stops: 16,
            concurrent_requests: 4096,
            waiting_sequences: 1024,
            connections: 8192,
            request_seconds: 600,
            write_seconds: 60,
        }
    }
}
