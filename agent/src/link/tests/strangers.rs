//! Peers that talk nonsense: named, let go, and nobody else is harmed.

use bytes::BytesMut;
use proptest::prelude::*;
use sluice_core::ids::SECOND;
use sluice_core::sequence::{Abort, Finish, RankEvent};
use sluice_core::session::SessionId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::sides::{Asked, Bed, Heard, bind, greedy, pass, run, seq, token, until};
use crate::link::Lost;
use crate::link::frame::{self, Wire};
use crate::link::message::{self, Answer, Open};
use crate::sampling::SamplingParams;
use std::sync::Arc;

/// Whatever else happened, the gateway's own session works as before.
async fn is_well(bed: &Bed, request: u64) {
    bed.gateway.rank().bind(bind(request), greedy(), None);
    until(|| bed.rank.asked().iter().any(|a| matches!(a, Asked::Bind(b, ..) if b.seq == seq(request)))).await;
    bed.rank.gateway().told(vec![token(request, 0)]);
    until(|| bed.gateway.told().iter().any(|told| told.seq == seq(request))).await;
    assert_eq!((bed.gateway.ups(), bed.gateway.downs().len()), (1, 0));
}

/// Connects as another gateway, says something, and gives why the rank let it go.
async fn say(bed: &Bed, bytes: &[u8]) -> String {
    let known = bed.net.ends().len();
    let mut stream = bed.net.clone().dial("stranger").await.unwrap().stream;
    // The rank may have closed it already.
    let _ = stream.write_all(bytes).await;
    until(|| bed.net.ends().len() > known).await;
    bed.net.ends().pop().unwrap()
}

fn opening(fresh: bool) -> Vec<u8> {
    let open = Open { session: SessionId { incarnation: 1, number: 1 }, fresh, has: 0 };
    let message = message::encode(&open);
    [&(message.len() as u32).to_le_bytes(), &message[..]].concat()
}

fn envelope(has: u64, number: u64, message: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::put(&mut out, has, Some((number, message)));
    out.to_vec()
}

#[test]
fn a_stranger_is_named_and_let_go() {
    run(async {
        let bed = Bed::new().up().await;
        let lost = "the session is over: ";
        let wire = "; both sides must be of builds that speak the same version of the wire";
        let cases: [(Vec<u8>, String); 7] = [
            (
                b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                format!(
                    "{lost}the peer announced a message of 542393671 bytes, and none has more than 16777216{wire}"
                ),
            ),
            (
                [3, 0, 0, 0, 1, 2, 3].to_vec(),
                format!(
                    "{lost}the peer sent 3 bytes that are no opening of a session: Found a bool that wasn't 0 or 1{wire}"
                ),
            ),
            (vec![], "the connection ended: no session was opened on it within 5s".into()),
            (
                opening(false),
                format!("{lost}the rank knows nothing of it: it was started anew, or the lease has lapsed"),
            ),
            (
                [opening(true), envelope(0, 1, b"nonsense")].concat(),
                format!("{lost}the peer sent 8 bytes that are no message of a gateway: "),
            ),
            (
                [opening(true), envelope(0, 2, b"")].concat(),
                format!("{lost}message 2 came, and 1 is the next: the peer left some out"),
            ),
            (
                [opening(true), envelope(9, 0, b"")].concat(),
                format!("{lost}the peer says it has messages up to 9, and was sent those up to "),
            ),
        ];
        for (i, (bytes, due)) in cases.into_iter().enumerate() {
            let said = say(&bed, &bytes).await;
            assert!(said.starts_with(&due), "{said}\n{due}");
            is_well(&bed, i as u64).await;
            // What it began is over as well: the next begins anew.
            pass(11 * SECOND).await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_a_stranger_says_harms_others(
        opens: bool,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        framed: bool,
        number in 0..3u64,
    ) {
        run(async {
            let bed = Bed::new().up().await;
            let bytes = if framed { envelope(0, number, &bytes) } else { bytes };
            let mut all = if opens { opening(true) } else { vec![] };
            all.extend(bytes);
            let mut stream = bed.net.clone().dial("stranger").await.unwrap().stream;
            let _ = stream.write_all(&all).await;
            drop(stream);
            until(|| !bed.net.ends().is_empty()).await;
            is_well(&bed, 1).await;
        });
    }
}

/// A rank that answers an opening as it should, and then says `bytes`.
async fn rank_saying(bytes: Vec<u8>) -> (Arc<super::sides::Hearer>, tokio::task::JoinHandle<()>) {
    let bed = Bed::new();
    bed.link.abort();
    let side = Arc::clone(&bed.gateway);
    let dial = move || {
        let bytes = bytes.clone();
        async move {
            let (near, far) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut wire = Wire::new(far);
                let _ = wire.read::<Open>("opening").await;
                let _ = wire.write(&Answer::Opened { has: 0 }).await;
                let (mut reader, mut writer) = wire.split();
                let _ = writer.write_all(&bytes).await;
                while reader.envelope(|| ()).await.is_ok() {}
            });
            Ok::<_, crate::link::gateway::DialError>(crate::link::gateway::Dialed {
                stream: near,
                numerics: "7".into(),
            })
        }
    };
    let rank = crate::link::gateway::Link {
        dial,
        side: side.clone() as Arc<dyn crate::link::gateway::GatewaySide>,
        rank: "r".into(),
        incarnation: 1,
        config: crate::link::LinkConfig::default(),
    };
    (side, tokio::spawn(rank.run()))
}

#[test]
fn a_rank_that_talks_nonsense_is_down_by_name() {
    run(async {
        let load = message::encode(&message::ToGateway::Load(super::sides::LOAD));
        let bytes = [envelope(0, 1, &load), envelope(0, 2, &[7, 7])].concat();
        let (gateway, link) = rank_saying(bytes).await;
        until(|| !gateway.downs().is_empty()).await;
        let (_, why) = gateway.downs().remove(0);
        let Lost::Garbage(garbage) = &why else { panic!("{why}") };
        assert!(
            garbage.to_string().starts_with("the peer sent 2 bytes that are no message of a rank"),
            "{why}"
        );
        // It is not dialled without a pause for it.
        pass(60 * SECOND).await;
        let tries = gateway.downs().len();
        assert!((50..70).contains(&tries), "{tries}");
        assert!(matches!(gateway.heard()[..3], [Heard::Up(..), Heard::Down(_), Heard::Up(..)]));
        link.abort();
    });
}

#[test]
fn a_bind_that_makes_no_sense_ends_its_attempt_and_no_other() {
    run(async {
        let bed = Bed::new().up().await;
        let unfit: [fn(&mut sluice_core::sequence::Bind); 4] = [
            |b| b.ids = vec![].into(),
            |b| b.produced = 4,
            |b| b.ids = vec![1, 1000].into(),
            |b| b.stop.ids = vec![5, 2],
        ];
        for (i, change) in unfit.into_iter().enumerate() {
            let mut bind = bind(10 + i as u64);
            change(&mut bind);
            bed.gateway.rank().bind(bind, greedy(), None);
        }
        let hot = Arc::new(SamplingParams { temperature: f32::NAN, ..SamplingParams::default() });
        bed.gateway.rank().bind(bind(14), hot, None);
        until(|| bed.gateway.told().len() == 5).await;
        let fault = RankEvent::Finished(Finish::Aborted(Abort::Fault));
        let due: Vec<_> = (10..15).map(|r| message::Told { event: fault, ..token(r, 0) }).collect();
        assert_eq!(bed.gateway.told(), due);
        is_well(&bed, 1).await;
    });
}

#[test]
fn a_bind_that_is_too_long_to_travel_ends_its_attempt_and_no_other() {
    run(async {
        let bed = Bed::new().up().await;
        let mut long = bind(10);
        long.ids = vec![u32::MAX; 4 << 20].into();
        bed.gateway.rank().bind(long, greedy(), None);
        let fault = RankEvent::Finished(Finish::Aborted(Abort::Fault));
        assert_eq!(bed.gateway.told(), [message::Told { event: fault, ..token(10, 0) }]);
        is_well(&bed, 1).await;
    });
}

#[test]
fn a_message_that_comes_twice_counts_once() {
    run(async {
        let bed = Bed::new().up().await;
        let cancel = |request| message::encode(&message::ToRank::Cancel { seq: seq(request), attempt: 1 });
        let (first, second) = (envelope(0, 1, &cancel(1)), envelope(0, 2, &cancel(2)));
        say(&bed, &[opening(true), first.clone(), first.clone(), second, first].concat()).await;
        let asked = bed.rank.asked();
        let cancels =
            asked.iter().filter_map(|a| if let Asked::Cancel(seq, 1) = a { Some(*seq) } else { None });
        assert_eq!(cancels.collect::<Vec<_>>(), [seq(1), seq(2)]);
    });
}

#[test]
fn a_peer_that_says_nothing_more_is_let_go() {
    run(async {
        let bed = Bed::new().up().await;
        let mut stream = bed.net.clone().dial("stranger").await.unwrap().stream;
        stream.write_all(&opening(true)).await.unwrap();
        let mut all = vec![];
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(bed.net.ends(), ["the connection ended: nothing was heard for 400ms"]);
    });
}
