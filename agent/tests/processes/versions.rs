//! Processes that speak different versions of the wire, as during an upgrade.

use std::time::Duration;

use serde_json::{Value, json};

use crate::ask::{Asked, get, same};
use crate::deployment::{Deployment, until};
use crate::peer::{Peer, card};

const WORKERS: [(&str, &str); 4] =
    [("a0", "attention"), ("a1", "attention"), ("e0", "experts"), ("e1", "experts")];
const PATIENCE: Duration = Duration::from_secs(20);

/// What a process last said that it speaks with another.
fn spoken(d: &Deployment, name: &str, peer: &str) -> Option<u16> {
    let log = d.log(name);
    let line = log.lines().rev().find(|line| {
        line.contains(&format!(": connected peer=\"{peer}\""))
            || line.contains(&format!(": connected gateway=\"{peer}\""))
    })?;
    line.rsplit_once("wire=")?.1.split(' ').next()?.parse().ok()
}

/// The numbers of the peers that a process knows a round trip of, as its metrics have it.
fn round_trips(d: &Deployment, name: &str) -> Vec<u64> {
    let (_, page) = get(d.admin(name), "/metrics").unwrap();
    let count = |line: &str| {
        let labels = line.strip_prefix("sluice_peer_round_trip_seconds_count{peer=\"")?;
        labels.split('"').next()?.parse().ok()
    };
    page.lines().filter_map(count).collect()
}

/// The same, as its pressure has it: by peer the version, and whether a round trip is known.
fn peers(d: &Deployment, name: &str) -> Vec<(u64, u64, bool)> {
    let page = d.pressure(name);
    let number = |peer: &Value, what: &str| peer[what].as_u64().unwrap();
    let all = page["peers"].as_array().unwrap();
    all.iter().map(|p| (number(p, "worker"), number(p, "wire"), p["round_trip"].is_f64())).collect()
}

#[test]
fn old_and_new_run_together_and_the_old_are_replaced_under_load() {
    let mut d = Deployment::start_mixed(&WORKERS, 2, &["a0", "e0", "g0"]);
    for (name, peer, wire) in
        [("a0", "e0", 1), ("a0", "e1", 1), ("a1", "e0", 1), ("a1", "e1", 2), ("a0", "g0", 1), ("a1", "g0", 1)]
    {
        assert_eq!(spoken(&d, name, peer), Some(wire), "{name} and {peer}");
    }
    until("a1 and e1 know how far they are", PATIENCE, || {
        peers(&d, "a1") == [(0, 1, false), (2, 1, false), (3, 2, true)]
            && peers(&d, "e1") == [(0, 1, false), (1, 2, true)]
            && (round_trips(&d, "a1"), round_trips(&d, "e1")) == (vec![3], vec![1])
    });
    assert_eq!((round_trips(&d, "a0"), round_trips(&d, "e0")), (vec![], vec![]), "version 1 tells no time");

    let asked = Asked::mix(8, 300);
    let reference = asked.run(&d);
    let upgraded = asked.run_while(&mut d, |d| ["e0", "a0"].into_iter().for_each(|name| d.upgrade(name)));
    same("replaced under load", &upgraded, &reference);
    d.upgrade("g0");
    same("all of them new", &asked.run(&d), &reference);
    for (name, peer) in [("a0", "e0"), ("a0", "e1"), ("a1", "e0"), ("a1", "e1"), ("a0", "g0"), ("a1", "g0")] {
        until(&format!("{name} and {peer} speak version 2"), PATIENCE, || spoken(&d, name, peer) == Some(2));
    }
    until("all know how far they are", PATIENCE, || {
        round_trips(&d, "a0") == [1, 2, 3]
            && round_trips(&d, "a1") == [0, 2, 3]
            && ["e0", "e1"].iter().all(|name| round_trips(&d, name) == [0, 1])
    });

    d.kill("e1");
    until("nothing is said of who has left", PATIENCE, || {
        [("a0", 1), ("a1", 0)].into_iter().all(|(name, other)| {
            round_trips(&d, name) == [other, 2] && peers(&d, name) == [(other, 2, true), (2, 2, true)]
        })
    });
}

#[test]
fn another_version_is_refused_by_name_and_harms_nobody() {
    let mut d = Deployment::start_mixed(&WORKERS, 2, &["e0"]);
    let asked = Asked::mix(4, 300);
    let reference = asked.run(&d);
    let numerics = d.numerics("a1");
    let said = |d: &Deployment, name: &str, all: &[&str]| {
        let is = || d.log(name).lines().any(|line| all.iter().all(|says| line.contains(says)));
        until(&format!("{all:?} in the log of {name}"), PATIENCE, is);
    };
    let dialled = |d: &Deployment, to: &str, wire: [u16; 2], purpose: &Value| {
        let mut peer = Peer::dial(&d.tls("a1"), d.address(to));
        let mut card = card("a1", Some(1), "attention", Some(&numerics), purpose);
        card["wire"] = json!(wire);
        let answer = peer.greet(&card);
        (peer, answer)
    };
    let answers = asked.run_while(&mut d, |d| {
        d.kill("a1");
        for (to, wire, says) in [
            (
                "e1",
                [3, 4],
                "a1 speaks wire versions 3 to 4, and this process 1 to 2: roll out one release at a time",
            ),
            (
                "e0",
                [2, 3],
                "a1 speaks wire versions 2 to 3, and this process 1 to 1: roll out one release at a time",
            ),
        ] {
            let (peer, answer) = dialled(d, to, wire, &json!({"control": {"epoch": 7}}));
            assert_eq!(answer["refused"], says, "{answer}");
            peer.leaves();
            said(d, to, &["certificate=attention a1", "not talked to", says]);
        }
        // They agree on a version, and then this one speaks another.
        let plain = [&[20, 0, 0, 1, 16, 0, 0, 0][..], &[0; 16]].concat();
        let timed = [&[52, 0, 0, 1, 48, 0, 0, 0, 7][..], &[0; 47]].concat();
        for (to, agreed, beat, says) in [
            ("e0", 1, timed, "messages of kind 7 are none of version 1 of the wire"),
            ("e1", 2, plain, "messages of kind 0 are none of version 2 of the wire"),
        ] {
            let [(mut control, _), (data, _)] = ["control", "data"].map(|purpose| {
                let (peer, answer) = dialled(d, to, [1, 2], &json!({purpose: {"epoch": 8}}));
                assert!(answer["hello"].is_object(), "{answer}");
                (peer, answer)
            });
            control.say(&beat);
            control.leaves();
            data.leaves();
            said(d, to, &["connected", "peer=\"a1\"", "epoch=8", &format!("wire={agreed}")]);
            said(d, to, &["peer=\"a1\"", "epoch=8", "disconnected", says]);
        }
        d.restart("a1");
    });
    same("another version", &answers, &reference);
    same("after it", &asked.run(&d), &reference);
}
