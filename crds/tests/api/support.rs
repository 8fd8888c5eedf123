//! Objects of one kind, looked at as the API server looks at them: with their defaults, by structure and by CEL rule.

use crate::structure;
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, Validator, apply_defaults, compile_schema};
use serde_json::{Value, json};

/// Other values at some pointers; `null` removes.
pub type Changes<'a> = &'a [(&'a str, Value)];

/// The schema of a kind.
pub struct Definition {
    schema: Value,
    compiled: CompiledSchema,
}

impl Definition {
    pub fn of<K: CustomResourceExt>() -> Self {
        let version = K::crd().spec.versions.remove(0);
        let schema = serde_json::to_value(version.schema.and_then(|schema| schema.open_api_v3_schema));
        let schema = schema.expect("a schema is JSON");
        Self { compiled: compile_schema(&schema), schema }
    }

    /// An object as the API server stores it.
    pub fn stored(&self, object: &Value) -> Value {
        apply_defaults(&self.schema, object)
    }

    /// What the API server would say of an object, and of it in place of an older one.
    pub fn complaints(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = structure::complaints(&self.schema, &self.stored(object));
        if let Err(errors) = Validator::new().validate_compiled(&self.compiled, object, old) {
            found.extend(errors.into_vec().into_iter().map(|error| error.message));
        }
        found
    }
}

/// A kind, and an object of it that others are made from.
pub struct Kind {
    definition: Definition,
    base: Value,
}

impl Kind {
    /// `base` has no `apiVersion` and `kind`.
    pub fn new<K: CustomResourceExt>(mut base: Value) -> Self {
        let resource = K::api_resource();
        base["apiVersion"] = json!(resource.api_version);
        base["kind"] = json!(resource.kind);
        Self { definition: Definition::of::<K>(), base }
    }

    /// The base with changes.
    pub fn with(&self, changes: Changes) -> Value {
        let mut object = self.base.clone();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let mut at = &mut object;
            for step in parent.split('/').skip(1) {
                at = match step.parse::<usize>() {
                    Ok(index) => &mut at[index],
                    Err(_) => &mut at[step],
                };
            }
            if value.is_null() {
                at.as_object_mut().expect("an object").remove(key);
            } else {
                at[key] = value.clone();
            }
        }
        object
    }

    /// The object as the API server stores it.
    pub fn stored(&self, changes: Changes) -> Value {
        self.definition.stored(&self.with(changes))
    }

    /// It can be created.
    pub fn accepted(&self, changes: Changes) {
        assert_eq!(
            self.definition.complaints(&self.with(changes), None),
            Vec::<String>::new(),
            "{changes:?}"
        );
    }

    /// It cannot be created, and is told so.
    pub fn refused(&self, changes: Changes, message: &str) {
        let found = self.definition.complaints(&self.with(changes), None);
        assert!(found.iter().any(|found| found.contains(message)), "{changes:?}: {found:?}");
    }

    /// What is said when the object with the first changes is replaced by that with the second.
    pub fn update(&self, before: Changes, after: Changes) -> Vec<String> {
        self.definition.complaints(&self.with(after), Some(&self.stored(before)))
    }

    /// It can be replaced.
    pub fn may_become(&self, before: Changes, after: Changes) {
        assert_eq!(self.update(before, after), Vec::<String>::new(), "{before:?} -> {after:?}");
    }

    /// It cannot be replaced, and is told so.
    pub fn may_not_become(&self, before: Changes, after: Changes, message: &str) {
        let found = self.update(before, after);
        assert!(found.iter().any(|found| found.contains(message)), "{before:?} -> {after:?}: {found:?}");
    }
}
