//! Connections that break below a session that does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use sluice_core::ids::{MILLI, SECOND};
use sluice_core::sequence::{self, Finish, RankEvent};
use sluice_core::session::SessionId;
use tokio::io::AsyncWriteExt;

use super::net::{Road, config};
use super::sides::{Asked, Bed, Heard, LOAD, bind, greedy, pass, run, seq, token, until};
use crate::link::frame::{Wire, put};
use crate::link::message::{Answer, Bind, Open, ToRank, Told, encode};
use crate::sampling::{Logprobs, SamplingParams, TokenLogprob};

#[test]
fn a_sequence_goes_there_and_its_tokens_come_back() {
    run(async {
        let bed = Bed::new().up().await;
        assert_eq!(bed.gateway.heard(), [Heard::Up(7, LOAD)]);
        let sampling = Arc::new(SamplingParams { logit_bias: vec![(3, -0.0)], ..SamplingParams::default() });
        bed.gateway.rank().bind(bind(5), sampling.clone(), None);
        bed.gateway.rank().cancel(seq(4), 3);
        until(|| bed.rank.asked().len() == 3).await;
        let mut due = bind(5);
        // The gateway's clock stands at 4,000 and the rank's at 1,000,000.
        due.deadline = Some(1_001_000);
        due.gateway = bed.rank.gateway().id();
        let asked = [Asked::Opened(due.gateway), Asked::Bind(due, sampling, false), Asked::Cancel(seq(4), 3)];
        assert_eq!(bed.rank.asked(), asked);

        let top = vec![TokenLogprob { id: 2, logprob: f32::from_bits(0x8000_0001) }; 3];
        let logprobs = Logprobs { token: TokenLogprob { id: 0, logprob: -0.1 }, top };
        let mut events = vec![Told { logprobs: Some(Box::new(logprobs)), ..token(5, 0) }, token(5, 1)];
        events.push(Told { event: RankEvent::Finished(Finish::Length), ..token(5, 0) });
        bed.rank.gateway().told(events.clone());
        let load = sluice_core::front::RankLoad { queue: 3, draining: true, ..LOAD };
        bed.rank.gateway().load(load);
        until(|| bed.gateway.heard().len() == 5).await;
        assert_eq!(bed.gateway.told(), events);
        assert_eq!(bed.gateway.heard()[4], Heard::Load(load));
    });
}

#[test]
fn an_idle_link_stays_up_on_one_connection() {
    run(async {
        let bed = Bed::new().up().await;
        pass(3_600 * SECOND).await;
        assert_eq!((bed.net.dialed(), bed.gateway.downs().len()), (1, 0));
    });
}

#[test]
fn what_is_acknowledged_is_not_kept() {
    run(async {
        // Far more than may be kept at once, in both directions.
        let bed = Bed::with(config(20, 100_000), None).up().await;
        for i in 0..200 {
            bed.rank.gateway().told(vec![token(1, i)]);
            bed.gateway.rank().cancel(seq(i.into()), 1);
            pass(10 * MILLI).await;
        }
        until(|| bed.gateway.told().len() == 200 && bed.rank.asked().len() == 201).await;
        assert_eq!(bed.gateway.downs(), []);
    });
}

/// A message that takes longer to arrive than anybody may be silent: its parts are signs of life.
#[test]
fn a_long_message_is_no_silence() {
    run(async {
        let bed = Bed::new().up().await;
        let (session, fresh, has) = (SessionId { incarnation: 1, number: 1 }, true, 0);
        let open = encode(&Open { session, fresh, has });
        let long = sequence::Bind { ids: vec![1; 1_000].into(), ..bind(1) };
        let long = encode(&ToRank::Bind(Box::new(Bind::new(long, 0, greedy(), None))));
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(open.len() as u32);
        bytes.put_slice(&open);
        put(&mut bytes, 0, Some((1, &long)));
        let mut stream = bed.net.clone().dial("slow").await.unwrap().stream;
        for part in bytes.chunks(100) {
            stream.write_all(part).await.unwrap();
            pass(300 * MILLI).await;
        }
        let asked = bed.rank.asked();
        assert!(matches!(&asked[2..], [Asked::Bind(bind, ..)] if bind.ids.len() == 1_000), "{asked:?}");
        assert_eq!(bed.net.ends(), [] as [&str; 0]);
    });
}

/// Log-probabilities of so many tokens that all events together are longer than a message may be.
const MANY: usize = 20_000;

#[test]
fn many_events_travel_in_several_messages() {
    run(async {
        let bed = Bed::with(config(1_000, 100_000_000), None).up().await;
        let top = vec![TokenLogprob { id: 9, logprob: -1.5 }; MANY];
        let logprobs = Some(Box::new(Logprobs { token: top[0], top }));
        let events: Vec<Told> =
            (0..200).map(|i| Told { logprobs: logprobs.clone(), ..token(1, i) }).collect();
        bed.rank.gateway().told(events.clone());
        until(|| bed.gateway.told().len() == 200).await;
        assert_eq!(bed.gateway.told(), events);
    });
}

#[test]
fn the_gateway_dials_at_once_and_the_rank_lets_the_old_connection_go() {
    run(async {
        let bed = Bed::new();
        // After some seconds of heartbeats.
        bed.net.cut([(1_000, usize::MAX)]);
        let bed = bed.up().await;
        until(|| bed.net.ends().len() == 1).await;
        let at = bed.gateway.elapsed();
        until(|| bed.net.dialed() == 2).await;
        assert!(bed.gateway.elapsed() - at <= 2 * MILLI);
        bed.gateway.rank().bind(bind(1), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        assert_eq!((bed.gateway.ups(), bed.gateway.downs().len()), (1, 0));
    });
}

/// A gateway that stopped hearing a rank dials anew; the rank, which still hears the old connection, turns to the new.
#[test]
fn a_newer_connection_of_a_session_takes_the_olders_place() {
    run(async {
        let bed = Bed::new().up().await;
        let open = Open { session: SessionId { incarnation: 1, number: 1 }, fresh: false, has: 1 };
        let dialed = bed.net.clone().dial("g").await.unwrap();
        let mut wire = Wire::new(dialed.stream);
        wire.write(&open).await.unwrap();
        assert_eq!(wire.read("answer").await.ok(), Some(Answer::Opened { has: 0 }));
        until(|| !bed.net.ends().is_empty()).await;
        assert_eq!(bed.net.ends(), ["the connection ended: a newer one of the same session took its place"]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Connections that break after any number of bytes in either direction, in the middle of everything: each bind and
    /// each cancel reaches the rank once and in order, each token the gateway.
    #[test]
    fn everything_arrives_once_and_in_order(
        cuts in prop::collection::vec((80..3_000usize, 80..3_000usize), 0..60),
        sequences in 1..12u64,
        tokens in 1..60u32,
        pace in 0..20u64,
    ) {
        run(async {
            let bed = Bed::new();
            bed.net.cut(cuts);
            let bed = bed.up().await;
            let mut due = BTreeMap::new();
            for request in 0..sequences {
                bed.gateway.rank().bind(bind(request), greedy(), None);
                bed.gateway.rank().cancel(seq(1_000 + request), 1);
                pass(pace * MILLI).await;
            }
            for index in 0..tokens {
                let events: Vec<Told> = (0..sequences).map(|request| token(request, index)).collect();
                events.iter().for_each(|t| due.entry(t.seq).or_insert_with(Vec::new).push(t.clone()));
                bed.rank.gateway().told(events);
                pass(pace * MILLI).await;
            }
            let asked = 1 + 2 * sequences as usize;
            until(|| bed.gateway.told().len() >= (sequences * u64::from(tokens)) as usize).await;
            until(|| bed.rank.asked().len() >= asked).await;
            // Nothing comes behind what is due.
            pass(SECOND).await;
            let mut got = BTreeMap::new();
            for told in bed.gateway.told() {
                got.entry(told.seq).or_insert_with(Vec::new).push(told);
            }
            assert_eq!(got, due);
            let asked: Vec<u64> = bed.rank.asked().iter().filter_map(|asked| match asked {
                Asked::Bind(bind, ..) => Some(bind.seq.request),
                Asked::Cancel(seq, _) => Some(seq.request),
                _ => None,
            }).collect();
            let due: Vec<u64> = (0..sequences).flat_map(|request| [request, 1_000 + request]).collect();
            assert_eq!(asked, due);
            assert_eq!(bed.gateway.downs(), []);
        });
    }
}

#[test]
fn a_short_silence_is_waited_out() {
    run(async {
        let bed = Bed::new().up().await;
        bed.net.road(Road::Hole);
        bed.rank.gateway().told(vec![token(1, 0)]);
        pass(300 * MILLI).await;
        bed.net.road(Road::Open);
        bed.rank.gateway().told(vec![token(1, 1)]);
        until(|| bed.gateway.told().len() == 2).await;
        assert_eq!(bed.gateway.downs(), []);
    });
}
