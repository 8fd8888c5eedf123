//! Messages come out of their fragments as they went in, urgent ones before what is half sent.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use sluice_wire::fragment::{FragmentError, HEAD, MOST};
use sluice_wire::{Assembly, Lane, Outgoing};

/// Takes the next fragment out and in. The message that it completes.
fn pass(out: &mut Outgoing, into: &mut Assembly) -> Option<(Lane, Vec<u8>)> {
    let mut parts = vec![];
    let head = out.next(&mut parts).expect("something is in line");
    let (lane, length, last) = Assembly::head(head).unwrap();
    assert_eq!(parts.iter().map(Bytes::len).sum::<usize>(), length);
    parts.iter().for_each(|p| into.buffer(lane).extend_from_slice(p));
    into.ends(lane, last).unwrap().map(|m| (lane, m.to_vec()))
}

fn message(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect()
}

proptest! {
    #[test]
    fn messages_come_out_whole_and_in_their_lanes_order(
        lengths in vec((0..3 * MOST, any::<bool>(), 0..4usize), 1..12),
    ) {
        let (mut out, mut into) = (Outgoing::default(), Assembly::new(3 * MOST));
        let mut due = [vec![], vec![]];
        for (i, (length, bulk, cuts)) in lengths.into_iter().enumerate() {
            let lane = if bulk { Lane::Bulk } else { Lane::Urgent };
            let whole = message(length, i as u8);
            let step = (length / (cuts + 1)).max(1);
            out.push(lane, whole.chunks(step).map(Bytes::copy_from_slice));
            due[lane as usize].push(whole);
        }
        let mut got = [vec![], vec![]];
        while !out.is_empty() {
            if let Some((lane, m)) = pass(&mut out, &mut into) {
                prop_assert!(lane == Lane::Bulk || got[1].is_empty(), "urgent ones go first");
                got[lane as usize].push(m);
            }
        }
        prop_assert!(out.next(&mut vec![]).is_none());
        prop_assert_eq!(got, due);
    }
}

#[test]
fn an_urgent_message_overtakes_what_is_half_sent() {
    let (mut out, mut into) = (Outgoing::default(), Assembly::new(1 << 20));
    let large = message(5 * MOST, 1);
    out.push(Lane::Bulk, [Bytes::from(large.clone())]);
    assert_eq!(pass(&mut out, &mut into), None);
    out.push(Lane::Urgent, [Bytes::from_static(b"mark")]);
    assert_eq!(pass(&mut out, &mut into), Some((Lane::Urgent, b"mark".to_vec())));
    let mut last = None;
    while !out.is_empty() {
        last = pass(&mut out, &mut into);
    }
    assert_eq!(last, Some((Lane::Bulk, large)));
}

#[test]
fn what_is_too_long_or_not_as_long_as_it_said_is_refused() {
    let mut into = Assembly::new(100);
    into.buffer(Lane::Bulk).extend_from_slice(&101u32.to_le_bytes());
    assert_eq!(into.ends(Lane::Bulk, false), Err(FragmentError::Long { length: 101, most: 100 }));
    for (said, bytes, last) in [(3u32, 4, false), (3, 2, true), (3, 4, true)] {
        let mut into = Assembly::new(100);
        into.buffer(Lane::Urgent).extend_from_slice(&said.to_le_bytes());
        into.buffer(Lane::Urgent).extend_from_slice(&vec![0; bytes]);
        assert_eq!(into.ends(Lane::Urgent, last), Err(FragmentError::Length { length: 3, found: bytes }));
    }
    let mut into = Assembly::new(100);
    assert_eq!(into.ends(Lane::Urgent, true), Err(FragmentError::Length { length: 0, found: 0 }));
    for head in [[0, 0, 2, 0], [0, 0, 0, 2]] {
        assert_eq!(Assembly::head(head), Err(FragmentError::Head(head)));
    }
    assert_eq!(HEAD, 4);
}
