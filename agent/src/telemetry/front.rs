//! Metrics of the gateway's front: sequences in, and out by cause.

use prometheus::proto::MetricFamily;

use super::families::Family;
use super::sample::FrontSample;

/// The front's families. At rest, what came in equals what went out over all outcomes.
pub(super) fn families(front: &FrontSample) -> Vec<MetricFamily> {
    let c = &front.counts;
    let mut received = Family::counter(
        "sluice_sequences_received_total",
        "Sequences (choices of requests) that came to the front, those refused at the door among them.",
    );
    received.sample(&[], (c.admitted + c.refused) as f64);
    let mut ended = Family::counter(
        "sluice_sequences_ended_total",
        "Sequences that are over, by how they ended. A refusal at the door or after it is `refused`.",
    );
    for (outcome, n) in [
        ("complete", c.complete),
        ("cancelled", c.cancelled),
        ("refused", c.refused + c.failed),
        ("deadline", c.deadline),
        ("cut", c.cut),
    ] {
        ended.sample(&[("outcome", outcome)], n as f64);
    }
    let mut live = Family::gauge("sluice_sequences", "Sequences now: bound to a rank, or waiting for one.");
    let waiting = front.waiting.fresh + front.waiting.replays;
    live.sample(&[("state", "bound")], front.live.saturating_sub(waiting) as f64);
    live.sample(&[("state", "waiting")], front.waiting.fresh as f64);
    live.sample(&[("state", "waiting_replay")], front.waiting.replays as f64);
    let counters = [
        ("sluice_generated_tokens_total", "Tokens passed on to clients.", c.tokens),
        (
            "sluice_front_duplicates_total",
            "Words of ranks dropped by the front: of an older attempt, an earlier index or an unknown sequence.",
            c.duplicates,
        ),
        (
            "sluice_front_gaps_total",
            "Tokens that were missing before a later one, answered with a replay.",
            c.gaps,
        ),
        ("sluice_replays_total", "Sequences bound again because their rank was lost.", c.replays),
        (
            "sluice_hand_backs_total",
            "Sequences bound again because their rank handed them back.",
            c.preempted,
        ),
        ("sluice_busy_binds_total", "Binds that a rank turned down for lack of room.", c.busy),
    ];
    let counters = counters.map(|(name, help, n)| {
        let mut family = Family::counter(name, help);
        family.sample(&[], n as f64);
        family
    });
    [received, ended, live].into_iter().chain(counters).filter_map(Family::finish).collect()
}
