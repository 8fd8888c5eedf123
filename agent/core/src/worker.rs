//! One worker: the executor of one device, with the attention role, the expert role, or both.
//!
//! Everything that happens comes in by [`Worker::receive`] and [`Worker::handle`]; what is to be done about it comes
//! out of [`Worker::actions`]. Frames may come several at a time: what follows from all of them together is decided by
//! [`Worker::settle`].

use crate::barrier::Barrier;
use crate::config::{ConfigError, WorkerConfig};
use crate::counters::Counters;
use crate::event::{Action, Event, Landing, PeerUp};
use crate::frame::{Body, Frame, Mark, Redirect};
use crate::front::RankLoad;
use crate::host::Host;
use crate::ids::{FAR, IDLE, Nanos, SECOND, WorkerId};
use crate::link::{AHEAD, Seen};
use crate::median::Median;
use crate::net::{Net, Peer, SELF};
use crate::plant::{self, Plant};
use crate::rank::Rank;
use crate::sched::{Scheduler, make};
use crate::step::Outcome;

mod pressure;
mod steps;
#[cfg(test)]
mod tests;

/// A rank that says it takes longer for a step is not believed.
const LONGEST_CYCLE: Nanos = 3600 * SECOND;
/// Times of steps that a median is of.
const STEPS: usize = 15;

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
    times: [Median<STEPS>; 3],
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
        let mut net = Net::new(config.id, rank.is_some(), classes);
        if let Some(r) = &mut rank {
            r.peer_up(SELF, false);
            if host.is_some() {
                r.routing.reach(config.id, true);
            }
        }
        if let Some(h) = &mut host {
            h.peer_up(SELF, false, &mut net);
        }
        let sync = config.policy == crate::config::Policy::Sync;
        Ok(Self {
            net,
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
    pub fn receive(&mut self, now: Nanos, from: WorkerId, frame: Frame) -> Landing {
        let mut landing = vec![];
        let Some(peer) = self.net.find(from).filter(|p| *p != SELF) else {
            self.counters.bad_frames += 1;
            return landing;
        };
        let Peer { is_up, link, .. } = &mut self.net.peers[peer];
        match if *is_up { link.accept(&frame) } else { Seen::Before } {
            Seen::New => {}
            Seen::Before => {
                self.counters.duplicate_frames += 1;
                return landing;
            }
            Seen::TooFar => {
                self.counters.bad_frames += 1;
                return landing;
            }
        }
        self.begin(now);
        if let Some(d) = self.rank.as_mut().and_then(|r| r.dests.get_mut(peer)) {
            d.alive(now, matches!(frame.body, Body::Returns(_)));
        }
        let n = &mut self.counters;
        match frame.body {
            Body::Tokens(batch) => {
                let link = &mut self.net.peers[peer].link;
                if !link.class_arrived(batch.class.0, batch.frames) {
                    n.bad_frames += 1;
                    return landing;
                }
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
                    rank.credited(peer, &batch.freed, &mut self.net, n);
                }
            }
            Body::Mark(mark) => {
                let seen = self.net.peers[peer].link.class_seen(mark.class.0);
                self.hear(now, peer, mark, seen);
            }
            Body::Credit(rows) => {
                if let Some(rank) = &mut self.rank {
                    rank.credited(peer, &rows, &mut self.net, n);
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
                    rank.bind(now, bind, &mut net.out, n);
                }
            }
            Event::Cancel { seq, attempt } => {
                if let Some(rank) = &mut self.rank {
                    rank.cancel(now, seq, attempt, &mut net.out);
                }
            }
            Event::Done(outcome) => self.done(now, outcome),
            Event::PeerUp(hello) => self.peer_up(&hello),
            Event::PeerDown(worker) => self.peer_down(worker),
            Event::Placement(slice) => {
                if let Some(host) = &mut self.host {
                    host.place(now, self.config.id, &slice, &mut net.out);
                }
                if let Some(rank) = &mut self.rank
                    && rank.routing.update(&slice)
                {
                    rank.retry(true, net, n);
                }
            }
            Event::SlotLoaded { slot, unit, ok } => {
                if let Some(host) = &mut self.host {
                    host.loaded(now, self.config.id, (slot, unit), ok, &mut net.out);
                }
                if let Some(rank) = self.rank.as_mut().filter(|_| ok) {
                    rank.routing.has(self.config.id, unit);
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

    /// What a gateway chooses a rank by.
    pub fn rank_load(&self) -> Option<RankLoad> {
        let r = self.rank.as_ref()?;
        Some(RankLoad {
            free_blocks: r.kv.free_pages().saturating_sub(r.kv.promised_pages()),
            pool_blocks: r.kv.total_pages(),
            block_tokens: r.config.page_size,
            queue: r.load().1,
            draining: r.is_draining(),
        })
    }

    fn begin(&mut self, now: Nanos) {
        if let Some(r) = &mut self.rank {
            r.now = now;
            r.routing.at(now);
        }
    }

    fn peer_up(&mut self, hello: &PeerUp) {
        self.peer_down(hello.worker);
        let peer = self.net.up(hello);
        if peer == SELF {
            return;
        }
        if let Some(h) = &mut self.host {
            h.peer_up(peer, hello.is_rank, &mut self.net);
        }
        if let Some(r) = &mut self.rank {
            r.peer_up(peer, hello.is_host);
        }
        if let Some(b) = &mut self.barrier {
            b.peer_up(peer);
        }
    }

    fn peer_down(&mut self, worker: WorkerId) {
        let Some(peer) = self.net.find(worker).filter(|p| *p != SELF && self.net.peers[*p].is_up) else {
            return;
        };
        self.net.peers[peer].is_up = false;
        self.counters.masked += 1;
        if let Some(h) = &mut self.host {
            h.peer_down(peer);
        }
        if let Some(r) = &mut self.rank {
            r.peer_down(peer, worker, &mut self.net, &mut self.counters);
        }
        if let Some(b) = &mut self.barrier {
            b.peer_down(peer);
        }
    }

    fn hear(&mut self, now: Nanos, peer: usize, mark: Mark, seen: u64) {
        let is_sound = mark.class.0 < self.config.classes()
            && (mark.progress < FAR || mark.progress == IDLE)
            && mark.frames.saturating_sub(seen) <= AHEAD
            && mark.cycle <= LONGEST_CYCLE;
        if !is_sound {
            self.counters.bad_frames += 1;
            return;
        }
        if let Some(clock) = self.rank.as_mut().and_then(|r| r.clocks.get_mut(mark.class.0 as usize)) {
            clock.hear(mark.progress);
        }
        if let Some(h) = &mut self.host {
            h.frontier.hear(peer, mark, seen, now);
        }
    }

    fn redirected(&mut self, peer: usize, redirect: &Redirect) {
        let (net, n) = (&mut self.net, &mut self.counters);
        let Some(rank) = self.rank.as_mut().filter(|r| r.dests.get(peer).is_some_and(|d| d.is_host)) else {
            n.bad_frames += 1;
            return;
        };
        rank.dests[peer].pace.forget(&redirect.freed);
        rank.credited(peer, &redirect.freed, net, n);
        if let Some(slice) = &redirect.slice
            && rank.routing.hear(slice)
        {
            rank.retry(true, net, n);
        }
        if plant::is(Plant::RedirectDropped) {
            return;
        }
        let asks = rank.sent_back_by(peer, &redirect.items, n);
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
        self.begin(now);
        while let Some(peer) = self.rank.as_mut().and_then(Rank::suspect) {
            let worker = self.net.peers[peer].id;
            self.counters.suspected += 1;
            self.net.out.push(Action::Sever { worker });
            self.peer_down(worker);
        }
        if let Some(r) = &mut self.rank {
            let (net, n) = (&mut self.net, &mut self.counters);
            let changed = r.routing.doubt();
            r.retry(changed, net, n);
            r.hedge(net, n);
            r.pump(now, &mut net.out, n);
            self.deliver_local(now);
        }
        if let Some(r) = &mut self.rank {
            r.publish(now, &mut self.net, self.host.as_mut());
        }
        self.wake = None;
        if let Some(h) = &mut self.host {
            h.offer_rings(&mut self.net);
            h.tend_slots(now, &mut self.net.out);
            if let Some(at) = h.next_tending() {
                self.wake_by(at);
            }
        }
        if self.running.is_none() && self.failed.is_none() {
            match self.barrier.is_some() {
                true => self.next_in_step(now),
                false => self.next(now),
            }
        }
        if let Some(w) = self.rank.as_mut().and_then(Rank::wake) {
            self.wake_by(w);
        }
    }

    fn wake_by(&mut self, at: Nanos) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// Items for units held here need no transport. Those for units that are not go elsewhere, in another slicing
    /// perhaps, of which a part is here again.
    fn deliver_local(&mut self, now: Nanos) {
        let Some(r) = &mut self.rank else { return };
        while !r.local.is_empty() {
            let (mut asks, mut strange) = (std::mem::take(&mut r.local), vec![]);
            for ask in asks.drain(..) {
                let src = r.slab.input(ask.token);
                let back = match &mut self.host {
                    Some(h) => h.receive_local(now, ask, src),
                    None => Err(ask),
                };
                strange.extend(back.err());
            }
            r.local = asks;
            if !strange.is_empty() {
                r.redirected(strange, self.config.id, &mut self.net, &mut self.counters);
            }
        }
    }
}
