//! The definitions as files.

use crate::MoEDeployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every kind here.
pub const GROUP: &str = "sluice.dev";

/// The definitions of every kind.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![MoEDeployment::crd()]
}

/// The name of a definition's file, as controller-gen would have it: `GROUP_PLURAL.yaml`.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

/// A definition as YAML.
///
/// # Errors
/// Never for a definition of [`all`]; the serializer may refuse another.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(crd)
}
