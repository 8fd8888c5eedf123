//! Pieces of schemas that several types share.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A rule of every name that Kubernetes gives objects (DNS subdomains).
pub(crate) const NAME: &str = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// A rule of names within one object: volumes, claims, cohorts (DNS labels).
pub(crate) const LABEL: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// For paths below a mounted directory.
pub(crate) const NO_PARENT: (&str, &str) =
    (r"!self.matches('(^|/)[.][.](/|$)')", "the path must not contain '..'");

/// CEL rules and what they say when they refuse, as the extension `x-kubernetes-validations`.
pub(crate) fn rules<const N: usize>(rules: [(&str, &str); N]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// Labels for nodes to have.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    strings(63)
}

/// Labels for pods.
pub(crate) fn own_labels(_: &mut SchemaGenerator) -> Schema {
    not_ours(strings(63))
}

/// Annotations for pods and Services.
pub(crate) fn own_annotations(_: &mut SchemaGenerator) -> Schema {
    not_ours(strings(4096))
}

fn strings(longest: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": longest },
    })
}

fn not_ours(mut map: Schema) -> Schema {
    let rule = (
        "self.all(key, !key.startsWith('sluice.dev/'))",
        "keys with the prefix sluice.dev/ are the operator's own",
    );
    map.insert("x-kubernetes-validations".into(), rules([rule]));
    map
}

/// As in every other Kubernetes object, `cpu: 4` is as good as `cpu: "4"`.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32,
        "pattern": r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+|[numkKMGTPE]i?)?$",
    })
}

/// Quantities by the name of a resource.
pub(crate) fn quantities(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": quantity(generator),
    })
}

/// Conditions, bounded as Kubernetes documents them.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the state.",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "Which aspect.",
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
                },
                "status": {
                    "type": "string",
                    "description": "Whether it is so.",
                    "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "type": "string",
                    "description": "Why, in a word for programs.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "type": "string",
                    "description": "Why, in words for people, and what to do.",
                    "maxLength": 32768,
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When `status` last changed.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "The generation of the object that this is about.",
                    "minimum": 0,
                    "nullable": true,
                },
            },
        },
    })
}
