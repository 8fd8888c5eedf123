//! The OpenAI-compatible front.

use crate::Resources;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The OpenAI-compatible front: a Deployment and a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Pods. Never 0: at scale zero of the workers, they hold the requests.
    #[schemars(range(min = 1, max = 64))]
    pub replicas: i32,
    /// The port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// A Secret whose values are the accepted API keys, and whose keys name them. Without it, none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret: Option<SecretName>,
    /// What a request may ask for.
    pub limits: GatewayLimits,
    /// What each pod asks the node for.
    pub resources: Resources,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            replicas: 1,
            port: 80,
            api_keys_secret: None,
            limits: GatewayLimits::default(),
            resources: Resources::default(),
        }
    }
}

/// A Secret in the deployment's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretName {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What a request may ask for. More is refused with a 4xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GatewayLimits {
    /// Bytes of a request's body.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub body_bytes: i32,
    /// Bytes of a JSON schema or grammar.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub schema_bytes: i32,
    /// Choices (`n`).
    #[schemars(range(min = 1, max = 128))]
    pub choices: i32,
    /// Stop strings.
    #[schemars(range(min = 0, max = 64))]
    pub stops: i32,
    /// Requests served and waiting at one gateway.
    #[schemars(range(min = 1, max = 65536))]
    pub concurrent_requests: i32,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            schema_bytes: 64 << 10,
            choices: 16,
            stops: 16,
            concurrent_requests: 1024,
        }
    }
}
