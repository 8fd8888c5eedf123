//! Engines in variations, and the requests they are compared by.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test's own files")]

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_agent::cli::{BackendChoice, EngineOptions, IsaChoice, KvSize, Layout, Routing, Schedulers};
use sluice_agent::gateway::{Engine, Generate, SeqEvent, events};
use sluice_agent::model::weights::Weights;
use sluice_agent::runtime::{Observer, Runtime, Surroundings, launch};
use sluice_agent::sampling::SamplingParams;
use sluice_agent::telemetry::WorkerSample;
use sluice_core::config::Policy;
use sluice_core::front::Ending;
use sluice_core::sequence::StopRule;

/// One way to run the model.
#[derive(Clone, Debug)]
pub struct Variation {
    pub layout: Layout,
    pub ranks: u32,
    pub experts: u32,
    pub policy: Policy,
    pub concurrency: usize,
    pub chunk: u32,
    pub prefix_cache: bool,
    pub replicas: u32,
    pub slices: u8,
    pub isa: IsaChoice,
    pub waves: u8,
    pub spans: bool,
    pub kv_tokens: u64,
}

impl Default for Variation {
    /// The reference: one worker, one request at a time, one step per block.
    fn default() -> Self {
        Self {
            layout: Layout::Disaggregated,
            ranks: 1,
            experts: 1,
            policy: Policy::Frontier,
            concurrency: 1,
            chunk: 512,
            prefix_cache: false,
            replicas: 1,
            slices: 1,
            isa: IsaChoice::Auto,
            waves: 1,
            spans: true,
            kv_tokens: 64 * 1024,
        }
    }
}

impl fmt::Display for Variation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, experts, concurrency, chunk, replicas, slices, waves, .. } = self;
        match self.layout {
            Layout::Disaggregated => write!(f, "{ranks}x{experts}")?,
            Layout::Hybrid => write!(f, "hybrid {ranks}")?,
        }
        write!(f, " {}, {concurrency} at a time, chunk {chunk}, ", self.policy.name())?;
        let on = |b| if b { "on" } else { "off" };
        write!(f, "prefix {}, spans {}, ", on(self.prefix_cache), on(self.spans))?;
        write!(
            f,
            "{replicas} replicas, {slices} slices, {waves} waves, {:?}, KV {}",
            self.isa, self.kv_tokens
        )
    }
}

impl Variation {
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            layout: self.layout,
            attention_ranks: self.ranks,
            expert_workers: self.experts,
            replicas: self.replicas,
            segments: 8,
            slices: self.slices,
            schedulers: Schedulers { attention: self.policy, experts: self.policy },
            waves: self.waves,
            prefill_chunk: self.chunk,
            prefill_tokens: 4 * self.chunk,
            max_step_tokens: 512,
            max_expert_rows: 2048,
            max_sequences: 64,
            release_cycles: 4,
            spans: self.spans,
            kv: KvSize::Tokens(self.kv_tokens),
            page_size: 16,
            prefix_cache: self.prefix_cache,
            backend: BackendChoice::Cpu,
            threads: None,
            isa: self.isa,
            routing: Routing::Model,
        }
    }
}

/// What one request gave.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Answer {
    pub ids: Vec<u32>,
    /// As bits, so that equal means equal.
    pub logprobs: Vec<(u32, u32)>,
    pub ending: Option<Ending>,
}

impl Answer {
    /// One more event of the request, whose log-probabilities were asked for.
    pub fn take(&mut self, event: SeqEvent) {
        match event {
            SeqEvent::Token { id, logprobs } => {
                self.ids.push(id);
                let l = logprobs.expect("asked for");
                self.logprobs.push((l.token.id, l.token.logprob.to_bits()));
                self.logprobs.extend(l.top.iter().map(|t| (t.id, t.logprob.to_bits())));
            }
            SeqEvent::End(ending) => self.ending = Some(ending),
        }
    }
}

pub struct Answers {
    pub answers: Vec<Answer>,
    pub rows_per_expert_step: f64,
    pub preemptions: u64,
}

/// Half greedy, half sampled with seeds, penalties and top-p; prompts of 5 to 900 tokens, some with a common beginning.
pub fn requests(weights: &Weights, count: usize) -> Vec<Generate> {
    let vocab = weights.spec().vocab as u32;
    let text = std::fs::read_to_string(super::driver::tiny_moe().join("reference.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let words: Vec<u32> = reference["references"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r["greedy_ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32))
        .filter(|id| *id < vocab)
        .collect();
    let long = 896 / count.max(2);
    (0..count)
        .map(|i| {
            let len = 4 + i * long.max(1) % 896;
            // Every third starts like the others, so that prefixes are shared.
            let from = if i % 3 == 0 { 0 } else { i * 37 % words.len() };
            let mut prompt = vec![1];
            prompt.extend(words.iter().cycle().skip(from).take(len));
            let greedy = i % 2 == 0;
            let sampling = if greedy {
                SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() }
            } else {
                SamplingParams {
                    temperature: 0.9,
                    top_p: 0.9,
                    presence_penalty: 0.3,
                    frequency_penalty: 0.2,
                    repetition_penalty: 1.1,
                    seed: 1000 + i as u64,
                    logprobs: Some(2),
                    ..SamplingParams::greedy()
                }
            };
            Generate {
                request: i as u64 + 1,
                choices: 1,
                prompt: prompt.into(),
                stop: StopRule { ids: vec![2], min_tokens: 0, max_tokens: 24 },
                timeout: Duration::from_secs(600),
                salt: 7,
                sampling: Arc::new(sampling),
                grammar: None,
                trace: "".into(),
            }
        })
        .collect()
}

/// The last report of each worker.
#[derive(Default)]
pub struct Reports(Mutex<Vec<WorkerSample>>);

impl Observer for Reports {
    fn report(&self, sample: WorkerSample) {
        let mut all = self.0.lock().unwrap();
        all.retain(|r| r.worker != sample.worker);
        all.push(sample);
    }
}

impl Reports {
    pub fn all(&self) -> Vec<WorkerSample> {
        self.0.lock().unwrap().clone()
    }

    pub fn sum(&self, of: fn(&sluice_core::counters::Counters) -> u64) -> u64 {
        self.0.lock().unwrap().iter().map(|r| of(&r.counters)).sum()
    }
}

/// Starts an engine.
pub fn start(weights: &Arc<Weights>, v: &Variation, reports: &Arc<Reports>) -> Runtime {
    let around = Surroundings {
        queue: 4096,
        observer: reports.clone(),
        progress: Arc::new(|_, _| {}),
        cancelled: Arc::default(),
    };
    launch(weights, &v.options(), around).unwrap_or_else(|e| panic!("{v}: {e}"))
}

/// Runs the requests, some at a time.
pub fn answers(weights: &Arc<Weights>, v: &Variation, requests: &[Generate]) -> Answers {
    let reports = Arc::new(Reports::default());
    let runtime = start(weights, v, &reports);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut all = vec![Answer::default(); requests.len()];
    tokio.block_on(async {
        let mut next = 0;
        let mut running = tokio::task::JoinSet::new();
        loop {
            while next < requests.len() && running.len() < v.concurrency {
                let (sink, mut source) = events(100_000);
                runtime.submit(requests[next].clone(), sink);
                let i = next;
                running.spawn(async move {
                    let mut a = Answer::default();
                    while let Some((_, event)) = source.next().await {
                        a.take(event);
                    }
                    (i, a)
                });
                next += 1;
            }
            let done = tokio::time::timeout(Duration::from_secs(120), running.join_next()).await;
            match done.unwrap_or_else(|_| panic!("{v}: nothing came for two minutes")) {
                Some(r) => {
                    let (i, a) = r.unwrap();
                    all[i] = a;
                }
                None => break,
            }
        }
    });
    drop(runtime);
    Answers {
        answers: all,
        rows_per_expert_step: reports.sum(|c| c.expert_rows) as f64
            / reports.sum(|c| c.expert_units).max(1) as f64,
        preemptions: reports.sum(|c| c.preemptions),
    }
}

/// A few that differ in everything.
pub fn quick() -> Vec<Variation> {
    let base = Variation { concurrency: 12, ..Variation::default() };
    let mut all = vec![
        Variation { ranks: 2, experts: 4, chunk: 16, slices: 2, prefix_cache: true, ..base.clone() },
        Variation { ranks: 3, experts: 8, slices: 8, waves: 2, ..base.clone() },
        Variation { layout: Layout::Hybrid, prefix_cache: true, ..base.clone() },
        Variation { layout: Layout::Hybrid, ranks: 3, replicas: 3, chunk: 64, ..base.clone() },
    ];
    for policy in [Policy::Mtfs, Policy::Flfs, Policy::Defrag, Policy::Sync] {
        all.push(Variation { ranks: 2, experts: 3, policy, ..base.clone() });
    }
    // Another instruction set than the best, where there is one.
    let isa = [IsaChoice::Avx2, IsaChoice::Neon].into_iter().find(|isa| isa_available(*isa));
    all.push(Variation { experts: 2, chunk: 1, isa: isa.unwrap_or(IsaChoice::Auto), ..base });
    all
}

/// Every dimension, one or two at a time from several bases.
pub fn sweep() -> Vec<Variation> {
    let mut all = vec![];
    let layouts = [
        (Layout::Disaggregated, 1, 1),
        (Layout::Disaggregated, 2, 4),
        (Layout::Disaggregated, 3, 8),
        (Layout::Hybrid, 1, 1),
        (Layout::Hybrid, 4, 4),
    ];
    for (layout, ranks, experts) in layouts {
        for policy in Policy::ALL {
            for concurrency in [1, 64] {
                all.push(Variation { layout, ranks, experts, policy, concurrency, ..Variation::default() });
            }
        }
    }
    let busy = Variation { ranks: 3, experts: 8, concurrency: 64, ..Variation::default() };
    for chunk in [1, 16, 512] {
        for prefix_cache in [false, true] {
            all.push(Variation { chunk, prefix_cache, ..busy.clone() });
        }
    }
    for replicas in [1, 3] {
        for slices in [1, 2, 8] {
            all.push(Variation { replicas, slices, ..busy.clone() });
        }
    }
    for isa in [IsaChoice::Avx512, IsaChoice::Avx2, IsaChoice::Neon, IsaChoice::Portable] {
        if isa_available(isa) {
            all.push(Variation { isa, ranks: 1, experts: 2, concurrency: 64, ..Variation::default() });
        }
    }
    all.push(Variation { waves: 2, ..busy.clone() });
    all.push(Variation { layout: Layout::Hybrid, ranks: 1, spans: false, ..busy.clone() });
    all.push(Variation { kv_tokens: 1536, prefix_cache: true, ..busy });
    all
}

fn isa_available(isa: IsaChoice) -> bool {
    use sluice_kernels::cpu::Isa;
    match isa {
        IsaChoice::Auto => true,
        IsaChoice::Avx512 => Isa::Avx512.is_available(),
        IsaChoice::Avx2 => Isa::Avx2.is_available(),
        IsaChoice::Neon => Isa::Neon.is_available(),
        IsaChoice::Portable => Isa::Portable.is_available(),
    }
}
