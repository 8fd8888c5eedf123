//! What the gateway asks of the run time: sequences in, tokens out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sluice_core::front::{CancelCause, Ending};
use sluice_core::ids::SeqKey;
use sluice_core::sequence::StopRule;
use tokio::sync::mpsc;

use crate::sampling::{CompiledGrammar, Logprobs, SamplingParams};

/// The run time behind the gateway.
pub trait Engine: Send + Sync + 'static {
    /// Takes a request: for each choice any number of [`SeqEvent::Token`], then one [`SeqEvent::End`] goes to `sink`.
    /// A refusal is an end too. Must not block.
    ///
    /// When `sink` says [`Gone`], nobody will read what comes: the run time cancels the sequence by itself.
    fn submit(&self, request: Generate, sink: EventSink);

    /// Ends a sequence; one that is over is ignored. Must not block.
    fn cancel(&self, seq: SeqKey, cause: CancelCause);
}

/// One prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Generate {
    /// Unique over all gateways: drawn at random. Choice `i` is the sequence (request, i).
    pub request: u64,
    /// Sequences of this prompt.
    pub choices: u16,
    /// Never empty; every id is in the vocabulary.
    pub prompt: Arc<[u32]>,
    /// When to stop.
    pub stop: StopRule,
    /// From now until the run time gives up.
    pub timeout: Duration,
    /// Keeps one API key's prefixes from another's.
    pub salt: u64,
    /// How to draw; the seed is set.
    pub sampling: Arc<SamplingParams>,
    /// What the output must look like.
    pub grammar: Option<CompiledGrammar>,
    /// The client's `x-request-id`, for logs and spans.
    pub trace: Arc<str>,
}

/// What becomes of a sequence.
#[derive(Debug)]
pub enum SeqEvent {
    /// One more token.
    Token {
        /// Its id.
        id: u32,
        /// If asked for.
        logprobs: Option<Box<Logprobs>>,
    },
    /// It is over.
    End(Ending),
}

/// Nobody reads the events any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

#[derive(Debug)]
struct Backlog {
    waiting: AtomicUsize,
    limit: usize,
    overflow: AtomicBool,
}

/// Where the events of one prompt's choices go. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct EventSink {
    events: mpsc::UnboundedSender<(usize, SeqEvent)>,
    first: usize,
    backlog: Arc<Backlog>,
    served_by: Arc<OnceLock<Arc<str>>>,
}

impl EventSink {
    /// The numerics id of the rank that serves the request, given as `system_fingerprint`: equal ids, equal bits, as far as
    /// models are told apart by [`Weights::fingerprint`](crate::model::weights::Weights::fingerprint). Said before the first
    /// token; later words change nothing, as all ranks that a request ever has are of one id.
    pub fn served_by(&self, numerics: &Arc<str>) {
        self.served_by.get_or_init(|| Arc::clone(numerics));
    }

    /// Passes an event on.
    ///
    /// # Errors
    /// [`Gone`] when the client left, or is so far behind that it counts as gone. An end is passed on even then.
    pub fn send(&self, choice: u16, event: SeqEvent) -> Result<(), Gone> {
        let end = matches!(event, SeqEvent::End(_));
        if !end && self.backlog.waiting.load(Ordering::Relaxed) >= self.backlog.limit {
            self.backlog.overflow.store(true, Ordering::Relaxed);
            return Err(Gone);
        }
        self.backlog.waiting.fetch_add(1, Ordering::Relaxed);
        self.events.send((self.first + usize::from(choice), event)).map_err(|_| Gone)
    }

    /// A sink for the choices after those of this one.
    pub(super) fn after(&self, choices: usize) -> Self {
        Self { first: self.first + choices, ..self.clone() }
    }
}

/// The other end of an [`EventSink`].
#[derive(Debug)]
pub struct EventSource {
    events: mpsc::UnboundedReceiver<(usize, SeqEvent)>,
    backlog: Arc<Backlog>,
    served_by: Arc<OnceLock<Arc<str>>>,
}

impl EventSource {
    /// The next event and the index of its sequence over all prompts; nothing once all sinks are gone.
    pub async fn next(&mut self) -> Option<(usize, SeqEvent)> {
        let event = self.events.recv().await;
        if event.is_some() {
            self.backlog.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        event
    }

    /// What [`EventSink::served_by`] was told, once it is known.
    pub fn fingerprint(&self) -> Arc<OnceLock<Arc<str>>> {
        Arc::clone(&self.served_by)
    }

    /// Tokens were dropped because the client is too far behind.
    pub fn overflowed(&self) -> bool {
        self.backlog.overflow.load(Ordering::Relaxed)
    }
}

/// A sink and its source. At most `limit` tokens wait between them.
pub fn events(limit: usize) -> (EventSink, EventSource) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let backlog = Arc::new(Backlog { waiting: AtomicUsize::new(0), limit, overflow: AtomicBool::new(false) });
    let served_by = Arc::default();
    (
        EventSink { events: sender, first: 0, backlog: backlog.clone(), served_by: Arc::clone(&served_by) },
        EventSource { events: receiver, backlog, served_by },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::front::Complete;

    const TOKEN: fn() -> SeqEvent = || SeqEvent::Token { id: 1, logprobs: None };

    #[tokio::test]
    async fn a_client_too_far_behind_is_gone_but_learns_the_end() {
        let (sink, mut source) = events(2);
        assert_eq!(sink.send(0, TOKEN()), Ok(()));
        assert_eq!(sink.after(3).send(1, TOKEN()), Ok(()));
        assert_eq!(sink.send(0, TOKEN()), Err(Gone));
        assert_eq!(sink.send(0, SeqEvent::End(Ending::Complete(Complete::Stop))), Ok(()));
        assert!(source.overflowed());
        let mut seen = Vec::new();
        drop(sink);
        while let Some((index, _)) = source.next().await {
            seen.push(index);
        }
        assert_eq!(seen, [0, 4, 0]);
    }

    #[tokio::test]
    async fn a_client_that_left_is_gone() {
        let (sink, source) = events(2);
        drop(source);
        assert_eq!(sink.send(0, TOKEN()), Err(Gone));
    }
}
