//! A byte tokenizer, and an engine that says what the prompt tells it to.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use sluice_core::front::{CancelCause, Complete, Ending, Refused};
use sluice_core::ids::{SECOND, SeqKey};
use sluice_core::sequence::Abort;
use tokio::sync::oneshot;

use super::client::Server;
use crate::gateway::*;
use crate::sampling::{Constraint, GrammarCompiler, GrammarLimits, Logprobs, TokenLogprob};

pub(super) const EOS: u32 = 256;
pub(super) const BOS: u32 = 257;
pub(super) const STOP: u32 = 258;
pub(super) const VOCAB: usize = 260;

/// Token ids are bytes; 256 is the end, 257 the beginning, 258 another special token.
#[derive(Clone, Default)]
pub(super) struct Bytes {
    /// The threads on which texts were rendered, encoded and decoded.
    pub(super) threads: Arc<Mutex<Vec<ThreadId>>>,
    /// Each holds up one call until its sender is gone.
    pub(super) gates: Arc<Mutex<Vec<Receiver<()>>>>,
}

impl Bytes {
    fn called(&self) {
        self.threads.lock().unwrap().push(std::thread::current().id());
        let gate = self.gates.lock().unwrap().pop();
        if let Some(gate) = gate {
            let _ = gate.recv();
        }
    }
}

struct ByteText {
    held: Vec<u8>,
    skip_special: bool,
}

impl Detokenizer for ByteText {
    fn push(&mut self, id: u32) -> String {
        if id >= 256 {
            return if self.skip_special { String::new() } else { format!("<{id}>") };
        }
        self.held.push(id as u8);
        match std::str::from_utf8(&self.held) {
            Ok(text) => {
                let text = text.to_owned();
                self.held.clear();
                text
            }
            Err(error) if error.error_len().is_none() => String::new(),
            Err(_) => self.finish(),
        }
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

impl TextModel for Bytes {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        self.called();
        Ok(special.then_some(BOS).into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.called();
        let mut text = self.detokenizer(skip_special);
        let mut all: String = ids.iter().map(|id| text.push(*id)).collect();
        all += &text.finish();
        all
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        if id < 256 { vec![id as u8] } else { format!("<{id}>").into_bytes() }
    }

    fn detokenizer(&self, skip_special: bool) -> Box<dyn Detokenizer> {
        Box::new(ByteText { held: Vec::new(), skip_special })
    }

    fn render(&self, chat: &Conversation) -> Result<String, TextError> {
        self.called();
        let last = chat.messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
        if last == "refuse" {
            return Err(TextError::Template("roles must alternate".into()));
        }
        Ok(last.to_owned())
    }
}

/// What an engine was asked, and what became of it.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) asked: Vec<Generate>,
    pub(super) cancelled: Vec<(SeqKey, CancelCause)>,
    /// Sequences that found nobody listening.
    pub(super) gone: usize,
    pub(super) running: usize,
}

type Stops = Vec<(SeqKey, oneshot::Sender<CancelCause>)>;

/// The prompt is `COMMAND TEXT`: `say` the text; `wait` for a cancel; `flood` without end; `slow` says the text after
/// a while; `busy`, `late` (busy after a while), `huge`, `dead`, `abort`, `fault`, `cut` end so.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) seen: Arc<Mutex<Seen>>,
    stops: Arc<Mutex<Stops>>,
    pub(super) pause: Duration,
    pub(super) text: Bytes,
}

impl Fake {
    pub(super) fn new() -> Self {
        let pause = Duration::from_millis(50);
        Self { seen: Arc::default(), stops: Arc::default(), pause, text: Bytes::default() }
    }

    pub(super) async fn until(&self, done: impl Fn(&Seen) -> bool) {
        for _ in 0..2000 {
            if done(&self.seen.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came");
    }
}

struct Running {
    seq: SeqKey,
    request: Generate,
    sink: EventSink,
    constraint: Option<Box<dyn Constraint>>,
    produced: u32,
}

impl Running {
    /// The token wanted, or where a grammar does not allow it, the highest id that it does.
    fn choose(&mut self, wanted: u32) -> u32 {
        let Some(constraint) = &mut self.constraint else { return wanted };
        let mut logits: Vec<f32> = (0..VOCAB).map(|id| id as f32).collect();
        logits[wanted as usize] = 1e9;
        constraint.mask(&mut logits).unwrap();
        let best = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        constraint.accept(best).unwrap();
        best
    }

    /// One token; what ended the sequence, if something did.
    fn token(&mut self, wanted: u32) -> Option<Ending> {
        if self.produced >= self.request.stop.max_tokens {
            return Some(Ending::Complete(Complete::Length));
        }
        if self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete()) {
            return Some(Ending::Complete(Complete::Stop));
        }
        let id = self.choose(wanted);
        let logprobs = self.request.sampling.logprobs.map(|n| {
            let of = |id: u32| TokenLogprob { id, logprob: -(id as f32) / 7.0 };
            Box::new(Logprobs { token: of(id), top: (0..n).map(|i| of(u32::from(b'a') + i)).collect() })
        });
        self.produced += 1;
        self.sink.served_by(&"fp_test".into());
        if self.sink.send(self.seq.choice, SeqEvent::Token { id, logprobs }).is_err() {
            return Some(Ending::Cancelled);
        }
        self.request.stop.ids.contains(&id).then_some(Ending::Complete(Complete::Stop))
    }

    async fn run(&mut self, pause: Duration) -> Ending {
        let prompt: Vec<u8> =
            self.request.prompt.iter().filter(|id| **id < 256).map(|id| *id as u8).collect();
        let prompt = String::from_utf8_lossy(&prompt).into_owned();
        let (command, text) = prompt.split_once(' ').unwrap_or((&prompt, ""));
        match command {
            "wait" => {
                if let Some(ending) = self.token(u32::from(b'w')) {
                    return ending;
                }
                tokio::time::sleep(self.request.timeout).await;
                return Ending::Deadline;
            }
            "silent" => std::future::pending().await,
            "flood" => loop {
                if let Some(ending) = self.token(u32::from(b'f')) {
                    return ending;
                }
                tokio::task::yield_now().await;
            },
            "slow" => tokio::time::sleep(pause * 4).await,
            "busy" => return Ending::Refused(Refused::Busy { retry_after: 3 * SECOND / 2 }),
            "late" => {
                tokio::time::sleep(pause * 4).await;
                return Ending::Refused(Refused::Busy { retry_after: SECOND });
            }
            "huge" => return Ending::Refused(Refused::TooLarge { need: 9, room: 8 }),
            "dead" => return Ending::Deadline,
            "abort" => return Ending::Refused(Refused::Aborted(Abort::Constraint)),
            "fault" => return Ending::Refused(Refused::Aborted(Abort::Fault)),
            "cut" => return Ending::Cut,
            _ => {}
        }
        for id in text.bytes().map(u32::from) {
            // A hash stands for the other special token.
            let id = if id == u32::from(b'#') { STOP } else { id };
            if let Some(ending) = self.token(id) {
                return ending;
            }
            tokio::task::yield_now().await;
        }
        loop {
            if let Some(ending) = self.token(EOS) {
                return ending;
            }
        }
    }
}

impl Engine for Fake {
    fn submit(&self, request: Generate, sink: EventSink) {
        self.seen.lock().unwrap().asked.push(request.clone());
        for choice in 0..request.choices {
            let seq = SeqKey { request: request.request, choice };
            let (stop, stopped) = oneshot::channel();
            self.stops.lock().unwrap().push((seq, stop));
            self.seen.lock().unwrap().running += 1;
            let constraint = request.grammar.as_ref().map(crate::sampling::CompiledGrammar::start);
            let mut running =
                Running { seq, request: request.clone(), sink: sink.clone(), constraint, produced: 0 };
            let this = self.clone();
            tokio::spawn(async move {
                let ending = tokio::select! {
                    ending = running.run(this.pause) => ending,
                    Ok(cause) = stopped => match cause {
                        CancelCause::Client => Ending::Cancelled,
                        CancelCause::StopString => Ending::Complete(Complete::Stop),
                    },
                };
                let mut seen = this.seen.lock().unwrap();
                seen.gone += usize::from(ending == Ending::Cancelled && running.produced > 0);
                seen.running -= 1;
                let _ = running.sink.send(seq.choice, SeqEvent::End(ending));
            });
        }
    }

    fn cancel(&self, seq: SeqKey, cause: CancelCause) {
        self.seen.lock().unwrap().cancelled.push((seq, cause));
        let mut stops = self.stops.lock().unwrap();
        if let Some(at) = stops.iter().position(|(key, _)| *key == seq) {
            let _ = stops.swap_remove(at).1.send(cause);
        }
    }
}

pub(super) fn model() -> ServedModel {
    ServedModel {
        names: vec!["bytes".into(), "owner/bytes".into()],
        context: 512,
        vocab: VOCAB,
        eos: vec![EOS],
        defaults: GenerationDefaults::default(),
        created: 17,
    }
}

pub(super) fn gateway(fake: &Fake) -> Gateway {
    let mut words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    words.extend((256..VOCAB).map(|id| format!("\u{ff}<{id}>").into_bytes()));
    for (id, word) in words.iter_mut().enumerate().skip(256) {
        *word = [&[0xff], format!("<{id}>").as_bytes()].concat();
    }
    let grammars = GrammarCompiler::new(words, VOCAB, &[EOS], GrammarLimits::default()).unwrap();
    let text = Arc::new(fake.text.clone());
    Gateway::new(Arc::new(fake.clone()), text, model(), Some(Arc::new(grammars)), Arc::new(Silent))
}

/// A server with default limits.
pub(super) async fn server() -> (Fake, Server) {
    let fake = Fake::new();
    let server = Server::start(gateway(&fake), |_| {}).await;
    (fake, server)
}
