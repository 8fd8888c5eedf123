//! The rules of MoEAutoscalingPolicies.

use crate::support::Kind;
use serde_json::{Value, json};
use sluice_crds::{Behavior, MoEAutoscalingPolicy, ScaleDown};
use std::sync::LazyLock;

fn kind() -> &'static Kind {
    static KIND: LazyLock<Kind> = LazyLock::new(|| {
        Kind::new::<MoEAutoscalingPolicy>(json!({
            "metadata": { "name": "qwen" },
            "spec": { "deployment": "qwen", "attention": role(1), "experts": role(1) },
        }))
    });
    &KIND
}

fn role(min: i32) -> Value {
    let metric = json!({ "type": "QueuePressure", "targetMilliseconds": 10 });
    json!({ "minReplicas": min, "maxReplicas": 4, "metrics": [metric] })
}

#[test]
fn roles_are_those_of_a_layout() {
    let none = |pointer: &'static str| (pointer, Value::Null);
    let hybrid = ("/spec/hybrid", role(0));
    kind().accepted(&[]);
    kind().accepted(&[none("/spec/attention")]);
    kind().accepted(&[none("/spec/experts")]);
    kind().accepted(&[none("/spec/attention"), none("/spec/experts"), hybrid.clone()]);
    kind().refused(&[none("/spec/attention"), none("/spec/experts")], "give the roles that are scaled");
    kind().refused(std::slice::from_ref(&hybrid), "give either hybrid");
    kind().refused(&[none("/spec/attention"), hybrid], "give either hybrid");
}

#[test]
fn bounds_have_an_order() {
    kind().refused(&[("/spec/attention", role(5))], "minReplicas must not exceed maxReplicas");
    kind().accepted(&[("/spec/attention", role(4))]);
    let ratio = |min: i32, max: i32| [("/spec/ratio", json!({ "minPercent": min, "maxPercent": max }))];
    kind().accepted(&ratio(50, 50));
    kind().refused(&ratio(51, 50), "minPercent must not exceed maxPercent");
    let experts = |value: Value| [("/spec/expertReplicas", value)];
    kind().accepted(&experts(json!({ "min": 2, "max": 2 })));
    kind().refused(&experts(json!({ "min": 9 })), "min must not exceed max");
    let one = |min: i32| json!({ "experts": [{ "block": 0, "expert": 1, "min": min, "max": 3 }] });
    kind().accepted(&experts(one(3)));
    kind().refused(&experts(one(4)), "min must not exceed max");
}

#[test]
fn the_ratio_is_of_two_roles() {
    let ratio = ("/spec/ratio", json!({ "minPercent": 50 }));
    kind().accepted(std::slice::from_ref(&ratio));
    kind().refused(
        &[ratio, ("/spec/experts", Value::Null)],
        "ratio is for policies that scale attention and experts",
    );
}

#[test]
fn a_deployment_sleeps_as_a_whole() {
    kind().accepted(&[("/spec/attention", role(0)), ("/spec/experts", role(0))]);
    kind().refused(&[("/spec/attention", role(0))], "sleeps as a whole");
    kind().refused(&[("/spec/experts", role(0))], "sleeps as a whole");
}

#[test]
fn metrics_have_their_targets() {
    let metric = |metric: Value| [("/spec/attention/metrics", json!([metric]))];
    kind().accepted(&metric(json!({ "type": "KvUse", "targetPercent": 80 })));
    for r#type in ["QueuePressure", "TimeToFirstToken", "InterTokenLatency"] {
        kind().accepted(&metric(json!({ "type": r#type, "targetMilliseconds": 80 })));
        kind().refused(&metric(json!({ "type": r#type })), "have a targetMilliseconds");
        kind().refused(&metric(json!({ "type": r#type, "targetPercent": 80 })), "KvUse has a targetPercent");
    }
    kind().refused(&metric(json!({ "type": "KvUse" })), "KvUse has a targetPercent");
    kind().refused(&metric(json!({ "type": "KvUse", "targetMilliseconds": 80 })), "and KvUse has none");
    kind().refused(&metric(json!({ "type": "Cpu", "targetPercent": 80 })), "is none of");
    kind().refused(&[("/spec/attention/metrics", json!([]))], "is less than 1");
    let kv = json!([{ "type": "KvUse", "targetPercent": 80 }]);
    kind().refused(&[("/spec/experts/metrics", kv)], "experts have no KV cache");
}

#[test]
fn the_deployment_stays() {
    kind().may_become(&[], &[("/spec/deviceBudget", json!(8))]);
    kind().may_not_become(&[], &[("/spec/deployment", json!("other"))], "deployment is immutable");
}

#[test]
fn defaults_are_those_of_the_horizontal_pod_autoscaler() {
    let down = json!({ "scaleDown": { "selectPolicy": "Disabled" } });
    let object = kind().stored(&[("/spec/attention/behavior", down)]);
    let object: MoEAutoscalingPolicy = serde_json::from_value(object).unwrap();
    let Behavior { scale_up, scale_down } = object.spec.attention.unwrap().behavior;
    assert_eq!((scale_up.stabilization_window_seconds, scale_up.policies.len()), (0, 2));
    let ScaleDown { stabilization_window_seconds, policies, tolerance_percent, .. } = scale_down;
    assert_eq!((stabilization_window_seconds, policies.len(), tolerance_percent), (300, 1, 10));
    assert_eq!(policies, ScaleDown::default().policies);
}
