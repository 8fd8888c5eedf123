//! One worker: the executor of one device, with the attention role, the expert role, or both.
//!
//! Everything that happens comes in by [`Worker::receive`] and [`Worker::handle`]; what is to be done about it comes
//! out of [`Worker::actions`]. Frames may come several at a time: what follows from all of them together is decided by
//! [`Worker::settle`].

use crate::barrier::{Barrier, Phase};
use crate::config::{ConfigError, MAX_CLASSES, WorkerConfig};
use crate::counters::Counters;
use crate::event::{Action, Event, Landing, PeerUp};
use crate::frame::{Body, Frame, Mark, Redirect, StepEnd};
use crate::host::Host;
use crate::ids::{IDLE, Nanos, Progress};
use crate::median::Median;
use crate::net::{Net, SELF};
use crate::plant::{self, Plant};
use crate::pressure::{Pressure, QueuePressure};
use crate::rank::Rank;
use crate::sched::{Choice, Scheduler, Take, View, make};
use crate::step::{Outcome, Step};

/// The kind of a step, as an index into per-kind figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Attention,
    Experts,
    Head,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    net: Net,
    rank: Option<Rank>,
    host: Option<Host>,
    scheduler: Box<dyn Scheduler>,
    barrier: Option<Barrier>,
    counters: Counters,
    running: Option<(Kind, Nanos)>,
    /// The last step released an aged μ-queue.
    was_urgent: bool,
    wake: Option<Nanos>,
    times: [Median; 3],
    failed: Option<String>,
}

impl Worker {
    /// A worker that knows nobody yet.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub fn new(config: WorkerConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let classes = config.classes();
        let mut rank = config.rank.as_ref().map(|r| Rank::new(&config, r));
        let mut host = config.host.as_ref().map(|h| Host::new(&config, h));
        if let Some(r) = &mut rank {
            r.peer_up(SELF, None);
        }
        if let Some(h) = &mut host {
            h.peer_up(SELF, false);
        }
        let sync = config.policy == crate::config::Policy::Sync;
        Ok(Self {
            net: Net::new(config.id, rank.is_some(), classes),
            rank,
            host,
            scheduler: make(config.policy),
            barrier: sync.then(|| Barrier::new(config.shape.blocks())),
            counters: Counters::default(),
            running: None,
            was_urgent: false,
            wake: None,
            times: std::array::from_fn(|_| Median::new()),
            failed: None,
            config,
        })
    }

    /// A frame arrived. The rows of its payload that are wanted are to be written before anything else is done, and
    /// [`Worker::settle`] is to be called once no other frame is there.
    pub fn receive(&mut self, now: Nanos, from: crate::ids::WorkerId, frame: Frame) -> Landing {
        let mut landing = vec![];
        let Some(peer) = self.net.find(from).filter(|p| *p != SELF) else {
            self.counters.bad_frames += 1;
            return landing;
        };
        if !self.net.peers[peer].link.accept(&frame) {
            self.counters.duplicate_frames += 1;
            return landing;
        }
        self.begin(now);
        let n = &mut self.counters;
        match frame.body {
            Body::Tokens(batch) => {
                let link = &mut self.net.peers[peer].link;
                link.class_arrived(batch.class.0, batch.frames);
                let seen = link.class_seen(batch.class.0);
                if let Some(host) = &mut self.host {
                    host.receive(now, peer, &batch, &mut landing, &mut self.net, n);
                    host.frontier.arrived(peer, batch.class.0, seen, now);
                }
                if let Some(mark) = batch.mark {
                    self.hear(now, peer, mark, seen);
                }
            }
            Body::Returns(batch) => {
                if let Some(rank) = &mut self.rank {
                    landing.reserve(batch.items.len());
                    for (i, &item) in batch.items.iter().enumerate() {
                        if rank.returned(now, item, n) {
                            landing.push((i as u32, rank.return_row(item.back, item.slice)));
                        }
                    }
                    rank.credited(peer, &batch.freed, &mut self.net);
                }
            }
            Body::Mark(mark) => {
                let seen = self.net.peers[peer].link.class_seen(mark.class.0);
                self.hear(now, peer, mark, seen);
            }
            Body::Credit(rows) => {
                if let Some(rank) = &mut self.rank {
                    rank.credited(peer, &rows, &mut self.net);
                }
            }
            Body::Redirect(redirect) => self.redirected(peer, &redirect),
            Body::StepEnd(end) => {
                if let Some(b) = &mut self.barrier {
                    b.hear(peer, end);
                }
            }
        }
        if let Some(b) = &mut self.barrier {
            b.arrived(peer, self.net.peers[peer].link.data_seen());
        }
        landing
    }

    /// Something else happened.
    pub fn handle(&mut self, now: Nanos, event: Event) {
        self.begin(now);
        let (net, n) = (&mut self.net, &mut self.counters);
        match event {
            Event::Bind(bind) => {
                if let Some(rank) = &mut self.rank {
                    rank.bind(now, bind, &mut net.out);
                }
            }
            Event::Cancel { seq, attempt } => {
                if let Some(rank) = &mut self.rank {
                    rank.cancel(now, seq, attempt, &mut net.out);
                }
            }
            Event::Done(outcome) => self.done(now, outcome),
            Event::PeerUp(hello) => self.peer_up(&hello),
            Event::Placement(slice) => {
                if let Some(host) = &mut self.host {
                    host.place(self.config.id, &slice, &mut net.out);
                }
                if let Some(rank) = &mut self.rank
                    && rank.routing.update(&slice)
                {
                    rank.retry(true, net, n);
                }
            }
            Event::SlotLoaded { slot, unit, ok } => {
                if let Some(host) = &mut self.host {
                    host.loaded(self.config.id, slot, unit, ok, &mut net.out);
                }
            }
            Event::Tick => {}
            Event::Drain { hand_back } => {
                if let Some(rank) = &mut self.rank {
                    rank.drain(now, hand_back, &mut net.out);
                }
            }
        }
        self.settle(now);
    }

    /// What is to be done, in order.
    pub fn actions(&mut self) -> std::vec::Drain<'_, Action> {
        self.net.out.drain(..)
    }

    /// When to call [`Worker::handle`] with [`Event::Tick`] if nothing happens before.
    pub fn wake(&self) -> Option<Nanos> {
        self.wake
    }

    /// Sums since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether anything is under way or waits.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
            || self.rank.as_ref().is_some_and(Rank::is_busy)
            || self.host.as_ref().is_some_and(Host::is_busy)
    }

    /// Whether nothing is held for anybody: no sequence, row, group or page. For tests, at the end.
    pub fn is_empty(&self) -> bool {
        self.rank.as_ref().is_none_or(Rank::is_empty) && self.host.as_ref().is_none_or(|h| !h.is_busy())
    }

    /// Whether what is kept about the sequences here agrees with itself: for tests and the simulator.
    ///
    /// # Errors
    /// The first thing found wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        self.rank.as_ref().map_or(Ok(()), Rank::check)
    }

    /// Whether all units that the placement wants here are loaded.
    pub fn is_ready(&self) -> bool {
        self.host.as_ref().is_none_or(Host::is_ready)
    }

    /// What the device said when it failed.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Free KV pages and sequences (under way, waiting) of the rank: what a gateway chooses by.
    pub fn rank_load(&self) -> Option<(u32, u32, u32)> {
        let r = self.rank.as_ref()?;
        let (live, waiting) = r.load();
        Some((r.kv.free_pages().saturating_sub(r.kv.promised_pages()), live, waiting))
    }

    fn begin(&mut self, now: Nanos) {
        if let Some(r) = &mut self.rank {
            r.now = now;
        }
    }

    fn peer_up(&mut self, hello: &PeerUp) {
        let peer = self.net.up(hello);
        if peer == SELF {
            return;
        }
        let mut ring = hello.host_ring;
        if let Some(h) = &mut self.host
            && !h.peer_up(peer, hello.is_rank)
        {
            ring = None;
            self.counters.bad_frames += 1;
        }
        if let Some(r) = &mut self.rank {
            r.peer_up(peer, ring);
            r.retry(true, &mut self.net, &mut self.counters);
        }
        if let Some(b) = &mut self.barrier {
            b.peer_up(peer);
        }
    }

    fn hear(&mut self, now: Nanos, peer: usize, mark: Mark, seen: u64) {
        if let Some(clock) = self.rank.as_mut().and_then(|r| r.clocks.get_mut(mark.class.0 as usize)) {
            clock.hear(mark.progress);
        }
        if let Some(h) = &mut self.host {
            h.frontier.hear(peer, mark, seen, now);
        }
    }

    fn redirected(&mut self, peer: usize, redirect: &Redirect) {
        let Some(rank) = &mut self.rank else { return };
        let (net, n) = (&mut self.net, &mut self.counters);
        rank.credited(peer, &redirect.freed, net);
        if let Some(slice) = &redirect.slice
            && rank.routing.update(slice)
        {
            rank.retry(true, net, n);
        }
        let asks = redirect.items.iter().filter_map(|i| rank.sent_back(*i, n)).collect();
        let from = net.peers[peer].id;
        rank.redirected(asks, from, net, n);
    }

    fn done(&mut self, now: Nanos, outcome: Outcome) {
        let Some((kind, start)) = self.running.take() else { return };
        if let Some(r) = &mut self.rank {
            r.hosting = false;
        }
        self.times[kind as usize].push(now.saturating_sub(start));
        let (net, n) = (&mut self.net, &mut self.counters);
        match (kind, outcome) {
            (Kind::Attention, Outcome::Routed(experts)) => {
                if let Some(r) = &mut self.rank {
                    r.cycle.finished(now);
                    r.attended(now, &experts, net, n);
                }
            }
            (Kind::Attention, Outcome::Spanned(loads)) => {
                if let Some(r) = &mut self.rank {
                    r.cycle.finished(now);
                    r.count_span(&loads);
                    r.attended(now, &[], net, n);
                }
            }
            (Kind::Experts, Outcome::Experts) => {
                if let Some(h) = &mut self.host {
                    h.ran(now, self.rank.as_mut(), net, n);
                }
            }
            (Kind::Head, Outcome::Sampled(samples)) => {
                if let Some(r) = &mut self.rank {
                    r.sampled(now, &samples, net, n);
                }
            }
            (_, Outcome::Failed(why)) => self.fail(now, why),
            (kind, _) => {
                self.fail(now, format!("the backend answered a {kind:?} step with another kind of outcome"));
            }
        }
    }

    /// The device is lost: what was here goes back to its gateways.
    fn fail(&mut self, now: Nanos, why: String) {
        self.failed = Some(why);
        if let Some(r) = &mut self.rank {
            r.running = None;
            r.drain(now, true, &mut self.net.out);
        }
    }

    /// After every event, and after all frames that are there: what may go on goes on, what is new is told, and an
    /// idle device gets its next step.
    pub fn settle(&mut self, now: Nanos) {
        if let Some(r) = &mut self.rank {
            let (net, n) = (&mut self.net, &mut self.counters);
            r.retry(false, net, n);
            r.pump(now, &mut net.out, n);
            self.deliver_local(now);
        }
        if let Some(r) = &mut self.rank {
            r.publish(now, &mut self.net, self.host.as_mut());
        }
        self.wake = None;
        if self.running.is_none() && self.failed.is_none() {
            match self.barrier.is_some() {
                true => self.next_in_step(now),
                false => self.next(now),
            }
        }
        if let Some(w) = self.rank.as_ref().and_then(Rank::wake) {
            self.wake_by(w);
        }
    }

    fn wake_by(&mut self, at: Nanos) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// Items for units held here need no transport.
    fn deliver_local(&mut self, now: Nanos) {
        let Some(r) = &mut self.rank else { return };
        let mut asks = std::mem::take(&mut r.local);
        for ask in asks.drain(..) {
            let src = r.slab.input(ask.token);
            let back = match &mut self.host {
                Some(h) => h.receive_local(now, ask, src),
                None => Err(ask),
            };
            if let Err(ask) = back {
                self.counters.redirected += 1;
                r.postpone(ask);
            }
        }
        r.local = asks;
    }

    fn cycle(&self) -> Nanos {
        let host = self.host.as_ref().map_or(0, |h| h.frontier.cycle());
        let rank = self.rank.as_ref().map_or(0, |r| r.cycle.value());
        host.max(rank)
    }

    /// A token that has waited so long releases its μ-queue.
    fn bound(&self, cycle: Nanos) -> Nanos {
        u64::from(self.config.release_cycles) * cycle
    }

    /// When the token that waits longest in a μ-queue came, and when its queue is released whole at the latest. The
    /// barrier-synchronous baseline releases nothing.
    pub fn oldest(&self, now: Nanos) -> Option<(Nanos, Nanos)> {
        let cycle = self.cycle();
        let view = view(&self.config, self.rank.as_ref(), self.host.as_ref(), (now, cycle), &[]);
        let (since, _) = oldest(&view).filter(|_| self.barrier.is_none())?;
        Some((since, since + self.bound(cycle)))
    }

    /// The next step of an idle device.
    fn next(&mut self, now: Nanos) {
        let cycle = self.cycle();
        let mut floors = [(IDLE, None); MAX_CLASSES];
        if let Some(h) = &self.host {
            for c in 0..self.config.classes() {
                floors[c as usize] = h.frontier.floor(c, now, cycle);
            }
        }
        let view = view(&self.config, self.rank.as_ref(), self.host.as_ref(), (now, cycle), &floors);
        let bound = self.bound(cycle);
        let oldest = oldest(&view);
        let due = oldest.filter(|(since, _)| since + bound <= now && !plant::is(Plant::NeverAges));
        if let Some((_, choice)) = due.filter(|_| !self.was_urgent) {
            self.counters.urgent += 1;
            self.was_urgent = true;
            let rows = runnable(&view, choice);
            return self.run(now, choice, rows);
        }
        match self.scheduler.choose(&view) {
            Choice::Sleep(wake) => {
                // Nothing else to run: then the bound alone decides.
                if let Some((_, choice)) = due {
                    self.counters.urgent += 1;
                    let rows = runnable(&view, choice);
                    return self.run(now, choice, rows);
                }
                if let Some((since, _)) = oldest {
                    self.wake_by(since + bound);
                }
                if let Some(w) = wake {
                    self.wake_by(w);
                }
            }
            choice => {
                self.was_urgent = false;
                let rows = runnable(&view, choice);
                self.run(now, choice, rows);
            }
        }
    }

    /// The next step of the barrier-synchronous baseline.
    fn next_in_step(&mut self, now: Nanos) {
        // A worker that is alone goes round once: what it has may all be waiting for something.
        for _ in 0..=2 * self.config.shape.blocks() {
            let busy = self.is_busy();
            let Some(barrier) = &mut self.barrier else { return };
            if !barrier.may_start() {
                return;
            }
            let choice = match barrier.phase() {
                Phase::Attention(block) => {
                    let any = self.rank.iter().flat_map(|r| r.queues.active()).any(|q| q.block == block);
                    any.then_some(Choice::Attention { block, classes: u16::MAX })
                }
                Phase::Experts(block) => {
                    let any = self.host.iter().flat_map(|h| h.queues.active()).any(|q| q.block == block);
                    any.then_some(Choice::Experts { block, take: Take::All })
                }
            };
            if let Some(choice) = choice {
                let queues = match choice {
                    Choice::Experts { block, .. } => self.all_queues(block),
                    _ => vec![],
                };
                return self.run(now, choice, queues);
            }
            if !busy && !barrier.others_ended() {
                return;
            }
            let step = barrier.end();
            for peer in 1..self.net.peers.len() {
                let frames = self.net.peers[peer].link.data_sent();
                self.net.send(peer, Body::StepEnd(StepEnd { step, frames, busy }));
            }
            if self.net.peers.len() == 1 && !busy {
                return;
            }
        }
    }

    fn all_queues(&self, block: u16) -> Vec<(u32, u8)> {
        let Some(h) = &self.host else { return vec![] };
        (0..self.config.classes())
            .flat_map(|c| h.queues.units(block, c).iter().map(move |u| (*u, c)))
            .collect()
    }

    fn run(&mut self, now: Nanos, choice: Choice, mut queues: Vec<(u32, u8)>) {
        let n = &mut self.counters;
        let (kind, step) = match (choice, &mut self.rank, &mut self.host) {
            (Choice::Attention { block, classes }, Some(rank), host) => {
                let budget = self.config.max_step_rows;
                if block == self.config.shape.blocks() {
                    n.head_steps += 1;
                    (Kind::Head, rank.head_step(classes, budget))
                } else {
                    let whole = |b: u16| {
                        let here = rank.routing.sole_holder(b) == Some(self.config.id);
                        !self.config.shape.moe[b as usize]
                            || (here && host.as_ref().is_some_and(|h| h.whole[b as usize]))
                    };
                    let spans = self.config.spans && self.barrier.is_none() && host.is_some();
                    let end = if spans {
                        (block..self.config.shape.blocks()).find(|b| !whole(*b))
                    } else {
                        Some(block)
                    };
                    let end = end.unwrap_or(self.config.shape.blocks());
                    let span = end > block;
                    let blocks = block..if span { end } else { block + 1 };
                    rank.cycle.started(now);
                    let step = rank.attention_step(blocks, span, classes, budget);
                    n.attention_steps += 1;
                    n.spans += u64::from(span);
                    if let Step::Attention(s) = &step {
                        n.attention_rows += s.rows.len() as u64;
                    }
                    (Kind::Attention, step)
                }
            }
            (Choice::Experts { block, .. }, rank, Some(host)) => {
                // One unit's queues side by side, so that each unit is one group of the launch; of these the one with
                // the oldest token first, so that no class starves another where the row budget is small.
                queues.sort_unstable_by_key(|&(unit, class)| {
                    (unit, host.queues.queue(unit, class).since, class)
                });
                let step = host.step(block, &queues, self.config.max_expert_rows, rank.as_ref());
                if matches!(&step, Step::Experts(s) if s.items.is_empty()) {
                    // Nobody waits for any of them any more.
                    host.ran(now, rank.as_mut(), &mut self.net, n);
                    return match self.barrier.is_some() {
                        true => self.next_in_step(now),
                        false => self.next(now),
                    };
                }
                if let Step::Experts(s) = &step {
                    n.expert_steps += 1;
                    n.expert_units += s.units.len() as u64;
                    n.expert_rows += s.items.len() as u64;
                }
                (Kind::Experts, step)
            }
            _ => return,
        };
        self.running = Some((kind, now));
        if let Some(r) = &mut self.rank {
            r.hosting = kind == Kind::Experts;
        }
        self.net.out.push(crate::event::Action::Run(step));
    }

    /// What this worker would report now.
    pub fn pressure(&self, now: Nanos) -> Pressure {
        let mut p = Pressure { step: std::array::from_fn(|i| self.times[i].value()), ..Pressure::default() };
        let age = |since: Nanos| now.saturating_sub(since);
        if let Some(r) = &self.rank {
            p.attention = r
                .queues
                .active()
                .map(|q| QueuePressure { block: q.block, rows: q.rows, age: age(q.since) })
                .collect();
            p.kv_pages = (r.kv.used_pages(), r.kv.total_pages());
            p.sequences = r.load();
            p.loads.clone_from(&r.loads);
            p.stalled = r.dests.iter().map(|d| d.stalled() as u32).sum();
            p.orphans = r.orphans() as u32;
            p.cycle = r.cycle.value();
            let s = r.kv.stats();
            p.prefix = (s.cached_tokens, s.admitted_tokens);
        }
        if let Some(h) = &self.host {
            for q in h.queues.active() {
                for &u in h.queues.units(q.block, q.class) {
                    if let Some(held) = &h.held[u as usize] {
                        let w = h.queues.queue(u, q.class);
                        let rows = w.items.len() as u32;
                        p.experts
                            .push((held.unit, QueuePressure { block: q.block, rows, age: age(w.since) }));
                    }
                }
            }
            let serving = h.serving().count() as u32;
            p.slots = (serving, h.held.iter().flatten().count() as u32 - serving);
        }
        p
    }
}

fn view<'a>(
    config: &'a WorkerConfig,
    rank: Option<&'a Rank>,
    host: Option<&'a Host>,
    (now, cycle): (Nanos, Nanos),
    floors: &'a [(Progress, Option<Nanos>)],
) -> View<'a> {
    let (blocks, classes) = (config.shape.blocks(), config.classes());
    View { now, blocks, rank, host, costs: &config.costs, cycle, floors, classes }
}

/// The μ-queue with the oldest token, as a choice that releases all of it.
fn oldest(view: &View<'_>) -> Option<(Nanos, Choice)> {
    let attention =
        view.attention().map(|q| (q.since, Choice::Attention { block: q.block, classes: 1 << q.class }));
    let a = attention.min_by_key(|(since, _)| *since);
    let e = view.experts().min_by_key(|q| q.since).map(|q| {
        let host = view.host.map(|h| &h.queues);
        let units = host.map_or(&[][..], |h| h.units(q.block, q.class)).iter().copied();
        let unit = units.min_by_key(|u| host.map_or(0, |h| h.queue(*u, q.class).since));
        (q.since, Choice::Experts { block: q.block, take: unit.map_or(Take::All, Take::Unit) })
    });
    [a, e].into_iter().flatten().min_by_key(|(since, _)| *since)
}

/// The (unit, class) queues that a choice of experts takes.
fn runnable(view: &View<'_>, choice: Choice) -> Vec<(u32, u8)> {
    let (Choice::Experts { block, take }, Some(host)) = (choice, view.host) else { return vec![] };
    let all = (0..view.classes).flat_map(|c| host.queues.units(block, c).iter().map(move |u| (*u, c)));
    match take {
        Take::All => all.collect(),
        Take::Unit(unit) => all.filter(|(u, _)| *u == unit).collect(),
        Take::Runnable => all.filter(|(u, c)| view.runnable(*u, *c)).collect(),
    }
}
