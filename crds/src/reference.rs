//! The API reference: the definitions as Markdown, a table for each object of each kind.

mod field;

use crate::crd::{GROUP, all, sorted};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use serde_json::Value;
use std::collections::HashMap;

/// The API reference as Markdown.
pub fn reference() -> String {
    let crds: Vec<_> = all().iter().map(sorted).collect();
    let mut text = format!(
        "# API reference\n\nThe kinds of group `{GROUP}`, made from their definitions (`sluice-operator api`). Manifests \
         of all of them: [crds/samples](../crds/samples).\n\nA field is required, or has a default, or may be left out \
         (no default). Unless it says otherwise, a limit counts what the type is made of: characters, items, keys.\n\n"
    );
    for crd in &crds {
        let kind = &crd.spec.names.kind;
        text += &format!("- [{kind}](#{})\n", anchor(kind));
    }
    for crd in &crds {
        for version in &crd.spec.versions {
            text += &of_version(crd, version);
        }
    }
    text
}

fn of_version(crd: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> String {
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let schema = serde_json::to_value(schema).unwrap_or_default();
    let kind = &crd.spec.names.kind;
    let mut text = format!("\n## {kind}\n\n{}\n\n", field::text(&schema));
    text += &format!(
        "- `apiVersion: {GROUP}/{}`, `kind: {kind}`, {}\n",
        version.name,
        crd.spec.scope.to_lowercase()
    );
    let names = crd.spec.names.short_names.iter().flatten();
    text += &format!("- `kubectl get {}`", crd.spec.names.plural);
    text += &names.map(|name| format!(", `kubectl get {name}`")).collect::<String>();
    let columns = version.additional_printer_columns.iter().flatten();
    let columns: Vec<_> = columns
        .map(|column| match column.priority {
            Some(1..) => format!("{} (`-o wide`)", column.name),
            _ => column.name.clone(),
        })
        .collect();
    text += &format!(": {}\n", columns.join(", "));
    let subresources = version.subresources.as_ref();
    if let Some(scale) = subresources.and_then(|subresources| subresources.scale.as_ref()) {
        text += &format!(
            "- `/scale`: `{}`, `{}`, selector `{}`\n",
            scale.spec_replicas_path,
            scale.status_replicas_path,
            scale.label_selector_path.as_deref().unwrap_or_default()
        );
    }
    let selectable: Vec<_> = version
        .selectable_fields
        .iter()
        .flatten()
        .map(|field| format!("`{}`", &field.json_path[1..]))
        .collect();
    if !selectable.is_empty() {
        text += &format!("- field selectors: {}\n", selectable.join(", "));
    }
    for rule in field::rules(&schema) {
        text += &format!("- rule: {rule}\n");
    }
    let mut tables = Tables { text, seen: HashMap::new() };
    for part in ["spec", "status"] {
        tables.add(&format!("{kind}.{part}"), &schema["properties"][part]);
    }
    tables.text
}

/// The tables so far. An object that is like one before is not written again.
struct Tables {
    text: String,
    seen: HashMap<String, String>,
}

impl Tables {
    fn add(&mut self, path: &str, schema: &Value) {
        self.seen.insert(shape(schema), path.into());
        self.text += &format!("\n### {path}\n\n{}\n\n", field::text(schema));
        self.text += "| field | type | default | limits | meaning |\n| --- | --- | --- | --- | --- |\n";
        let mut inner = Vec::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let nested = field::nested(property);
            let link = nested.map(|(object, suffix)| {
                let own = format!("{path}.{name}{suffix}");
                let key = shape(object);
                self.seen.get(&key).cloned().unwrap_or_else(|| {
                    self.seen.insert(key, own.clone());
                    inner.push((own.clone(), object));
                    own
                })
            });
            let required = schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
            self.text += &field::row(name, property, required, link.as_deref());
        }
        let rules = field::rules(schema);
        if !rules.is_empty() {
            self.text += "\nRules:\n";
        }
        for rule in rules {
            self.text += &format!("- {rule}\n");
        }
        for (path, object) in inner {
            self.add(&path, object);
        }
    }
}

/// An object but for what its place says of it.
fn shape(schema: &Value) -> String {
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        for key in ["description", "default", "nullable"] {
            schema.remove(key);
        }
    }
    schema.to_string()
}

/// The anchor that Markdown gives a heading.
fn anchor(heading: &str) -> String {
    heading.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
