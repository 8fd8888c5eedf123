//! One engine out of several processes, over TCP and mutual TLS on loopback: real processes, killed with SIGKILL.

#![allow(clippy::unwrap_used, reason = "a test's own processes")]

mod ask;
mod certificates;
mod deployment;
mod peer;
mod versions;

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ask::{Asked, get, metric, same};
use certificates::Authority;
use deployment::{Deployment, until};
use peer::{Peer, card};
use serde_json::json;

/// Two ranks, and every expert on two workers.
fn deployment() -> Deployment {
    Deployment::start(&[("a0", "attention"), ("a1", "attention"), ("e0", "experts"), ("e1", "experts")], 2)
}

/// What a test is about has occurred. Workers say what they count twice a second.
fn counted(d: &Deployment, names: &[&str], series: &str) {
    until(series, Duration::from_secs(5), || names.iter().any(|n| metric(d, n, series) > 0.0));
}

#[test]
fn answers_are_the_same_whoever_dies() {
    let mut d = deployment();
    let asked = Asked::mix(12, 300);
    let reference = asked.run(&d);
    assert!(reference.iter().all(|a| a["choices"][0]["finish_reason"].is_string()), "{reference:?}");

    let killed = asked.run_while(&mut d, |d| d.kill("e0"));
    same("an expert worker killed", &killed, &reference);
    counted(&d, &["a0", "a1"], "sluice_masked_peers_total");
    counted(&d, &["a0", "a1"], "sluice_redispatched_total");
    d.restart("e0");

    let killed = asked.run_while(&mut d, |d| d.kill("a0"));
    same("an attention rank killed", &killed, &reference);
    counted(&d, &["g0"], "sluice_replays_total");
    d.restart("a0");

    let drained = asked.run_while(&mut d, |d| d.terminate("a1"));
    same("an attention rank drained", &drained, &reference);
    counted(&d, &["g0"], "sluice_hand_backs_total");
    d.restart("a1");

    let drained = asked.run_while(&mut d, |d| d.terminate("e1"));
    same("an expert worker drained", &drained, &reference);
}

#[test]
fn an_expert_without_a_holder_waits_for_one() {
    let mut d = Deployment::start(&[("a0", "attention"), ("e0", "experts")], 1);
    let asked = Asked::mix(4, 300);
    let reference = asked.run(&d);
    let masked = |d: &Deployment| d.pressure("a0")["member"]["masked"].as_array().unwrap().clone();
    assert_eq!(masked(&d), [] as [serde_json::Value; 0]);
    let orphaned = asked.run_while(&mut d, |d| {
        d.kill("e0");
        std::thread::sleep(Duration::from_millis(500));
        let masked = masked(d);
        assert_eq!((masked.len(), &masked[0]["name"]), (1, &json!("e0")), "{masked:?}");
        assert_eq!(masked[0]["reason"], "broke", "{masked:?}");
        d.restart("e0");
    });
    same("the only holder killed", &orphaned, &reference);
    counted(&d, &["a0"], "sluice_orphaned_rows_total");
    until("the holder is unmasked", Duration::from_secs(5), || masked(&d).is_empty());
    let member = d.pressure("e0")["member"].take();
    assert_eq!((&member["name"], &member["problem"]), (&json!("e0"), &json!(null)), "{member}");
    assert!(
        member["incarnation"].as_u64() > Some(0) && member["units_wanted"].as_u64() > Some(0),
        "{member}"
    );
    for name in ["a0", "e0", "g0"] {
        assert_eq!(get(d.admin(name), "/v1/pressure").unwrap().0, 404, "it takes a certificate");
    }

    d.kill("a0");
    let ready = |d: &Deployment| get(d.admin("g0"), "/readyz").unwrap();
    until("the gateway has no rank", Duration::from_secs(20), || ready(&d).0 == 503);
    assert!(ready(&d).1.contains("no attention rank"), "{:?}", ready(&d));
    d.restart("a0");
    d.is_ready("g0");
}

#[test]
fn experts_move_while_tokens_flow() {
    let mut d = deployment();
    let asked = Asked::mix(8, 600);
    let reference = asked.run(&d);
    let moved = asked.run_while(&mut d, |d| {
        // All experts of the later blocks leave e0, then come back.
        d.change_table(|row| {
            (row["worker"] == "e0" && row["block"].as_u64() >= Some(3)).then_some("Draining")
        });
        std::thread::sleep(Duration::from_millis(600));
        d.change_table(|row| {
            (row["worker"] == "e1" && row["block"].as_u64() < Some(3)).then_some("Draining")
        });
    });
    same("experts moved", &moved, &reference);
    assert!(d.log("a0").contains("the placement table has changed"), "{}", d.log("a0"));
    d.is_ready("e0");
}

#[test]
fn a_placement_is_pushed_by_the_operator_alone() {
    let d = &Deployment::start(&[("a0", "attention"), ("e0", "experts")], 1);
    let client = |role: &str| {
        let dir = d.client(role);
        move |method: &str, body: &str| d.page(&dir, "e0", method, "/v1/placement", body)
    };
    let (operator, gateway) = (client("operator"), client("gateway"));
    let (status, table) = gateway("GET", "");
    assert!(status == 200 && table.contains("generation: 1"), "{status} {table}");
    let newer = table.replace("generation: 1", "generation: 2");
    let (status, said) = gateway("PUT", &newer);
    assert!(status == 403 && said.contains("not for gateway"), "{status} {said}");
    assert_eq!(operator("PUT", &newer).0, 204);
    assert_eq!(operator("GET", "").1, newer);
    let (status, said) = operator("PUT", &table);
    assert!(status == 409 && said.contains("the one in use 2"), "{status} {said}");
    assert_eq!(operator("PUT", "workers: {").0, 400);
    assert_eq!(operator("GET", "").1, newer);
    assert_eq!(std::fs::read_to_string(d.path("table.yaml")).unwrap(), newer, "kept for the next start");

    let push = |name: &str, body: &str| d.page(&d.client("operator"), name, "PUT", "/v1/placement", body);
    let finer = newer.replace("generation: 2", "generation: 3").replace("\"slice\":[0,8]", "\"slice\":[0,2]");
    let (status, said) = push("a0", &finer);
    assert!(status == 422 && said.contains("start it with --slices 4"), "{status} {said}");
    assert_eq!(std::fs::read_to_string(d.path("table.yaml")).unwrap(), newer, "what is refused is not kept");

    let newest = newer.replace("generation: 2", "generation: 3");
    assert_eq!(push("g0", &newest).0, 204, "gateways are told too");
    let (status, said) = push("g0", &newer);
    assert!(status == 409 && said.contains("the one in use 3"), "{status} {said}");
    let operator = d.client("operator");
    let pressure = || d.page(&operator, "g0", "GET", "/v1/pressure", "");
    let (status, page) = pressure();
    assert!(status == 200 && page.contains("\"front\":{"), "{status} {page}");
    until("the gateway has heard of all workers", Duration::from_secs(20), || {
        let page = pressure().1;
        let hears = |name: &str| page.contains(&format!("\"name\":\"{name}\""));
        page.contains("\"heard_seconds\":") && hears("a0") && hears("e0")
    });
    let other = d.directory("other");
    d.authority().leaf(&other, "spiffe://sluice/ns/default/moe/other/role/operator", d.authority());
    d.knock(&other, &d.address("g0"));
    until("a stranger is named", Duration::from_secs(20), || {
        d.log("g0").contains("no pages are shown to it")
    });
}

#[test]
fn strangers_are_refused_by_name_and_harm_nobody() {
    let mut d = deployment();
    let asked = Asked::mix(4, 120);
    let reference = asked.run(&d);
    let address = d.address("a0");
    let half = TcpStream::connect(address).unwrap();
    let answers = asked.run_while(&mut d, |d| {
        let mut garbage = TcpStream::connect(address).unwrap();
        garbage.write_all(&[0x5a; 4096]).unwrap();
        // The table has e1; these are somebody else.
        let stranger = Authority::new();
        let mine = d.authority();
        for (name, uri, from) in [
            ("foreign", "spiffe://sluice/ns/default/moe/sluice/role/experts/worker/e1", &stranger),
            ("deployment", "spiffe://sluice/ns/default/moe/other/role/experts/worker/e1", mine),
            ("nobody", "https://example.com/e1", mine),
        ] {
            let dir = d.directory(name);
            from.leaf(&dir, uri, mine);
            d.knock(&dir, &address);
        }
        let dir = d.directory("name");
        mine.leaf(&dir, "spiffe://sluice/ns/default/moe/sluice/role/experts/worker/e0", mine);
        let out = d.command(&["experts", "--name", "e1", "--tls", dir.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("is for experts e0 of default/sluice"), "{said}");
        drop(garbage);
    });
    same("strangers", &answers, &reference);
    until("half a hello is let go", Duration::from_secs(20), || d.log("a0").contains("not over within 2s"));
    drop(half);
    let log = d.log("a0");
    for says in [
        "invalid peer certificate",
        "experts e1 of default/other",
        "https://example.com/e1",
        "corrupt",
        "the TLS handshake failed: it was not over within 2s",
    ] {
        assert!(log.contains(says), "no {says:?} in\n{log}");
    }
}

/// Each has a certificate of the deployment, and is not who or what it says.
#[test]
fn peers_that_lie_are_refused_by_name_and_harm_nobody() {
    let mut d = deployment();
    let asked = Asked::mix(4, 120);
    let reference = asked.run(&d);
    let numerics = d.numerics("e0");
    let answers = asked.run_while(&mut d, |d| {
        let control = || json!({"control": {"epoch": 7}});
        let sound = || card("e0", Some(2), "experts", Some(&numerics), &control());
        let with = |field: &str, value: serde_json::Value| {
            let mut card = sound();
            card[field] = value;
            card
        };
        let another = card("e1", Some(3), "experts", Some(&numerics), &control());
        let gateway = card("g9", Some(2), "gateway", None, &control());
        for (shows, card, says) in [
            ("e0", with("wire", json!([0, 0])), "e0 speaks wire versions 0 to 0, and this process 1 to 2"),
            ("e0", with("wire", json!([3, 9])), "e0 speaks wire versions 3 to 9, and this process 1 to 2"),
            ("e0", another, "a peer calls itself \"e1\", but its certificate is for \"e0\""),
            (
                "e0",
                with("deployment", json!("default/other")),
                "experts e0 of default/other shows the certificate of",
            ),
            (
                "e0",
                with("role", json!("attention")),
                "attention e0 of default/sluice shows the certificate of",
            ),
            ("e0", with("worker", json!(1)), "e0 says that it is worker 1, and the table has 2"),
            ("e0", with("numerics", json!("x")), "e0 computes with numerics id x"),
            ("e0", with("incarnation", json!(1)), "a connection of incarnation 1 comes too late"),
            (
                "e0",
                with("purpose", json!("gateway")),
                "e0 has the role experts, and this connection is for gateways",
            ),
            ("g0", gateway, "g9 has the role gateway, and this connection is for workers"),
            ("e0", with("name", json!("e0\n2026 ERROR forged")), "its name has control characters"),
        ] {
            let mut peer = Peer::dial(&d.tls(shows), d.address("a0"));
            let answer = peer.greet(&card);
            assert!(
                answer["refused"].as_str().is_some_and(|why| why.contains(says)),
                "{answer}, and not {says}"
            );
            peer.leaves();
            let role = if shows == "g0" { "gateway" } else { "experts" };
            let holder = format!("certificate={role}");
            // The peer is let go of before its name is written down.
            until(says, Duration::from_secs(20), || {
                let is = |line: &str| [says, &holder, "not talked to"].iter().all(|part| line.contains(part));
                d.log("a0").lines().any(is)
            });
            let log = d.log("a0");
            assert!(!log.lines().any(|line| line.starts_with("2026 ERROR")), "{log}");
        }
    });
    same("peers that lie", &answers, &reference);
}

#[test]
fn half_a_message_and_then_silence_is_named_and_harms_nobody() {
    let mut d = deployment();
    let asked = Asked::mix(4, 300);
    let reference = asked.run(&d);
    let numerics = d.numerics("a1");
    let said = |d: &Deployment, name: &str, all: &[&str]| {
        let is = || d.log(name).lines().any(|line| all.iter().all(|says| line.contains(says)));
        until(&format!("{all:?} in the log of {name}"), Duration::from_secs(20), is);
    };
    let answers = asked.run_while(&mut d, |d| {
        // Half a hello, and what is no hello.
        let mut half = Peer::dial(&d.tls("e0"), d.address("a0"));
        half.say(&[9, 0]);
        let mut garbage = Peer::dial(&d.tls("e0"), d.address("a0"));
        garbage.say(&[0x5a; 64]);
        garbage.leaves();
        said(d, "a0", &["certificate=experts e0 of default/sluice", "what came is no hello"]);

        // Half a request for a page: how HTTP/2 begins, and nothing more.
        let mut page = Peer::speaking("http/1.1", &d.tls("g0"), d.address("a0"));
        page.say(b"PRI");

        // Half a message of a session, and half an opening of one.
        let dialled = |d: &Deployment, name| {
            let mut gateway = Peer::dial(&d.tls("g0"), d.address("a0"));
            let taken = gateway.greet(&card(name, None, "gateway", None, &json!("gateway")));
            assert!(taken["hello"].is_object(), "{taken}");
            gateway
        };
        let mut opening = dialled(d, "g8");
        opening.say(&[4, 0, 0, 0, 1]);
        let mut session = dialled(d, "g9");
        session.say(&[4, 0, 0, 0, 1, 1, 1, 0, 200, 0, 0, 0, 1, 2, 3]);
        session.leaves();
        said(d, "a0", &["gateway=\"g9\"", "disconnected", "nothing was heard"]);
        opening.leaves();
        said(d, "a0", &["gateway=\"g8\"", "disconnected", "no session was opened"]);
        page.leaves();
        half.leaves();
        said(d, "a0", &["certificate=experts e0 of default/sluice", "no hello within 5 s"]);

        // Somebody with the certificate of a rank that is gone.
        d.kill("a1");
        let unknown = [&[20, 0, 0, 1, 16, 0, 0, 0, 99][..], &[0; 15]].concat();
        for (epoch, bytes, says) in [
            (7, &[9, 0, 0, 1, 5, 0, 0, 0, 3][..], "nothing was heard"),
            (8, &[0xff; 64], "cannot be understood"),
            (9, &unknown, "messages of kind 99 are unknown"),
        ] {
            let halves =
                [json!({"control": {"epoch": epoch}}), json!({"data": {"epoch": epoch}})].map(|purpose| {
                    let mut peer = Peer::dial(&d.tls("a1"), d.address("e0"));
                    let taken = peer.greet(&card("a1", Some(1), "attention", Some(&numerics), &purpose));
                    assert!(taken["hello"].is_object(), "{taken}");
                    peer
                });
            let [mut control, data] = halves;
            control.say(bytes);
            control.leaves();
            data.leaves();
            said(d, "e0", &["peer=\"a1\"", &format!("epoch={epoch}"), "disconnected", says]);
        }
        d.restart("a1");
    });
    same("half messages", &answers, &reference);
    same("after them", &asked.run(&d), &reference);
}

#[test]
fn peers_of_one_host_talk_over_sockets_while_there_are_any() {
    let workers = [("a0", "attention"), ("e0", "experts"), ("e1", "experts")];
    let mut d = Deployment::start_over_sockets(&workers, 2);
    let connected = |d: &Deployment, who: &str, over: &str| {
        let (who, over) = (format!("connected {who}"), format!("over=\"{over}\""));
        d.log("a0").lines().filter(|line| line.contains(&who) && line.contains(&over)).count()
    };
    let e0 = "peer=\"e0\"";
    for who in [e0, "peer=\"e1\"", "gateway=\"g0\""] {
        assert!(connected(&d, who, "unix") > 0 && connected(&d, who, "tls") == 0, "{who}: {}", d.log("a0"));
    }
    let asked = Asked::mix(6, 200);
    let reference = asked.run(&d);
    let killed = asked.run_while(&mut d, |d| d.kill("e0"));
    same("killed", &killed, &reference);
    let socket = d.path("sockets").join("e0.sock");
    assert!(socket.exists(), "nobody cleared up behind it");
    let before = connected(&d, e0, "unix");
    let resumed = asked.run_while(&mut d, |d| {
        d.restart("e0");
        until("e0 is back", Duration::from_secs(20), || connected(d, e0, "unix") > before);
    });
    same("resumed", &resumed, &reference);

    d.terminate("e0");
    assert!(!socket.exists());
    d.without_sockets();
    d.restart("e0");
    until("e0 is back", Duration::from_secs(20), || connected(&d, e0, "tls") > 0);
    same("over TCP", &asked.run(&d), &reference);
}

#[test]
fn certificates_change_under_load() {
    let mut d = deployment();
    let asked = Asked::mix(6, 200);
    let reference = asked.run(&d);
    let answers = asked.run_while(&mut d, Deployment::renew_certificates);
    same("certificates changed", &answers, &reference);
    until("all have read them", Duration::from_secs(20), || {
        ["a0", "a1", "e0", "e1", "g0"].iter().all(|n| d.log(n).contains("read again"))
    });
    // Whoever starts now has certificates of the new CA alone.
    d.kill("e0");
    d.restart("e0");
    same("after the change", &asked.run(&d), &reference);
}

#[test]
fn what_does_not_fit_is_said_at_the_start() {
    let d = Deployment::start(&[("a0", "attention"), ("e0", "experts")], 1);
    let refused = |args: &[&str], says: &str| {
        let started = Instant::now();
        let out = d.command(args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            !out.status.success() && text.contains(says),
            "{args:?} after {:?}: {text}",
            started.elapsed()
        );
    };
    refused(&["experts", "--name", "e7", "--tls", "off"], "has no worker \"e7\"");
    refused(&["attention", "--name", "e0", "--tls", "off"], "has e0 as experts");
    refused(&["experts", "--name", "e0", "--tls", "/nowhere"], "/nowhere/tls.crt");
    refused(&["experts", "--name", "e0", "--tls", "off", "--deployment", "x"], "NAMESPACE/NAME");
    refused(
        &["attention", "--name", "a0", "--tls", "off", "--segments", "4"],
        "or start all processes with --segments 8",
    );
}
