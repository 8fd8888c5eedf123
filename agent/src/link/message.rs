//! What a gateway and a rank say to each other.
//!
//! Floating-point numbers travel as their bits. Lengths are checked against the bytes that are there, and nothing that
//! is decoded is trusted to make sense: [`Bind::check`] says whether a rank can do anything with it.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, Nanos, SeqKey};
use sluice_core::sequence::{self, Abort, Finish, RankEvent, Refusal, StopRule};
use sluice_core::session::SessionId;

use super::end::Garbage;
use crate::sampling::{Grammar, Logprobs, ParamError, SamplingParams};

/// A gateway's first message on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The session that is to go on, or to begin.
    #[serde(with = "SessionIdDef")]
    pub session: SessionId,
    /// It may begin: the rank has not answered for it yet.
    pub fresh: bool,
    /// The newest of the rank's messages that the gateway has.
    pub has: u64,
}

/// The rank's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The session goes on.
    Opened {
        /// The newest of the gateway's messages that the rank has.
        has: u64,
    },
    /// The rank does not have it, or has a newer one.
    Unknown,
}

/// From a gateway to a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToRank {
    /// Take a sequence.
    Bind(Box<Bind>),
    /// Drop an attempt.
    Cancel {
        /// The sequence.
        #[serde(with = "SeqKeyDef")]
        seq: SeqKey,
        /// The attempt; a newer one stays.
        attempt: Attempt,
    },
}

/// From a rank to a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGateway {
    /// What becomes of sequences, in order.
    Told(Vec<Told>),
    /// The rank's load.
    Load(#[serde(with = "RankLoadDef")] RankLoad),
}

/// A sequence, and how to draw its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    /// As in [`sequence::Bind`], as are those below.
    #[serde(with = "SeqKeyDef")]
    pub seq: SeqKey,
    /// Its attempt.
    pub attempt: Attempt,
    /// Prompt and produced token ids.
    pub ids: Arc<[u32]>,
    /// How many of `ids` were produced.
    pub produced: u32,
    /// When to stop.
    #[serde(with = "StopRuleDef")]
    pub stop: StopRule,
    /// How long from now until it is given up: the two sides have clocks of their own.
    pub left: Option<Nanos>,
    /// Keeps one API key's prefixes from another's.
    pub salt: u64,
    /// The lower, the older.
    pub age: u64,
    /// A replay or a preempted sequence.
    pub replay: bool,
    /// How to draw.
    pub sampling: Arc<SamplingParams>,
    /// What the output must look like.
    pub grammar: Option<Source>,
}

/// A bind that a rank can do nothing with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// Nothing to attend to.
    #[error("it has no token ids")]
    Empty,
    /// More than all.
    #[error("{produced} of its {ids} token ids are said to be produced")]
    Produced {
        /// Said to be produced.
        produced: u32,
        /// All.
        ids: usize,
    },
    /// Another tokenizer.
    #[error(
        "token id {id} is none of the {vocab} of this model: gateway and rank have loaded different ones"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Ids of the model.
        vocab: usize,
    },
    /// They are searched.
    #[error("its stop ids are not sorted")]
    Stops,
    /// A parameter out of its range.
    #[error(transparent)]
    Param(#[from] ParamError),
}

impl Bind {
    /// Of a bind at `now` of the clock that its deadline is on.
    pub fn new(
        bind: sequence::Bind,
        now: Nanos,
        sampling: Arc<SamplingParams>,
        grammar: Option<&Grammar>,
    ) -> Self {
        Self {
            seq: bind.seq,
            attempt: bind.attempt,
            ids: bind.ids,
            produced: bind.produced,
            stop: bind.stop,
            left: bind.deadline.map(|at| at.saturating_sub(now)),
            salt: bind.salt,
            age: bind.age,
            replay: bind.replay,
            sampling,
            grammar: grammar.map(Source::from),
        }
    }

    /// Whether a rank whose model has `vocab` token ids can do anything with it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, vocab: usize) -> Result<(), Unfit> {
        if self.ids.is_empty() {
            return Err(Unfit::Empty);
        }
        if self.produced as usize > self.ids.len() {
            return Err(Unfit::Produced { produced: self.produced, ids: self.ids.len() });
        }
        if let Some(&id) = self.ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Unfit::Vocabulary { id, vocab });
        }
        if !self.stop.ids.is_sorted() {
            return Err(Unfit::Stops);
        }
        Ok(self.sampling.check(vocab)?)
    }

    /// For the rank's core, at `now` of its clock.
    pub fn bind(&self, now: Nanos, gateway: GatewayId) -> sequence::Bind {
        sequence::Bind {
            seq: self.seq,
            attempt: self.attempt,
            gateway,
            ids: Arc::clone(&self.ids),
            produced: self.produced,
            stop: self.stop.clone(),
            deadline: self.left.map(|left| now.saturating_add(left)),
            salt: self.salt,
            age: self.age,
            replay: self.replay,
        }
    }
}

/// One word of a rank on a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The sequence.
    #[serde(with = "SeqKeyDef")]
    pub seq: SeqKey,
    /// Its attempt.
    pub attempt: Attempt,
    /// The word.
    #[serde(with = "RankEventDef")]
    pub event: RankEvent,
    /// Beside a token, if asked for.
    pub logprobs: Option<Box<Logprobs>>,
}

/// A grammar before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// The schema's text.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A regular expression.
    Regex(String),
    /// A grammar in Lark.
    Lark(String),
    /// One of these.
    Choice(Vec<String>),
}

impl From<&Grammar> for Source {
    fn from(grammar: &Grammar) -> Self {
        match grammar {
            Grammar::JsonSchema(schema) => Self::JsonSchema(schema.to_string()),
            Grammar::JsonObject => Self::JsonObject,
            Grammar::Regex(text) => Self::Regex(text.clone()),
            Grammar::Lark(text) => Self::Lark(text.clone()),
            Grammar::Choice(texts) => Self::Choice(texts.clone()),
        }
    }
}

impl Source {
    /// As the compiler takes it.
    ///
    /// # Errors
    /// A schema that is no JSON.
    pub fn grammar(&self) -> Result<Grammar, serde_json::Error> {
        Ok(match self {
            Self::JsonSchema(text) => Grammar::JsonSchema(serde_json::from_str(text)?),
            Self::JsonObject => Grammar::JsonObject,
            Self::Regex(text) => Grammar::Regex(text.clone()),
            Self::Lark(text) => Grammar::Lark(text.clone()),
            Self::Choice(texts) => Grammar::Choice(texts.clone()),
        })
    }
}

/// A message's bytes. None of these types has a serializer that could fail.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    postcard::to_stdvec(message).expect("plain data in memory").into()
}

/// The message that bytes are, all of them. `what` it is to be, for the error.
///
/// # Errors
/// They are something else.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Garbage> {
    let length = bytes.len();
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => {
            Err(Garbage::Message { what, length, why: format!("{} bytes are left over", rest.len()) })
        }
        Err(error) => Err(Garbage::Message { what, length, why: error.to_string() }),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SessionId")]
struct SessionIdDef {
    incarnation: u64,
    number: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SeqKey")]
struct SeqKeyDef {
    request: u64,
    choice: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "StopRule")]
struct StopRuleDef {
    ids: Vec<u32>,
    min_tokens: u32,
    max_tokens: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "RankLoad")]
struct RankLoadDef {
    free_blocks: u32,
    pool_blocks: u32,
    block_tokens: u32,
    queue: u32,
    draining: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "RankEvent")]
enum RankEventDef {
    Accepted,
    Refused(#[serde(with = "RefusalDef")] Refusal),
    Token { index: u32, id: u32 },
    Finished(#[serde(with = "FinishDef")] Finish),
    HandedBack,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Refusal")]
enum RefusalDef {
    TooLarge { room: u32 },
    Busy,
    Draining,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Finish")]
enum FinishDef {
    Stop,
    Length,
    Cancelled,
    Deadline,
    Aborted(#[serde(with = "AbortDef")] Abort),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Abort")]
enum AbortDef {
    Constraint,
    Fault,
}
