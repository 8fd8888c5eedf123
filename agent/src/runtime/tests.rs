//! An engine ends as a whole: when a worker or the front fails, and when it is told to stop while it loads.

mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_core::config::Policy;
use sluice_core::cost::Costs;
use sluice_core::frame::{Body, Channel, Frame, ReturnBatch, ReturnItem, ReturnTo};
use sluice_core::front::Ending;
use sluice_core::ids::{Row, SECOND, SeqHandle, Slice, Unit, WorkerId};
use sluice_core::sequence::StopRule;
use sluice_core::step::{Outcome, Step};

use super::{
    Footprint, Observer, Parts, Room, Runtime, Slots, StartError, UnitSource, read_costs, size, size_one,
    start,
};
use crate::backend::modelled::{CostModel, ModelledBackend, ModelledConfig};
use crate::backend::routing::{Routing, SkewedRouting};
use crate::backend::{Backend, Probe, SampledLogprobs};
use crate::cli::{BackendChoice, EngineOptions, IsaChoice, KvSize, Layout, Schedulers};
use crate::gateway::{Engine as _, Generate, SeqEvent, events};
use crate::sampling::{SamplingParams, SequenceSampling};
use crate::transport::LONGEST_MESSAGE;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Breaks {
    Never,
    Says,
    Panics,
    /// Not a device: the front.
    FrontPanics,
}

/// Does not outlive the first request that is taken.
struct Fragile;

impl Observer for Fragile {
    fn admitted(&self, _prompt_tokens: usize) {
        panic!("as the test wants it");
    }
}

/// A modelled device whose thirtieth step goes wrong.
struct Device {
    inner: ModelledBackend,
    breaks: Breaks,
    steps: u32,
    failed: bool,
}

impl Backend for Device {
    type Unit = Unit;

    fn open(&mut self, seq: SeqHandle, sampling: SequenceSampling) {
        self.inner.open(seq, sampling);
    }

    fn close(&mut self, seq: SeqHandle) {
        self.inner.close(seq);
    }

    fn install(&mut self, slot: u32, unit: Arc<Unit>) {
        self.inner.install(slot, unit);
    }

    fn free_slot(&mut self, slot: u32) {
        self.inner.free_slot(slot);
    }

    fn submit(&mut self, step: Step) {
        self.steps += 1;
        self.failed = self.steps == 30 && self.breaks == Breaks::Says;
        assert!(self.steps != 30 || self.breaks != Breaks::Panics, "as the test wants it");
        self.inner.submit(step);
    }

    fn poll(&mut self) -> Option<Outcome> {
        let outcome = self.inner.poll()?;
        Some(if self.failed { Outcome::Failed("out of order".into()) } else { outcome })
    }

    fn busy_until(&self) -> Option<Instant> {
        self.inner.busy_until()
    }

    fn read_rows(&mut self, rows: &[Row], into: &mut Vec<f32>) {
        self.inner.read_rows(rows, into);
    }

    fn write_rows(&mut self, rows: &[Row], values: &[f32]) {
        self.inner.write_rows(rows, values);
    }

    fn row_len(&self) -> usize {
        self.inner.row_len()
    }

    fn take_logprobs(&mut self) -> Vec<SampledLogprobs> {
        self.inner.take_logprobs()
    }

    fn set_probe(&mut self, probe: Option<Box<dyn Probe>>) {
        self.inner.set_probe(probe);
    }

    fn calibrate(&mut self) -> Costs {
        self.inner.calibrate()
    }
}

/// Loads a unit in so long.
struct Slow(Duration);

impl UnitSource for Slow {
    type Unit = Unit;

    fn load(&self, unit: Unit) -> Result<Arc<Unit>, String> {
        std::thread::sleep(self.0);
        Ok(Arc::new(unit))
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        layout: Layout::Disaggregated,
        attention_ranks: 1,
        expert_workers: 2,
        replicas: 1,
        segments: 8,
        slices: 1,
        schedulers: Schedulers { attention: Policy::Frontier, experts: Policy::Frontier },
        waves: 1,
        prefill_chunk: 16,
        prefill_tokens: 16,
        max_step_tokens: 64,
        max_expert_rows: 64,
        max_sequences: 8,
        release_cycles: 4,
        spans: true,
        kv: KvSize::Tokens(1024),
        page_size: 16,
        prefix_cache: false,
        backend: BackendChoice::Cpu,
        threads: Some(1),
        isa: IsaChoice::Auto,
        routing: Routing::Model,
    }
}

fn costs() -> Arc<CostModel> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("costs/mixtral-8x7b-h100.toml");
    Arc::new(read_costs(&file).unwrap())
}

/// An engine of which worker 1, of experts, breaks.
fn engine(breaks: Breaks, load: Duration, cancelled: &Arc<AtomicBool>) -> Result<Runtime, StartError> {
    let costs = costs();
    let spec = costs.spec();
    let sizing = size(&spec, &options(), Footprint::WEIGHTLESS)?;
    let moe = spec.blocks[0].feed_forward.moe().unwrap();
    let even = Routing::Skew { share: 0.0, seed: 1 };
    let routing = SkewedRouting::new(even, spec.blocks.len(), moe.experts, moe.top_k, 3).unwrap().unwrap();
    let routing = Arc::new(routing);
    let parts = Parts {
        source: Arc::new(Slow(load)),
        numerics: "test".into(),
        queue: 8,
        observer: if breaks == Breaks::FrontPanics { Arc::new(Fragile) } else { Arc::new(()) },
        progress: Arc::new(|_, _| {}),
        link: None,
        cancelled: Arc::clone(cancelled),
    };
    start(&sizing, parts, |plan| {
        let device = plan.config.id.0;
        let (costs, routing) = (Arc::clone(&costs), Arc::clone(&routing));
        let inner = ModelledBackend::new(ModelledConfig { costs, routing, segments: 8, slices: 1, device });
        let breaks = if device == 1 { breaks } else { Breaks::Never };
        Ok(Device { inner, breaks, steps: 0, failed: false })
    })
}

/// A request of one choice.
pub(super) fn request() -> Generate {
    Generate {
        request: 1,
        choices: 1,
        prompt: Arc::from([1, 2, 3].as_slice()),
        stop: StopRule { max_tokens: 500, ..StopRule::default() },
        timeout: Duration::from_secs(60),
        salt: 0,
        sampling: Arc::new(SamplingParams::greedy()),
        grammar: None,
        trace: "t".into(),
    }
}

#[test]
fn a_worker_that_fails_ends_all_sequences_and_says_why() {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (breaks, says) in [(Breaks::Says, "out of order"), (Breaks::Panics, "panicked")] {
        let engine = engine(breaks, Duration::ZERO, &Arc::default()).unwrap();
        tokio.block_on(async {
            let (sink, mut source) = events(1000);
            engine.submit(request(), sink);
            let mut ending = None;
            while let Some((_, event)) = source.next().await {
                if let SeqEvent::End(e) = event {
                    ending = Some(e);
                }
            }
            assert_eq!(ending, Some(Ending::Cut), "{breaks:?}");
            let why = engine.lost().await;
            assert!(why.contains("experts-1") && why.contains(says), "{breaks:?}: {why}");
            // Nothing new is taken, and nobody waits for it.
            let (sink, mut source) = events(1000);
            engine.submit(Generate { request: 2, ..request() }, sink);
            let (_, event) = source.next().await.unwrap();
            assert!(matches!(event, SeqEvent::End(Ending::Refused(_))), "{breaks:?}: {event:?}");
        });
        drop(engine);
    }
}

#[test]
fn a_front_that_fails_ends_all_sequences_and_says_why() {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let engine = engine(Breaks::FrontPanics, Duration::ZERO, &Arc::default()).unwrap();
    tokio.block_on(async {
        let (sink, mut source) = events(1000);
        engine.submit(request(), sink);
        let lost = tokio::time::timeout(Duration::from_secs(60), engine.lost()).await;
        assert!(lost.as_ref().is_ok_and(|why| why.contains("front") && why.contains("panicked")), "{lost:?}");
        // Its readers do not wait for what will not come.
        let next = tokio::time::timeout(Duration::from_secs(60), source.next()).await;
        assert!(matches!(next, Ok(None)), "{next:?}");
    });
}

#[test]
fn loading_is_given_up_when_told_to() {
    let cancelled = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&cancelled);
    let teller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        told.store(true, Ordering::Relaxed);
    });
    // All units would take minutes: that it returns at all is what is shown.
    let ended = engine(Breaks::Never, Duration::from_secs(1), &cancelled);
    assert!(matches!(ended, Err(StartError::Cancelled)), "{ended:?}");
    teller.join().unwrap();
}

#[test]
fn a_step_whose_outputs_no_message_holds_is_refused() {
    let spec = costs().spec();
    let room = Room {
        is_rank: false,
        is_host: true,
        ranks: 1,
        patience: SECOND,
        probe_every: None,
        message: LONGEST_MESSAGE,
    };
    let sized = |max_expert_rows, room| {
        let (o, slots) = (EngineOptions { max_expert_rows, ..options() }, Slots::default());
        size_one(&spec, &o, Footprint::WEIGHTLESS, WorkerId(1), room, slots)
    };
    let refused = sized(u32::MAX, room).unwrap_err().to_string();
    let most: u32 = refused.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_default();
    assert!(refused.contains("--max-expert-rows 4294967295"), "{refused}");
    assert!(sized(most, room).is_ok() && sized(most + 1, room).is_err(), "{refused}");
    // As long as a message with so many outputs can be.
    let back = ReturnTo { group: 0, tag: 0, k: 0 };
    let items = vec![ReturnItem { back, slice: Slice { lo: 0, hi: 8 } }; most as usize];
    let rows = vec![Row::default(); most as usize];
    let body = Body::Returns(ReturnBatch { rows, items, freed: (0..most).collect() });
    let mut head = vec![];
    sluice_wire::encode(&Frame { epoch: 1, channel: Channel::Data, number: 1, body }, &mut head);
    assert!(head.len() + most as usize * spec.hidden * size_of::<f32>() <= LONGEST_MESSAGE);
    let rank = Room { is_rank: true, is_host: false, ..room };
    assert!(sized(u32::MAX, rank).is_ok(), "a rank runs no expert step");
}

#[test]
fn a_model_that_leaves_no_room_for_keys_and_values_is_refused() {
    let spec = costs().spec();
    let auto = EngineOptions { kv: KvSize::Auto, ..options() };
    let page = 1 << 20;
    let pages = (spec.max_positions as u64).div_ceil(16);
    let (rank, experts) = (2 * page * pages, 7 * page * pages);
    let tight = Footprint { kv_page: page, available: 10 * page * pages, rank, experts };
    let sizing = size(&spec, &auto, tight).unwrap();
    assert_eq!(sizing.kv_tokens, pages * 16, "room for one longest sequence, and no more than that");
    let none = Footprint { rank: rank + page, ..tight };
    let refused = size(&spec, &auto, none).unwrap_err().to_string();
    assert!(refused.contains("--kv-tokens"), "{refused}");
}

/// What a worker alone in its process gets: slots, and KV pages.
fn alone(
    [is_rank, is_host]: [bool; 2],
    slots: Slots,
    memory: Footprint,
) -> Result<(Option<u32>, Option<u32>), StartError> {
    let auto = EngineOptions { kv: KvSize::Auto, ..options() };
    let room = Room { is_rank, is_host, ranks: 1, patience: SECOND, probe_every: None, message: usize::MAX };
    let plan = size_one(&costs().spec(), &auto, memory, WorkerId(3), room, slots)?;
    Ok((plan.config.host.map(|h| h.slots), plan.config.rank.map(|r| r.pages)))
}

#[test]
fn a_worker_is_charged_with_what_it_holds_alone() {
    let page = 1 << 10;
    let pages = (costs().spec().max_positions as u64).div_ceil(16);
    let unit = page * pages;
    let experts = 256 * unit;
    let memory = Footprint { kv_page: page, available: 20 * unit, rank: 3 * unit, experts };
    let given = |n| Slots { given: Some(n), ..Slots::default() };
    // Of the 17 units' memory that the rank's own weights leave, a quarter.
    let (slots, kv) = alone([true, false], given(99), memory).unwrap();
    assert_eq!((slots, kv.map(u64::from)), (None, Some(17 * pages / 4)));
    let (slots, kv) = alone([true, true], given(8), memory).unwrap();
    assert_eq!((slots, kv.map(u64::from)), (Some(8), Some(9 * pages / 4)));
    let refused = alone([true, true], given(17), memory).unwrap_err().to_string();
    assert!(refused.contains("--kv-tokens"), "{refused}");
    // Halves of experts take half.
    let halves = Slots { given: Some(8), units: 2, segments: 8 };
    assert_eq!(alone([true, true], halves, memory).unwrap().1.map(u64::from), Some(13 * pages / 4));
    assert_eq!(alone([false, true], given(900), memory).unwrap(), (Some(900), None), "as it was told to");
}

#[test]
fn slots_that_nobody_gave_are_for_what_the_table_has_or_for_all() {
    let slots = |units, segments, roles, available| {
        let memory = Footprint { kv_page: 1, available, rank: 1 << 20, experts: 256 << 10 };
        alone(roles, Slots { given: None, units, segments }, memory).unwrap().0.unwrap()
    };
    let (host, hybrid) = ([false, true], [true, true]);
    assert_eq!(slots(5, 40, host, u64::MAX), 8, "and half of that again");
    assert_eq!(slots(0, 0, host, u64::MAX), 256, "all of the model's");
    assert_eq!(slots(0, 0, host, 64 << 10), 48, "what fits, and a quarter for all else");
    let longest = (costs().spec().max_positions as u64).div_ceil(16);
    assert_eq!(slots(0, 0, hybrid, (64 << 10) + (1 << 20) + longest), 48, "beside what a rank needs");
}
