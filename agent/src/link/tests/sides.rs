//! What both ends call, written down.

use std::sync::{Arc, Mutex};

use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, MILLI, Nanos, SeqKey};
use sluice_core::sequence::{Bind, RankEvent, StopRule};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::net::{Net, config};
use crate::link::gateway::{GatewaySide, Link, Rank};
use crate::link::message::Told;
use crate::link::rank::{Gateway, Gateways, RankSide};
use crate::link::{LinkConfig, Lost};
use crate::sampling::{CompiledGrammar, GrammarCompiler, SamplingParams};

pub(super) const LOAD: RankLoad =
    RankLoad { free_blocks: 9, pool_blocks: 10, block_tokens: 16, queue: 0, draining: false };
pub(super) const VOCAB: usize = 1000;

pub(super) const fn seq(request: u64) -> SeqKey {
    SeqKey { request, choice: 1 }
}

pub(super) fn bind(request: u64) -> Bind {
    Bind {
        seq: seq(request),
        attempt: 1,
        gateway: GatewayId(99),
        ids: vec![1, 2, request as u32 % VOCAB as u32].into(),
        produced: 1,
        stop: StopRule { ids: vec![2, 5], min_tokens: 1, max_tokens: 9 },
        deadline: Some(5_000),
        salt: 3,
        age: 1 << 60,
        replay: true,
    }
}

pub(super) fn greedy() -> Arc<SamplingParams> {
    Arc::new(SamplingParams::greedy())
}

/// What a rank was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Opened(GatewayId),
    Bind(Bind, Arc<SamplingParams>, bool),
    Cancel(SeqKey, Attempt),
    Closed(GatewayId),
}

/// A rank that writes down what it is asked for, and says what the test wants.
#[derive(Default)]
pub(super) struct Asker {
    pub asked: Mutex<Vec<Asked>>,
    pub gateways: Mutex<Vec<Gateway>>,
}

impl Asker {
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The newest session of the bed's own gateway.
    pub(super) fn gateway(&self) -> Gateway {
        self.gateways.lock().unwrap().iter().rfind(|g| g.name() == "g").unwrap().clone()
    }

    fn write(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl RankSide for Asker {
    fn now(&self) -> Nanos {
        1_000_000
    }

    fn opened(&self, gateway: Gateway) {
        self.write(Asked::Opened(gateway.id()));
        gateway.load(LOAD);
        self.gateways.lock().unwrap().push(gateway);
    }

    fn bind(&self, bind: Bind, sampling: Arc<SamplingParams>, grammar: Option<CompiledGrammar>) {
        self.write(Asked::Bind(bind, sampling, grammar.is_some()));
    }

    fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        self.write(Asked::Cancel(seq, attempt));
    }

    fn closed(&self, gateway: GatewayId) {
        self.write(Asked::Closed(gateway));
    }
}

/// What a gateway was told.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    Up(u64, RankLoad),
    Down(Lost),
    Told(Told),
    Load(RankLoad),
}

/// A gateway that writes down what it is told.
pub(super) struct Hearer {
    pub heard: Mutex<Vec<(Nanos, Heard)>>,
    pub ranks: Mutex<Vec<Rank>>,
    start: Instant,
}

impl Hearer {
    fn new() -> Self {
        Self { heard: Mutex::default(), ranks: Mutex::default(), start: Instant::now() }
    }

    fn write(&self, heard: Heard) {
        let at = self.start.elapsed().as_nanos() as Nanos;
        self.heard.lock().unwrap().push((at, heard));
    }

    pub(super) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().iter().map(|(_, heard)| heard.clone()).collect()
    }

    pub(super) fn downs(&self) -> Vec<(Nanos, Lost)> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter_map(|(at, h)| if let Heard::Down(why) = h { Some((*at, why.clone())) } else { None })
            .collect()
    }

    pub(super) fn ups(&self) -> usize {
        self.heard().iter().filter(|h| matches!(h, Heard::Up(..))).count()
    }

    /// What was said of sequences.
    pub(super) fn told(&self) -> Vec<Told> {
        self.heard()
            .into_iter()
            .filter_map(|h| if let Heard::Told(told) = h { Some(told) } else { None })
            .collect()
    }

    /// The rank, as it came up last.
    pub(super) fn rank(&self) -> Rank {
        self.ranks.lock().unwrap().last().unwrap().clone()
    }

    pub(super) fn elapsed(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

impl GatewaySide for Hearer {
    fn now(&self) -> Nanos {
        4_000
    }

    fn up(&self, rank: Rank, numerics: &str, load: RankLoad) {
        self.ranks.lock().unwrap().push(rank);
        self.write(Heard::Up(numerics.parse().unwrap(), load));
    }

    fn down(&self, why: &Lost) {
        self.write(Heard::Down(why.clone()));
    }

    fn told(&self, events: Vec<Told>) {
        events.into_iter().for_each(|told| self.write(Heard::Told(told)));
    }

    fn load(&self, load: RankLoad) {
        self.write(Heard::Load(load));
    }
}

/// A rank, a gateway, and the way between them.
pub(super) struct Bed {
    pub rank: Arc<Asker>,
    pub gateway: Arc<Hearer>,
    pub net: Net,
    pub link: JoinHandle<()>,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::with(config(10_000, 10_000_000), None)
    }

    pub(super) fn with(config: LinkConfig, compiler: Option<Arc<GrammarCompiler>>) -> Self {
        let rank = Arc::new(Asker::default());
        let net = Net::new(Gateways::new(rank.clone(), VOCAB, compiler, config));
        let gateway = Arc::new(Hearer::new());
        let link = tokio::spawn(link(&gateway, &net, "g", 1, config));
        Self { rank, gateway, net, link }
    }

    /// Once the rank is up.
    pub(super) async fn up(self) -> Self {
        until(|| self.gateway.ups() > 0).await;
        self
    }
}

/// A gateway's link over a net.
pub(super) fn link(
    side: &Arc<Hearer>,
    net: &Net,
    name: &'static str,
    incarnation: u64,
    config: LinkConfig,
) -> impl Future<Output = ()> + Send + 'static {
    let net = net.clone();
    let dial = move || net.clone().dial(name);
    Link { dial, side: side.clone() as Arc<dyn GatewaySide>, rank: "r".into(), incarnation, config }.run()
}

/// Waits for what is to come, for a minute of the clock that does not wait.
pub(super) async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        pass(MILLI).await;
    }
    panic!("it never came to be");
}

pub(super) async fn pass(time: Nanos) {
    tokio::time::sleep(std::time::Duration::from_nanos(time)).await;
}

pub(super) fn token(request: u64, index: u32) -> Told {
    let event = RankEvent::Token { index, id: index * 7 };
    Told { seq: seq(request), attempt: 1, event, logprobs: None }
}

/// On a clock that jumps to the next moment at which something happens.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}
