//! Which rank a sequence goes to, by what the ranks reported and what was sent to them since.

use super::*;

fn two(a: RankLoad, b: RankLoad) -> Front<u16> {
    let mut front = front(8);
    front.rank_up(0, A, 0, a, &mut Vec::new());
    front.rank_up(0, B, 0, b, &mut Vec::new());
    front
}

fn free(free_blocks: u32) -> RankLoad {
    RankLoad { free_blocks, ..LOAD }
}

fn report(front: &mut Front<u16>, rank: WorkerId, load: RankLoad) {
    front.rank_load(0, rank, load, &mut Vec::new());
}

/// Where a request of so many prompt tokens goes.
fn goes(front: &mut Front<u16>, n: u64, prompt: usize) -> WorkerId {
    bound(&submit(front, request(n, prompt, 9))).0
}

#[test]
fn more_free_blocks_then_fewer_sequences_then_the_first() {
    let queue = |queue| RankLoad { queue, ..LOAD };
    for (a, b, due) in [
        (free(50), free(60), B),
        (free(60), free(50), A),
        (queue(1), queue(0), B),
        (queue(0), queue(1), A),
        (queue(1), queue(1), A),
        (RankLoad { queue: 9, ..free(60) }, free(50), A),
    ] {
        assert_eq!(goes(&mut two(a, b), 1, 3), due, "{a:?} {b:?}");
    }
    // What was bound to a rank waits there too.
    let mut front = two(LOAD, free(50));
    assert_eq!(goes(&mut front, 1, 3), A);
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    report(&mut front, A, LOAD);
    report(&mut front, B, LOAD);
    assert_eq!(goes(&mut front, 2, 3), B);
}

#[test]
fn a_bind_counts_with_the_blocks_of_its_prompt_and_one_token_more() {
    for (prompt, next) in [(15, A), (16, B)] {
        let mut front = two(LOAD, free(98));
        assert_eq!(goes(&mut front, 1, prompt), A);
        assert_eq!(goes(&mut front, 2, 1), next, "{prompt}");
    }
    // Of a replay what was produced counts as well.
    let mut front = two(LOAD, free(50));
    assert_eq!(goes(&mut front, 1, 15), A);
    said(&mut front, A, key(1), 1, RankEvent::Token { index: 0, id: 3 });
    assert_eq!(bound(&said(&mut front, A, key(1), 1, RankEvent::HandedBack)).0, A);
    report(&mut front, B, free(98));
    assert_eq!(goes(&mut front, 2, 1), B);
}

#[test]
fn a_sequence_that_leaves_and_a_report_give_blocks_back() {
    let answered = |front: &mut Front<u16>| {
        assert_eq!(goes(front, 1, 31), B);
        said(front, B, key(1), 1, RankEvent::Accepted);
    };
    let mut front = two(free(99), LOAD);
    answered(&mut front);
    said(&mut front, B, key(1), 1, RankEvent::Finished(Finish::Stop));
    assert_eq!(goes(&mut front, 2, 1), B, "gone");
    let mut front = two(free(99), LOAD);
    answered(&mut front);
    report(&mut front, B, LOAD);
    assert_eq!(goes(&mut front, 2, 1), B, "the rank's own figure has it");
    let mut front = two(free(99), LOAD);
    assert_eq!(goes(&mut front, 1, 31), B);
    report(&mut front, B, LOAD);
    assert_eq!(goes(&mut front, 2, 1), A, "it may not have seen the bind yet");
}

#[test]
fn the_hint_wins_within_an_eighth_of_its_pool() {
    for (hinted, due) in [(88, A), (87, B)] {
        let mut front = two(LOAD, free(50));
        let prompt = |n| Submit { prompt: (0..64).collect(), ..request(n, 1, 9) };
        assert_eq!(bound(&submit(&mut front, prompt(1))).0, A);
        said(&mut front, A, key(1), 1, RankEvent::Finished(Finish::Stop));
        report(&mut front, A, free(hinted));
        report(&mut front, B, LOAD);
        assert_eq!(bound(&submit(&mut front, prompt(2))).0, due, "{hinted}");
    }
}

#[test]
fn what_a_lost_rank_may_still_run_is_remembered_for_twice_the_lease() {
    let lease = FrontConfig::new(GatewayId(0)).lease;
    for (later, remembered) in [(2 * lease - 1, true), (2 * lease, false)] {
        let mut front = two(LOAD, free(50));
        assert_eq!(goes(&mut front, 1, 3), A);
        let mut out = Vec::new();
        front.rank_down(0, A, &mut out);
        assert_eq!(bound(&out).0, B);
        front.rank_down(later, B, &mut out);
        let due = if remembered { vec![(A, key(1), 1)] } else { vec![] };
        assert_eq!(cancels(&up(&mut front, A, 0)), due, "{later}");
    }
}

#[test]
fn a_smaller_pool_refuses_what_waits_and_no_longer_fits() {
    let mut front = two(free(0), free(0));
    report(&mut front, B, RankLoad { draining: true, ..LOAD });
    for n in [1, 2, 3] {
        submit(&mut front, request(n, 16, if n == 2 { 900 } else { 9 }));
    }
    assert_eq!(front.waiting().fresh, 2, "a full rank is offered one");
    let mut out = Vec::new();
    front.rank_load(0, B, RankLoad { pool_blocks: 50, draining: true, ..LOAD }, &mut out);
    front.rank_load(0, A, free(0), &mut out);
    assert!(ended(&out).is_empty(), "it fits the other");
    front.rank_load(0, A, RankLoad { pool_blocks: 50, ..free(0) }, &mut out);
    let refused = Refused::TooLarge { need: 915, room: 800 };
    assert_eq!(ended(&out), [(key(2), Ending::Refused(refused))]);
}

#[test]
fn words_on_what_is_not_bound_or_was_answered_are_duplicates() {
    let mut front = two(LOAD, RankLoad { draining: true, ..LOAD });
    let mut due = 0;
    let mut dropped = |front: &mut Front<u16>, rank, n, attempt, event| {
        assert!(said(front, rank, key(n), attempt, event).is_empty());
        due += 1;
        assert_eq!(front.counts().duplicates, due);
    };
    dropped(&mut front, A, 9, 1, RankEvent::Accepted);
    submit(&mut front, request(1, 3, 9));
    dropped(&mut front, B, 1, 1, RankEvent::Accepted);
    dropped(&mut front, A, 1, 2, RankEvent::Accepted);
    said(&mut front, A, key(1), 1, BUSY);
    dropped(&mut front, A, 1, 1, RankEvent::Accepted);
    let mut out = Vec::new();
    front.rank_load(0, A, LOAD, &mut out);
    assert_eq!(bound(&out).1.attempt, 2);
    said(&mut front, A, key(1), 2, RankEvent::Accepted);
    dropped(&mut front, A, 1, 2, RankEvent::Accepted);
    dropped(&mut front, A, 1, 2, BUSY);
    said(&mut front, A, key(1), 2, RankEvent::Token { index: 0, id: 5 });
    dropped(&mut front, A, 1, 2, RankEvent::Token { index: 0, id: 5 });
    assert_eq!((front.counts().busy, front.counts().tokens), (1, 1));
}

#[test]
fn of_a_lost_ranks_sequences_those_that_it_had_count_as_replays() {
    let mut front = two(LOAD, RankLoad { draining: true, ..LOAD });
    for n in [1, 2, 3] {
        submit(&mut front, request(n, 3, 9));
    }
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    said(&mut front, A, key(3), 1, RankEvent::Accepted);
    front.rank_down(0, A, &mut Vec::new());
    assert_eq!((front.counts().replays, front.waiting()), (2, Waiting { replays: 2, fresh: 1 }));
}

#[test]
fn no_more_choices_than_can_be_numbered() {
    let mut front = Front::new(FrontConfig { queue: 1 << 20, ..FrontConfig::new(GatewayId(0)) });
    for (n, due) in [(65_536, Err(Refused::Empty)), (65_535, Ok(()))] {
        let many = Submit { choices: vec![0; n], ..request(1, 1, 0) };
        assert_eq!(front.submit(0, many, &mut Vec::new()), due);
    }
}

#[test]
fn prefixes_differ_in_any_token_and_by_salt() {
    let ids: Vec<u32> = (0..64).collect();
    let of = |salt, ids: &[u32]| affinity::prefixes(salt, ids)[0];
    for at in 0..64 {
        let mut other = ids.clone();
        other[at] ^= 1;
        assert_ne!(of(0, &ids), of(0, &other), "at {at}");
    }
    let salted: BTreeSet<u64> = (0..64).map(|salt| of(salt, &ids)).collect();
    assert_eq!(salted.len(), 64);
}

#[test]
fn what_a_rank_had_no_longer_counts_as_new() {
    for event in [RankEvent::HandedBack, RankEvent::Token { index: 1, id: 5 }] {
        let mut front = front(1);
        up(&mut front, A, 0);
        submit(&mut front, request(1, 3, 9));
        assert!(front.submit(0, request(2, 3, 9), &mut Vec::new()).is_err(), "the queue is full");
        assert!(bound(&said(&mut front, A, key(1), 1, event)).1.replay);
        submit(&mut front, request(2, 3, 9));
    }
}
