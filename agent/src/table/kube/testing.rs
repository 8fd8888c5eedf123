//! ExpertPlacements of deployment `m`, cohort `c1`, made by the types of the API.

use kube::core::DynamicObject;
use serde_json::{Value, json};
use sluice_crds::{ExpertPlacement, ExpertPlacementSpec, PlacedUnit, PlacedWorker, Role, UnitState};

use super::Scope;

/// That of a worker of the cohort.
pub(super) fn scope() -> Scope {
    Scope { namespace: "ns".into(), deployment: "m".into(), cohort: Some("c1".into()), rows: true }
}

fn placement(name: &str, spec: ExpertPlacementSpec) -> Value {
    let mut object = ExpertPlacement::new(name, spec);
    let labels = [("sluice.dev/deployment", "m"), ("sluice.dev/cohort", "c1")];
    object.metadata.labels = Some(labels.map(|(k, v)| (k.into(), v.into())).into());
    object.metadata.namespace = Some("ns".into());
    serde_json::to_value(object).unwrap()
}

fn spec(generation: i64) -> ExpertPlacementSpec {
    ExpertPlacementSpec {
        deployment: "m".into(),
        cohort: "c1".into(),
        segments: 8,
        generation,
        workers: None,
        blocks: None,
        units: vec![],
    }
}

/// A list of workers: those whose names begin with `a` are ranks.
pub(super) fn list(name: &str, generation: i64, workers: &[&str]) -> Value {
    let worker = |(i, name): (usize, &&str)| {
        let role = if name.starts_with('a') { Role::Attention } else { Role::Experts };
        PlacedWorker {
            number: i as i32,
            name: (*name).into(),
            role,
            address: format!("10.0.0.{i}:7070"),
            incarnation: Some(17),
            tls_name: format!("spiffe://sluice/ns/ns/moe/m/role/{}/worker/{name}", role.name()),
        }
    };
    let workers = Some(workers.iter().enumerate().map(worker).collect());
    placement(name, ExpertPlacementSpec { workers, ..spec(generation) })
}

/// The rows of some blocks: expert 0 of the first, on each of the workers.
pub(super) fn slice(name: &str, generation: i64, blocks: [i32; 2], workers: &[&str]) -> Value {
    let unit = |worker: &&str| PlacedUnit {
        worker: (*worker).into(),
        block: blocks[0],
        expert: 0,
        slice: [0, 8],
        state: UnitState::Active,
        fraction: 10_000,
    };
    let units = workers.iter().map(unit).collect();
    placement(name, ExpertPlacementSpec { blocks: Some(blocks), units, ..spec(generation) })
}

/// As it comes over the wire, from an operator that writes more than is known here.
pub(super) fn object(object: &Value) -> DynamicObject {
    let mut object = object.clone();
    object["spec"]["later"] = json!({ "than": "this release" });
    serde_json::from_value(object).unwrap()
}
