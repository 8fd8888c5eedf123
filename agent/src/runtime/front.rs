//! The thread of the gateway's front: binds sequences to ranks, and passes on what they produce.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use sluice_core::front::{Action, CancelCause, Ending, Front, RankLoad, Submit};
use sluice_core::ids::{Nanos, SeqKey, WorkerId};
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
            let now = self.clock.now();
            let wait = match self.front.next_tick() {
                Some(at) if at <= now => Duration::ZERO,
                Some(at) => self.clock.until(at),
                None => Duration::from_secs(3600),
            };
            let mail = match self.inbox.recv_timeout(wait) {
                Ok(FrontMail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(mail) => Some(mail),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let now = self.clock.now();
            if let Some(mail) = mail {
                self.take(now, mail, &mut out);
                self.act(now, &mut out, None);
            }
            // Deadlines do not wait until there is no mail.
            if self.front.next_tick().is_some_and(|at| at <= now) {
                self.front.tick(now, &mut out);
                self.act(now, &mut out, None);
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
        let mut gone: Vec<SeqKey> = vec![];
        loop {
            for action in out.drain(..) {
                match action {
                    Action::Bind { rank, bind, handle } => {
                        self.post(rank, Mail::Bind { bind, choice: handle });
                    }
                    Action::CancelAt { rank, seq, attempt } => self.post(rank, Mail::Cancel { seq, attempt }),
                    Action::Deliver { seq, id, handle, .. } => {
                        let event = SeqEvent::Token { id, logprobs: logprobs.take() };
                        if handle.sink.send(seq.choice, event).is_err() {
                            gone.push(seq);
                        }
                    }
                    Action::End { seq, ending, handle } => {
                        self.observer
                            .ended(&ending, Duration::from_nanos(now.saturating_sub(handle.submitted)));
                        let _ = handle.sink.send(seq.choice, SeqEvent::End(ending));
                    }
                }
            }
            if gone.is_empty() {
                return;
            }
            for seq in gone.drain(..) {
                self.front.cancel(now, seq, CancelCause::Client, out);
            }
        }
    }

    fn post(&self, to: WorkerId, mail: Mail<U>) {
        if let Some(w) = self.workers.get(to.0 as usize) {
            let _ = w.send(mail);
        }
    }
}
