//! Sound inputs of each target, as the product itself writes them.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Value, json};
use sluice_core::frame::{
    Body, Channel, Frame, Mark, Redirect, ReturnBatch, ReturnItem, ReturnTo, RowMove, StepEnd, TokenBatch,
    TokenItem,
};
use sluice_core::front::RankLoad;
use sluice_core::hello::{Hello, Role, WireVersions};
use sluice_core::ids::{Class, GatewayId, SeqKey, Slice, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::{self, Finish, RankEvent, Refusal, StopRule};
use sluice_core::session::SessionId;
use sluice_wire::beat::{Heard, Times};
use sluice_wire::{Lane, Outgoing, WIRE, encode, message::encode_beat};

use super::wire::ROW;
use crate::link::message::{self, Answer, Bind, Open, ToGateway, ToRank, Told};
use crate::sampling::{Grammar, Logprobs, SamplingParams, TokenLogprob};
use crate::table::parse;
use crate::transport::{Card, Purpose, fuzz::rank};

/// A table of one rank and one worker.
pub(super) const TABLE: &str = r#"generation: 2
segments: 8
workers:
- {number: 0, name: a0, role: attention, address: "10.0.0.1:7070"}
- {number: 1, name: e1, role: experts, address: "10.0.0.2:7070"}
slices:
- blocks: [0, 2]
  generation: 3
  units:
  - {worker: e1, block: 0, expert: 5, slice: [0, 8], state: Joining, fraction: 0.5}
  - {worker: e1, block: 1, expert: 5, slice: [0, 4]}
"#;

fn frames() -> Vec<Frame> {
    let back = |tag| ReturnTo { group: 7, tag, k: 1 };
    let slice = Slice { lo: 0, hi: 8 };
    let (class, blocked) = (Class(0), true);
    let mark = Mark { class, order: 3, progress: 40, frames: 9, tokens: 6, blocked, cycle: 1_000_000 };
    let rows = (0..3).map(|dst| RowMove { src: 0, dst }).collect();
    let item = |row| TokenItem { row, expert: 5, slice, back: back(row) };
    let items = (0..3).map(item).collect();
    let (frames, generation, progress) = (4, 2, 41);
    let tokens = TokenBatch {
        class,
        frames,
        block: 1,
        generation,
        step_rows: 3,
        progress,
        rows,
        items,
        mark: Some(mark),
    };
    let items: Vec<ReturnItem> = (0..2).map(|tag| ReturnItem { back: back(tag), slice }).collect();
    let returns = ReturnBatch { rows: vec![], items: items.clone(), freed: vec![1, 2] };
    let table = parse(TABLE).unwrap_or_default();
    let bodies = [
        Body::Tokens(TokenBatch { mark: None, ..tokens.clone() }),
        Body::Tokens(tokens),
        Body::Returns(returns),
        Body::Mark(mark),
        Body::Credit(vec![1, 2, 3]),
        Body::Redirect(Redirect { items: items.clone(), freed: vec![4], slice: None }),
        Body::Redirect(Redirect { items, freed: vec![], slice: table.slices.first().map(Arc::clone) }),
        Body::StepEnd(StepEnd { step: 9, frames: 3, busy: true }),
    ];
    let all = (0..).zip(bodies).map(|(number, body)| {
        let is_data = matches!(body, Body::Tokens(_) | Body::Returns(_));
        let channel = if is_data { Channel::Data } else { Channel::Control };
        Frame { epoch: 3, channel, number, body }
    });
    all.collect()
}

/// A frame as it travels, with rows of nothing.
fn bytes(frame: &Frame) -> Vec<u8> {
    let mut out = vec![];
    encode(frame, &mut out);
    let rows = match &frame.body {
        Body::Tokens(b) => b.rows.len(),
        Body::Returns(b) => b.items.len(),
        _ => 0,
    };
    out.resize(out.len() + rows * ROW, 0);
    out
}

/// Heartbeats without and with an echo.
fn beats(wire: u16) -> [Vec<u8>; 2] {
    [None, Some(Heard { sent: 70, at: 90 })].map(|heard| {
        let mut out = vec![];
        encode_beat(&Times::new(100, heard), wire, &mut out);
        out
    })
}

/// The byte that `transport::fuzz::connection` reads.
fn on(channel: Channel, wire: u16) -> u8 {
    u8::from(channel == Channel::Control) | ((wire - WIRE.min) as u8) << 1
}

fn versions() -> impl Iterator<Item = u16> {
    WIRE.min..=WIRE.max
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

pub(super) fn frame() -> Vec<Vec<u8>> {
    let of = |wire| {
        let frames = frames().into_iter().map(move |frame| with(on(frame.channel, wire), &bytes(&frame)));
        frames.chain(beats(wire).map(|beat| with(on(Channel::Control, wire), &beat)))
    };
    versions().flat_map(of).collect()
}

/// What can be read, and no sound peer says.
fn lies() -> Vec<Frame> {
    let slice = Slice { lo: 0, hi: 2 };
    let of = |group, k| ReturnItem { back: ReturnTo { group, tag: 0, k }, slice };
    let not_begun = (0..16).flat_map(|group| [of(group, 0), of(group, 1)]).collect();
    let table = PlacementSlice { blocks: 0..2, generation: u64::MAX, replicas: vec![] };
    let item = TokenItem { row: 0, expert: 1, slice, back: ReturnTo { group: 0, tag: 1, k: 0 } };
    let (class, cycle) = (Class(0), 1_000_000);
    let mark = Mark { class, order: 1, progress: 2, frames: 1 << 40, tokens: 1, blocked: false, cycle };
    let tokens = TokenBatch {
        class,
        frames: 0,
        block: 0,
        generation: 1,
        step_rows: 1,
        progress: 2,
        rows: vec![RowMove { src: 0, dst: 0 }],
        items: vec![item; 9],
        mark: None,
    };
    let control = [
        Body::Redirect(Redirect { items: not_begun, freed: vec![], slice: None }),
        Body::Credit(vec![0, 0, u32::MAX]),
        Body::Mark(mark),
        Body::Redirect(Redirect { items: vec![], freed: vec![], slice: Some(Arc::new(table)) }),
    ];
    let frame = |channel, number, body| Frame { epoch: 3, channel, number, body };
    let mut all: Vec<Frame> = (0..).zip(control).map(|(n, body)| frame(Channel::Control, n, body)).collect();
    all.push(frame(Channel::Data, 0, Body::Tokens(TokenBatch { frames: 1 << 40, ..tokens.clone() })));
    all.push(frame(Channel::Data, 1, Body::Tokens(tokens)));
    all
}

/// Each message from each peer, and steps in between.
pub(super) fn worker() -> Vec<Vec<u8>> {
    let say = |peer: u8, frame: &Frame| {
        let message = bytes(frame);
        let control = if frame.channel == Channel::Control { 4 } else { 0 };
        [&[peer | control | 16][..], &(message.len() as u16).to_le_bytes(), &message].concat()
    };
    let of = |policy: u8, peer: u8, said: &[Frame]| {
        with(policy, &said.iter().flat_map(|f| say(peer, f)).collect::<Vec<u8>>())
    };
    let all = (0..5).flat_map(|policy| (0..3).map(move |peer| (policy, peer)));
    all.flat_map(|(policy, peer)| [of(policy, peer, &frames()), of(policy, peer, &lies())]).collect()
}

pub(super) fn stream() -> Vec<Vec<u8>> {
    let said = |channel: Channel, wire: u16, lane: Lane, more: &[Vec<u8>]| {
        let mut out = Outgoing::default();
        let frames = frames().into_iter().filter(|frame| frame.channel == channel).map(|frame| bytes(&frame));
        frames.chain(more.iter().cloned()).for_each(|message| out.push(lane, [Bytes::from(message)]));
        let mut all = vec![on(channel, wire)];
        let mut parts = vec![];
        while let Some(head) = out.next(&mut parts) {
            all.extend(head);
            parts.drain(..).for_each(|part| all.extend_from_slice(&part));
        }
        all
    };
    let long =
        Frame { epoch: 3, channel: Channel::Control, number: 0, body: Body::Credit((0..17_000).collect()) };
    let of = |wire| {
        [
            said(Channel::Data, wire, Lane::Urgent, &[]),
            said(Channel::Data, wire, Lane::Bulk, &[]),
            said(Channel::Control, wire, Lane::Urgent, &beats(wire)),
            said(Channel::Control, wire, Lane::Bulk, &[bytes(&long)]),
        ]
    };
    versions().flat_map(of).collect()
}

pub(super) fn hello() -> Vec<Vec<u8>> {
    let word = |hello: &Hello, purpose| word(&json!({"hello": Card::new(hello, purpose)}));
    let worker = Hello { worker: Some(WorkerId(1)), name: "e1".into(), role: Role::Experts, ..rank() };
    let ahead = Hello { wire: WireVersions { min: WIRE.max, max: WIRE.max + 1 }, ..worker.clone() };
    let stranger = Hello { wire: WireVersions { min: WIRE.max + 1, max: WIRE.max + 2 }, ..worker.clone() };
    let gateway = Hello {
        worker: None,
        name: "g0".into(),
        role: Role::Gateway,
        numerics: None,
        schedule: None,
        ..rank()
    };
    let (control, data) = (Purpose::Control { epoch: 3 }, Purpose::Data { epoch: 3 });
    vec![
        with(0, &word(&worker, control)),
        with(2, &word(&worker, data)),
        with(0, &word(&gateway, Purpose::Gateway)),
        with(1, &word(&ahead, data)),
        with(0, &word(&stranger, control)),
        with(3, &word(&worker, data)),
        with(1, &self::word(&json!({"refused": "a0 speaks wire versions 1 to 1"}))),
    ]
}

fn word(word: &Value) -> Vec<u8> {
    let text = word.to_string();
    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A message of a session, or a heartbeat, behind its length.
fn envelope(has: u64, message: Option<(u64, Bytes)>) -> Vec<u8> {
    let mut out = BytesMut::new();
    let (number, message) = message.unwrap_or_default();
    out.put_u32_le(16 + message.len() as u32);
    out.put_u64_le(has);
    out.put_u64_le(number);
    out.put_slice(&message);
    out.to_vec()
}

fn opening<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let message = message::encode(message);
    [&(message.len() as u32).to_le_bytes(), &message[..]].concat()
}

fn bind(number: u64, sampling: SamplingParams, grammar: Option<&Grammar>) -> Bytes {
    let bind = sequence::Bind {
        seq: SeqKey { request: number, choice: 0 },
        attempt: 1,
        gateway: GatewayId(0),
        ids: vec![1, 2, 3].into(),
        produced: 1,
        stop: StopRule { ids: vec![2, 5], min_tokens: 1, max_tokens: 9 },
        deadline: Some(2_000_000),
        salt: 3,
        age: 1 << 60,
        replay: true,
    };
    message::encode(&ToRank::Bind(Box::new(Bind::new(bind, 1_000_000, sampling.into(), grammar))))
}

pub(super) fn session() -> Vec<Vec<u8>> {
    let session = SessionId { incarnation: 1, number: 1 };
    let open = opening(&Open { session, fresh: true, has: 0 });
    let seq = SeqKey { request: 1, choice: 0 };
    let rich = SamplingParams {
        logit_bias: vec![(3, 1.5)],
        allowed_ids: Some(vec![1, 2]),
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    let grammars = [
        Grammar::JsonSchema(json!({"type": "object", "properties": {"a": {"type": "integer"}}})),
        Grammar::JsonObject,
        Grammar::Regex("[a-z]+(x|y)*".into()),
        Grammar::Lark("start: a b*\na: \"x\" | \"y\"\nb: /[0-9]{1,3}/\n".into()),
        Grammar::Choice(vec!["yes".into(), "no".into()]),
    ];
    let mut asked = vec![open.clone(), envelope(0, None), envelope(0, Some((1, bind(1, rich, None))))];
    asked.extend((2..).zip(&grammars).map(|(number, grammar)| {
        envelope(0, Some((number, bind(number, SamplingParams::greedy(), Some(grammar)))))
    }));
    let cancel = message::encode(&ToRank::Cancel { seq, attempt: 1 });
    asked.push(envelope(1, Some((7, cancel.clone()))));

    let answer = opening(&Answer::Opened { has: 0 });
    let load = RankLoad { free_blocks: 9, pool_blocks: 10, block_tokens: 16, queue: 0, draining: false };
    let load = message::encode(&ToGateway::Load(load));
    let of = |id| TokenLogprob { id, logprob: -0.5 };
    let logprobs = Some(Box::new(Logprobs { token: of(1), top: vec![of(2)] }));
    let told = |event, logprobs| Told { seq, attempt: 1, event, logprobs };
    let events = vec![
        told(RankEvent::Accepted, None),
        told(RankEvent::Token { index: 0, id: 1 }, logprobs),
        told(RankEvent::Finished(Finish::Stop), None),
        told(RankEvent::Refused(Refusal::TooLarge { room: 3 }), None),
    ];
    let told = message::encode(&ToGateway::Told(events));
    vec![
        with(0, &asked.concat()),
        with(2, &[open.clone(), envelope(0, Some((1, cancel)))].concat()),
        with(0, &opening(&Open { session, fresh: false, has: 3 })),
        with(1, &[answer.clone(), envelope(0, Some((1, load))), envelope(0, Some((2, told)))].concat()),
        with(3, &[answer, envelope(0, None)].concat()),
        with(1, &opening(&Answer::Unknown)),
    ]
}

/// What a client may say about an output, all of it.
fn sampling() -> Value {
    json!({
        "model": "tiny", "stream_options": {"include_usage": true}, "n": 2, "temperature": 0.9, "top_p": 0.9,
        "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        "logit_bias": {"5": 1.5}, "allowed_token_ids": [5, 6, 7], "seed": 7, "stop": ["x", "yz"],
        "stop_token_ids": [9], "include_stop_str_in_output": true, "ignore_eos": true, "min_tokens": 1,
        "max_tokens": 9, "skip_special_tokens": false, "return_token_ids": true, "cache_salt": "s", "timeout": 2.5,
    })
}

fn merged(mut all: Value, more: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    let schema = json!({
        "$defs": {"n": {"type": ["integer", "null"], "minimum": 0, "maximum": 9, "multipleOf": 3}},
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {
            "a": {"$ref": "#/$defs/n"}, "b": {"anyOf": [{"type": "string", "maxLength": 4, "pattern": "^x+$"}, {"const": 1}]},
            "c": {"type": "array", "items": {"enum": ["p", "q"]}, "minItems": 1, "maxItems": 2},
            "d": {"type": "string", "format": "date-time"}, "e": {"allOf": [{"type": "number"}, {"exclusiveMinimum": 1.5}]},
        },
    });
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let text = json!({"prompt": "Once upon a time"});
    let call =
        json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"city\": \"x\"}"}});
    let bodies = [
        (0, merged(chat.clone(), sampling())),
        (0, merged(chat.clone(), json!({"stream": true, "logprobs": true, "top_logprobs": 2}))),
        (0, merged(chat.clone(), json!({"response_format": {"type": "json_object"}}))),
        (0, merged(chat.clone(), json!({"tools": [tool("f"), tool("g.h")], "tool_choice": "required"}))),
        (
            0,
            merged(
                chat.clone(),
                json!({"tools": [tool("f")], "parallel_tool_calls": false, "tool_choice":
            {"type": "function", "function": {"name": "f"}}}),
            ),
        ),
        (
            0,
            json!({"tools": [tool("f")], "tool_choice": "auto", "chat_template_kwargs": {"x": [1]}, "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "<tool_call>\n{\"name\": \"f\"}\n</tool_call>"}]}),
        ),
        (
            0,
            merged(
                chat.clone(),
                json!({"continue_final_message": true, "add_generation_prompt": false,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}),
            ),
        ),
        (1, merged(text.clone(), sampling())),
        (
            1,
            merged(
                text.clone(),
                json!({"echo": true, "stream": true, "logprobs": 1, "best_of": 1, "suffix": ""}),
            ),
        ),
        (1, json!({"prompt": ["a", "b"], "max_tokens": 3})),
        (1, json!({"prompt": [[5, 6], [7]], "logprobs": 2})),
        (1, merged(text.clone(), json!({"guided_regex": "a[b-d]{2,5}(e|f)+"}))),
        (1, merged(text.clone(), json!({"guided_choice": ["yes", "no"], "stop": "s"}))),
        (1, merged(text.clone(), json!({"guided_json": schema.to_string()}))),
        (
            1,
            merged(
                text.clone(),
                json!({"structured_outputs": {"grammar":
            "start: a b*\na: \"x\" | \"y\"i\nb: /[0-9]{1,3}/ | %json {\"type\": \"null\"}\n%ignore /[ ]+/\n"}}),
            ),
        ),
        (1, merged(text, json!({"structured_outputs": {"json": schema}}))),
        (2, json!({"prompt": "grüß", "add_special_tokens": true, "return_token_strs": true})),
        (2, chat),
        (3, json!({"tokens": [5, 6, 7]})),
    ];
    bodies.iter().map(|(path, body)| with(*path, body.to_string().as_bytes())).collect()
}

pub(super) fn http() -> Vec<Vec<u8>> {
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nx-request-id: r-1\r\nx-request-timeout: 3.5\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let text = json!({"prompt": "Once", "max_tokens": 3}).to_string();
    let (length, stream) = (text.len(), json!({"prompt": "Once", "stream": true}).to_string());
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{text}\r\n0\r\n\r\n"
    );
    let two =
        post("/tokenize", &text) + "GET /v1/models/tiny HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let put = format!(
        "PUT /v1/placement HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{TABLE}",
        TABLE.len()
    );
    let get = "GET /v1/pressure HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n\r\n";
    vec![
        with(0, post("/v1/completions", &text).as_bytes()),
        with(2, post("/v1/completions", &stream).as_bytes()),
        with(0, chunked.as_bytes()),
        with(0, two.as_bytes()),
        with(0, &http2()),
        with(2, &http2()),
        with(1, put.as_bytes()),
        with(3, get.as_bytes()),
        with(3, b"PRI"),
    ]
}

/// The preface, settings, and a `GET /` of static headers.
fn http2() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    out.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]));
    // Method, scheme and path by their numbers in HPACK's table; the authority is written out.
    out.extend(frame(1, 5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']));
    out.extend(frame(6, 0, 0, &[0; 8]));
    out
}

pub(super) fn placement() -> Vec<Vec<u8>> {
    let table = parse(TABLE).unwrap_or_default();
    let names = "workers:\n- {number: 0, name: \"a\\u00e9\\n: #\", role: hybrid, address: 'x'}\nslices: []\n";
    let anchors = "workers: &w []\nslices:\n- &s {blocks: [0, 1], generation: 1, units: *w}\n";
    let json = json!({"workers": [{"number": 1, "name": "e", "role": "experts", "address": ""}]}).to_string();
    let texts = [TABLE.to_owned(), crate::table::render(&table), names.into(), anchors.into(), json];
    texts.map(String::into_bytes).into()
}
