//! The thread of one worker: mail and outcomes into the core, the core's actions out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use sluice_core::event::{Action, Event};
use sluice_core::frame::{Body, Frame};
use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, Nanos, Row, SeqKey, WorkerId};
use sluice_core::sequence::RankEvent;
use sluice_core::step::Step;
use sluice_core::worker::Worker;

use super::clock::Clock;
use super::link::Port;
use super::links::{FrontLink, PeerLink, Slab, Told};
use super::loader::Order;
use super::mail::{Arrival, Mail};
use super::observe::Observer;
use crate::backend::Backend;
use crate::sampling::{Logprobs, SequenceSampling};
use crate::telemetry::{StepKind, TokenSpans, WorkerSample};

/// How often a worker shows its state.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A rank tells its load again at the earliest after this.
const LOAD_EVERY: Nanos = 20_000_000;

/// So much mail is taken before what follows from it is decided, and a step begun: whoever never stops sending must not
/// keep everybody else waiting.
const AT_ONCE: usize = 256;

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
    /// What reaches the peers that are there.
    peers: HashMap<WorkerId, Arc<dyn PeerLink>>,
    /// What reaches the gateways, and what they are to be told.
    fronts: HashMap<GatewayId, Front>,
    running: Option<(StepKind, usize, Instant)>,
    next_report: Instant,
    /// Frames came, and what follows from them has not been decided.
    unsettled: bool,
    /// It was told to take nothing new.
    draining: bool,
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
            peers: HashMap::new(),
            fronts: HashMap::new(),
            running: None,
            next_report: Instant::now(),
            unsettled: false,
            draining: false,
            gathered: vec![],
            values: vec![],
        };
        loop {
            for _ in 0..AT_ONCE {
                match self.inbox.try_recv() {
                    Ok(Mail::Stop) | Err(TryRecvError::Disconnected) => {
                        self.report(&state);
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
                self.report(&state);
                return Err(why);
            }
            if Instant::now() >= state.next_report {
                state.next_report = Instant::now() + REPORT_EVERY;
                self.report(&state);
            }
            if state.running.is_some()
                && let Some(outcome) = self.backend.poll()
            {
                self.finished(outcome, &mut state);
                continue;
            }
            if let Some(port) = &mut self.link
                && let Some(arrival) = port.due(Instant::now())
            {
                self.receive(self.clock.now(), arrival, &mut state);
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
                    self.report(&state);
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
            Mail::Frame(arrival) => {
                return match (arrival.at, &mut self.link) {
                    (Some(at), Some(port)) => port.take(at, arrival),
                    _ => self.receive(now, arrival, state),
                };
            }
            Mail::Bind { bind, draw } => {
                state.pending.insert((bind.seq, bind.attempt), (draw.start(&bind), draw.span));
                self.core.handle(now, Event::Bind(bind));
            }
            Mail::Cancel { seq, attempt } => self.core.handle(now, Event::Cancel { seq, attempt }),
            Mail::Peer { up, link } => {
                state.peers.insert(up.worker, link);
                self.core.handle(now, Event::PeerUp(up));
            }
            Mail::PeerDown { worker, sign } => {
                state.peers.remove(&worker);
                let before = self.core.counters().redispatched;
                self.core.handle(now, Event::PeerDown(worker));
                self.act(state);
                if self.core.counters().redispatched > before {
                    self.observer.redispatched(sign.elapsed());
                }
                return;
            }
            Mail::Front { gateway, link } => {
                state.fronts.insert(gateway, Front { link, told: vec![], last_load: None });
            }
            Mail::FrontDown { gateway } => {
                state.fronts.remove(&gateway);
            }
            Mail::Placement(slice) => self.core.handle(now, Event::Placement(slice)),
            Mail::Loaded { slot, unit, weights } => {
                let ok = weights.is_ok();
                if let Ok(weights) = weights {
                    self.backend.install(slot, weights);
                }
                self.core.handle(now, Event::SlotLoaded { slot, unit, ok });
                state.next_report = Instant::now();
            }
            Mail::Drain { hand_back } => {
                state.draining = true;
                self.core.handle(now, Event::Drain { hand_back });
            }
            Mail::Report => state.next_report = Instant::now(),
            Mail::Stop => {}
        }
        self.act(state);
    }

    fn receive(&mut self, now: Nanos, arrival: Arrival, state: &mut State) {
        let Arrival { from, frame, payload, .. } = arrival;
        let landing = self.core.receive(now, from, frame);
        state.unsettled = true;
        if landing.is_empty() {
            return;
        }
        let (len, payload) = (self.backend.row_len(), payload.values());
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
                Action::Tell { gateway, seq, attempt, event } => {
                    if !matches!(event, RankEvent::Accepted | RankEvent::Token { .. }) {
                        state.pending.remove(&(seq, attempt));
                    }
                    let logprobs = match event {
                        RankEvent::Token { index, .. } => state.logprobs.remove(&(seq, index)),
                        _ => None,
                    };
                    if let Some(front) = state.fronts.get_mut(&gateway) {
                        front.told.push(Told { seq, attempt, event, logprobs });
                    }
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
                Action::Sever { worker } => {
                    if let Some(link) = state.peers.remove(&worker) {
                        link.sever();
                    }
                }
                Action::NoRing { worker: rank } => tracing::warn!(
                    worker = self.id.0,
                    peer = rank.0,
                    "{} has room for no other attention rank, so {rank} sends it nothing: raise --max-ranks",
                    self.id
                ),
                Action::FreeSlot { slot, .. } => self.backend.free_slot(slot),
            }
        }
    }

    fn send(&mut self, to: WorkerId, frame: Frame, state: &mut State) {
        let Some(link) = state.peers.get(&to) else { return };
        let at = self.link.as_mut().map(|port| port.depart(Instant::now(), &frame));
        let mut rows = Rows { backend: &mut self.backend, gathered: &mut state.gathered };
        link.send(frame, &mut rows, at);
    }

    /// Passes on what the rank said, with its load now and then.
    fn tell(&mut self, state: &mut State) {
        let Some(load) = self.core.rank_load() else { return };
        let now = self.clock.now();
        for front in state.fronts.values_mut() {
            let fresh = front.last_load.is_none_or(|(at, last)| last != load && now >= at + LOAD_EVERY);
            if front.told.is_empty() && !fresh {
                continue;
            }
            if fresh {
                front.last_load = Some((now, load));
            }
            front.link.rank(self.id, std::mem::take(&mut front.told), fresh.then_some(load));
        }
    }

    fn report(&self, state: &State) {
        self.observer.report(WorkerSample {
            worker: self.id,
            role: self.role,
            counters: *self.core.counters(),
            pressure: self.core.pressure(self.clock.now()),
            ready: self.core.is_ready(),
            busy: self.core.is_busy(),
            draining: state.draining,
            failure: self.core.failure().map(str::to_owned),
        });
    }
}

/// One gateway.
struct Front {
    link: Arc<dyn FrontLink>,
    told: Vec<Told>,
    last_load: Option<(Nanos, RankLoad)>,
}

/// The worker's rows, for a link to read.
struct Rows<'a, B> {
    backend: &'a mut B,
    gathered: &'a mut Vec<Row>,
}

impl<B: Backend> Slab for Rows<'_, B> {
    fn payload(&mut self, frame: &Frame, into: &mut Vec<f32>) {
        match &frame.body {
            Body::Tokens(batch) => {
                self.gathered.clear();
                self.gathered.extend(batch.rows.iter().map(|r| r.src));
                self.backend.read_rows(self.gathered, into);
            }
            Body::Returns(batch) => self.backend.read_rows(&batch.rows, into),
            _ => {}
        }
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
