//! Every message comes out as it went in, to the last bit; nothing else is taken for one.

use std::fmt::Debug;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sluice_core::front::RankLoad;
use sluice_core::ids::SeqKey;
use sluice_core::sequence::{Abort, Finish, RankEvent, Refusal, StopRule};
use sluice_core::session::SessionId;

use crate::link::message::{Answer, Bind, Open, Source, ToGateway, ToRank, Told, decode, encode};
use crate::sampling::{Grammar, Logprobs, SamplingParams, TokenLogprob};

fn seq() -> impl Strategy<Value = SeqKey> {
    any::<(u64, u16)>().prop_map(|(request, choice)| SeqKey { request, choice })
}

/// Any bits, those of numbers that are none among them.
fn float() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn logprob() -> impl Strategy<Value = TokenLogprob> {
    (any::<u32>(), float()).prop_map(|(id, logprob)| TokenLogprob { id, logprob })
}

fn event() -> impl Strategy<Value = RankEvent> {
    prop_oneof![
        Just(RankEvent::Accepted),
        any::<u32>().prop_map(|room| RankEvent::Refused(Refusal::TooLarge { room })),
        Just(RankEvent::Refused(Refusal::Busy)),
        Just(RankEvent::Refused(Refusal::Draining)),
        any::<(u32, u32)>().prop_map(|(index, id)| RankEvent::Token { index, id }),
        prop::sample::select(vec![
            Finish::Stop,
            Finish::Length,
            Finish::Cancelled,
            Finish::Deadline,
            Finish::Aborted(Abort::Constraint),
            Finish::Aborted(Abort::Fault),
        ])
        .prop_map(RankEvent::Finished),
        Just(RankEvent::HandedBack),
    ]
}

prop_compose! {
    fn told()(
        seq in seq(),
        attempt: u32,
        event in event(),
        logprobs in prop::option::of((logprob(), vec(logprob(), 0..20))),
    ) -> Told {
        let logprobs = logprobs.map(|(token, top)| Box::new(Logprobs { token, top }));
        Told { seq, attempt, event, logprobs }
    }
}

fn to_gateway() -> impl Strategy<Value = ToGateway> {
    let load = any::<(u32, u32, u32, u32, bool)>().prop_map(|(free, pool, tokens, queue, draining)| {
        RankLoad { free_blocks: free, pool_blocks: pool, block_tokens: tokens, queue, draining }
    });
    prop_oneof![vec(told(), 0..20).prop_map(ToGateway::Told), load.prop_map(ToGateway::Load)]
}

prop_compose! {
    fn sampling()(
        floats in vec(float(), 6),
        (top_k, seed, logprobs) in any::<(u32, u64, Option<u32>)>(),
        logit_bias in vec((any::<u32>(), float()), 0..5),
        allowed_ids in prop::option::of(vec(any::<u32>(), 0..5)),
    ) -> SamplingParams {
        SamplingParams {
            temperature: floats[0],
            top_p: floats[1],
            top_k,
            min_p: floats[2],
            presence_penalty: floats[3],
            frequency_penalty: floats[4],
            repetition_penalty: floats[5],
            logit_bias,
            allowed_ids,
            seed,
            logprobs,
        }
    }
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        ".*".prop_map(Source::JsonSchema),
        Just(Source::JsonObject),
        ".*".prop_map(Source::Regex),
        ".*".prop_map(Source::Lark),
        vec(".*", 0..5).prop_map(Source::Choice),
    ]
}

prop_compose! {
    fn bind()(
        seq in seq(),
        (attempt, produced, salt, age, replay, left) in any::<(u32, u32, u64, u64, bool, Option<u64>)>(),
        ids in vec(any::<u32>(), 0..50),
        (stops, min_tokens, max_tokens) in (vec(any::<u32>(), 0..5), any::<u32>(), any::<u32>()),
        sampling in sampling(),
        grammar in prop::option::of(source()),
    ) -> Bind {
        let stop = StopRule { ids: stops, min_tokens, max_tokens };
        let (ids, sampling) = (ids.into(), Arc::new(sampling));
        Bind { seq, attempt, ids, produced, stop, left, salt, age, replay, sampling, grammar }
    }
}

fn to_rank() -> impl Strategy<Value = ToRank> {
    prop_oneof![
        bind().prop_map(|bind| ToRank::Bind(Box::new(bind))),
        (seq(), any::<u32>()).prop_map(|(seq, attempt)| ToRank::Cancel { seq, attempt }),
    ]
}

/// Encodes again what it decodes: the same bytes are the same bits, where numbers that are none do not equal themselves.
fn comes_back<T: Serialize + DeserializeOwned + Debug>(message: &T) {
    let bytes = encode(message);
    let again = encode(&decode::<T>("message", &bytes).unwrap());
    assert_eq!(bytes, again);
    // Neither a part of it nor more than it is a message.
    assert!(decode::<T>("message", &bytes[..bytes.len() - 1]).is_err());
    let longer = [&bytes[..], &[0]].concat();
    assert!(decode::<T>("message", &longer).unwrap_err().to_string().ends_with("1 bytes are left over"));
}

/// Decodes some bytes as everything there is. What is taken for a message is one.
fn decode_as_all(bytes: &[u8]) {
    fn as_one<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
        if let Ok(message) = decode::<T>("message", bytes) {
            // Varints may be longer than they must be: only what is encoded here is compared.
            comes_back(&message);
        }
    }
    as_one::<ToRank>(bytes);
    as_one::<ToGateway>(bytes);
    as_one::<Open>(bytes);
    as_one::<Answer>(bytes);
}

proptest! {
    #[test]
    fn messages_come_back_bit_for_bit(
        to_rank in to_rank(),
        to_gateway in to_gateway(),
        (incarnation, number, fresh, has) in any::<(u64, u64, bool, u64)>(),
    ) {
        comes_back(&to_rank);
        comes_back(&to_gateway);
        comes_back(&Open { session: SessionId { incarnation, number }, fresh, has });
        comes_back(&Answer::Opened { has });
    }

    #[test]
    fn bytes_that_are_no_message_harm_nobody(bytes in vec(any::<u8>(), 0..300)) {
        decode_as_all(&bytes);
    }

    #[test]
    fn messages_with_wrong_bytes_harm_nobody(
        to_rank in to_rank(),
        to_gateway in to_gateway(),
        wrong in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        for bytes in [encode(&to_rank), encode(&to_gateway)] {
            let mut bytes = bytes.to_vec();
            let length = bytes.len();
            wrong.iter().for_each(|(at, byte)| bytes[at.index(length)] = *byte);
            decode_as_all(&bytes);
        }
    }

    /// A schema means the same at the rank: its keys keep their order; its numbers keep their bits, if they have the
    /// fifteen digits that a double can tell apart and no more.
    #[test]
    fn grammars_come_back(
        decimals in vec((0..10u64.pow(15), 0..16), 0..20),
        numbers in vec(any::<(u64, i64)>(), 0..20),
        texts in vec(".*", 0..20),
    ) {
        let mut schema = Map::new();
        for (i, text) in texts.iter().enumerate() {
            schema.insert(format!("{text}{i}"), text.as_str().into());
        }
        schema.insert("floats".into(), decimals.into_iter().map(|(n, places)| Value::from(n as f64 / 10f64.powi(places))).collect());
        schema.insert("wholes".into(), numbers.iter().map(|(_, n)| Value::from(*n)).collect());
        schema.insert("large".into(), numbers.iter().map(|(n, _)| Value::from(*n)).collect());
        for grammar in [
            Grammar::JsonSchema(Value::Object(schema)),
            Grammar::JsonObject,
            Grammar::Choice(texts.clone()),
            Grammar::Regex(texts.concat()),
            Grammar::Lark(texts.concat()),
        ] {
            let back = decode::<Source>("grammar", &encode(&Source::from(&grammar))).unwrap().grammar().unwrap();
            prop_assert_eq!(&back, &grammar);
            let (Grammar::JsonSchema(back), Grammar::JsonSchema(there)) = (back, grammar) else { continue };
            prop_assert_eq!(back.to_string(), there.to_string(), "in the same order");
        }
    }
}

/// A list that is announced and does not come costs nothing.
#[test]
fn what_is_announced_is_not_allocated() {
    for announced in [u64::from(u32::MAX), u64::MAX] {
        let mut bytes = vec![0];
        let mut rest = announced;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        assert!(decode::<ToGateway>("message", &bytes).is_err());
    }
}

#[test]
fn a_schema_that_is_no_json_is_an_error() {
    assert!(Source::JsonSchema("{\"a\"".into()).grammar().is_err());
    assert!(Source::JsonSchema("[".repeat(100_000)).grammar().is_err(), "nor may it be of any depth");
}
