//! The thread of a worker, over a device that never finishes a step.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sluice_core::cost::Costs;
use sluice_core::ids::{GatewayId, Row, SeqHandle, SeqKey, Unit};
use sluice_core::sequence::{Bind, StopRule};
use sluice_core::step::{Outcome, Step};
use sluice_core::worker::Worker;

use super::{costs, options};
use crate::backend::{Backend, Probe, SampledLogprobs};
use crate::cli::{EngineOptions, Layout};
use crate::runtime::clock::Clock;
use crate::runtime::mail::Mail;
use crate::runtime::worker::WorkerThread;
use crate::runtime::{Footprint, Observer, size};
use crate::sampling::{Draw, SamplingParams, SequenceSampling};
use crate::telemetry::{TokenSpans, WorkerSample};

/// Counts how often it is asked.
struct Endless(Arc<AtomicUsize>);

impl Backend for Endless {
    type Unit = Unit;

    fn open(&mut self, _: SeqHandle, _: SequenceSampling) {}
    fn close(&mut self, _: SeqHandle) {}
    fn install(&mut self, _: u32, _: Arc<Unit>) {}
    fn free_slot(&mut self, _: u32) {}
    fn submit(&mut self, _: Step) {}

    fn poll(&mut self) -> Option<Outcome> {
        self.0.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn busy_until(&self) -> Option<Instant> {
        None
    }

    fn read_rows(&mut self, _: &[Row], _: &mut Vec<f32>) {}
    fn write_rows(&mut self, _: &[Row], _: &[f32]) {}

    fn row_len(&self) -> usize {
        1
    }

    fn take_logprobs(&mut self) -> Vec<SampledLogprobs> {
        vec![]
    }

    fn set_probe(&mut self, _: Option<Box<dyn Probe>>) {}

    fn calibrate(&mut self) -> Costs {
        Costs::default()
    }
}

#[derive(Default)]
struct Reports(Mutex<Vec<WorkerSample>>);

impl Observer for Reports {
    fn report(&self, sample: WorkerSample) {
        self.0.lock().unwrap().push(sample);
    }
}

/// Runs a worker over this mail, all of which is there from the start: what it reported, and how often it looked at its
/// device.
fn run(mails: impl IntoIterator<Item = Mail<Unit>>) -> (Vec<WorkerSample>, usize) {
    let hybrid = EngineOptions { layout: Layout::Hybrid, attention_ranks: 1, expert_workers: 1, ..options() };
    let memory = Footprint::WEIGHTLESS;
    let plan = size(&costs().spec(), &hybrid, memory).unwrap().workers.remove(0);
    let (address, inbox) = channel();
    mails.into_iter().chain([Mail::Stop]).for_each(|mail| address.send(mail).unwrap());
    let (polls, reports) = (Arc::new(AtomicUsize::new(0)), Arc::new(Reports::default()));
    let (loader, _orders) = channel();
    let thread = WorkerThread {
        id: plan.config.id,
        role: plan.role,
        spans: TokenSpans::new(plan.config.id),
        core: Worker::new(plan.config).unwrap(),
        backend: Endless(Arc::clone(&polls)),
        clock: Clock::start(),
        inbox,
        address,
        loader,
        observer: reports.clone(),
        link: None,
    };
    thread.run().unwrap();
    let reports = reports.0.lock().unwrap().clone();
    (reports, polls.load(Ordering::Relaxed))
}

fn bind() -> Mail<Unit> {
    let bind = Bind {
        seq: SeqKey { request: 1, choice: 0 },
        attempt: 1,
        gateway: GatewayId(0),
        ids: [1, 2, 3].into(),
        produced: 0,
        stop: StopRule { max_tokens: 9, ..StopRule::default() },
        deadline: None,
        salt: 0,
        age: 1,
        replay: false,
    };
    let sampling = Arc::new(SamplingParams::greedy());
    Mail::Bind { bind, draw: Draw { sampling, grammar: None, span: tracing::Span::none() } }
}

/// However much comes: what is there already is gone on with.
#[test]
fn a_flood_of_mail_does_not_keep_the_device_waiting() {
    let flood = (0..10_000).map(|_| Mail::Report);
    let (_, polls) = run([bind()].into_iter().chain(flood));
    assert!(polls >= 10, "it was looked at {polls} times");
}

#[test]
fn a_report_says_whether_it_was_made_after_the_drain() {
    let last = |mails: Vec<Mail<Unit>>| run(mails).0.pop().map(|sample| (sample.draining, sample.busy));
    assert_eq!(last(vec![Mail::Report]), Some((false, false)));
    assert_eq!(last(vec![bind()]), Some((false, true)));
    assert_eq!(last(vec![Mail::Drain { hand_back: false }]), Some((true, false)));
    assert_eq!(last(vec![bind(), Mail::Drain { hand_back: false }]), Some((true, true)));
}
