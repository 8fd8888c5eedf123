//! The thread of one worker: mail and outcomes into the core, the core's actions out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use sluice_core::event::{Action, Event};
use sluice_core::frame::{Body, Frame};
use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, Nanos, Row, SeqKey, WorkerId};
use sluice_core::sequence::{Bind, RankEvent};
use sluice_core::step::Step;
use sluice_core::worker::Worker;

use super::clock::Clock;
use super::front::Choice;
use super::link::{Held, Port};
use super::loader::Order;
use super::mail::{FrontMail, Mail, Told};
use super::observe::Observer;
use crate::backend::Backend;
use crate::sampling::{Logprobs, SequenceSampling};
use crate::telemetry::{StepKind, TokenSpans, WorkerSample};

/// How often a worker shows its state.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A rank tells its load again at the earliest after this.
const LOAD_EVERY: Nanos = 20_000_000;

/// What a worker thread works with.
pub(super) struct WorkerThread<B: Backend> {
    pub id: WorkerId,
    pub role: &'static str,
    pub core: Worker,
    pub backend: B,
    pub clock: Clock,
    pub inbox: Receiver<Mail<B::Unit>>,
    /// Its own address, for loaders to answer to.
    pub address: Sender<Mail<B::Unit>>,
    /// By worker id.
    pub peers: Vec<Sender<Mail<B::Unit>>>,
    pub front: Sender<FrontMail>,
    pub loader: Sender<Order<B::Unit>>,
    pub observer: Arc<dyn Observer>,
    pub link: Option<Port>,
    pub spans: TokenSpans,
}

/// What belongs to one attempt of one sequence.
type AttemptKey = (SeqKey, Attempt);

struct State {
    /// Bound, not opened yet.
    pending: HashMap<AttemptKey, (SequenceSampling, tracing::Span)>,
    /// By handle.
    open: HashMap<u32, AttemptKey>,
    /// Log-probabilities of the last head step.
    logprobs: HashMap<(SeqKey, u32), Box<Logprobs>>,
    told: Vec<Told>,
    running: Option<(StepKind, usize, Instant)>,
    last_load: Option<(Nanos, RankLoad)>,
    next_report: Instant,
    /// Frames came, and what follows from them has not been decided.
    unsettled: bool,
    gathered: Vec<Row>,
    values: Vec<f32>,
}

impl<B: Backend> WorkerThread<B> {
    /// Until [`Mail::Stop`], or until everybody else is gone.
    ///
    /// # Errors
    /// The device failed: what it said.
    pub(super) fn run(mut self) -> Result<(), String> {
        let mut state = State {
            pending: HashMap::new(),
            open: HashMap::new(),
            logprobs: HashMap::new(),
            told: vec![],
            running: None,
            last_load: None,
            next_report: Instant::now(),
            unsettled: false,
            gathered: vec![],
            values: vec![],
        };
        loop {
            loop {
                match self.inbox.try_recv() {
                    Ok(Mail::Stop) | Err(TryRecvError::Disconnected) => {
                        self.report();
                        return Ok(());
                    }
                    Ok(mail) => self.take(mail, &mut state),
                    Err(TryRecvError::Empty) => break,
                }
            }
            if std::mem::take(&mut state.unsettled) {
                self.core.settle(self.clock.now());
                self.act(&mut state);
            }
            if let Some(why) = self.core.failure().map(str::to_owned) {
                self.tell(&mut state);
                self.report();
                return Err(why);
            }
            if Instant::now() >= state.next_report {
                state.next_report = Instant::now() + REPORT_EVERY;
                self.report();
            }
            if state.running.is_some()
                && let Some(outcome) = self.backend.poll()
            {
                self.finished(outcome, &mut state);
                continue;
            }
            if let Some(port) = &mut self.link
                && let Some(Held { from, frame, payload }) = port.due(Instant::now())
            {
                self.receive(self.clock.now(), from, frame, &payload, &mut state);
                continue;
            }
            let now = self.clock.now();
            if self.core.wake().is_some_and(|at| at <= now) {
                self.core.handle(now, Event::Tick);
                self.act(&mut state);
                continue;
            }
            self.tell(&mut state);
            match self.inbox.recv_timeout(self.patience(&state)) {
                Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.report();
                    return Ok(());
                }
                Ok(mail) => self.take(mail, &mut state),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// How long there is nothing to do if no mail comes.
    fn patience(&self, state: &State) -> Duration {
        let mut wait = state.next_report.saturating_duration_since(Instant::now());
        if let Some(at) = self.core.wake() {
            wait = wait.min(self.clock.until(at));
        }
        if let Some(at) = self.link.as_ref().and_then(Port::next) {
            wait = wait.min(at.saturating_duration_since(Instant::now()));
        }
        if state.running.is_some() {
            let until = self.backend.busy_until().map(|t| t.saturating_duration_since(Instant::now()));
            // A device that cannot say when it is done is asked again soon.
            wait = wait.min(until.unwrap_or(Duration::from_micros(5)));
        }
        wait
    }

    fn take(&mut self, mail: Mail<B::Unit>, state: &mut State) {
        let now = self.clock.now();
        match mail {
            Mail::Frame { from, frame, payload, at } => {
                return match (at, &mut self.link) {
                    (Some(at), Some(port)) => port.take(at, Held { from, frame, payload }),
                    _ => self.receive(now, from, frame, &payload, state),
                };
            }
            Mail::Bind { bind, choice } => {
                state
                    .pending
                    .insert((bind.seq, bind.attempt), (sampling(&bind, &choice), choice.span.clone()));
                self.core.handle(now, Event::Bind(bind));
            }
            Mail::Cancel { seq, attempt } => self.core.handle(now, Event::Cancel { seq, attempt }),
            Mail::Peer(hello) => self.core.handle(now, Event::PeerUp(hello)),
            Mail::Placement(slice) => self.core.handle(now, Event::Placement(slice)),
            Mail::Loaded { slot, unit, weights } => {
                let ok = weights.is_ok();
                if let Ok(weights) = weights {
                    self.backend.install(slot, weights);
                }
                self.core.handle(now, Event::SlotLoaded { slot, unit, ok });
                state.next_report = Instant::now();
            }
            Mail::Report => state.next_report = Instant::now(),
            Mail::Stop => {}
        }
        self.act(state);
    }

    fn receive(&mut self, now: Nanos, from: WorkerId, frame: Frame, payload: &[f32], state: &mut State) {
        let landing = self.core.receive(now, from, frame);
        state.unsettled = true;
        if landing.is_empty() {
            return;
        }
        let len = self.backend.row_len();
        state.gathered.clear();
        state.gathered.extend(landing.iter().map(|(_, row)| *row));
        if landing.iter().enumerate().all(|(i, (at, _))| i as u32 == *at) {
            self.backend.write_rows(&state.gathered, &payload[..landing.len() * len]);
            return;
        }
        state.values.clear();
        for (at, _) in &landing {
            state.values.extend_from_slice(&payload[*at as usize * len..][..len]);
        }
        self.backend.write_rows(&state.gathered, &state.values);
    }

    fn finished(&mut self, outcome: sluice_core::step::Outcome, state: &mut State) {
        if let Some((kind, rows, start)) = state.running.take() {
            self.spans.end();
            self.observer.step(self.id, kind, rows, start.elapsed());
            if kind == StepKind::Head {
                for l in self.backend.take_logprobs() {
                    if let Some((seq, _)) = state.open.get(&l.seq.0) {
                        state.logprobs.insert((*seq, l.index), Box::new(l.logprobs));
                    }
                }
            }
        }
        self.core.handle(self.clock.now(), Event::Done(outcome));
        self.act(state);
        state.logprobs.clear();
    }

    fn act(&mut self, state: &mut State) {
        let actions: Vec<Action> = self.core.actions().collect();
        for action in actions {
            match action {
                Action::Run(step) => {
                    // A backend on the CPU is busy until the step is over: what is known now must not wait for that.
                    self.tell(state);
                    let (kind, rows) = describe(&step);
                    self.spans.begin(&step);
                    state.running = Some((kind, rows, Instant::now()));
                    self.backend.submit(step);
                }
                Action::Send { to, frame } => self.send(to, frame, state),
                Action::Tell { seq, attempt, event, .. } => {
                    if !matches!(event, RankEvent::Accepted | RankEvent::Token { .. }) {
                        state.pending.remove(&(seq, attempt));
                    }
                    let logprobs = match event {
                        RankEvent::Token { index, .. } => state.logprobs.remove(&(seq, index)),
                        _ => None,
                    };
                    state.told.push(Told { seq, attempt, event, logprobs });
                }
                Action::Open { handle, seq, attempt } => {
                    state.open.insert(handle.0, (seq, attempt));
                    match state.pending.remove(&(seq, attempt)) {
                        Some((sampling, span)) => {
                            self.spans.open(handle, seq, &span);
                            self.backend.open(handle, sampling);
                        }
                        None => tracing::error!(%seq, attempt, "opened without its sampling parameters"),
                    }
                }
                Action::Close { handle } => {
                    state.open.remove(&handle.0);
                    self.spans.close(handle);
                    self.backend.close(handle);
                }
                Action::LoadSlot { slot, unit } => {
                    let _ = self.loader.send(Order { slot, unit, reply: self.address.clone() });
                }
                // Nobody is taken for lost here: see `patience` in sizing.
                Action::Sever { .. } => {}
                Action::FreeSlot { slot, .. } => self.backend.free_slot(slot),
            }
        }
    }

    fn send(&mut self, to: WorkerId, frame: Frame, state: &mut State) {
        let mut payload = vec![];
        match &frame.body {
            Body::Tokens(batch) => {
                state.gathered.clear();
                state.gathered.extend(batch.rows.iter().map(|r| r.src));
                self.backend.read_rows(&state.gathered, &mut payload);
            }
            Body::Returns(batch) => self.backend.read_rows(&batch.rows, &mut payload),
            _ => {}
        }
        if let Some(peer) = self.peers.get(to.0 as usize) {
            let at = self.link.as_mut().map(|port| port.depart(Instant::now(), &frame));
            let _ = peer.send(Mail::Frame { from: self.id, frame, payload, at });
        }
    }

    /// Passes on what the rank said, with its load now and then.
    fn tell(&mut self, state: &mut State) {
        let Some(load) = self.core.rank_load() else { return };
        let now = self.clock.now();
        let fresh = state.last_load.is_none_or(|(at, last)| last != load && now >= at + LOAD_EVERY);
        if state.told.is_empty() && !fresh {
            return;
        }
        if fresh {
            state.last_load = Some((now, load));
        }
        let events = std::mem::take(&mut state.told);
        let _ = self.front.send(FrontMail::Rank { rank: self.id, events, load: fresh.then_some(load) });
    }

    fn report(&self) {
        self.observer.report(WorkerSample {
            worker: self.id,
            role: self.role,
            counters: *self.core.counters(),
            pressure: self.core.pressure(self.clock.now()),
            ready: self.core.is_ready(),
            failure: self.core.failure().map(str::to_owned),
        });
    }
}

fn sampling(bind: &Bind, choice: &Choice) -> SequenceSampling {
    SequenceSampling {
        params: (*choice.sampling).clone(),
        choice: bind.seq.choice,
        ids: Arc::clone(&bind.ids),
        produced: bind.produced,
        stop_ids: bind.stop.ids.clone(),
        min_tokens: bind.stop.min_tokens,
        constraint: choice.grammar.as_ref().map(crate::sampling::CompiledGrammar::start),
    }
}

fn describe(step: &Step) -> (StepKind, usize) {
    match step {
        Step::Attention(s) if s.span => (StepKind::Span, s.rows.len()),
        Step::Attention(s) => (StepKind::Attention, s.rows.len()),
        Step::Experts(s) => (StepKind::Experts, s.items.len()),
        Step::Head(s) => (StepKind::Head, s.rows.len()),
    }
}
