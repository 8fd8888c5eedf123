//! A token's way through its attention rank, as spans.
//!
//! For a traced request, each step that a sequence takes part in is a span (`attention` with its block, position
//! and the rows of the batch; `head`), and so is the time between two steps, in which its experts run elsewhere
//! (`experts`). All are children of the request's span, so that a collector shows the request's way as one picture.

use std::collections::HashMap;

use sluice_core::ids::{SeqHandle, SeqKey, WorkerId};
use sluice_core::step::{AttentionStep, HeadStep, Step};
use tracing::{Span, info_span};

use crate::gateway::TRACED;

/// A traced sequence at its rank.
#[derive(Debug)]
struct Traced {
    seq: SeqKey,
    request: Span,
    /// Open while its experts run.
    experts: Option<Span>,
}

/// The spans of one worker. Without a traced sequence a step costs one comparison.
#[derive(Debug)]
pub struct TokenSpans {
    worker: WorkerId,
    traced: HashMap<SeqHandle, Traced>,
    running: Vec<Span>,
    /// Traced sequences whose experts run when the step is over, and the block.
    next: Vec<(SeqHandle, u16)>,
}

impl TokenSpans {
    /// For a worker.
    pub fn new(worker: WorkerId) -> Self {
        Self { worker, traced: HashMap::new(), running: vec![], next: vec![] }
    }

    /// A sequence has its handle. `request` is the span of its request: it says whether the request is traced.
    pub fn open(&mut self, handle: SeqHandle, seq: SeqKey, request: &Span) {
        if request.metadata().is_some_and(|span| span.target() == TRACED) {
            self.traced.insert(handle, Traced { seq, request: request.clone(), experts: None });
        }
    }

    /// A sequence leaves its rank.
    pub fn close(&mut self, handle: SeqHandle) {
        self.traced.remove(&handle);
    }

    /// A step begins.
    pub fn begin(&mut self, step: &Step) {
        if self.traced.is_empty() {
            return;
        }
        match step {
            Step::Attention(step) => self.attention(step),
            Step::Head(step) => self.head(step),
            // Rows of an expert step carry no sequence: their home rank shows the time.
            Step::Experts(_) => {}
        }
    }

    /// The step is over.
    pub fn end(&mut self) {
        self.running.clear();
        for (handle, block) in self.next.drain(..) {
            if let Some(traced) = self.traced.get_mut(&handle) {
                traced.experts = Some(
                    info_span!(target: TRACED, parent: &traced.request, "experts", seq = %traced.seq, block),
                );
            }
        }
    }

    fn attention(&mut self, step: &AttentionStep) {
        let rows = step.rows.len();
        for segment in &step.segments {
            let Some(traced) = self.traced.get_mut(&segment.seq) else { continue };
            traced.experts = None;
            self.running.push(info_span!(
                target: TRACED,
                parent: &traced.request,
                "attention",
                seq = %traced.seq,
                worker = self.worker.0,
                block = step.blocks.start,
                blocks = step.blocks.len(),
                position = segment.start,
                tokens = segment.len,
                rows,
            ));
            if !step.span {
                self.next.push((segment.seq, step.blocks.start));
            }
        }
    }

    fn head(&mut self, step: &HeadStep) {
        let rows = step.rows.len();
        for row in &step.rows {
            let Some(traced) = self.traced.get_mut(&row.seq) else { continue };
            traced.experts = None;
            self.running.push(info_span!(
                target: TRACED,
                parent: &traced.request,
                "head",
                seq = %traced.seq,
                worker = self.worker.0,
                index = row.index,
                rows,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::step::{Entry, ExpertStep, HeadRow, SegmentStep, TokenRow};
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};
    use tracing_subscriber::registry::LookupSpan;

    /// Writes down the spans as they close.
    #[derive(Clone, Default)]
    struct Closed(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Closed {
        fn on_close(&self, id: tracing::span::Id, context: Context<'_, S>) {
            let span = context.span(&id).unwrap();
            let Some(parent) = span.parent() else { return };
            assert_eq!(span.metadata().target(), TRACED);
            let parent = parent.name();
            self.0.lock().unwrap().push(format!("{parent}/{}", span.name()));
        }
    }

    fn attention(seq: u32, block: u16) -> Step {
        let row = TokenRow { token: 0, entry: Entry::Carry, wanted: true };
        Step::Attention(AttentionStep {
            blocks: block..block + 1,
            span: false,
            segments: vec![SegmentStep { seq: SeqHandle(seq), start: 5, len: 1, pages: 0..1 }],
            rows: vec![row],
            slicing: vec![],
            pages: vec![0],
        })
    }

    fn head(seq: u32) -> Step {
        let row = HeadRow { token: 0, entry: Entry::Carry, seq: SeqHandle(seq), index: 0 };
        Step::Head(HeadStep { rows: vec![row], slicing: vec![] })
    }

    fn key(request: u64) -> SeqKey {
        SeqKey { request, choice: 0 }
    }

    #[test]
    fn a_token_is_seen_in_every_step_and_between_them() {
        let closed = Closed::default();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(closed.clone()));
        let (request, other) = (info_span!(target: TRACED, "request"), info_span!("request"));
        let mut spans = TokenSpans::new(WorkerId(0));
        spans.open(SeqHandle(1), key(7), &request);
        spans.open(SeqHandle(2), key(8), &other);
        for step in [attention(1, 0), attention(2, 0), attention(1, 1), head(1)] {
            spans.begin(&step);
            spans.end();
        }
        let order =
            ["request/attention", "request/experts", "request/attention", "request/experts", "request/head"];
        assert_eq!(*closed.0.lock().unwrap(), order, "and nothing of the sequence that is not traced");
        spans.begin(&attention(1, 0));
        spans.end();
        spans.close(SeqHandle(1));
        assert_eq!(closed.0.lock().unwrap().len(), 7, "a sequence that leaves leaves no span open");
    }

    #[test]
    fn expert_steps_have_no_sequence() {
        let mut spans = TokenSpans::new(WorkerId(0));
        spans.open(SeqHandle(1), key(1), &info_span!(target: TRACED, "request"));
        spans.begin(&Step::Experts(ExpertStep { block: 0, units: vec![], items: vec![] }));
        assert!(spans.running.is_empty());
    }
}
