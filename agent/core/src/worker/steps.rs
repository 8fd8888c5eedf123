//! What an idle device runs next: by the scheduler, by age, or by the barrier.

use super::{Kind, Worker};
use crate::barrier::Phase;
use crate::config::{MAX_CLASSES, WorkerConfig};
use crate::event::Action;
use crate::frame::{Body, StepEnd};
use crate::host::Host;
use crate::ids::{IDLE, Nanos, Progress};
use crate::plant::{self, Plant};
use crate::rank::Rank;
use crate::sched::{Choice, Take, View};
use crate::step::Step;

impl Worker {
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
    pub(super) fn next(&mut self, now: Nanos) {
        while !self.choose(now) {}
    }

    /// Starts a step, or sleeps. False if nobody waited for what was chosen any more, and it is to choose again.
    fn choose(&mut self, now: Nanos) -> bool {
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
                true
            }
            choice => {
                self.was_urgent = false;
                let rows = runnable(&view, choice);
                self.run(now, choice, rows)
            }
        }
    }

    /// The next step of the barrier-synchronous baseline.
    pub(super) fn next_in_step(&mut self, now: Nanos) {
        while !self.choose_in_step(now) {}
    }

    /// As [`Self::choose`].
    fn choose_in_step(&mut self, now: Nanos) -> bool {
        // A worker that is alone goes round once: what it has may all be waiting for something.
        for _ in 0..=2 * self.config.shape.blocks() {
            let busy = self.is_busy();
            let Some(barrier) = &mut self.barrier else { return true };
            if !barrier.may_start() {
                return true;
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
                return true;
            }
            let step = barrier.end();
            for peer in 1..self.net.peers.len() {
                if !self.net.peers[peer].is_up {
                    continue;
                }
                let frames = self.net.peers[peer].link.data_sent();
                self.net.send(peer, Body::StepEnd(StepEnd { step, frames, busy }));
            }
            if self.net.peers.len() == 1 && !busy {
                return true;
            }
        }
        true
    }

    fn all_queues(&self, block: u16) -> Vec<(u32, u8)> {
        let Some(h) = &self.host else { return vec![] };
        (0..self.config.classes())
            .flat_map(|c| h.queues.units(block, c).iter().map(move |u| (*u, c)))
            .collect()
    }

    /// Starts what was chosen. False if nobody waits for any of it any more.
    fn run(&mut self, now: Nanos, choice: Choice, mut queues: Vec<(u32, u8)>) -> bool {
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
                    host.ran(now, rank.as_mut(), &mut self.net, n);
                    return false;
                }
                if let Step::Experts(s) = &step {
                    n.expert_steps += 1;
                    n.expert_units += s.units.len() as u64;
                    n.expert_rows += s.items.len() as u64;
                }
                (Kind::Experts, step)
            }
            _ => return true,
        };
        self.running = Some((kind, now));
        if let Some(r) = &mut self.rank {
            r.hosting = kind == Kind::Experts;
        }
        self.net.out.push(Action::Run(step));
        true
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
