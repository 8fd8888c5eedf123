//! What became of one request.

use std::time::Duration;

use serde::Serialize;

/// One request, as its client saw it. Times count from the start of the run.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Its number in the workload.
    pub index: u64,
    /// When it was due: in the open loop its arrival, in the closed loop when its client was free.
    pub due: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// When it was over.
    pub end: Duration,
    /// When its first token came.
    pub first: Option<Duration>,
    /// Times between tokens that follow each other. Tokens of one event come together: their gaps are 0. If the server
    /// sends no token ids, times between events with text.
    pub gaps: Vec<Duration>,
    /// Tokens asked for.
    pub asked: u32,
    /// Tokens of the prompt, by the server's count.
    pub input_tokens: u64,
    /// Tokens that came.
    pub output_tokens: u64,
    /// Whether `gaps` are between tokens (the server sent token ids) or between events.
    pub gaps_are_tokens: bool,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole answer came.
    Served,
    /// The server said 429 or 503: it has no room.
    Refused {
        /// Which.
        status: u16,
    },
    /// Anything else.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection, or it broke before an answer.
    Connection(String),
    /// A status that is neither success nor a refusal.
    Status {
        /// Which.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// Longer than the client's patience.
    Timeout,
    /// The answer broke off before its end.
    Cut(String),
    /// An error in the midst of a stream.
    Stream(String),
    /// An answer that is not what the API promises.
    Protocol(String),
}

impl Failure {
    /// A few words to count by.
    pub fn label(&self) -> String {
        match self {
            Self::Connection(_) => "connection".into(),
            Self::Status { status, .. } => format!("status {status}"),
            Self::Timeout => "timeout".into(),
            Self::Cut(_) => "cut".into(),
            Self::Stream(_) => "error in stream".into(),
            Self::Protocol(_) => "protocol".into(),
        }
    }

    /// What was said.
    pub fn message(&self) -> &str {
        match self {
            Self::Connection(m) | Self::Cut(m) | Self::Stream(m) | Self::Protocol(m) => m,
            Self::Status { message, .. } => message,
            Self::Timeout => "no answer in time",
        }
    }
}

impl Record {
    /// Whether the whole answer came.
    pub fn is_served(&self) -> bool {
        self.outcome == Outcome::Served
    }

    /// Time to the first token.
    pub fn ttft(&self) -> Option<Duration> {
        self.first.map(|f| f.saturating_sub(self.due))
    }

    /// From when it was due to its end.
    pub fn latency(&self) -> Duration {
        self.end.saturating_sub(self.due)
    }

    /// Mean time between its tokens, by the clock over the tokens: right whether or not they came one by one.
    pub fn mean_gap(&self) -> Option<Duration> {
        let span: Duration = self.gaps.iter().sum();
        let gaps = u32::try_from(self.output_tokens.checked_sub(1)?).ok().filter(|n| *n > 0)?;
        Some(span / gaps)
    }

    /// When each token came, as far as the events tell.
    pub fn token_times(&self) -> impl Iterator<Item = Duration> + '_ {
        let gaps = self.gaps.iter().scan(self.first, |at, gap| {
            *at = at.map(|t| t + *gap);
            *at
        });
        self.first.into_iter().chain(gaps)
    }
}
