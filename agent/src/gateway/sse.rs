//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::time::timeout;

use super::choice::Piece;
use super::error::ApiError;
use super::output::{Collected, Outputs, Usage};

/// Events that may be written at once when tokens come faster than they are written.
const BATCH: usize = 8;

/// How an endpoint writes its answers. Each string is the JSON of one event of a stream.
pub(super) trait Frames: Send + 'static {
    /// Before anything else.
    fn begin(&mut self, out: &mut VecDeque<String>);
    /// A piece of a choice.
    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<String>);
    /// After the last piece.
    fn end(&mut self, usage: Usage, out: &mut VecDeque<String>);
    /// Everything at once, for a client that does not stream.
    fn whole(&mut self, collected: Vec<Collected>, usage: Usage) -> Response;
}

struct State<F> {
    outputs: Option<Outputs>,
    frames: F,
    ready: VecDeque<String>,
    /// Events since the last pause, and how many there may be.
    unflushed: (usize, usize),
    /// Given back when the stream is over, however that comes.
    _hold: Box<dyn Send>,
}

impl<F: Frames> State<F> {
    fn take(&mut self, next: Option<Result<(usize, Piece), ApiError>>) {
        match next {
            Some(Ok((index, piece))) => self.frames.piece(index, piece, &mut self.ready),
            Some(Err(error)) => {
                self.ready.push_back(error.to_json());
                self.close();
            }
            None => {
                if let Some(outputs) = &self.outputs {
                    self.frames.end(outputs.usage(), &mut self.ready);
                }
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.outputs = None;
        self.ready.push_back("[DONE]".to_owned());
    }

    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                self.unflushed.0 += 1;
                return Some((Ok(Event::default().data(data)), self));
            }
            // A stream that always has more is written only when its buffer is full: the pause writes it now.
            if self.unflushed.0 >= self.unflushed.1 {
                self.unflushed = (0, BATCH);
                tokio::task::yield_now().await;
            }
            let next = self.outputs.as_mut()?.next().await;
            self.take(next);
        }
    }
}

/// When the answer may begin, and how it is kept alive.
pub(super) struct Pace {
    /// Until then a refusal has a status of its own.
    pub(super) first: Duration,
    /// Between comments.
    pub(super) heartbeat: Duration,
}

/// Streams a request; `hold` is kept as long as the stream.
pub(super) async fn respond(
    mut outputs: Outputs,
    frames: impl Frames,
    pace: Pace,
    hold: Box<dyn Send>,
) -> Result<Response, ApiError> {
    let first = match timeout(pace.first, outputs.next()).await {
        Ok(Some(Err(error))) => return Err(error),
        Ok(next) => Some(next),
        Err(_) => None,
    };
    let mut state =
        State { outputs: Some(outputs), frames, ready: VecDeque::new(), unflushed: (0, 1), _hold: hold };
    state.frames.begin(&mut state.ready);
    if let Some(next) = first {
        state.take(next);
    }
    let events = stream::unfold(state, State::next);
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(pace.heartbeat).text("waiting"))
        .into_response();
    // Proxies must not collect a stream.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}
