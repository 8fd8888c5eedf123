//! The pages, from snapshots to text.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sluice_core::counters::Counters;
use sluice_core::front::{Complete, Ending, FrontCounts, Waiting};
use sluice_core::ids::{SECOND, Slice, Unit, WorkerId};
use sluice_core::pressure::{Pressure, QueuePressure};

use super::{FrontSample, StepKind, Telemetry, WorkerSample};

fn unit(block: u16, expert: u16) -> Unit {
    Unit { block, expert, slice: Slice::whole(8) }
}

fn queue(block: u16, rows: u32, age_ms: u64) -> QueuePressure {
    QueuePressure { block, rows, age: age_ms * SECOND / 1000 }
}

fn sample() -> WorkerSample {
    WorkerSample {
        worker: WorkerId(1),
        role: "hybrid",
        counters: Counters { preemptions: 3, late: 2, ..Counters::default() },
        pressure: Pressure {
            attention: vec![queue(4, 7, 20)],
            experts: vec![(unit(2, 0), queue(2, 10, 40)), (unit(2, 5), queue(2, 20, 10))],
            kv_pages: (5, 64),
            sequences: (2, 1),
            prefix: (16, 48),
            step: [SECOND / 100, 0, 0],
            slow: vec![(WorkerId(7), 0.25)],
            ..Pressure::default()
        },
        ready: true,
        busy: true,
        draining: false,
        failure: None,
    }
}

/// Sample lines by name and labels.
fn lines(page: &str) -> BTreeMap<String, f64> {
    page.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| {
            let (name, value) = l.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn a_page_says_what_the_snapshots_said() {
    let t = Telemetry::new(0..2).unwrap();
    t.worker_seen(sample());
    t.step_done(WorkerId(1), StepKind::Experts, 30, Duration::from_millis(2));
    t.prompt_admitted(9);
    t.token_out(true, Duration::from_millis(30));
    t.token_out(false, Duration::from_millis(3));
    t.token_out(false, Duration::from_millis(3));
    t.sequence_ended(&Ending::Complete(Complete::Stop), Duration::from_secs(1));
    t.http_answered("/v1/completions", 200);
    t.client_too_slow();
    t.connections_changed(2);
    t.connections_changed(-1);
    let counts = FrontCounts {
        admitted: 5,
        refused: 2,
        complete: 3,
        cancelled: 1,
        failed: 1,
        ..FrontCounts::default()
    };
    let page =
        t.render(Some(&FrontSample { counts, live: 3, waiting: Waiting { fresh: 1, replays: 1 } })).unwrap();
    let lines = lines(&page);
    for (name, value) in [
        ("sluice_queue_max_rows{worker=\"1\",queue=\"experts\",block=\"2\"}", 20.0),
        ("sluice_queue_mean_rows{worker=\"1\",queue=\"experts\",block=\"2\"}", 15.0),
        ("sluice_queue_max_age_seconds{worker=\"1\",queue=\"experts\",block=\"2\"}", 0.04),
        ("sluice_queue_mean_age_seconds{worker=\"1\",queue=\"experts\",block=\"2\"}", 0.025),
        ("sluice_queue_max_rows{worker=\"1\",queue=\"attention\",block=\"4\"}", 7.0),
        ("sluice_worker_ready{worker=\"1\",role=\"hybrid\"}", 1.0),
        ("sluice_kv_used_pages{worker=\"1\"}", 5.0),
        ("sluice_kv_pages{worker=\"1\"}", 64.0),
        ("sluice_rank_sequences{worker=\"1\",state=\"waiting\"}", 1.0),
        ("sluice_preemptions_total{worker=\"1\"}", 3.0),
        ("sluice_late_tokens_total{worker=\"1\"}", 2.0),
        ("sluice_prefix_hit_tokens_total{worker=\"1\"}", 16.0),
        ("sluice_step_rows_sum{kind=\"experts\",worker=\"1\"}", 30.0),
        ("sluice_step_duration_seconds_count{kind=\"experts\",worker=\"1\"}", 1.0),
        ("sluice_time_to_first_token_seconds_count", 1.0),
        ("sluice_inter_token_latency_seconds_count", 2.0),
        ("sluice_sequence_duration_seconds_count{outcome=\"complete\"}", 1.0),
        ("sluice_sequence_duration_seconds_count{outcome=\"cut\"}", 0.0),
        ("sluice_prompt_tokens_total", 9.0),
        ("sluice_http_requests_total{code=\"200\",route=\"/v1/completions\"}", 1.0),
        ("sluice_slow_clients_total", 1.0),
        ("sluice_http_connections", 1.0),
        ("sluice_sequences_received_total", 7.0),
        ("sluice_sequences_ended_total{outcome=\"refused\"}", 3.0),
        ("sluice_sequences{state=\"bound\"}", 1.0),
    ] {
        assert_eq!(lines.get(name), Some(&value), "{name}\n{page}");
    }
}

#[test]
fn a_queue_that_ran_empty_is_zero_and_not_absent() {
    let t = Telemetry::new(0..2).unwrap();
    t.worker_seen(sample());
    t.worker_seen(WorkerSample { pressure: Pressure::default(), ..sample() });
    let lines = lines(&t.render(None).unwrap());
    assert_eq!(lines.get("sluice_queue_max_rows{worker=\"1\",queue=\"experts\",block=\"2\"}"), Some(&0.0));
    assert_eq!(
        lines.get("sluice_queue_mean_age_seconds{worker=\"1\",queue=\"attention\",block=\"4\"}"),
        Some(&0.0)
    );
}

#[test]
fn every_name_is_described_once_and_keeps_the_conventions() {
    let t = Telemetry::new(0..1).unwrap();
    t.worker_seen(WorkerSample { worker: WorkerId(0), ..sample() });
    let page = t.render(Some(&FrontSample::default())).unwrap();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = Vec::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(types.insert(name, kind), None, "{name} is described twice");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty(), "{name}");
            helped.push(name);
        }
    }
    assert_eq!(helped, types.keys().copied().collect::<Vec<_>>(), "sorted, and each with a help text");
    for (name, kind) in &types {
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
        assert!(name.starts_with("sluice_") || name.starts_with("process_"), "{name}");
    }
    assert!(types.len() > 40, "{}", types.len());
}

#[test]
fn a_worker_that_failed_is_not_ready() {
    let t = Telemetry::new(0..2).unwrap();
    t.worker_seen(WorkerSample { failure: Some("the device is gone".into()), ..sample() });
    let lines = lines(&t.render(None).unwrap());
    assert_eq!(lines.get("sluice_worker_ready{worker=\"1\",role=\"hybrid\"}"), Some(&0.0));
    let page = serde_json::to_value(t.pressure(None)).unwrap();
    assert_eq!(page["workers"][0]["failure"], "the device is gone");
}

#[test]
fn pressure_is_per_unit() {
    let t = Telemetry::new(0..2).unwrap();
    t.worker_seen(sample());
    let page = serde_json::to_value(t.pressure(Some(&FrontSample {
        waiting: Waiting { fresh: 4, replays: 0 },
        live: 6,
        ..FrontSample::default()
    })))
    .unwrap();
    let w = &page["workers"][0];
    assert_eq!(
        (&w["worker"], &w["role"], &w["kv_pages"]["total"]),
        (&1.into(), &"hybrid".into(), &64.into())
    );
    assert_eq!((&w["experts"][1]["expert"], &w["experts"][1]["rows"]), (&5.into(), &20.into()));
    assert_eq!((&w["attention"][0]["age"], &w["step"]["attention"]), (&0.02.into(), &0.01.into()));
    assert_eq!(w["slow"], serde_json::json!([{"worker": 7, "share": 0.25}]));
    assert!(w["member"].is_null(), "it has no peers in other processes");
    assert_eq!((&page["front"]["waiting"], &page["front"]["sequences"]), (&4.into(), &6.into()));
}

#[test]
fn a_peer_is_shown_while_it_is_connected() {
    let t = Telemetry::new(1..2).unwrap();
    t.worker_seen(sample());
    let series = |t: &Telemetry| {
        let page = t.render(None).unwrap();
        lines(&page).keys().filter(|name| name.starts_with("sluice_peer_round_trip_seconds")).count()
    };
    let peers =
        |t: &Telemetry| serde_json::to_value(t.pressure(None)).unwrap()["workers"][0]["peers"].clone();
    let (own, old, new) = (WorkerId(1), WorkerId(2), WorkerId(3));
    t.peer_round_trip(own, new, Duration::from_millis(1));
    assert_eq!((series(&t), peers(&t)), (0, json!([])), "nobody is connected");

    t.peer_connected(own, old, 1);
    t.peer_connected(own, new, 2);
    t.peer_connected(WorkerId(7), new, 2);
    assert_eq!(series(&t), 0, "nothing is known of how far they are");
    t.peer_round_trip(own, new, Duration::from_millis(8));
    t.peer_round_trip(own, new, Duration::from_millis(16));
    let due =
        json!([{"worker": 2, "wire": 1, "round_trip": null}, {"worker": 3, "wire": 2, "round_trip": 0.009}]);
    assert_eq!(peers(&t), due);
    let page = t.render(None).unwrap();
    let of = |name: &str| {
        lines(&page)[&format!("sluice_peer_round_trip_seconds_{name}{{peer=\"3\",worker=\"1\"}}")]
    };
    assert_eq!((of("count"), of("sum")), (2.0, 0.024));

    t.peer_disconnected(own, new);
    assert_eq!((series(&t), peers(&t)), (0, json!([{"worker": 2, "wire": 1, "round_trip": null}])));
    t.peer_connected(own, new, 2);
    t.peer_round_trip(own, new, Duration::from_millis(8));
    assert_eq!(peers(&t)[1]["round_trip"], 0.008, "what was before the connection does not count");
}

#[test]
fn workers_and_kinds_that_are_none_are_ignored() {
    let t = Telemetry::new(0..1).unwrap();
    t.step_done(WorkerId(9), StepKind::Head, 1, Duration::from_millis(1));
    t.worker_seen(sample());
    assert!(t.pressure(None).workers.is_empty());
}
