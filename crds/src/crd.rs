//! The definitions as files.

use crate::{ExpertPlacement, MoEAutoscalingPolicy, MoEDeployment, RoleScaler};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The API group of every kind here.
pub const GROUP: &str = "sluice.dev";

/// The definitions of every kind.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![MoEDeployment::crd(), ExpertPlacement::crd(), RoleScaler::crd(), MoEAutoscalingPolicy::crd()]
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
    serde_saphyr::to_string(&sorted(crd))
}

/// A definition whose every list and map has one order.
pub(crate) fn sorted(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut crd = crd.clone();
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            sort(schema);
        }
    }
    crd
}

/// Sorts what comes in the order of a JSON map: that order depends on which features another crate of the same build
/// asks of `serde_json`.
fn sort(schema: &mut JSONSchemaProps) {
    if let Some(required) = &mut schema.required {
        required.sort();
    }
    if let Some(default) = &mut schema.default {
        default.0.sort_all_objects();
    }
    for property in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        sort(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => sort(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(sort),
        None => {}
    }
}
