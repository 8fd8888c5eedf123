//! The rules of ExpertPlacements.

use crate::support::{Changes, Kind};
use serde_json::{Value, json};
use sluice_crds::{ExpertPlacement, PlacedUnit, UnitState};
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<ExpertPlacement>(json!({
            "metadata": { "name": "qwen-a1-0" },
            "spec": {
                "deployment": "qwen",
                "cohort": "a1",
                "segments": 4,
                "generation": 5,
                "workers": [{
                    "number": 0,
                    "name": "qwen-experts-0",
                    "role": "experts",
                    "address": "10.0.0.1:7070",
                    "tlsName": "spiffe://sluice/ns/default/moe/qwen/role/experts/worker/qwen-experts-0",
                }],
                "blocks": [2, 4],
                "units": [{ "worker": "qwen-experts-0", "block": 3, "expert": 1, "slice": [0, 2] }],
            },
        }))
    });
    &KIND
}

#[test]
fn a_change_raises_the_generation() {
    let message = "generation must rise with every change";
    let changed = |generation: i64, slice: Value| {
        [("/spec/generation", json!(generation)), ("/spec/units/0/slice", slice)]
    };
    kind().may_become(&[], &[]);
    kind().may_become(&[], &[("/spec/generation", json!(6))]);
    kind().may_become(&[], &changed(6, json!([2, 4])));
    kind().may_become(&[], &[("/metadata/labels", json!({ "a": "b" }))]);
    kind().may_not_become(&[], &changed(5, json!([2, 4])), message);
    kind().may_not_become(&[], &changed(4, json!([0, 2])), message);
    kind().may_not_become(&[], &[("/spec/workers/0/address", json!("10.0.0.2:7070"))], message);
    kind().may_not_become(&[], &[("/spec/workers", Value::Null)], message);
    // What has its defaults is equal to what leaves them out.
    let spelled = json!([{
        "worker": "qwen-experts-0", "block": 3, "expert": 1, "slice": [0, 2], "state": "Active", "fraction": 10000,
    }]);
    kind().may_become(&[], &[("/spec/units", spelled)]);
}

#[test]
fn what_it_is_of_stays() {
    let newer = |pointer: &'static str, value: Value| [("/spec/generation", json!(6)), (pointer, value)];
    kind().may_not_become(&[], &newer("/spec/deployment", json!("other")), "deployment is immutable");
    kind().may_not_become(&[], &newer("/spec/cohort", json!("b2")), "cohort is immutable");
    kind().may_not_become(&[], &newer("/spec/segments", json!(8)), "segments is immutable");
    kind().may_not_become(&[], &newer("/spec/blocks", json!([2, 5])), "blocks is immutable");
    let empty: Changes = &[("/spec/blocks", Value::Null), ("/spec/units", json!([]))];
    kind().may_not_become(empty, &newer("/spec/units", json!([])), "blocks is immutable");
    kind().may_become(&[], &newer("/spec/units", json!([])));
}

#[test]
fn it_has_workers_or_rows() {
    let rows = [("/spec/workers", Value::Null)];
    let workers = [("/spec/blocks", Value::Null), ("/spec/units", Value::Null)];
    kind().accepted(&[]);
    kind().accepted(&rows);
    kind().accepted(&workers);
    kind().accepted(&[("/spec/workers", json!([])), workers[0].clone(), workers[1].clone()]);
    let neither = [rows[0].clone(), workers[0].clone(), workers[1].clone()];
    kind().refused(&neither, "give the list of workers, or blocks and their units");
    kind().refused(&[("/spec/blocks", Value::Null)], "units need blocks");
    for blocks in [json!([4, 4]), json!([5, 4])] {
        kind().refused(
            &[("/spec/blocks", blocks), ("/spec/units", json!([]))],
            "blocks are [first, one past the last]",
        );
    }
    for blocks in [json!([2]), json!([2, 3, 4])] {
        kind().refused(&[("/spec/blocks", blocks), ("/spec/units", json!([]))], "than 2");
    }
}

#[test]
fn rows_are_of_their_blocks_and_segments() {
    let message = "every unit must be of one of blocks";
    let unit = |key: &str, value: Value| {
        let mut unit = json!({ "worker": "qwen-experts-0", "block": 3, "expert": 1, "slice": [0, 2] });
        unit[key] = value;
        [("/spec/units", json!([unit]))]
    };
    kind().accepted(&unit("block", json!(2)));
    kind().accepted(&unit("slice", json!([3, 4])));
    kind().accepted(&unit("fraction", json!(0)));
    for (key, value) in [
        ("block", json!(1)),
        ("block", json!(4)),
        ("slice", json!([2, 2])),
        ("slice", json!([3, 1])),
        ("slice", json!([4, 8])),
    ] {
        kind().refused(&unit(key, value), message);
    }
    kind().refused(&unit("state", json!("Masked")), "is none of");
    kind().refused(&unit("fraction", json!(10001)), "is more than 10000");
}

#[test]
fn workers_are_named_and_reached() {
    let worker = |key: &str, value: Value| [(format!("/spec/workers/0/{key}"), value)];
    let refused = |key: &str, value: Value, message: &str| {
        let [(pointer, value)] = worker(key, value);
        kind().refused(&[(&pointer, value)], message);
    };
    for address in ["[fd00::1]:7070", "pod.ns.svc:1"] {
        kind().accepted(&[("/spec/workers/0/address", json!(address))]);
    }
    for address in ["fd00::1:7070", "10.0.0.1", "a b:1", "host:"] {
        refused("address", json!(address), "does not match");
    }
    refused("role", json!("gateway"), "is none of");
    refused("tlsName", json!("spiffe://other/ns/a/moe/b/role/experts/worker/c"), "does not match");
    refused("number", json!(65536), "is more than 65535");
    kind().accepted(&[("/spec/workers/0/incarnation", json!(1_764_556_800_000_000_i64))]);
}

/// The largest object that the bounds allow of rows as they are is one that etcd takes.
#[test]
fn rows_are_short() {
    let unit = PlacedUnit {
        worker: "deepseek-experts-123-15".into(),
        block: 60,
        expert: 255,
        slice: [0, 8],
        state: UnitState::Draining,
        fraction: 10000,
    };
    let row = serde_json::to_string(&unit).unwrap().len() + 1;
    assert!(row * 8192 < 1_200_000, "{row} bytes");
}
