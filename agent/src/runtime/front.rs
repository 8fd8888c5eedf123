//! The thread of the gateway's front: binds sequences to ranks, and passes on what they produce.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use sluice_core::front::{Action, CancelCause, Ending, Front, RankLoad, Submit};
use sluice_core::ids::{Nanos, WorkerId};
use sluice_core::sequence::RankEvent;

use super::clock::Clock;
use super::mail::{FrontMail, FrontState, Mail};
use super::observe::Observer;
use crate::gateway::{EventSink, Generate, SeqEvent};
use crate::sampling::{CompiledGrammar, Logprobs, SamplingParams};

/// One choice of one request, as it travels with its sequence.
pub(super) struct Choice {
    pub sink: EventSink,
    pub sampling: Arc<SamplingParams>,
    pub grammar: Option<CompiledGrammar>,
    pub submitted: Nanos,
    /// Its request's.
    pub span: tracing::Span,
}

pub(super) struct FrontThread<U> {
    pub front: Front<Arc<Choice>>,
    pub clock: Clock,
    pub inbox: Receiver<FrontMail>,
    /// Its own address.
    pub address: Sender<FrontMail>,
    /// By worker id.
    pub workers: Vec<Sender<Mail<U>>>,
    pub observer: Arc<dyn Observer>,
}

impl<U: Send + Sync + 'static> FrontThread<U> {
    /// Until [`FrontMail::Stop`].
    pub fn run(mut self, ranks: &[(WorkerId, RankLoad)], cohort: u64) {
        let mut out = vec![];
        for (rank, load) in ranks {
            self.front.rank_up(self.clock.now(), *rank, cohort, *load, &mut out);
        }
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
            FrontMail::Rank { rank, events, load } => {
                for told in events {
                    self.front.rank_event(now, rank, told.seq, told.attempt, told.event, out);
                    let beside =
                        matches!(told.event, RankEvent::Token { .. }).then_some(told.logprobs).flatten();
                    self.act(now, out, beside);
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
                sampling: Arc::clone(&g.sampling),
                grammar: g.grammar.clone(),
                submitted: now,
                span: span.clone(),
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

    fn act(&mut self, now: Nanos, out: &mut Vec<Action<Arc<Choice>>>, mut logprobs: Option<Box<Logprobs>>) {
        for action in out.drain(..) {
            match action {
                Action::Bind { rank, bind, handle } => {
                    self.post(rank, Mail::Bind { bind, choice: handle });
                }
                Action::CancelAt { rank, seq, attempt } => self.post(rank, Mail::Cancel { seq, attempt }),
                Action::Deliver { seq, id, handle, .. } => {
                    let event = SeqEvent::Token { id, logprobs: logprobs.take() };
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

    fn post(&self, to: WorkerId, mail: Mail<U>) {
        if let Some(w) = self.workers.get(to.0 as usize) {
            let _ = w.send(mail);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use sluice_core::front::FrontConfig;
    use sluice_core::ids::{GatewayId, SeqKey};

    use super::super::mail::Told;
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
            workers: vec![worker],
            observer: Arc::new(()),
        };
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
        let load = RankLoad { free_blocks: 64, pool_blocks: 64, block_tokens: 16, queue: 0, draining: false };
        let running = std::thread::spawn(move || thread.run(&[(WorkerId(0), load)], 0));
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
