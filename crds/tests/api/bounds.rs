//! Every field says what it is, what it is without it, and how large it may be: the cost of a CEL rule is estimated
//! from the bounds, and an object must not grow without one.

use kube::core::cel::{ScopeContext, WarningKind, analyze_rule, compile_schema};
use serde_json::Value;

fn schemas() -> Vec<Value> {
    let versions = sluice_crds::all().into_iter().flat_map(|crd| crd.spec.versions);
    let schemas = versions.filter_map(|version| version.schema?.open_api_v3_schema);
    schemas.map(|schema| serde_json::to_value(schema).expect("a schema is JSON")).collect()
}

/// Calls `visit` with every schema within one, by its path. `properties` of the first level come as `.name`.
fn walk<'a>(path: &str, schema: &'a Value, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, inner) in properties {
            walk(&format!("{path}.{name}"), inner, visit);
        }
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&format!("{path}{mark}"), &schema[key], visit);
        }
    }
}

#[test]
fn everything_is_bounded() {
    let mut wrong = Vec::new();
    for schema in &schemas() {
        walk("", schema, &mut |path, schema| {
            let has = |key: &str| !schema[key].is_null();
            let int_or_string = has("x-kubernetes-int-or-string");
            let bounded = match schema["type"].as_str() {
                Some("string") => has("maxLength") || has("enum") || schema["format"] == "date-time",
                None if int_or_string => has("maxLength"),
                Some("array") => has("maxItems") && has("x-kubernetes-list-type"),
                Some("integer") if path.starts_with(".status") => has("minimum"),
                Some("integer") => has("enum") || has("minimum") && has("maximum"),
                Some("object") => has("properties") || has("maxProperties"),
                Some("boolean") => true,
                _ => false,
            };
            if !bounded {
                wrong.push(path.to_string());
            }
        });
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_field_is_described_and_has_a_default_unless_it_is_required() {
    let mut wrong = Vec::new();
    for schema in &schemas() {
        walk("", schema, &mut |path, schema| {
            let Some(properties) = schema["properties"].as_object() else { return };
            if path.is_empty() {
                return;
            }
            let required = |name: &str| {
                schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name))
            };
            for (name, field) in properties {
                let described = field["description"].as_str().is_some_and(|text| !text.is_empty());
                let settled = required(name) || !field["default"].is_null() || field["nullable"] == true;
                if !described || !settled {
                    wrong.push(format!("{path}.{name}"));
                }
            }
        });
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_rule_compiles_and_is_cheap() {
    let mut rules = 0;
    for schema in &schemas() {
        walk("", schema, &mut |path, schema| {
            let compiled = compile_schema(schema);
            assert!(!compiled.has_errors(), "{path}: {:?}", compiled.compilation_errors());
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                rules += 1;
                let text = rule["rule"].as_str().expect("a rule is text");
                let mut warnings = analyze_rule(text, &compiled, ScopeContext::CrdValidation);
                // The analysis knows none of the variables that a rule makes itself, as in `list.all(item, ...)`.
                warnings.retain(|warning| {
                    let name = warning.message.split('\'').nth(1).unwrap_or_default();
                    warning.kind != WarningKind::WrongScope || !text.contains(&format!("({name}, "))
                });
                assert!(warnings.is_empty(), "{path}: {warnings:?}");
                assert!(rule["message"].is_string(), "{path}: {text} says nothing");
            }
        });
    }
    assert!(rules > 100, "{rules} rules found");
}

/// The API server takes no pattern that Go does not know, and no object above 1.5 MB.
#[test]
fn patterns_and_definitions_are_small() {
    for schema in &schemas() {
        let size = schema.to_string().len();
        assert!(size < 200_000, "{size} bytes");
        walk("", schema, &mut |path, schema| {
            let pattern = schema["pattern"].as_str().unwrap_or_default();
            assert!(!pattern.contains("(?"), "{path}: {pattern}");
        });
    }
}
