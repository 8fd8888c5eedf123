//! A session between a gateway and a rank.

use std::sync::{Arc, LazyLock, Mutex};

use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, Nanos, SeqKey};
use sluice_core::sequence::Bind;

use super::{is_let_go, run};
use crate::link::gateway::{DialError, Dialed, GatewaySide, Link, Rank};
use crate::link::message::Told;
use crate::link::rank::{Gateway, Gateways, RankSide};
use crate::link::{LinkConfig, Lost};
use crate::sampling::{CompiledGrammar, GrammarCompiler, SamplingParams};

/// Token ids of the model.
const VOCAB: usize = 1000;

/// The first byte says at which end the rest arrives, and whether the connection is closed behind it.
pub(super) fn session(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let closes = how & 2 == 0;
    if how & 1 == 0 { run(at_rank(bytes, closes)) } else { run(at_gateway(bytes, closes)) }
}

async fn at_rank(bytes: &[u8], closes: bool) {
    let compiler = Some(Arc::clone(&COMPILER));
    let gateways = Gateways::new(Arc::new(Asked), VOCAB, compiler, LinkConfig::default());
    is_let_go(bytes, closes, async |stream| {
        let _ = gateways.serve("g0", stream).await.to_string();
    })
    .await;
}

/// The rank says this on the first connection, and can no longer be reached behind it.
async fn at_gateway(bytes: &[u8], closes: bool) {
    is_let_go(bytes, closes, async |stream| {
        let (gone, is_gone) = tokio::sync::oneshot::channel::<()>();
        let (first, gone) = (Mutex::new(Some(stream)), Mutex::new(Some(gone)));
        let dial = || {
            let first = first.lock().ok().and_then(|mut stream| stream.take());
            if first.is_none() {
                drop(gone.lock().ok().and_then(|mut gone| gone.take()));
            }
            async move {
                let stream = first.ok_or_else(|| DialError::Refused("nobody is there".into()))?;
                Ok(Dialed { stream, numerics: "bits".into() })
            }
        };
        let link = Link {
            dial,
            side: Arc::new(Heard),
            rank: "a0".into(),
            incarnation: 1,
            config: LinkConfig::default(),
        };
        tokio::select! {
            () = link.run() => {}
            _ = is_gone => {}
        }
    })
    .await;
}

static COMPILER: LazyLock<Arc<GrammarCompiler>> = LazyLock::new(super::front::bytes_compiler);

/// A rank that takes what it is asked for.
struct Asked;

impl RankSide for Asked {
    fn now(&self) -> Nanos {
        1_000_000
    }

    fn opened(&self, gateway: Gateway) {
        let (free_blocks, pool_blocks, block_tokens) = (9, 10, 16);
        gateway.load(RankLoad { free_blocks, pool_blocks, block_tokens, queue: 0, draining: false });
    }

    fn bind(&self, bind: Bind, sampling: Arc<SamplingParams>, grammar: Option<CompiledGrammar>) {
        assert!(bind.produced as usize <= bind.ids.len() && sampling.check(VOCAB).is_ok());
        if let Some(grammar) = grammar {
            let _ = grammar.start().mask(&mut [0.0; VOCAB]);
        }
    }

    fn cancel(&self, _: SeqKey, _: Attempt) {}

    fn closed(&self, _: GatewayId) {}
}

/// A gateway that binds nothing.
struct Heard;

impl GatewaySide for Heard {
    fn now(&self) -> Nanos {
        1_000_000
    }

    fn up(&self, _: Rank, _: &str, _: RankLoad) {}

    fn down(&self, why: &Lost) {
        let _ = why.to_string();
    }

    fn told(&self, _: Vec<Told>) {}

    fn load(&self, _: RankLoad) {}
}
