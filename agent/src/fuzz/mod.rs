//! What a fuzzer calls: each target takes bytes as a stranger could send them. It panics if the product breaks a promise
//! about them; memory and time are the fuzzer's to watch. `e2e/fuzz` runs them, and a test here replays their seeds.
//!
//! | target | what is given the bytes |
//! | --- | --- |
//! | `frame` | one message between workers: it means the same when it is sent on |
//! | `stream` | a data or control connection between workers |
//! | `worker` | messages that can be read, and mean whatever they like |
//! | `hello` | the first words of a peer, dialled or dialling |
//! | `session` | a gateway's connection to a rank, at either end |
//! | `requests` | the body of a request to the gateway |
//! | `http` | a connection to the gateway's port, or for pages to a worker's |
//! | `placement` | a placement table |

mod engine;
mod front;
mod seeds;
mod session;
mod wire;
mod worker;

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::transport::fuzz as peers;

/// A target, and inputs to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// Sound inputs, made by the product's own encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "frame", run: wire::frame, seeds: seeds::frame },
    Target { name: "stream", run: peers::stream, seeds: seeds::stream },
    Target { name: "worker", run: worker::worker, seeds: seeds::worker },
    Target { name: "hello", run: peers::hello, seeds: seeds::hello },
    Target { name: "session", run: session::session, seeds: seeds::session },
    Target { name: "requests", run: front::requests, seeds: seeds::requests },
    Target { name: "http", run: front::http, seeds: seeds::http },
    Target { name: "placement", run: wire::placement, seeds: seeds::placement },
];

/// Longer than any timeout of a connection: who is silent has been let go by then.
const LONG: Duration = Duration::from_secs(3600);

/// Runs on a clock that jumps ahead whenever everything waits.
pub(crate) fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a run time without sockets")
        .block_on(what)
}

/// A peer that says something and then closes, or stays there in silence. What it is told is thrown away.
pub(crate) async fn say(bytes: &[u8], closes: bool, mut stream: DuplexStream) {
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let speak = async {
        let _ = to.write_all(bytes).await;
        if closes {
            let _ = to.shutdown().await;
        }
    };
    let listen = async {
        let mut told = [0; 4096];
        while from.read(&mut told).await.is_ok_and(|count| count > 0) {}
    };
    tokio::join!(speak, listen);
}

/// Gives up a peer that says something to what serves it, and checks that it is let go of, closed or not.
pub(crate) async fn is_let_go(bytes: &[u8], closes: bool, serve: impl AsyncFnOnce(DuplexStream)) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let peer = say(bytes, closes, far);
    let served = async {
        tokio::time::timeout(LONG, serve(near)).await.expect("a connection that leads nowhere is kept open");
    };
    tokio::select! {
        () = served => {}
        () = async { peer.await; std::future::pending().await } => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TARGETS;

    /// Each target takes its seeds, and what comes of them by small mistakes.
    #[test]
    fn seeds_and_mistakes_harm_nobody() {
        let mistakes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6);
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(seeds.len() > 2, "{} begins with next to nothing", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
            let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
            let mut runner = proptest::test_runner::TestRunner::new(config);
            let input = (any::<prop::sample::Index>(), &mistakes);
            let harm = runner.run(&input, |(seed, mistakes)| {
                let mut bytes = seeds[seed.index(seeds.len())].clone();
                for (at, value, kind) in mistakes {
                    let at = at.index(bytes.len().max(1));
                    match kind {
                        0 if at < bytes.len() => bytes[at] = value,
                        1 => bytes.insert(at.min(bytes.len()), value),
                        _ => bytes.truncate(at),
                    }
                }
                (target.run)(&bytes);
                Ok(())
            });
            assert!(harm.is_ok(), "{}: {}", target.name, harm.unwrap_err());
        }
    }
}
