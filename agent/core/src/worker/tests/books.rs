//! The check of a rank's books finds what is wrong with them.

use super::*;
use crate::rank::Rank;

#[test]
fn books_that_do_not_agree_are_found() {
    type Break = fn(&mut Rank);
    let broken: [(&str, Break); 7] = [
        ("promised", |r| r.kv.admit(0, &[1], 0).map(std::mem::forget).unwrap()),
        ("return groups", |r| assert!(r.pool.open(0).is_some())),
        ("tokens in segments", |r| assert!(r.segment(0).tokens.pop().is_some())),
        ("segments of sequences", |r| r.sequence(0).segments.clear()),
        ("sequences by key", |r| r.sequence(0).closing = true),
        ("tokens on a clock", |r| r.clocks[0].add(0, 1)),
        ("prefill rows", |r| {
            r.clocks[2].remove(0, 3);
            r.clocks[0].add(0, 3);
            r.segment(0).class = 0;
        }),
    ];
    for (due, breaks) in broken {
        let mut b = Bench::new(dense());
        b.bind(bind(1, 3, 2));
        b.bind(bind(2, 4, 2));
        b.cancel(2, 1);
        b.worker.check().unwrap();
        breaks(b.worker.rank.as_mut().unwrap());
        let said = b.worker.check().unwrap_err();
        assert!(said.contains(due), "{due}: {said}");
    }
}

#[test]
fn a_rank_that_keeps_anything_is_not_empty() {
    let keep: [fn(&mut Rank); 4] = [
        |_| {},
        |r| assert!(r.pool.open(0).is_some()),
        |r| r.kv.admit(0, &[1], 0).map(std::mem::forget).unwrap(),
        |r| {
            let mut table = r.kv.admit(0, &[1], 0).unwrap();
            r.kv.grow(&mut table, 1).unwrap();
            std::mem::forget(table);
        },
    ];
    for (i, keep) in keep.into_iter().enumerate() {
        let mut b = Bench::new(dense());
        b.bind(bind(1, 3, 2));
        b.run();
        keep(b.worker.rank.as_mut().unwrap());
        assert_eq!(b.worker.is_empty(), i == 0);
    }
}
