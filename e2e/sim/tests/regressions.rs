//! Defects that seeds have found. Which seed it was changes with the draw, so each test holds fast what the defect
//! needed and draws the rest.

use sluice_core::config::Policy;
use sluice_sim::scenario::{Fixed, Scenario};
use sluice_sim::world::World;

/// `SIM_SEEDS` bounds what `tests/seeds.rs` runs, and these in proportion.
fn hold(fixed: Fixed, seeds: u64) {
    let most = std::env::var("SIM_SEEDS").ok().and_then(|n| n.parse::<u64>().ok());
    for seed in 0..most.map_or(seeds, |most| seeds.min(most / 10)) {
        if let Err(violation) = World::run(Scenario::with(seed, &fixed), seed, false) {
            panic!("seed {seed} with {fixed:?}: {violation}");
        }
    }
}

/// A segment whose sequence ended in the sampler was left as running, with its rows and pages.
#[test]
fn a_sequence_that_the_sampler_ends_lets_go_of_its_pages() {
    hold(Fixed { cut_short: Some(40), ..Fixed::default() }, 100);
}

/// While a step's end was dealt with, pages that were about to be free did not count, and the oldest went too.
#[test]
fn the_oldest_is_never_handed_back() {
    hold(Fixed { tight: Some(8), ..Fixed::default() }, 150);
}

/// A span ran a segment through blocks that the segment ahead of it, still at its experts, had not written.
#[test]
fn a_span_does_not_overtake_the_segment_ahead() {
    hold(Fixed { hybrid: Some(1), chunk: Some(1), policy: Some(Policy::Frontier), ..Fixed::default() }, 400);
}

/// Alone, it went round its barrier for ever while all its tokens waited for a slot to load.
#[test]
fn a_lone_worker_waits_at_its_barrier() {
    hold(Fixed { hybrid: Some(1), policy: Some(Policy::Sync), ..Fixed::default() }, 150);
}

/// Hosts without the attention role knew one wave only.
#[test]
fn hosts_know_all_waves() {
    hold(Fixed { waves: Some(3), ..Fixed::default() }, 60);
}

/// A launch without rows, when nobody waited for any of a queue's tokens any more.
#[test]
fn no_step_is_without_rows() {
    hold(Fixed { hybrid: Some(1), operations: Some(80), rows: Some(1), ..Fixed::default() }, 600);
}

/// Rows were never freed of a token that was cancelled when its expert had lost all holders while slices of it waited
/// for credit.
#[test]
fn tokens_are_given_up_while_the_placement_changes() {
    let fixed = Fixed { hybrid: Some(3), ring: Some(1), operations: Some(30), ..Fixed::default() };
    hold(Fixed { cut_short: Some(50), ..fixed }, 400);
}

/// With a row budget of one, the first class of a unit took every release that another one's oldest token was due.
#[test]
fn no_class_starves_another() {
    let fixed = Fixed { rows: Some(1), policy: Some(Policy::Mtfs), ..Fixed::default() };
    hold(Fixed { hybrid: Some(2), waves: Some(2), ..fixed }, 200);
}

/// One landing row for each rank: no deadlock, whatever else is drawn.
#[test]
fn one_row_of_credit_is_enough() {
    hold(Fixed { ring: Some(1), ..Fixed::default() }, 60);
}
