//! Every sample is one that the API server takes, and that the types keep whole.

use crate::support::Definition;
use kube::CustomResourceExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_crds::{ExpertPlacement, MoEAutoscalingPolicy, MoEDeployment, RoleScaler};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

#[test]
fn samples_are_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let mut kinds = BTreeMap::<String, usize>::new();
    for entry in std::fs::read_dir(dir).expect("samples") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let raw: Value = serde_saphyr::from_str(&text).expect("YAML");
        let kind = raw["kind"].as_str().expect("a kind");
        let at = path.display().to_string();
        match kind {
            "MoEDeployment" => valid::<MoEDeployment>(&text, &raw, &at),
            "ExpertPlacement" => valid::<ExpertPlacement>(&text, &raw, &at),
            "RoleScaler" => valid::<RoleScaler>(&text, &raw, &at),
            "MoEAutoscalingPolicy" => valid::<MoEAutoscalingPolicy>(&text, &raw, &at),
            other => panic!("{at}: {other} is no kind"),
        }
        *kinds.entry(kind.into()).or_default() += 1;
    }
    let all = sluice_crds::all();
    assert_eq!(kinds.len(), all.len(), "{kinds:?}");
}

fn valid<K: CustomResourceExt + Serialize + DeserializeOwned + PartialEq + Debug>(
    text: &str,
    raw: &Value,
    at: &str,
) {
    let definition = Definition::of::<K>();
    assert_eq!(definition.complaints(raw, None), Vec::<String>::new(), "{at}");
    let typed: K = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{at}: {error}"));
    // Nothing written in the sample is lost on the way through the types.
    contains(&serde_json::to_value(&typed).expect("JSON"), raw, at);
    // What the API server fills in is what the types fill in.
    let served: K = serde_json::from_value(definition.stored(raw)).expect("an object with its defaults");
    assert_eq!(served, typed, "{at}");
}

fn contains(whole: &Value, part: &Value, at: &str) {
    match part {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| contains(&whole[key], value, &format!("{at}.{key}")));
        }
        Value::Array(items) => {
            assert_eq!(whole.as_array().map(Vec::len), Some(items.len()), "{at}");
            items.iter().enumerate().for_each(|(i, item)| contains(&whole[i], item, &format!("{at}[{i}]")));
        }
        _ => assert_eq!(whole, part, "{at}"),
    }
}
