//! Every frame comes out as it went in; nothing else is taken for one.

#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_core::frame::{
    Body, Channel, Frame, Mark, Redirect, ReturnBatch, ReturnItem, ReturnTo, RowMove, StepEnd, TokenBatch,
    TokenItem,
};
use sluice_core::ids::{Class, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use sluice_wire::message::DecodeError;
use sluice_wire::{Message, WIRE, decode, encode};
use std::sync::Arc;

const ROW: usize = 12;

/// Every version that there is.
fn wire() -> impl Strategy<Value = u16> {
    WIRE.min..=WIRE.max
}

prop_compose! {
    fn slice()(lo in 0..8u8)(lo in Just(lo), hi in lo + 1..9) -> Slice { Slice { lo, hi } }
}

prop_compose! {
    fn returned()(group: u32, tag: u32, k: u8, slice in slice()) -> ReturnItem {
        ReturnItem { back: ReturnTo { group, tag, k }, slice }
    }
}

prop_compose! {
    fn mark()(class: u8, order: u64, progress: u64, frames: u64, tokens: u32, blocked: bool, cycle: u64) -> Mark {
        Mark { class: Class(class), order, progress, frames, tokens, blocked, cycle }
    }
}

prop_compose! {
    fn tokens()(
        (class, block, step_rows) in any::<(u8, u16, u32)>(),
        (frames, generation, progress) in any::<(u64, u64, u64)>(),
        rows in vec(any::<u32>().prop_map(|dst| RowMove { src: 0, dst }), 0..20),
        items in vec((any::<u32>(), any::<u16>(), returned()), 0..40),
        mark in proptest::option::of(mark()),
    ) -> TokenBatch {
        let item = |(row, expert, r): (u32, u16, ReturnItem)| TokenItem { row, expert, slice: r.slice, back: r.back };
        let items = items.into_iter().map(item).collect();
        TokenBatch { class: Class(class), frames, block, generation, step_rows, progress, rows, items, mark }
    }
}

prop_compose! {
    fn placement()(
        blocks in any::<(u16, u16)>(),
        generation: u64,
        rows in vec((any::<(u32, u16, u16)>(), slice(), 0..3usize, -1e9f32..1e9), 0..10),
    ) -> PlacementSlice {
        let states = [ReplicaState::Joining, ReplicaState::Active, ReplicaState::Draining];
        let replica = |((worker, block, expert), slice, state, fraction)| Replica {
            worker: WorkerId(worker),
            unit: Unit { block, expert, slice },
            state: states[state],
            fraction,
        };
        let replicas = rows.into_iter().map(replica).collect();
        PlacementSlice { blocks: blocks.0..blocks.1, generation, replicas }
    }
}

/// Landing rows.
fn landing_rows(most: usize) -> impl Strategy<Value = Vec<u32>> {
    vec(0..1u32 << 24, 0..most)
}

fn body() -> impl Strategy<Value = Body> {
    let redirect = (vec(returned(), 0..9), landing_rows(9), proptest::option::of(placement()));
    prop_oneof![
        tokens().prop_map(Body::Tokens),
        (vec(returned(), 0..40), landing_rows(20)).prop_map(|(items, freed)| Body::Returns(ReturnBatch {
            rows: vec![],
            items,
            freed
        })),
        mark().prop_map(Body::Mark),
        landing_rows(20).prop_map(Body::Credit),
        redirect.prop_map(|(items, freed, slice)| {
            Body::Redirect(Redirect { items, freed, slice: slice.map(Arc::new) })
        }),
        any::<(u64, u64, bool)>().prop_map(|(step, frames, busy)| Body::StepEnd(StepEnd {
            step,
            frames,
            busy
        })),
    ]
}

fn rows(body: &Body) -> usize {
    match body {
        Body::Tokens(b) => b.rows.len(),
        Body::Returns(b) => b.items.len(),
        _ => 0,
    }
}

prop_compose! {
    fn frame()(epoch: u32, number: u64, body in body()) -> Frame {
        let data = matches!(body, Body::Tokens(_) | Body::Returns(_));
        Frame { epoch, channel: if data { Channel::Data } else { Channel::Control }, number, body }
    }
}

/// A frame as it travels, and its payload.
fn bytes(frame: &Frame) -> (Vec<u8>, Vec<u8>) {
    let mut out = vec![];
    encode(frame, &mut out);
    let payload: Vec<u8> = (0..rows(&frame.body) * ROW).map(|i| i as u8).collect();
    out.extend_from_slice(&payload);
    (out, payload)
}

proptest! {
    #[test]
    fn a_frame_comes_out_as_it_went_in(frame in frame(), wire in wire()) {
        let (all, payload) = bytes(&frame);
        let (message, rest) = decode(&all, frame.channel, wire, ROW).unwrap();
        prop_assert_eq!(message, Message::Frame(frame));
        prop_assert_eq!(rest, &payload[..]);
    }

    /// Credit is a list to the message's end, so only whole numbers of it can be missing unseen: the fragments' length
    /// tells those.
    #[test]
    fn a_frame_cut_short_or_drawn_out_is_none(
        frame in frame(),
        wire in wire(),
        cut in any::<prop::sample::Index>(),
        more in 1..4usize,
    ) {
        let (mut all, _) = bytes(&frame);
        let short = &all[..cut.index(all.len())];
        let credit = matches!(frame.body, Body::Credit(_)) && short.len() >= 16 && short.len().is_multiple_of(4);
        prop_assert_eq!(decode(short, frame.channel, wire, ROW).is_ok(), credit);
        all.resize(all.len() + more, 0);
        prop_assert!(decode(&all, frame.channel, wire, ROW).is_err());
    }

    #[test]
    fn a_frame_on_the_wrong_connection_is_refused(frame in frame(), wire in wire()) {
        let (all, _) = bytes(&frame);
        let other = if frame.channel == Channel::Data { Channel::Control } else { Channel::Data };
        let refused = matches!(decode(&all, other, wire, ROW), Err(DecodeError::Channel { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn garbage_is_an_error_or_a_frame_but_never_a_panic(
        mut all in vec(any::<u8>(), 0..200),
        kind in 0..9u8,
        control: bool,
        wire in wire(),
    ) {
        if let Some(first) = all.first_mut() {
            *first = kind;
        }
        let channel = if control { Channel::Control } else { Channel::Data };
        let _ = decode(&all, channel, wire, ROW);
    }

    /// What a damaged frame is taken for is never longer than what came.
    #[test]
    fn a_damaged_frame_costs_no_more_than_its_bytes(
        frame in frame(),
        wire in wire(),
        at in any::<prop::sample::Index>(),
        value: u8,
    ) {
        let (mut all, _) = bytes(&frame);
        let at = at.index(all.len());
        all[at] = value;
        if let Ok((Message::Frame(f), _)) = decode(&all, frame.channel, wire, ROW) {
            let (again, _) = bytes(&f);
            prop_assert!(again.len() <= all.len());
        }
    }
}

#[test]
fn a_list_longer_than_the_message_is_refused_before_room_is_made_for_it() {
    let batch = ReturnBatch { rows: vec![], items: vec![], freed: vec![] };
    let frame = Frame { epoch: 1, channel: Channel::Data, number: 0, body: Body::Returns(batch) };
    let (mut all, _) = bytes(&frame);
    all[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let needed = u32::MAX as usize * 12;
    assert_eq!(decode(&all, Channel::Data, WIRE.max, ROW), Err(DecodeError::Short { what: "items", needed }));
}

/// What no worker can mean is refused before the core sees it.
#[test]
fn numbers_that_mean_nothing_are_refused() {
    let item = |lo, hi| ReturnItem { back: ReturnTo { group: 0, tag: 0, k: 0 }, slice: Slice { lo, hi } };
    let redirect =
        |lo, hi| Body::Redirect(Redirect { items: vec![item(lo, hi)], freed: vec![], slice: None });
    let bodies = [
        (redirect(3, 3), "segments"),
        (redirect(4, 3), "segments"),
        (redirect(0, 9), "segments"),
        (Body::Credit(vec![0, u32::MAX]), "a free row"),
    ];
    for (body, what) in bodies {
        let mut out = vec![];
        encode(&Frame { channel: Channel::Control, epoch: 1, number: 0, body }, &mut out);
        let refused = decode(&out, Channel::Control, WIRE.max, ROW).unwrap_err();
        assert!(refused.to_string().contains(what), "{refused}");
    }
}
