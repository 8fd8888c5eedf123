//! Metrics of workers, out of their snapshots.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::proto::MetricFamily;
use sluice_core::ids::{Nanos, SECOND};

use super::families::Family;
use super::sample::WorkerSample;

/// A series of queues: which of the three, and the block.
pub(super) type QueueKey = (&'static str, u16);

/// One worker's snapshot, and the queues it ever had: a queue that has run empty is 0 and not absent, or its series
/// would come and go.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) sample: WorkerSample,
    pub(super) queues: BTreeSet<QueueKey>,
}

impl Seen {
    /// Takes a new snapshot.
    pub(super) fn update(&mut self, sample: WorkerSample) {
        self.sample = sample;
        self.queues.extend(loads(&self.sample).into_keys());
    }
}

/// Rows and age over the queues of one series.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    queues: u32,
    max_rows: u32,
    rows: u64,
    max_age: Nanos,
    ages: u128,
}

impl Load {
    fn add(&mut self, rows: u32, age: Nanos) {
        self.queues += 1;
        self.max_rows = self.max_rows.max(rows);
        self.rows += u64::from(rows);
        self.max_age = self.max_age.max(age);
        self.ages += u128::from(age);
    }

    fn mean(self, sum: f64) -> f64 {
        if self.queues == 0 { 0.0 } else { sum / f64::from(self.queues) }
    }
}

/// The worker's queues by series. The block after the last is the head's.
pub(super) fn loads(sample: &WorkerSample) -> BTreeMap<QueueKey, Load> {
    let mut loads: BTreeMap<QueueKey, Load> = BTreeMap::new();
    for q in &sample.pressure.attention {
        loads.entry(("attention", q.block)).or_default().add(q.rows, q.age);
    }
    for (unit, q) in &sample.pressure.experts {
        loads.entry(("experts", unit.block)).or_default().add(q.rows, q.age);
    }
    loads
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// All families of all workers.
pub(super) fn families(workers: &[Seen]) -> Vec<MetricFamily> {
    let mut out = queues(workers);
    out.extend(state(workers));
    out.extend(counters(workers));
    out.into_iter().filter_map(Family::finish).collect()
}

fn queues(workers: &[Seen]) -> Vec<Family> {
    let mut max_rows =
        Family::gauge("sluice_queue_max_rows", "Rows of the longest queue of this worker and block.");
    let mut mean_rows = Family::gauge(
        "sluice_queue_mean_rows",
        "Mean rows of the queues of this worker and block that have any.",
    );
    let mut max_age =
        Family::gauge("sluice_queue_max_age_seconds", "Longest time that a row has waited in a queue.");
    let mut mean_age = Family::gauge(
        "sluice_queue_mean_age_seconds",
        "Mean over the queues that have any rows of the time their oldest has waited.",
    );
    for seen in workers {
        let worker = seen.sample.worker.0.to_string();
        let loads = loads(&seen.sample);
        for key in &seen.queues {
            let load = loads.get(key).copied().unwrap_or_default();
            let block = key.1.to_string();
            let labels = [("worker", worker.as_str()), ("queue", key.0), ("block", block.as_str())];
            max_rows.sample(&labels, f64::from(load.max_rows));
            mean_rows.sample(&labels, load.mean(load.rows as f64));
            max_age.sample(&labels, seconds(load.max_age));
            mean_age.sample(&labels, load.mean(load.ages as f64 / SECOND as f64));
        }
    }
    vec![max_rows, mean_rows, max_age, mean_age]
}

fn state(workers: &[Seen]) -> Vec<Family> {
    let mut ready =
        Family::gauge("sluice_worker_ready", "1 if all slots of the worker are loaded and it can go on.");
    let mut used = Family::gauge("sluice_kv_used_pages", "KV pages that sequences hold.");
    let mut pages = Family::gauge("sluice_kv_pages", "KV pages of the pool.");
    let mut sequences = Family::gauge("sluice_rank_sequences", "Sequences at an attention rank.");
    let mut slots = Family::gauge("sluice_slots", "Expert units held.");
    let mut stalled =
        Family::gauge("sluice_stalled_rows", "Rows that wait for a landing row at an expert worker.");
    let mut orphans = Family::gauge("sluice_orphan_rows", "Rows for experts that nobody holds.");
    let mut cycle = Family::gauge("sluice_cycle_seconds", "Median time between a rank's attention steps.");
    for Seen { sample, .. } in workers {
        let worker = sample.worker.0.to_string();
        let p = &sample.pressure;
        let labels = [("worker", worker.as_str()), ("role", sample.role)];
        ready.sample(&labels, f64::from(u8::from(sample.ready && sample.failure.is_none())));
        let labels = [("worker", worker.as_str())];
        let with = |state| [("worker", worker.as_str()), ("state", state)];
        if sample.role != "experts" {
            used.sample(&labels, f64::from(p.kv_pages.0));
            pages.sample(&labels, f64::from(p.kv_pages.1));
            sequences.sample(&with("running"), f64::from(p.sequences.0));
            sequences.sample(&with("waiting"), f64::from(p.sequences.1));
            stalled.sample(&labels, f64::from(p.stalled));
            orphans.sample(&labels, f64::from(p.orphans));
            cycle.sample(&labels, seconds(p.cycle));
        }
        if sample.role != "attention" {
            slots.sample(&with("serving"), f64::from(p.slots.serving));
            slots.sample(&with("loading"), f64::from(p.slots.loading));
            slots.sample(&with("leaving"), f64::from(p.slots.leaving));
        }
    }
    vec![ready, used, pages, sequences, slots, stalled, orphans, cycle]
}

fn counters(workers: &[Seen]) -> Vec<Family> {
    type Read = fn(&WorkerSample) -> u64;
    const COUNTERS: &[(&str, &str, Read)] = &[
        ("sluice_expert_units_total", "Expert units run, several of a block in one launch.", |s| {
            s.counters.expert_units
        }),
        ("sluice_expert_rows_total", "Rows of the expert units run.", |s| s.counters.expert_rows),
        ("sluice_sampled_tokens_total", "Tokens sampled.", |s| s.counters.sampled),
        ("sluice_prefilled_tokens_total", "Prompt tokens computed.", |s| s.counters.prefilled),
        ("sluice_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache.", |s| {
            s.pressure.prefix.0
        }),
        ("sluice_prefix_tokens_total", "Prompt tokens looked up in the prefix cache.", |s| {
            s.pressure.prefix.1
        }),
        (
            "sluice_preemptions_total",
            "Sequences handed back for want of KV pages, or for an older one.",
            |s| s.counters.preemptions,
        ),
        ("sluice_redirects_sent_total", "Rows sent back because their unit is not held here.", |s| {
            s.counters.redirects_sent
        }),
        ("sluice_redirected_total", "Rows that came back and were sent elsewhere.", |s| {
            s.counters.redirected
        }),
        ("sluice_duplicate_frames_total", "Frames dropped because they had come before, or too late.", |s| {
            s.counters.duplicate_frames
        }),
        ("sluice_duplicate_returns_total", "Expert outputs dropped because nobody waited for them.", |s| {
            s.counters.duplicate_returns
        }),
        ("sluice_masked_peers_total", "Peers masked: their connections broke, or were closed here.", |s| {
            s.counters.masked
        }),
        (
            "sluice_suspected_peers_total",
            "Of the masked peers, those that owed something and gave no sign for too long.",
            |s| s.counters.suspected,
        ),
        (
            "sluice_redispatched_total",
            "Rows asked of another replica because their worker was masked.",
            |s| s.counters.redispatched,
        ),
        (
            "sluice_hedged_total",
            "Rows asked of another replica too because their worker was later than four times its siblings.",
            |s| s.counters.hedged,
        ),
        ("sluice_late_tokens_total", "Tokens that came below their rank's frontier.", |s| s.counters.late),
        ("sluice_urgent_releases_total", "Queues released because a token had waited too long.", |s| {
            s.counters.urgent
        }),
        ("sluice_credit_stalls_total", "Rows that found no landing row free.", |s| s.counters.credit_stalls),
        ("sluice_orphaned_rows_total", "Rows for an expert that nobody held when they were sent.", |s| {
            s.counters.orphaned
        }),
        ("sluice_sliced_rows_total", "Choices of experts asked in more than one slice.", |s| {
            s.counters.sliced
        }),
        ("sluice_bad_frames_total", "Frames that make no sense: a defect of the peer.", |s| {
            s.counters.bad_frames
        }),
    ];
    COUNTERS
        .iter()
        .map(|(name, help, read)| {
            let mut family = Family::counter(name, help);
            for Seen { sample, .. } in workers {
                family.sample(&[("worker", &sample.worker.0.to_string())], read(sample) as f64);
            }
            family
        })
        .collect()
}
