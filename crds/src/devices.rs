//! The devices of a pod, and how it asks for them.

use crate::schemas::{LABEL, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a pod asks for its devices: by the limit of an extended resource, or by claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Devices {
    /// The extended resource whose limit is `devicesPerPod`. It is not used with `claims`.
    #[schemars(length(min = 3, max = 317), regex(pattern = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"))]
    pub resource: String,
    /// Claims of dynamic resource allocation (`resource.k8s.io/v1`), which together give `devicesPerPod` devices.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub claims: Vec<DeviceClaim>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { resource: "nvidia.com/gpu".into(), claims: Vec::new() }
    }
}

/// A claim of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
    "exactly one of resourceClaimName and resourceClaimTemplateName must be given",
)])))]
pub struct DeviceClaim {
    /// Its name within the pod.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub name: String,
    /// The ResourceClaimTemplate from which every pod gets a claim of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_template_name: Option<String>,
    /// A ResourceClaim that all pods of the role share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_name: Option<String>,
    /// The request within the claim; without it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    pub request: Option<String>,
}
