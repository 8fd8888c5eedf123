//! Thousands of seeds, and what must have occurred in them.

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
        assert!(seeds * 100 >= count, "{name} occurred in only {seeds} of {count} seeds");
    }
    assert!(all.median_events() >= 1_000, "a median of {} events says little", all.median_events());
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 4, 11] {
        let (a, b) = (run::run(seed, false).unwrap(), run::run(seed, false).unwrap());
        assert_eq!((a.events, a.time, a.coverage.counts()), (b.events, b.time, b.coverage.counts()));
    }
}

/// `cargo test -p sluice-sim --features plant`
#[cfg(feature = "plant")]
#[test]
fn every_planted_bug_is_found() {
    use sluice_core::plant::{self, Plant};
    for (name, bug) in Plant::ALL {
        let found = run::many(0..10_000, jobs(), true, || assert!(plant::set(Some(bug))));
        assert!(!found.violations.is_empty(), "{name} was not found in {} seeds", found.seeds);
    }
}

#[test]
fn a_token_is_whole_with_its_last_part_in_any_order() {
    use sluice_core::frame::ReturnTo;
    use sluice_core::ids::Slice;
    use sluice_core::pool::{Arrival, TokenPool};
    use sluice_sim::rng::Rng;
    let mut r = Rng::new(1);
    for round in 0..2_000 {
        let slices: Vec<u8> = (0..3).map(|_| 1 << r.below(4)).collect();
        let mut pool = TokenPool::new(1, 3, 8);
        let group = pool.open(5).unwrap();
        let tag = pool.begin(group);
        let mut parts = vec![];
        for (k, &n) in slices.iter().enumerate() {
            pool.ask(group, k as u8, n);
            let width = 8 / n;
            parts.extend((0..n).map(|s| (k as u8, Slice { lo: s * width, hi: (s + 1) * width })));
        }
        r.shuffle(&mut parts);
        for (i, &(k, slice)) in parts.iter().enumerate() {
            let due = if i + 1 == parts.len() { Arrival::Complete(5) } else { Arrival::Part };
            assert_eq!(pool.arrive(ReturnTo { group, tag, k }, slice), due, "round {round}, part {i}");
            let again = parts[r.below(i as u64 + 1) as usize];
            assert_eq!(pool.arrive(ReturnTo { group, tag, k: again.0 }, again.1), Arrival::Duplicate);
        }
        assert_eq!(
            pool.slicing(group),
            slices,
            "what is merged, and in which order, does not depend on arrival"
        );
    }
}
