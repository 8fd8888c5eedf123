//! Heartbeats, in each version of the wire.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sluice_core::frame::Channel;
use sluice_wire::beat::{Echo, Heard, Times};
use sluice_wire::message::{DecodeError, encode_beat};
use sluice_wire::{Message, WIRE, decode};

const ROW: usize = 12;
/// The two that differ here.
const PLAIN: u16 = 1;
const TIMED: u16 = 2;

fn bytes(times: &Times, wire: u16) -> Vec<u8> {
    let mut out = vec![];
    encode_beat(times, wire, &mut out);
    out
}

prop_compose! {
    fn times()(sent: u64, echo in proptest::option::of(any::<(u64, u64)>())) -> Times {
        Times { sent, echo: echo.map(|(sent, held)| Echo { sent, held }) }
    }
}

/// A release may find any of these at the other end: what they look like is for ever.
#[test]
fn the_bytes_of_each_version() {
    let times = Times { sent: 0x0102, echo: Some(Echo { sent: 0x0304, held: 0x0506 }) };
    assert_eq!(bytes(&times, PLAIN), [0; 16]);
    let mut timed = [0; 48];
    (timed[0], timed[16]) = (7, 1);
    (timed[24], timed[25]) = (2, 1);
    (timed[32], timed[33]) = (4, 3);
    (timed[40], timed[41]) = (6, 5);
    assert_eq!(bytes(&times, TIMED), timed);
    (timed[16], timed[32], timed[33], timed[40], timed[41]) = (0, 0, 0, 0, 0);
    assert_eq!(bytes(&Times { echo: None, ..times }, TIMED), timed);
}

#[test]
fn a_heartbeat_of_another_version_is_refused_by_name() {
    let refused = |from: u16, to: u16| {
        decode(&bytes(&Times::default(), from), Channel::Control, to, ROW).unwrap_err().to_string()
    };
    assert_eq!(
        refused(TIMED, PLAIN),
        "messages of kind 7 are none of version 1 of the wire, which this connection has"
    );
    assert_eq!(
        refused(PLAIN, TIMED),
        "messages of kind 0 are none of version 2 of the wire, which this connection has"
    );
    for wire in WIRE.min..=WIRE.max {
        assert_eq!(decode(&[9; 16], Channel::Control, wire, ROW), Err(DecodeError::Kind(9)));
    }
}

#[test]
fn an_echo_is_there_or_not() {
    let mut all = bytes(&Times::default(), TIMED);
    all[16] = 2;
    let refused = decode(&all, Channel::Control, TIMED, ROW).unwrap_err();
    assert_eq!(refused.to_string(), "whether a heartbeat has an echo is 2, which means nothing");
}

proptest! {
    #[test]
    fn a_heartbeat_comes_out_as_it_went_in(times in times()) {
        let plain = bytes(&times, PLAIN);
        prop_assert_eq!(decode(&plain, Channel::Control, PLAIN, ROW), Ok((Message::Beat(None), &[][..])));
        let timed = bytes(&times, TIMED);
        prop_assert_eq!(decode(&timed, Channel::Control, TIMED, ROW), Ok((Message::Beat(Some(times)), &[][..])));
    }

    #[test]
    fn a_heartbeat_cut_short_or_drawn_out_is_none(
        times in times(),
        wire in WIRE.min..=WIRE.max,
        cut in any::<prop::sample::Index>(),
        more in 1..40usize,
    ) {
        let mut all = bytes(&times, wire);
        prop_assert!(decode(&all[..cut.index(all.len())], Channel::Control, wire, ROW).is_err());
        prop_assert!(decode(&all, Channel::Data, wire, ROW).is_err());
        all.resize(all.len() + more, 0);
        prop_assert!(decode(&all, Channel::Control, wire, ROW).is_err());
    }

    /// Whatever the clocks say, and however long a heartbeat is held.
    #[test]
    fn both_ends_find_how_long_the_way_there_and_back_takes(
        (left, right) in any::<(u32, u32)>(),
        (there, held, back) in any::<(u32, u32, u32)>(),
    ) {
        let [left, right, there, held, back] = [left, right, there, held, back].map(u64::from);
        let first = Times::new(left, None);
        prop_assert_eq!(first.round_trip(right), None);
        let heard = Heard { sent: first.sent, at: right + there };
        let answer = Times::new(heard.at + held, Some(heard));
        let came = left + there + held + back;
        prop_assert_eq!(answer.round_trip(came), Some(there + back));
        // The other end learns it from the next one, held for as long as it likes.
        let heard = Heard { sent: answer.sent, at: came };
        let third = Times::new(came + held, Some(heard));
        prop_assert_eq!(third.round_trip(answer.sent + back + held + there), Some(back + there));
    }

    /// No time that has passed is longer than the connection stands.
    #[test]
    fn what_a_liar_says_is_nothing_or_not_longer_than_there_is_time(times in times(), now: u64) {
        prop_assert!(times.round_trip(now).is_none_or(|took| took <= now));
    }
}
