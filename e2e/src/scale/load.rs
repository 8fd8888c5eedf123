//! The clients: a closed loop of sequences that all decode, from before a measurement begins until after it has ended.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use sluice_agent::bench::{Client, Events, Target};
use sluice_sim::fleet::pace::Pace;
use tokio::task::JoinHandle;

use super::deployment::{CHOICES, Deployment};
use super::setup::{Served, Setup};

/// Tokens that every sequence has before its pace counts.
const WARM: u32 = 5;
/// Every sequence has these within this.
const START: Duration = Duration::from_secs(180);

/// What the clients have seen.
struct Tally {
    epoch: Instant,
    pace: Pace,
    tokens: Vec<u32>,
    /// Sequences that have begun in earnest.
    warm: usize,
    over: bool,
    failure: Option<String>,
}

impl Tally {
    fn token(&mut self, sequence: usize) {
        if !self.over {
            self.pace.token(sequence, self.epoch.elapsed().as_nanos() as u64);
        }
        if let Some(tokens) = self.tokens.get_mut(sequence) {
            *tokens += 1;
            self.warm += usize::from(*tokens == WARM);
        }
    }
}

/// All clients; they let go of their requests when it is dropped.
pub struct Load {
    tally: Rc<RefCell<Tally>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An event of a stream; the fields that matter.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: usize,
    #[serde(default)]
    token_ids: Vec<u32>,
    finish_reason: Option<String>,
}

impl Load {
    /// Begins all sequences, and resolves when each of them has begun to decode. Within a `LocalSet`.
    ///
    /// # Errors
    /// A request that failed.
    pub async fn begin(setup: &Setup, deployment: &mut Deployment) -> Result<Self, String> {
        let target =
            Target::new(&format!("http://{}", deployment.address), None).map_err(|e| e.to_string())?;
        let client = Client::new(target).map_err(|e| e.to_string())?;
        let most = Served::tiny_moe()?.positions - 1;
        let sequences = setup.sequences();
        let tally = Tally {
            epoch: Instant::now(),
            pace: Pace::new(sequences as usize),
            tokens: vec![0; sequences as usize],
            warm: 0,
            over: false,
            failure: None,
        };
        let mut load = Self { tally: Rc::new(RefCell::new(tally)), tasks: vec![] };
        for first in (0..sequences).step_by(CHOICES as usize) {
            let body = body(first, CHOICES.min(sequences - first), most);
            let (client, tally) = (client.clone(), Rc::clone(&load.tally));
            load.tasks.push(tokio::task::spawn_local(async move {
                let ended = request(&client, body, first as usize, &tally).await;
                let why = ended
                    .err()
                    .unwrap_or_else(|| "a sequence came to its end: slow the devices down more".into());
                tally.borrow_mut().failure.get_or_insert(why);
            }));
        }
        let begin = Instant::now();
        while load.tally.borrow().warm < sequences as usize {
            load.check(deployment)?;
            if begin.elapsed() > START {
                return Err(format!(
                    "after {} s {} of {sequences} sequences have {WARM} tokens",
                    START.as_secs(),
                    load.tally.borrow().warm
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        load.tally.borrow_mut().pace.measure();
        Ok(load)
    }

    /// Whether all goes on.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self, deployment: &mut Deployment) -> Result<(), String> {
        deployment.check()?;
        self.tally.borrow().failure.clone().map_or(Ok(()), Err)
    }

    /// Ends the measurement: nothing that comes later counts.
    pub fn end(&self) -> Pace {
        let mut tally = self.tally.borrow_mut();
        tally.over = true;
        tally.pace.clone()
    }
}

fn body(first: u32, choices: u32, most: u32) -> Bytes {
    // A seed of its own for each request, so that each has its own way through the experts.
    let body = serde_json::json!({
        "model": "tiny-moe", "prompt": [1], "n": choices, "max_tokens": most, "seed": first + 1, "ignore_eos": true,
        "temperature": 0, "stream": true, "return_token_ids": true,
    });
    Bytes::from(body.to_string())
}

async fn request(client: &Client, body: Bytes, first: usize, tally: &RefCell<Tally>) -> Result<(), String> {
    let answer = client.send(Method::POST, "/v1/completions", Some(body)).await?;
    let status = answer.status();
    let mut answer = answer.into_body();
    if !status.is_success() {
        let said = answer.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return Err(format!("a request was answered with {status}: {}", String::from_utf8_lossy(&said)));
    }
    let mut events = Events::default();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|e| format!("a stream broke: {e}"))?;
        events.push(frame.data_ref().map_or(&[], |data| data));
        while let Some(event) = events.next_event() {
            if event == b"[DONE]" {
                return Ok(());
            }
            for (choice, tokens) in read(&event)? {
                (0..tokens).for_each(|_| tally.borrow_mut().token(first + choice));
            }
        }
    }
    Err("a stream ended early".into())
}

/// The choices of an event, and how many tokens each has of it.
fn read(event: &[u8]) -> Result<Vec<(usize, usize)>, String> {
    let said: Event = serde_json::from_slice(event).map_err(|e| format!("an event cannot be read: {e}"))?;
    if let Some(error) = said.error {
        return Err(format!("a stream failed: {error}"));
    }
    if let Some(why) = said.choices.iter().find_map(|c| c.finish_reason.as_deref()) {
        return Err(format!(
            "a sequence ended ({why}): slow the devices down more, or measure for less time"
        ));
    }
    Ok(said.choices.iter().map(|c| (c.index, c.token_ids.len())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_whose_its_tokens_are() {
        let event = |rest: &str| format!(r#"{{"id":"x","choices":[{{"index":3,"text":"a",{rest}}}]}}"#);
        assert_eq!(read(event(r#""token_ids":[7],"finish_reason":null"#).as_bytes()), Ok(vec![(3, 1)]));
        assert_eq!(read(event(r#""token_ids":[]"#).as_bytes()), Ok(vec![(3, 0)]));
        assert_eq!(read(br#"{"choices":[],"usage":{}}"#), Ok(vec![]));
        assert!(read(event(r#""finish_reason":"length""#).as_bytes()).unwrap_err().contains("length"));
        assert!(read(br#"{"error":{"message":"no"}}"#).unwrap_err().contains("no"));
        assert!(read(b"{").is_err());
    }

    #[test]
    fn sequences_are_warm_after_some_tokens() {
        let mut t = Tally {
            epoch: Instant::now(),
            pace: Pace::new(2),
            tokens: vec![0; 2],
            warm: 0,
            over: false,
            failure: None,
        };
        (0..WARM + 3).for_each(|_| t.token(0));
        (0..WARM - 1).for_each(|_| t.token(1));
        assert_eq!(t.warm, 1);
        t.token(1);
        t.token(7);
        assert_eq!(t.warm, 2);
    }
}
