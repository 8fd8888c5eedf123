//! Messages between workers, and placement tables.

use bytes::Bytes;
use sluice_wire::{Assembly, Lane, Message, Outgoing, decode, encode, message};

use crate::table::{Engine, parse, render};
use crate::transport::fuzz::connection;

/// Bytes of a row.
pub(super) const ROW: usize = 8;

/// The first byte says on which connection the rest came, and what version of the wire that has.
pub(super) fn frame(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let (channel, wire) = connection(*how);
    let Ok((read, payload)) = decode(bytes, channel, wire, ROW) else { return };
    let written = written(&read, wire, payload);
    let again = through_fragments(&written);
    let (reread, rows) = decode(&again, channel, wire, ROW).expect("what was understood once can be sent on");
    assert_eq!(rows, payload, "rows change on their way");
    assert_eq!(self::written(&reread, wire, rows), written, "a message changes on its way");
}

fn written(message: &Message, wire: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    match message {
        Message::Beat(times) => message::encode_beat(&times.unwrap_or_default(), wire, &mut out),
        Message::Frame(frame) => encode(frame, &mut out),
    }
    out.extend_from_slice(payload);
    out
}

fn through_fragments(message: &[u8]) -> Vec<u8> {
    let (mut out, mut into) = (Outgoing::default(), Assembly::new(message.len()));
    out.push(Lane::Bulk, [Bytes::copy_from_slice(message)]);
    let mut whole = None;
    let mut parts = vec![];
    while let Some(head) = out.next(&mut parts) {
        let (lane, _, last) = Assembly::head(head).expect("a head of ours");
        parts.drain(..).for_each(|part| into.buffer(lane).extend_from_slice(&part));
        whole = into.ends(lane, last).expect("a fragment of ours");
    }
    whole.expect("the whole message").to_vec()
}

/// A table that is taken can be shown, and what is shown is the table.
pub(super) fn placement(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(table) = parse(text) else { return };
    let shown = render(&table);
    let again = parse(&shown).unwrap_or_else(|e| panic!("{e}\n{shown}"));
    assert_eq!(again, table, "{shown}");
    assert_eq!(table.check(&again), Ok(()));
    let engine = Engine { moe: vec![false, true, true], experts: 8, segments: 8, parts: Some(2) };
    if table.fits(&engine).is_ok() {
        assert!(table.finest(engine.segments) <= 2, "{shown}");
    }
}
