//! Many cores on a virtual clock: events in, actions out, and what is between them.

mod failure;
mod gateway;
mod hello;
mod link;
mod words;

use crate::client::Client;
use crate::coverage::Coverage;
use crate::device::{Backend, Device};
use crate::faults::Fault;
use crate::heap::Heap;
use crate::ledger::{Ledger, Sender};
use crate::link::{End, Envelope, Link, Said};
use crate::operator::{Later, Operation, Operator};
use crate::pairs::Pairs;
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::wire::Wire;
use gateway::Gateway;
use hello::Name;
use link::{Answer, Open};
use sluice_core::config::Shape;
use sluice_core::event::{Action, Event};
use sluice_core::frame::{Body, Frame};
use sluice_core::front::{Action as FrontAction, RankLoad};
use sluice_core::hello::Members;
use sluice_core::ids::{Attempt, MICRO, Nanos, SeqKey, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, ReplicaState};
use sluice_core::sequence::RankEvent;
use sluice_core::session::SessionId;
use sluice_core::step::{Outcome, Step};
use sluice_core::worker::Worker;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Something happened that must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When, on the virtual clock.
    pub at: Nanos,
    /// At which event.
    pub event: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.3} us, event {}: {}", self.at as f64 / 1e3, self.event, self.what)
    }
}

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events handled.
    pub events: u64,
    /// Virtual time.
    pub time: Nanos,
    /// What occurred in it.
    pub coverage: Coverage,
}

enum Ev {
    Arrive { flight: u32 },
    Done { worker: u32, life: u32 },
    Decide { worker: u32 },
    Tick { worker: u32 },
    Table { worker: u32, slice: Arc<PlacementSlice> },
    Loaded { worker: u32, life: u32, slot: u32, unit: Unit, ok: bool },
    Cancel { worker: u32, life: u32, seq: SeqKey, attempt: Attempt },
    Operate(Operation),
    Follow(Later),
    Fault(Fault),
    // Between workers.
    Lost { worker: u32, peer: u32, epoch: u32 },
    Join { a: u32, b: u32 },
    Meet { worker: u32, peer: u32, epoch: u32 },
    Hello { worker: u32, peer: u32, incarnation: u64 },
    Restart { worker: u32 },
    Leaves { worker: u32, life: u32, away: Nanos },
    // Between gateways and ranks.
    Dial { gateway: u32, rank: u32 },
    Open { gateway: u32, rank: u32, open: Open },
    Answer { gateway: u32, rank: u32, connection: u32, answer: Answer },
    Unanswered { gateway: u32, rank: u32, connection: u32 },
    ToRank { gateway: u32, rank: u32, connection: u32, envelope: Envelope<Event> },
    ToGateway { gateway: u32, rank: u32, connection: u32, envelope: Envelope<Said> },
    LateToRank { gateway: u32, rank: u32, life: u32, id: SessionId, event: Event },
    LateToGateway { gateway: u32, rank: u32, id: SessionId, said: Said },
    Beat { gateway: u32, rank: u32, end: End },
    Silent { gateway: u32, rank: u32, connection: u32, end: End },
    Broke { gateway: u32, rank: u32, connection: u32, end: End },
    Over { gateway: u32, rank: u32, id: SessionId, end: End },
    Lapse { gateway: u32, rank: u32, id: SessionId },
    // Gateways and their clients.
    FrontTick { gateway: u32 },
    Submit { arrival: u32 },
    Quit { arrival: u32 },
    Halt { gateway: u32, incarnation: u64 },
    Leave { gateway: u32, incarnation: u64 },
    Return { gateway: u32 },
}

struct Flight {
    from: u32,
    to: u32,
    /// Until the last copy is delivered.
    frame: Option<Frame>,
    payload: Vec<u64>,
    /// Copies under way.
    copies: u8,
    heard: bool,
    /// The receiver's life when it was sent.
    life: u32,
}

struct Node {
    core: Worker,
    device: Device,
    running: Option<Step>,
    tick: Option<Nanos>,
    /// Attempt and age of the sequences that a rank was asked to take, and whether it has.
    bound: HashMap<SeqKey, (Attempt, u64, bool)>,
    draining: bool,
    is_alive: bool,
    /// Rises when it dies.
    life: u32,
    /// It does nothing until then.
    paused: Nanos,
    /// Its steps take so many times as long until then.
    slow: (Nanos, u64),
    members: Members,
    /// The newest incarnation met of everybody, as the books have it.
    greeted: HashMap<Name, u64>,
    /// The newest generation heard of each block.
    generations: BTreeMap<u16, u64>,
    /// The placement that it knew last, which survives it.
    disk: BTreeMap<u16, Arc<PlacementSlice>>,
    /// The oldest token's arrival while it is overdue, and steps that may still start before it runs.
    overdue: Option<(Nanos, u64)>,
}

impl Node {
    /// A step has started: no token starves. The queue of one that is overdue is released every second step, so it
    /// runs before there have been two steps for each row that waits here.
    fn started(&mut self, now: Nanos) -> Result<(), String> {
        let Some((since, _)) = self.core.oldest(now).filter(|o| o.1 < now) else {
            self.overdue = None;
            return Ok(());
        };
        let left = match self.overdue {
            Some((s, left)) if s == since => left,
            _ => {
                let p = self.core.pressure(now);
                let queues = p.attention.iter().chain(p.experts.iter().map(|e| &e.1));
                2 * queues.map(|q| u64::from(q.rows)).sum::<u64>() + 4
            }
        };
        self.overdue = Some((since, left.saturating_sub(1)));
        if left == 0 {
            return Err(format!("a token waits for {:.1} us and is not run", (now - since) as f64 / 1e3));
        }
        Ok(())
    }
}

/// A run.
pub struct World {
    shape: Shape,
    scenario: Scenario,
    now: Nanos,
    events: u64,
    /// Events until a client was last given a token.
    told: u64,
    heap: Heap<Ev>,
    rng: Rng,
    nodes: Vec<Node>,
    wire: Wire,
    pairs: Pairs,
    flights: Vec<Option<Flight>>,
    free_flights: Vec<u32>,
    ledger: Ledger,
    gateways: Vec<Gateway>,
    /// Per (gateway, worker).
    links: Vec<Link>,
    /// Sessions begun at ranks.
    sessions: u32,
    clients: Vec<Client>,
    by_key: HashMap<SeqKey, u32>,
    operator: Operator,
    /// All slices there ever were.
    published: Vec<Arc<PlacementSlice>>,
    coverage: Coverage,
    failure: Option<String>,
    trace: bool,
    out: Vec<FrontAction<u32>>,
    actions: Vec<Action>,
}

impl World {
    /// Runs a scenario to its end.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(scenario: Scenario, seed: u64, trace: bool) -> Result<Report, Violation> {
        let mut world =
            Self::new(scenario, seed, trace).map_err(|what| Violation { at: 0, event: 0, what })?;
        world.start();
        world.drive()
    }

    fn new(scenario: Scenario, seed: u64, trace: bool) -> Result<Self, String> {
        let mut rng = Rng::new(seed.rotate_left(17));
        let n = scenario.workers.len();
        let nodes: Result<Vec<Node>, String> = scenario
            .workers
            .iter()
            .enumerate()
            .map(|(i, config)| {
                let core = Worker::new(config.clone()).map_err(|e| format!("{}: {e}", config.id))?;
                let device = Device::new(config, scenario.hot);
                let bound = HashMap::new();
                Ok(Node {
                    core,
                    device,
                    running: None,
                    tick: None,
                    bound,
                    draining: false,
                    is_alive: true,
                    life: 0,
                    paused: 0,
                    slow: (0, 1),
                    members: hello::members(i, 0),
                    greeted: HashMap::new(),
                    generations: BTreeMap::new(),
                    disk: BTreeMap::new(),
                    overdue: None,
                })
            })
            .collect();
        let slots = scenario.workers.iter().map(|w| w.host.as_ref().map_or(0, |h| h.slots)).collect();
        let first = SessionId { incarnation: 1, number: 1 };
        let links =
            (0..scenario.gateways.len() * n).map(|_| Link::new(first, scenario.link.limits)).collect();
        Ok(Self {
            shape: scenario.shape.clone(),
            now: 0,
            events: 0,
            told: 0,
            heap: Heap::new(),
            nodes: nodes?,
            wire: Wire::new(scenario.wire, n, rng.fork()),
            flights: vec![],
            free_flights: vec![],
            pairs: Pairs::new(n),
            ledger: Ledger::new(n),
            gateways: scenario.gateways.iter().map(|g| Gateway::new(*g)).collect(),
            links,
            sessions: 0,
            clients: vec![],
            by_key: HashMap::new(),
            operator: Operator::new(scenario.tables.clone(), slots, scenario.shape.segments, rng.fork()),
            published: vec![],
            coverage: Coverage::default(),
            failure: None,
            trace,
            out: vec![],
            actions: vec![],
            rng,
            scenario,
        })
    }

    /// Everybody meets everybody, then the first placement is known, then clients come.
    fn start(&mut self) {
        let n = self.nodes.len();
        let mut pairs: Vec<(usize, usize)> = (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).collect();
        pairs.retain(|(a, b)| a != b);
        self.rng.shuffle(&mut pairs);
        for (a, b) in pairs {
            self.meet(a, b, 1);
        }
        for slice in self.operator.all() {
            self.publish(&slice, true);
        }
        for gateway in 0..self.gateways.len() {
            for rank in self.ranks() {
                self.dial(gateway, rank);
            }
        }
        for (i, a) in self.scenario.arrivals.iter().enumerate() {
            self.heap.push(a.at, Ev::Submit { arrival: i as u32 });
            if let Some(at) = a.cancel {
                self.heap.push(at, Ev::Quit { arrival: i as u32 });
            }
        }
        for (at, op) in &self.scenario.operations {
            self.heap.push(*at, Ev::Operate(*op));
        }
        for (at, fault) in &self.scenario.faults {
            self.heap.push(*at, Ev::Fault(*fault));
        }
    }

    fn ranks(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|w| self.scenario.workers[*w].rank.is_some()).collect()
    }

    fn drive(mut self) -> Result<Report, Violation> {
        while let Some((at, ev)) = self.heap.pop() {
            self.now = at;
            self.events += 1;
            self.step(ev);
            if self.events - self.told >= self.scenario.max_quiet {
                let open = self.clients.iter().filter(|c| c.is_open()).count();
                self.fail(format!("no end in sight: {open} requests are open; {}", self.held()));
            }
            if let Some(what) = self.failure.take() {
                return Err(Violation { at: self.now, event: self.events, what });
            }
        }
        self.settle().map_err(|what| Violation { at: self.now, event: self.events, what })?;
        for (node, config) in self.nodes.iter().zip(&self.scenario.workers) {
            self.coverage.add(node.core.counters());
            self.coverage.prefix_hits += node.core.pressure(self.now).prefix.0;
            self.coverage.waves = u64::from(config.waves > 1);
        }
        for gateway in &self.gateways {
            self.coverage.add_front(gateway.front.counts());
        }
        (self.coverage.joins, self.coverage.replica_drains) = self.operator.moved;
        Ok(Report { events: self.events, time: self.now, coverage: self.coverage })
    }

    fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(what.into());
        }
    }

    fn must(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.trace {
            crate::say!("{:>12.3} {:>6} {}", self.now as f64 / 1e3, self.events, text());
        }
    }

    fn step(&mut self, ev: Ev) {
        if let Some(until) = self.paused(&ev) {
            match ev {
                Ev::Tick { worker } => {
                    let node = &mut self.nodes[worker as usize];
                    if node.tick != Some(self.now) {
                        return;
                    }
                    node.tick = Some(until);
                }
                Ev::FrontTick { gateway } => {
                    let g = &mut self.gateways[gateway as usize];
                    if g.tick != Some(self.now) {
                        return;
                    }
                    g.tick = Some(until);
                }
                _ => {}
            }
            return self.heap.push(until, ev);
        }
        match ev {
            Ev::Arrive { flight } => self.arrive(flight),
            Ev::Done { worker, life } => {
                if self.nodes[worker as usize].life == life {
                    self.done(worker as usize);
                }
            }
            Ev::Decide { worker } => self.decide(worker as usize),
            Ev::Tick { worker } => {
                let node = &mut self.nodes[worker as usize];
                if node.tick == Some(self.now) {
                    node.tick = None;
                    self.handle(worker as usize, Event::Tick, false);
                }
            }
            Ev::Cancel { worker, life, seq, attempt } => {
                if self.nodes[worker as usize].life == life {
                    self.handle(worker as usize, Event::Cancel { seq, attempt }, false);
                }
            }
            Ev::FrontTick { gateway } => {
                let g = &mut self.gateways[gateway as usize];
                if g.tick == Some(self.now) {
                    g.tick = None;
                    let now = self.now;
                    self.front(gateway as usize, |front, out| front.tick(now, out));
                }
            }
            Ev::Dial { gateway, rank } => self.dial(gateway as usize, rank as usize),
            Ev::Open { gateway, rank, open } => self.open(gateway as usize, rank as usize, open),
            Ev::Answer { gateway, rank, connection, answer } => {
                self.answered(gateway as usize, rank as usize, connection, answer);
            }
            Ev::Unanswered { gateway, rank, connection } => {
                self.unanswered(gateway as usize, rank as usize, connection);
            }
            Ev::ToRank { gateway, rank, connection, envelope } => {
                self.rank_hears(gateway as usize, rank as usize, connection, envelope);
            }
            Ev::ToGateway { gateway, rank, connection, envelope } => {
                self.gateway_hears(gateway as usize, rank as usize, connection, envelope);
            }
            Ev::LateToRank { gateway, rank, life, id, event } => {
                self.rank_hears_late(gateway as usize, rank as usize, life, id, event);
            }
            Ev::LateToGateway { gateway, rank, id, said } => {
                self.gateway_hears_late(gateway as usize, rank as usize, id, said);
            }
            Ev::Beat { gateway, rank, end } => self.beat(gateway as usize, rank as usize, end),
            Ev::Silent { gateway, rank, connection, end } => {
                self.silent(gateway as usize, rank as usize, connection, end);
            }
            Ev::Broke { gateway, rank, connection, end } => {
                self.broke(gateway as usize, rank as usize, connection, end);
            }
            Ev::Over { gateway, rank, id, end } => self.over(gateway as usize, rank as usize, id, end),
            Ev::Lapse { gateway, rank, id } => self.lapse(gateway as usize, rank as usize, id),
            Ev::Halt { gateway, incarnation } => self.halt(gateway as usize, incarnation),
            Ev::Leave { gateway, incarnation } => self.leave(gateway as usize, incarnation),
            Ev::Return { gateway } => self.gateway_returns(gateway as usize),
            Ev::Submit { arrival } => self.submit(arrival as usize),
            Ev::Quit { arrival } => self.quit(arrival as usize),
            Ev::Table { worker, slice } => {
                if !self.nodes[worker as usize].is_alive {
                    return;
                }
                self.note(|| {
                    format!(
                        "worker {worker} <- placement of {:?}, generation {}",
                        slice.blocks, slice.generation
                    )
                });
                self.handle(worker as usize, Event::Placement(Arc::clone(&slice)), false);
                // Not before: what was decided until now is only sent by that.
                self.learn(worker as usize, &slice);
                self.report_held(WorkerId(worker), &slice);
            }
            Ev::Loaded { worker, life, slot, unit, ok } => {
                if self.nodes[worker as usize].life != life {
                    return;
                }
                if ok {
                    self.nodes[worker as usize].device.hold(slot, Some(unit));
                }
                self.note(|| format!("worker {worker} has loaded {unit} into slot {slot}: {ok}"));
                self.handle(worker as usize, Event::SlotLoaded { slot, unit, ok }, false);
                self.operator.loaded(WorkerId(worker), unit, ok);
                self.operated();
            }
            Ev::Operate(op) => {
                self.operator.apply(op);
                self.operated();
            }
            Ev::Follow(later) => {
                self.operator.follow(later);
                self.operated();
            }
            Ev::Fault(fault) => self.fault(fault),
            Ev::Lost { worker, peer, epoch } => self.lost(worker as usize, peer as usize, epoch),
            Ev::Join { a, b } => self.join(a as usize, b as usize),
            Ev::Meet { worker, peer, epoch } => self.meet(worker as usize, peer as usize, epoch),
            Ev::Hello { worker, peer, incarnation } => {
                self.late_hello(worker as usize, peer as usize, incarnation);
            }
            Ev::Restart { worker } => self.restart(worker as usize),
            Ev::Leaves { worker, life, away } => {
                if self.nodes[worker as usize].life == life {
                    self.kill(worker as usize, away);
                }
            }
        }
    }

    // ---- workers

    fn handle(&mut self, worker: usize, event: Event, fresh: bool) {
        self.nodes[worker].core.handle(self.now, event);
        self.drain(worker, fresh);
    }

    fn done(&mut self, worker: usize) {
        let node = &mut self.nodes[worker];
        let Some(step) = node.running.take() else { return };
        let outcome = match node.device.finish(&step) {
            Ok(outcome) => outcome,
            Err(what) => return self.fail(format!("worker {worker}: {what}")),
        };
        let fresh = matches!(outcome, Outcome::Routed(_));
        self.note(|| format!("worker {worker} is done: {outcome:?}"));
        self.handle(worker, Event::Done(outcome), fresh);
    }

    fn arrive(&mut self, id: u32) {
        let Some(flight) = &self.flights[id as usize] else { return };
        let (from, to) = (flight.from as usize, flight.to as usize);
        let epoch = flight.frame.as_ref().map_or(0, |f| f.epoch);
        // Behind the hello that it follows.
        if epoch == self.pairs.epoch(from, to) && self.pairs.met(to, from) < epoch {
            let at = self.now + self.hop();
            return self.heap.push(at, Ev::Arrive { flight: id });
        }
        let Some(flight) = &mut self.flights[id as usize] else { return };
        flight.copies -= 1;
        let frame = if flight.copies > 0 { flight.frame.clone() } else { flight.frame.take() };
        let (copies, life) = (flight.copies, flight.life);
        let Some(frame) = frame else { return };
        let present = frame.epoch == self.pairs.epoch(from, to);
        // A broken connection loses some of what was under way, a dead worker all.
        let dead = self.nodes[to].life != life || (!present && self.pairs.met(to, from) == 0);
        if dead || (!present && self.rng.chance(50)) {
            return self.landed(id, copies);
        }
        let first = !flight.heard;
        flight.heard = true;
        if first && present {
            let heard = self.ledger.heard(from, to, &frame);
            self.must(heard);
        }
        if self.trace {
            let copy = if first { "" } else { " again" };
            self.note(|| format!("worker {to} <- {from}{copy}: {frame:?}"));
        }
        let landing = self.nodes[to].core.receive(self.now, WorkerId(from as u32), frame);
        if !first && !landing.is_empty() {
            self.fail(format!("worker {to} wants rows of a frame that came before"));
        }
        let Some(flight) = &self.flights[id as usize] else { return };
        for (i, row) in landing {
            match flight.payload.get(i as usize) {
                Some(value) => self.nodes[to].device.write(row, *value),
                None => {
                    self.failure =
                        Some(format!("worker {to} wants row {i} of a payload of {}", flight.payload.len()));
                }
            }
        }
        self.landed(id, copies);
        if self.rng.chance(self.scenario.gather) {
            let at = self.now + self.rng.range(0, 2 * MICRO);
            self.heap.push(at, Ev::Decide { worker: to as u32 });
        } else {
            self.decide(to);
        }
    }

    /// One copy of a frame is no longer under way.
    fn landed(&mut self, id: u32, copies_left: u8) {
        if copies_left == 0 {
            self.flights[id as usize] = None;
            self.free_flights.push(id);
        }
    }

    /// A worker has looked at all frames that were there.
    fn decide(&mut self, worker: usize) {
        self.nodes[worker].core.settle(self.now);
        self.drain(worker, false);
    }

    /// Carries out what a core has decided.
    fn drain(&mut self, worker: usize, fresh: bool) {
        let mut actions = std::mem::take(&mut self.actions);
        actions.extend(self.nodes[worker].core.actions());
        for action in actions.drain(..) {
            self.act(worker, action, fresh);
        }
        self.actions = actions;
        // Dear, so not at every event; each one is somewhere in some seed.
        if self.events.is_multiple_of(16) {
            let books = self.nodes[worker].core.check();
            self.must(books.map_err(|what| format!("worker {worker}: {what}")));
        }
        let node = &mut self.nodes[worker];
        if node.running.is_none()
            && let Some((since, due)) = node.core.oldest(self.now).filter(|o| o.1 < self.now)
        {
            let waited = (self.now - since) as f64 / 1e3;
            let over = (self.now - due) as f64 / 1e3;
            self.fail(format!(
                "worker {worker} is idle while a token waits for {waited:.1} us, {over:.1} too long"
            ));
        }
        let node = &mut self.nodes[worker];
        if let Some(at) = node.core.wake() {
            let at = at.max(self.now + 1);
            if node.tick.is_none_or(|t| at < t) {
                node.tick = Some(at);
                self.heap.push(at, Ev::Tick { worker: worker as u32 });
            }
        }
    }

    fn act(&mut self, worker: usize, action: Action, fresh: bool) {
        match action {
            Action::Run(step) => self.launch(worker, step),
            Action::Send { to, frame } => self.send(worker, to, frame, fresh),
            Action::Tell { gateway, seq, attempt, event } => {
                self.note(|| format!("worker {worker} says of {seq} ({attempt}): {event:?}"));
                self.told(worker, seq, attempt, &event);
                self.tell_gateway(worker, gateway, (seq, attempt), event);
            }
            Action::Open { handle, seq, .. } => {
                let Some(client) = self.by_key.get(&seq) else {
                    return self.fail(format!("{seq} is opened, which nobody asked"));
                };
                let request = Arc::clone(&self.clients[*client as usize].request);
                let opened = self.nodes[worker].device.open(handle, &request);
                self.must(opened);
            }
            Action::Close { handle } => {
                let closed = self.nodes[worker].device.close(handle);
                self.must(closed);
            }
            Action::LoadSlot { slot, unit } => {
                let joining =
                    self.operator.state(WorkerId(worker as u32), unit) == Some(ReplicaState::Joining);
                let ok = !(joining && self.rng.chance(self.scenario.load_failures));
                let at = self.now + 1 + self.rng.exp(self.scenario.hop * 4.0) as Nanos;
                let life = self.nodes[worker].life;
                self.heap.push(at, Ev::Loaded { worker: worker as u32, life, slot, unit, ok });
            }
            Action::Sever { worker: peer } => {
                self.note(|| format!("worker {worker} takes {peer} for lost"));
                let length = self.hop() * 4;
                self.sever(worker, peer.0 as usize, length);
            }
            Action::NoRing { worker: rank } => {
                self.fail(format!("worker {worker} has no landing ring for {rank}, and room for all"));
            }
            Action::FreeSlot { slot, .. } => self.nodes[worker].device.hold(slot, None),
        }
    }

    fn launch(&mut self, worker: usize, step: Step) {
        self.note(|| format!("worker {worker} runs {step:?}"));
        let node = &mut self.nodes[worker];
        if node.running.is_some() {
            return self.fail(format!("worker {worker} starts a step while one runs"));
        }
        let begun = node.device.begin(&step);
        let starved = node.started(self.now);
        let (until, factor) = self.nodes[worker].slow;
        let factor = if self.now < until { factor } else { 1 };
        let t = self.scenario.timing.of(&step, worker, &mut self.rng) * factor;
        let life = self.nodes[worker].life;
        self.heap.push(self.now + t, Ev::Done { worker: worker as u32, life });
        self.nodes[worker].running = Some(step);
        self.must(begun);
        self.must(starved.map_err(|what| format!("worker {worker}: {what}")));
    }

    fn send(&mut self, from: usize, to: WorkerId, frame: Frame, fresh: bool) {
        let to = to.0 as usize;
        if self.trace {
            self.note(|| format!("worker {from} -> {to}: {frame:?}"));
        }
        let ring = self.scenario.workers.get(to).and_then(|w| w.host.as_ref()).map_or(0, |h| h.ring);
        let c = self.nodes[from].core.counters();
        let exempt = c.redirected + c.redispatched + c.orphaned + c.credit_stalls > 0;
        if let Body::Tokens(batch) = &frame.body
            && let Some(newest) = self.nodes[from].generations.get(&batch.block)
            && batch.generation < *newest
        {
            let (block, generation) = (batch.block, batch.generation);
            self.fail(format!(
                "worker {from} routes block {block} by generation {generation}, and has heard of {newest}"
            ));
        }
        // A sender that does not know yet that the connection broke sends into nothing.
        if frame.epoch == self.pairs.epoch(from, to) {
            let sent = self.ledger.sent(from, to, &frame, Sender { ring, fresh, exempt });
            self.must(sent);
        }
        let device = &self.nodes[from].device;
        let payload: Vec<u64> = match &frame.body {
            Body::Tokens(b) => b.rows.iter().map(|r| device.read(r.src)).collect(),
            Body::Returns(b) => b.rows.iter().map(|r| device.read(*r)).collect(),
            _ => vec![],
        };
        let at = self.wire.leave(self.now, from, to, frame.channel, payload.len());
        let copy = self.wire.copy(at);
        let copies = 1 + u8::from(copy.is_some());
        let life = self.nodes[to].life;
        let (from, to, frame) = (from as u32, to as u32, Some(frame));
        let flight = Flight { from, to, frame, payload, copies, heard: false, life };
        let id = self.free_flights.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() as u32 - 1
        });
        self.flights[id as usize] = Some(flight);
        // Data frames are bounded by landing and return rows, marks and credits by what they speak of.
        let (pairs, under_way) = (self.nodes.len().pow(2), self.flights.len() - self.free_flights.len());
        if under_way > 64 * pairs + 256 {
            self.fail(format!("{under_way} frames are under way between {} workers", self.nodes.len()));
        }
        self.heap.push(at, Ev::Arrive { flight: id });
        if let Some(at) = copy {
            self.coverage.copies += 1;
            self.heap.push(at, Ev::Arrive { flight: id });
        }
    }

    /// What a rank was asked.
    fn asked(&mut self, rank: usize, event: &Event) {
        let node = &mut self.nodes[rank];
        if let Event::Bind(b) = event
            && node.bound.get(&b.seq).is_none_or(|(attempt, ..)| *attempt < b.attempt)
        {
            node.bound.insert(b.seq, (b.attempt, b.age, false));
        }
    }

    /// What a rank says of a sequence: the oldest that it has always proceeds.
    fn told(&mut self, worker: usize, seq: SeqKey, attempt: Attempt, event: &RankEvent) {
        let node = &mut self.nodes[worker];
        let Some((of, age, accepted)) = node.bound.get_mut(&seq).filter(|b| b.0 == attempt) else { return };
        let (age, _) = (*age, *of);
        match event {
            RankEvent::Accepted => *accepted = true,
            RankEvent::Token { .. } => {}
            RankEvent::Refused(_) | RankEvent::Finished(_) => {
                node.bound.remove(&seq);
            }
            RankEvent::HandedBack => {
                node.bound.remove(&seq);
                let older = node.bound.values().any(|(_, a, accepted)| *accepted && *a <= age);
                if !older && !node.draining {
                    self.fail(format!("worker {worker} hands back {seq}, the oldest it has"));
                }
            }
        }
    }

    fn load(&self, worker: usize) -> RankLoad {
        self.nodes[worker].core.rank_load().unwrap_or_default()
    }

    fn hop(&mut self) -> Nanos {
        1 + (self.scenario.hop * 0.5 + self.rng.exp(self.scenario.hop * 0.5)) as Nanos
    }

    // ---- the operator

    fn operated(&mut self) {
        for slice in std::mem::take(&mut self.operator.changed) {
            self.coverage.placements += 1;
            self.published.push(Arc::clone(&slice));
            self.note(|| format!("operator: {slice:?}"));
            self.publish(&slice, false);
        }
        for (after, later) in std::mem::take(&mut self.operator.later) {
            self.heap.push(self.now + after, Ev::Follow(later));
        }
    }

    /// A worker hears of a slice, be it for the first time or not.
    fn learn(&mut self, worker: usize, slice: &Arc<PlacementSlice>) {
        let node = &mut self.nodes[worker];
        for block in slice.blocks.clone() {
            let newest = node.generations.entry(block).or_insert(0);
            self.coverage.stale_generations += u64::from(slice.generation < *newest);
            *newest = slice.generation.max(*newest);
        }
        let known = node.disk.entry(slice.blocks.start).or_insert_with(|| Arc::clone(slice));
        if known.generation < slice.generation {
            *known = Arc::clone(slice);
        }
    }

    /// A worker that is to take in what it still holds loads nothing, and is ready at once.
    fn report_held(&mut self, worker: WorkerId, slice: &PlacementSlice) {
        let device = &self.nodes[worker.0 as usize].device;
        let joining =
            slice.replicas.iter().filter(|r| r.worker == worker && r.state == ReplicaState::Joining);
        for unit in joining.map(|r| r.unit).filter(|u| device.holds(*u)) {
            self.operator.loaded(worker, unit, true);
        }
        self.operated();
    }

    /// Everybody hears of a slice, some much later than others.
    fn publish(&mut self, slice: &Arc<PlacementSlice>, first: bool) {
        for worker in 0..self.nodes.len() {
            let slow = !first && self.rng.chance(15);
            let way = self.hop() * if slow { 40 } else { 1 };
            let at = if first { 0 } else { self.now + way };
            self.heap.push(at, Ev::Table { worker: worker as u32, slice: Arc::clone(slice) });
        }
    }

    // ---- the end

    /// What the ranks hold, in words.
    fn held(&self) -> String {
        let of = |(i, node): (usize, &Node)| {
            let p = node.core.pressure(self.now);
            let waiting: u32 = p.attention.iter().chain(p.experts.iter().map(|e| &e.1)).map(|q| q.rows).sum();
            let (used, all) = p.kv_pages;
            let (live, queued) = p.sequences;
            format!(
                "worker {i}: {live} sequences, {queued} waiting, {used} of {all} pages, {waiting} rows in queues, {} stalled, {} orphans",
                p.stalled, p.orphans
            )
        };
        self.nodes.iter().enumerate().map(of).collect::<Vec<_>>().join("; ")
    }

    /// Nothing is left to happen: everything must be over, and nothing held.
    fn settle(&mut self) -> Result<(), String> {
        if let Some(c) = self.clients.iter().find(|c| c.is_open()) {
            return Err(format!(
                "deadlock: {} is open after {} tokens and nothing is left to happen; {}",
                c.request.key,
                c.tokens(),
                self.held()
            ));
        }
        if let Some(f) = self.flights.iter().flatten().next() {
            return Err(format!("a frame from worker {} to {} was lost", f.from, f.to));
        }
        self.ledger.settled()?;
        if let Some(w) = self.nodes.iter().position(|n| !n.core.is_empty() || n.core.is_busy()) {
            return Err(format!("worker {w} keeps something of sequences that are over; {}", self.held()));
        }
        if let Some((w, c)) =
            self.nodes.iter().map(|n| n.core.counters().bad_frames).enumerate().find(|c| c.1 > 0)
        {
            return Err(format!("worker {w} had {c} frames that make no sense to it"));
        }
        for (i, gateway) in self.gateways.iter().enumerate() {
            if !gateway.front.is_idle() {
                return Err(format!("gateway {i} keeps {} sequences", gateway.front.live()));
            }
            for rank in self.ranks() {
                let link = &self.links[i * self.nodes.len() + rank];
                link.settled(gateway.is_there())
                    .map_err(|e| format!("gateway {i} and worker {rank}: {e}"))?;
            }
        }
        Ok(())
    }
}
