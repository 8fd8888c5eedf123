//! Sessions that cannot go on: what is lost with them, and when.

use std::sync::Arc;

use sluice_core::ids::{GatewayId, MILLI, SECOND};
use sluice_core::session::{SessionError, SessionId};

use super::net::{Road, config};
use super::sides::{Asked, Asker, Bed, Heard, VOCAB, bind, greedy, link, pass, run, seq, token, until};
use crate::link::rank::Gateways;
use crate::link::{LinkConfig, Lost};

#[test]
fn a_rank_that_was_started_anew_is_down_and_then_up() {
    run(async {
        let bed = Bed::new().up().await;
        bed.gateway.rank().bind(bind(1), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        let old = bed.gateway.rank();

        let rank = Arc::new(Asker::default());
        bed.net.restart(Gateways::new(rank.clone(), VOCAB, None, LinkConfig::default()));
        bed.net.road(Road::Hole);
        pass(500 * MILLI).await;
        bed.net.road(Road::Open);
        until(|| bed.gateway.ups() == 2).await;
        assert_eq!(bed.gateway.downs().into_iter().map(|d| d.1).collect::<Vec<_>>(), [Lost::Unknown]);
        assert!(matches!(bed.gateway.heard()[..], [Heard::Up(..), Heard::Down(_), Heard::Up(..)]));

        // What was meant for the rank as it was does not reach the rank as it is.
        old.bind(bind(2), greedy(), None);
        bed.gateway.rank().bind(bind(3), greedy(), None);
        until(|| rank.asked().len() == 2).await;
        pass(SECOND).await;
        let Asked::Bind(bind, ..) = &rank.asked()[1] else { panic!("{:?}", rank.asked()) };
        assert_eq!((bind.seq, rank.asked().len()), (seq(3), 2));
    });
}

#[test]
fn a_rank_that_refuses_connections_is_lost_at_once() {
    run(async {
        let bed = Bed::new();
        // After some seconds of heartbeats.
        bed.net.cut([(1_000, usize::MAX)]);
        let bed = bed.up().await;
        bed.net.road(Road::Refused);
        until(|| !bed.net.ends().is_empty()).await;
        let before = bed.gateway.elapsed();
        until(|| !bed.gateway.downs().is_empty()).await;
        let (at, why) = bed.gateway.downs().remove(0);
        assert_eq!(why, Lost::Refused("nobody listens there".into()));
        assert!(at <= before + 2 * MILLI, "{at} {before}");
        // It is dialled on, and is up as soon as it is there.
        pass(60 * SECOND).await;
        bed.net.road(Road::Open);
        let before = bed.gateway.elapsed();
        until(|| bed.gateway.ups() == 2).await;
        assert!(bed.gateway.elapsed() - before <= 1_050 * MILLI);
        assert_eq!(bed.gateway.downs().len(), 1);
    });
}

#[test]
fn a_rank_that_does_not_answer_is_lost_within_a_second() {
    run(async {
        let bed = Bed::new().up().await;
        pass(10 * SECOND).await;
        let before = bed.gateway.elapsed();
        bed.net.road(Road::Hole);
        until(|| !bed.gateway.downs().is_empty()).await;
        let (at, why) = bed.gateway.downs().remove(0);
        assert!(matches!(why, Lost::Unreachable { .. }), "{why}");
        assert!(at - before < SECOND, "{}", at - before);
    });
}

#[test]
fn what_a_silent_gateway_bound_is_cancelled_when_its_lease_lapses() {
    run(async {
        let bed = Bed::new().up().await;
        for request in 0..3 {
            bed.gateway.rank().bind(bind(request), greedy(), None);
        }
        bed.gateway.rank().cancel(seq(1), 1);
        until(|| bed.rank.asked().len() == 5).await;
        let finished = sluice_core::sequence::RankEvent::Finished(sluice_core::sequence::Finish::Stop);
        bed.rank.gateway().told(vec![crate::link::message::Told { event: finished, ..token(2, 0) }]);
        pass(SECOND).await;
        bed.link.abort();
        pass(9_900 * MILLI).await;
        assert_eq!(bed.rank.asked().len(), 5);
        pass(200 * MILLI).await;
        // Only what is still there is cancelled.
        let id = bed.rank.gateway().id();
        assert_eq!(bed.rank.asked()[5..], [Asked::Cancel(seq(0), 1), Asked::Closed(id)]);
        // What the rank still says goes nowhere.
        bed.rank.gateway().told(vec![token(0, 1)]);
    });
}

#[test]
fn a_gateway_that_stays_away_for_less_than_its_lease_finds_everything() {
    run(async {
        // A patient gateway, so that it is the rank that has to keep the session.
        let silence =
            sluice_core::silence::SilenceConfig { beat: 50 * MILLI, least: 9 * SECOND, most: 9 * SECOND };
        let bed = Bed::with(LinkConfig { silence, ..LinkConfig::default() }, None).up().await;
        bed.gateway.rank().bind(bind(0), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        bed.net.road(Road::Hole);
        bed.rank.gateway().told((0..100).map(|i| token(0, i)).collect());
        pass(9_500 * MILLI).await;
        bed.net.road(Road::Open);
        until(|| bed.gateway.told().len() == 100).await;
        assert_eq!((bed.rank.asked().len(), bed.gateway.downs().len()), (2, 0));
    });
}

#[test]
fn a_gateway_that_was_started_anew_ends_its_session_before() {
    run(async {
        let bed = Bed::new().up().await;
        bed.gateway.rank().bind(bind(1), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        bed.link.abort();
        let again = tokio::spawn(link(&bed.gateway, &bed.net, "g", 2, LinkConfig::default()));
        until(|| bed.gateway.ups() == 2).await;
        until(|| bed.rank.asked().len() == 5).await;
        let (old, new) = (GatewayId(0), GatewayId(1));
        let asked = [Asked::Opened(new), Asked::Cancel(seq(1), 1), Asked::Closed(old)];
        assert_eq!(bed.rank.asked()[2..], asked);
        // What is left of the old process does not get its session back, nor does it end the new one.
        let late = tokio::spawn(link(&bed.gateway, &bed.net, "g", 1, LinkConfig::default()));
        pass(20 * SECOND).await;
        assert_eq!((bed.rank.asked().len(), bed.gateway.ups(), bed.gateway.downs().len()), (5, 2, 0));
        again.abort();
        late.abort();
    });
}

#[test]
fn gateways_do_not_share_anything() {
    run(async {
        let bed = Bed::new().up().await;
        let other = tokio::spawn(link(&bed.gateway, &bed.net, "h", 1, LinkConfig::default()));
        until(|| bed.gateway.ups() == 2).await;
        let gateways = bed.rank.gateways.lock().unwrap().clone();
        assert_eq!(
            gateways.iter().map(|g| (g.id(), g.name())).collect::<Vec<_>>(),
            [(GatewayId(0), "g"), (GatewayId(1), "h")]
        );
        bed.gateway.rank().bind(bind(1), greedy(), None);
        until(|| bed.rank.asked().len() == 3).await;
        bed.link.abort();
        pass(11 * SECOND).await;
        assert_eq!(bed.rank.asked()[3..], [Asked::Closed(GatewayId(0))]);
        other.abort();
    });
}

#[test]
fn a_rank_whose_gateway_does_not_acknowledge_gives_it_up() {
    run(async {
        let bed = Bed::with(config(10, 100_000), None).up().await;
        bed.gateway.rank().bind(bind(1), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        bed.net.road(Road::Hole);
        (0..30).for_each(|i| bed.rank.gateway().told(vec![token(1, i)]));
        pass(MILLI).await;
        assert_eq!(bed.rank.asked()[2..], [Asked::Cancel(seq(1), 1), Asked::Closed(GatewayId(0))]);
        bed.net.road(Road::Open);
        until(|| bed.gateway.ups() == 2).await;
        assert_eq!(bed.gateway.downs().into_iter().map(|d| d.1).collect::<Vec<_>>(), [Lost::Unknown]);
    });
}

#[test]
fn a_gateway_whose_rank_does_not_acknowledge_gives_it_up() {
    run(async {
        let bed = Bed::with(config(10, 100_000), None).up().await;
        bed.net.road(Road::Hole);
        (0..11).for_each(|i| bed.gateway.rank().cancel(seq(i), 1));
        pass(MILLI).await;
        let [(_, Lost::Session(SessionError::Full { messages: 10, .. }))] = bed.gateway.downs()[..] else {
            panic!("{:?}", bed.gateway.downs())
        };
        bed.net.road(Road::Open);
        until(|| bed.gateway.ups() == 2).await;
        // The rank drops what it had of the session before.
        until(|| bed.rank.asked().contains(&Asked::Closed(GatewayId(0)))).await;
    });
}

#[test]
fn losses_are_named() {
    let id = SessionId { incarnation: 3, number: 2 };
    assert_eq!(Lost::Replaced(id).to_string(), "the gateway has opened session 2 of incarnation 3 instead");
    let why = "nothing".to_owned();
    let patience = std::time::Duration::from_millis(400);
    assert_eq!(
        Lost::Unreachable { patience, why }.to_string(),
        "it could not be resumed within 400ms: nothing"
    );
}
