//! The rules of roles: workers, devices, knobs.

use crate::support::Kind;
use serde_json::{Value, json};
use sluice_crds::MoEDeployment;
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<MoEDeployment>(json!({
            "metadata": { "name": "qwen" },
            "spec": {
                "model": { "source": { "hostPath": { "path": "/models" } } },
                "attention": {},
                "experts": {},
            },
        }))
    });
    &KIND
}

/// A role of each kind with some fields.
fn roles(value: &Value) -> [Vec<(&'static str, Value)>; 3] {
    let hybrid = vec![
        ("/spec/attention", Value::Null),
        ("/spec/experts", Value::Null),
        ("/spec/hybrid", value.clone()),
    ];
    [vec![("/spec/attention", value.clone())], vec![("/spec/experts", value.clone())], hybrid]
}

#[test]
fn roles_are_not_larger_than_a_placement() {
    let size =
        |replicas: i32, devices: i32| roles(&json!({ "replicas": replicas, "devicesPerPod": devices }));
    for fits in [size(1024, 0), size(1024, 2), size(128, 16), size(0, 1)] {
        fits.iter().for_each(|changes| kind().accepted(changes));
    }
    for changes in size(1024, 3).iter().chain(&size(129, 16)) {
        kind().refused(changes, "must not exceed 2048 workers");
    }
    for changes in size(1025, 1) {
        kind().refused(&changes, "is more than 1024");
    }
}

#[test]
fn devices_are_limits_or_claims() {
    let claims = |claim: Value| roles(&json!({ "devices": { "claims": [claim] } }));
    for claim in [
        json!({ "name": "gpu", "resourceClaimTemplateName": "one-gpu" }),
        json!({ "name": "gpu", "resourceClaimName": "shared", "request": "gpu" }),
    ] {
        claims(claim).iter().for_each(|changes| kind().accepted(changes));
    }
    for claim in [
        json!({ "name": "gpu" }),
        json!({ "name": "gpu", "resourceClaimTemplateName": "one-gpu", "resourceClaimName": "shared" }),
    ] {
        for changes in claims(claim) {
            kind().refused(&changes, "exactly one of resourceClaimName and resourceClaimTemplateName");
        }
    }
    let without = json!({
        "devicesPerPod": 0,
        "devices": { "claims": [{ "name": "gpu", "resourceClaimName": "shared" }] },
    });
    for changes in roles(&without) {
        kind().refused(&changes, "claims are for devices");
    }
    for changes in roles(&json!({ "devices": { "resource": "gpu" } })) {
        kind().refused(&changes, "does not match");
    }
}

#[test]
fn sync_has_one_wave() {
    let sync = |waves: i32| json!({ "scheduler": { "policy": "Sync" }, "batching": { "waves": waves } });
    let [_, _, mut hybrid] = roles(&sync(1));
    kind().accepted(&hybrid);
    hybrid[2].1 = sync(2);
    kind().refused(&hybrid, "batching.waves must be 1");
    let both = |waves: i32| {
        [("/spec/attention", sync(waves)), ("/spec/experts", json!({ "scheduler": { "policy": "Sync" } }))]
    };
    kind().accepted(&both(1));
    kind().refused(&both(2), "batching.waves must be 1");
    kind().accepted(&[("/spec/attention", json!({ "batching": { "waves": 8 } }))]);
}

#[test]
fn knobs_fit_each_other() {
    let attention = |value: Value| [("/spec/attention", value)];
    kind().accepted(&attention(json!({ "batching": { "prefillChunk": 256, "prefillTokens": 256 } })));
    kind().refused(
        &attention(json!({ "batching": { "prefillTokens": 256 } })),
        "prefillTokens must not be less than prefillChunk",
    );
    kind().accepted(&attention(json!({ "kvCache": { "tokens": 4096 } })));
    kind().accepted(&attention(json!({ "kvCache": { "memory": "40Gi" } })));
    kind().refused(
        &attention(json!({ "kvCache": { "tokens": 4096, "memory": "40Gi" } })),
        "either in tokens or in memory",
    );
    kind().refused(&attention(json!({ "kvCache": { "memory": "40 GB" } })), "does not match");
}
