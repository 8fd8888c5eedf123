//! How far a JSON schema reaches once its references are followed.
//!
//! What compiles a schema recurses without a limit of its own, and a stack that overflows takes the process with it:
//! so this is known, without recursion, before a schema is compiled.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Values looked at for one schema. Every target of a reference is looked at by itself, so targets within targets, and
/// one target under many names, would otherwise multiply.
const VALUES: usize = 1 << 20;

/// What a reference leads to.
#[derive(Default)]
struct Target<'a> {
    /// Levels of nesting, from itself to the deepest value in it.
    height: usize,
    /// The references in it.
    references: Vec<&'a str>,
}

impl<'a> Target<'a> {
    fn survey(value: &'a Value, budget: &mut usize) -> Option<Self> {
        let mut target = Self::default();
        let mut open = vec![(value, 1)];
        while let Some((value, level)) = open.pop() {
            *budget = budget.checked_sub(1)?;
            target.height = target.height.max(level);
            match value {
                Value::Object(fields) => {
                    target.references.extend(fields.get("$ref").and_then(Value::as_str));
                    open.extend(fields.values().map(|value| (value, level + 1)));
                }
                Value::Array(values) => open.extend(values.iter().map(|value| (value, level + 1))),
                _ => {}
            }
        }
        Some(target)
    }
}

/// What a reference stands for, by llguidance's reading: no escapes, any spelling of an index.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let path = reference.strip_prefix('#')?;
    if path.is_empty() || path == "/" {
        return Some(root);
    }
    path.strip_prefix('/')?.split('/').try_fold(root, |at, segment| match at {
        Value::Array(values) => values.get(segment.parse::<usize>().ok()?),
        at => at.get(segment),
    })
}

/// The levels that nesting and references can come to, one after the other, for a compiler that follows each reference
/// once; nothing if there is too much to look at.
///
/// In which order it follows them is its own affair. So this is the longest way through references that end somewhere,
/// and before it all of those that lie on a circle or lead to one.
pub(super) fn depth(root: &Value) -> Option<usize> {
    let mut budget = VALUES;
    let mut targets = vec![Target::survey(root, &mut budget)?];
    let mut known = HashMap::new();
    let mut users: Vec<Vec<usize>> = vec![Vec::new()];
    // References of each target that are not settled yet.
    let mut waits = Vec::new();
    while let Some(user) = Some(waits.len()).filter(|user| *user < targets.len()) {
        waits.push(0);
        for reference in std::mem::take(&mut targets[user].references) {
            let index = match known.entry(reference) {
                Entry::Occupied(found) => *found.get(),
                Entry::Vacant(new) => {
                    // One that leads nowhere is the compiler's to refuse, by its name.
                    let Some(value) = resolve(root, reference) else { continue };
                    targets.push(Target::survey(value, &mut budget)?);
                    users.push(Vec::new());
                    *new.insert(targets.len() - 1)
                }
            };
            users[index].push(user);
            waits[user] += 1;
        }
    }
    let mut depths: Vec<usize> = targets.iter().map(|target| target.height).collect();
    let mut settled: Vec<usize> = (0..targets.len()).filter(|index| waits[*index] == 0).collect();
    let mut longest = 0;
    while let Some(index) = settled.pop() {
        longest = longest.max(depths[index]);
        for &user in &users[index] {
            depths[user] = depths[user].max(targets[user].height + depths[index]);
            waits[user] -= 1;
            if waits[user] == 0 {
                settled.push(user);
            }
        }
    }
    let circles = targets.iter().zip(&waits).filter(|(_, waits)| **waits > 0);
    Some(longest + circles.map(|(target, _)| target.height).sum::<usize>())
}

/// An upper estimate of the parts a schema has once the references in it are followed, counted up to `max`. Only for
/// one whose [`depth`] is bounded.
///
/// References to definitions are compiled once each, except where schemas are combined: there every use is merged
/// anew, so nested combinations multiply.
pub(super) fn parts(root: &Value, max: u64) -> u64 {
    let mut count = Count { root, open: HashSet::new(), left: max + 1 };
    count.value(root, false);
    max + 1 - count.left
}

struct Count<'a> {
    root: &'a Value,
    /// References that are being followed.
    open: HashSet<&'a str>,
    left: u64,
}

impl<'a> Count<'a> {
    fn value(&mut self, at: &'a Value, combined: bool) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        match at {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let combined = combined || matches!(name.as_str(), "allOf" | "anyOf" | "oneOf");
                    match value {
                        Value::String(reference) if name == "$ref" => {
                            if combined {
                                self.reference(reference);
                            }
                        }
                        value => self.value(value, combined),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.value(value, combined)),
            _ => {}
        }
    }

    fn reference(&mut self, reference: &'a str) {
        if let Some(target) = resolve(self.root, reference)
            && self.open.insert(reference)
        {
            self.value(target, true);
            self.open.remove(reference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nesting_and_references_add_up() {
        assert_eq!(depth(&json!(true)), Some(1));
        assert_eq!(depth(&json!({"items": {"items": {}}})), Some(3));
        // From the root over a to b: three levels, of which the last holds the reference; two; and one.
        let chain = json!({
            "items": {"$ref": "#/$defs/a"},
            "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"type": "string"}}
        });
        assert_eq!(depth(&chain), Some(6 + 4 + 2));
    }

    #[test]
    fn ways_that_join_again_count_once_and_circles_whole() {
        let mut defs = serde_json::Map::new();
        for i in 0..20 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(format!("d{i}"), json!({"anyOf": [next, next]}));
        }
        defs.insert("d20".into(), json!({}));
        let joined = json!({"$ref": "#/$defs/d0", "$defs": defs});
        assert_eq!(depth(&joined), Some(6 + 20 * 4 + 1));
        // Each way around a circle of three is legal, so all three count.
        let circle = json!({
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"items": {"$ref": "#/$defs/a"}}}
        });
        assert_eq!(depth(&circle), Some(5 + 2 + 2 + 3));
    }

    #[test]
    fn references_are_read_as_their_compiler_reads_them() {
        let schema = json!({"anyOf": [{"a~1b": 1}, {"": {"x": 2}}]});
        for (reference, target) in [
            ("#", Some(schema.clone())),
            ("#/", Some(schema.clone())),
            ("#/anyOf/+00/a~1b", Some(json!(1))),
            ("#/anyOf/1//x", Some(json!(2))),
            ("#/anyOf/0/a/b", None),
            ("#anyOf", None),
            ("https://example.com/#/anyOf", None),
        ] {
            assert_eq!(resolve(&schema, reference), target.as_ref(), "{reference}");
        }
    }

    #[test]
    fn one_target_under_many_names_is_not_looked_at_for_ever() {
        let large: Vec<Value> =
            (0..5000).map(|i| json!({"$ref": format!("#/oneOf/{}0", "0".repeat(i % 40))})).collect();
        assert!(depth(&json!({"oneOf": large})).is_some());
        let many: Vec<Value> = (0..5000).map(|i| json!({"$ref": format!("#/{}", "/".repeat(i))})).collect();
        assert!(depth(&json!({"oneOf": many})).is_some(), "names that lead nowhere cost nothing");
        let names: Vec<Value> =
            (0..400).map(|i| json!({"$ref": format!("#/oneOf/{}", "0".repeat(i + 1))})).collect();
        let schema = json!({"oneOf": [{"items": {"oneOf": vec![json!({}); 5000]}}, {"anyOf": names}]});
        assert_eq!(depth(&schema), None);
    }
}
