//! Thousands of seeds, and what must have occurred in them.

use sluice_core::plant::{self, Plant};
use sluice_sim::coverage::Coverage;
use sluice_sim::run;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

#[test]
fn seeds_hold_and_cover_the_hard_cases() {
    let count = std::env::var("SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    let all = run::many(0..count, jobs(), false, || {});
    let told: Vec<String> =
        all.violations.iter().map(|(seed, v)| format!("{v}\nreplay: {}", run::replay(*seed))).collect();
    assert!(told.is_empty(), "{} of {count} seeds:\n{}", told.len(), told.join("\n"));
    for (name, (seeds, _)) in Coverage::NAMES.iter().zip(all.coverage) {
        // Returns are rarely asked twice: nothing but a changed slicing makes them come in vain.
        if *name != "duplicate return" {
            assert!(seeds * 100 >= count, "{name} occurred in only {seeds} of {count} seeds");
        }
    }
    assert!(all.median_events() >= 900, "a median of {} events says little", all.median_events());
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 4, 11] {
        let (a, b) = (run::run(seed, false).unwrap(), run::run(seed, false).unwrap());
        assert_eq!((a.events, a.time, a.coverage.counts()), (b.events, b.time, b.coverage.counts()));
    }
}

#[test]
fn every_planted_bug_is_found() {
    for (name, bug) in Plant::ALL {
        let found = run::many(0..10_000, jobs(), true, || assert!(plant::set(Some(bug))));
        assert!(!found.violations.is_empty(), "{name} was not found in {} seeds", found.seeds);
    }
}
