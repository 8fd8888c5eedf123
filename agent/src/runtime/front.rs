//! The thread of the gateway's front: binds sequences to ranks, and passes on what they produce.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use sluice_core::front::{Action, CancelCause, Ending, Front, Submit};
use sluice_core::ids::{Nanos, WorkerId};
use sluice_core::sequence::RankEvent;

use super::clock::Clock;
use super::links::RankLink;
use super::mail::{FrontMail, FrontState};
use super::observe::Observer;
use crate::gateway::{EventSink, Generate, SeqEvent};
use crate::sampling::{Draw, Logprobs};

/// One choice of one request, as the gateway keeps it.
pub(super) struct Choice {
    sink: EventSink,
    draw: Draw,
    submitted: Nanos,
}

/// What a rank said that is being passed on.
struct Said {
    rank: WorkerId,
    logprobs: Option<Box<Logprobs>>,
}

/// The number that a numerics id goes by.
fn cohort(numerics: &str) -> u64 {
    let hash = blake3::hash(numerics.as_bytes());
    hash.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

pub(super) struct FrontThread {
    pub front: Front<Arc<Choice>>,
    pub clock: Clock,
    pub inbox: Receiver<FrontMail>,
    /// Its own address.
    pub address: Sender<FrontMail>,
    /// The ranks that are there: their numerics ids, and what reaches them.
    pub ranks: HashMap<WorkerId, (Arc<str>, Arc<dyn RankLink>)>,
    /// How many ranks are there, for who asks without waiting.
    pub living: Arc<AtomicUsize>,
    pub observer: Arc<dyn Observer>,
}

impl FrontThread {
    /// Until [`FrontMail::Stop`].
    pub fn run(mut self) {
        let mut out = vec![];
        loop {
            // Deadlines do not wait until there is no mail.
            let now = self.clock.now();
            let mut next = self.front.next_tick();
            if next.is_some_and(|at| at <= now) {
                self.front.tick(now, &mut out);
                self.act(now, &mut out, None);
                next = self.front.next_tick();
            }
            let wait = next.map_or(Duration::from_secs(3600), |at| self.clock.until(at));
            match self.inbox.recv_timeout(wait) {
                Ok(FrontMail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(mail) => {
                    let now = self.clock.now();
                    self.take(now, mail, &mut out);
                    self.act(now, &mut out, None);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn take(&mut self, now: Nanos, mail: FrontMail, out: &mut Vec<Action<Arc<Choice>>>) {
        match mail {
            FrontMail::Submit { request, sink, span } => self.submit(now, &request, &sink, &span, out),
            FrontMail::Cancel { seq, cause } => self.front.cancel(now, seq, cause, out),
            FrontMail::RankUp { rank, numerics, load, link } => {
                let cohort = cohort(&numerics);
                self.ranks.insert(rank, (numerics, link));
                self.living.store(self.ranks.len(), Ordering::Relaxed);
                self.front.rank_up(now, rank, cohort, load, out);
            }
            FrontMail::RankDown(rank) => {
                self.ranks.remove(&rank);
                self.living.store(self.ranks.len(), Ordering::Relaxed);
                self.front.rank_down(now, rank, out);
            }
            FrontMail::Rank { rank, events, load } => {
                for told in events {
                    self.front.rank_event(now, rank, told.seq, told.attempt, told.event, out);
                    let logprobs =
                        matches!(told.event, RankEvent::Token { .. }).then_some(told.logprobs).flatten();
                    self.act(now, out, Some(Said { rank, logprobs }));
                }
                if let Some(load) = load {
                    self.front.rank_load(now, rank, load, out);
                }
            }
            FrontMail::Drain => self.front.drain(),
            FrontMail::Halt => self.front.halt(out),
            FrontMail::Ask(reply) => {
                let (idle, counts, live) = (self.front.is_idle(), self.front.counts(), self.front.live());
                let _ = reply.send(FrontState { idle, counts, live, waiting: self.front.waiting() });
            }
            FrontMail::Stop => {}
        }
    }

    fn submit(
        &mut self,
        now: Nanos,
        g: &Generate,
        sink: &EventSink,
        span: &tracing::Span,
        out: &mut Vec<Action<Arc<Choice>>>,
    ) {
        let choice = || {
            Arc::new(Choice {
                sink: sink.clone(),
                draw: Draw {
                    sampling: Arc::clone(&g.sampling),
                    grammar: g.grammar.clone(),
                    span: span.clone(),
                },
                submitted: now,
            })
        };
        let timeout = u64::try_from(g.timeout.as_nanos()).unwrap_or(Nanos::MAX);
        let submit = Submit {
            request: g.request,
            choices: (0..g.choices).map(|_| choice()).collect(),
            prompt: Arc::clone(&g.prompt),
            stop: g.stop.clone(),
            deadline: now.checked_add(timeout),
            salt: g.salt,
        };
        match self.front.submit(now, submit, out) {
            Ok(()) => self.observer.admitted(g.prompt.len()),
            Err(refused) => {
                for c in 0..g.choices {
                    self.observer.ended(&Ending::Refused(refused), Duration::ZERO);
                    let _ = sink.send(c, SeqEvent::End(Ending::Refused(refused)));
                }
            }
        }
    }

    fn act(&mut self, now: Nanos, out: &mut Vec<Action<Arc<Choice>>>, mut said: Option<Said>) {
        for action in out.drain(..) {
            match action {
                Action::Bind { rank, bind, handle } => {
                    if let Some((_, link)) = self.ranks.get(&rank) {
                        link.bind(bind, handle.draw.clone());
                    }
                }
                Action::CancelAt { rank, seq, attempt } => {
                    if let Some((_, link)) = self.ranks.get(&rank) {
                        link.cancel(seq, attempt);
                    }
                }
                Action::Deliver { seq, id, handle, .. } => {
                    if let Some((numerics, _)) = said.as_ref().and_then(|s| self.ranks.get(&s.rank)) {
                        handle.sink.served_by(numerics);
                    }
                    let logprobs = said.as_mut().and_then(|s| s.logprobs.take());
                    let event = SeqEvent::Token { id, logprobs };
                    if handle.sink.send(seq.choice, event).is_err() {
                        // Behind what is in the inbox: a gateway that found a stop string has said so before it left.
                        let _ = self.address.send(FrontMail::Cancel { seq, cause: CancelCause::Client });
                    }
                }
                Action::End { seq, ending, handle } => {
                    self.observer.ended(&ending, Duration::from_nanos(now.saturating_sub(handle.submitted)));
                    let _ = handle.sink.send(seq.choice, SeqEvent::End(ending));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use sluice_core::front::{FrontConfig, RankLoad};
    use sluice_core::ids::{GatewayId, SeqKey};

    use super::super::links::Told;
    use super::super::mail::Mail;
    use super::super::tests::request;
    use super::*;
    use crate::gateway::events;

    /// The counts after a rank said two tokens of a sequence whose reader is gone, with `last` behind them in the inbox.
    fn counts_after(last: Option<CancelCause>) -> sluice_core::front::FrontCounts {
        let (address, inbox) = channel();
        let (worker, _bound) = channel::<Mail<()>>();
        let thread = FrontThread {
            front: Front::new(FrontConfig::new(GatewayId(0))),
            clock: Clock::start(),
            inbox,
            address: address.clone(),
            ranks: HashMap::new(),
            living: Arc::default(),
            observer: Arc::new(()),
        };
        let load = RankLoad { free_blocks: 64, pool_blocks: 64, block_tokens: 16, queue: 0, draining: false };
        let link = Arc::new(worker);
        address.send(FrontMail::RankUp { rank: WorkerId(0), numerics: "test".into(), load, link }).unwrap();
        let seq = SeqKey { request: 1, choice: 0 };
        let (sink, source) = events(100);
        drop(source);
        address
            .send(FrontMail::Submit { request: Box::new(request()), sink, span: tracing::Span::none() })
            .unwrap();
        let said =
            [RankEvent::Accepted, RankEvent::Token { index: 0, id: 7 }, RankEvent::Token { index: 1, id: 8 }];
        let told = |event| Told { seq, attempt: 1, event, logprobs: None };
        let events = said.into_iter().map(told).collect();
        address.send(FrontMail::Rank { rank: WorkerId(0), events, load: None }).unwrap();
        if let Some(cause) = last {
            address.send(FrontMail::Cancel { seq, cause }).unwrap();
        }
        let running = std::thread::spawn(move || thread.run());
        loop {
            let (reply, state) = channel();
            address.send(FrontMail::Ask(reply)).unwrap();
            let state = state.recv().unwrap();
            if state.idle && state.counts.admitted == 1 {
                address.send(FrontMail::Stop).unwrap();
                running.join().unwrap();
                return state.counts;
            }
        }
    }

    #[test]
    fn a_stop_string_counts_as_complete_though_its_reader_is_gone() {
        let c = counts_after(Some(CancelCause::StopString));
        assert_eq!((c.complete, c.cancelled), (1, 0));
    }

    #[test]
    fn a_reader_that_is_gone_ends_its_sequence() {
        let c = counts_after(None);
        assert_eq!((c.complete, c.cancelled), (0, 1));
    }
}
