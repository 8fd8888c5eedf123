//! The HTTP client: one request, timed event by event.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::options::BenchOptions;
use super::record::{Failure, Outcome, Record};
use super::sse::Events;
use super::wire::{self, Answer, Usage};
use super::workload::Item;

/// What of an error's body is kept.
const ERROR_BODY: usize = 64 * 1024;

/// A server that cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("{url:?} is not an address of a server: {reason}; write it as http://127.0.0.1:8080")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// An API key with characters a header cannot carry.
    #[error("the API key holds characters that a header cannot carry")]
    ApiKey,
    /// It does not answer.
    #[error("{url} does not answer: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The last error.
        reason: String,
    },
    /// It lists no model.
    #[error("{url} lists no model; name one with --model")]
    NoModel {
        /// What was asked for.
        url: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Target {
    base: String,
    authorization: Option<hyper::header::HeaderValue>,
}

impl Target {
    /// A server's URL, with or without `/v1` at its end.
    ///
    /// # Errors
    /// It is no URL of a server, or the key cannot be sent.
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        let fail = |reason: String| ClientError::Url { url: url.into(), reason };
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let uri: Uri = base.parse().map_err(|e: hyper::http::uri::InvalidUri| fail(e.to_string()))?;
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some() => {}
            _ => return Err(fail("it does not begin with http:// or https://".into())),
        }
        let authorization = match api_key {
            None => None,
            Some(key) => {
                let mut value = hyper::header::HeaderValue::from_str(&format!("Bearer {key}"))
                    .map_err(|_| ClientError::ApiKey)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { base, authorization })
    }

    /// The server's root.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// A client with its pool of connections. Clones share the pool.
#[derive(Clone, Debug)]
pub struct Client {
    inner: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    target: Target,
}

impl Client {
    /// A client of one server.
    ///
    /// # Errors
    /// The system's certificates cannot be read.
    pub fn new(target: Target) -> Result<Self, ClientError> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let https = if target.base.starts_with("https:") {
            hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(|e| ClientError::Tls(e.to_string()))?
        } else {
            // Plain HTTP needs no certificates, and a machine may have none.
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(
                rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                    .with_safe_default_protocol_versions()
                    .map_err(|e| ClientError::Tls(e.to_string()))?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            )
        };
        let connector = https.https_or_http().enable_http1().wrap_connector(http);
        Ok(Self { inner: HyperClient::builder(TokioExecutor::new()).build(connector), target })
    }

    /// Sends a request below the server's root.
    ///
    /// # Errors
    /// No connection, or it broke.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.target.base));
        if let Some(authorization) = &self.target.authorization {
            request = request.header(hyper::header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(hyper::header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|e| e.to_string())?;
        self.inner.request(request).await.map_err(|e| chain(&e))
    }

    /// The whole of an answer, if it is not longer than `limit` bytes.
    ///
    /// # Errors
    /// No connection, or it broke.
    pub async fn get(&self, path: &str, limit: usize) -> Result<(StatusCode, Bytes), String> {
        let response = self.send(Method::GET, path, None).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(|e| e.to_string())?;
        Ok((status, body.to_bytes()))
    }

    /// Waits until the server lists its models, and gives the first.
    ///
    /// # Errors
    /// It does not answer in time, or lists none.
    pub async fn first_model(&self, wait: Duration) -> Result<String, ClientError> {
        let url = format!("{}/v1/models", self.target.base);
        let give_up = Instant::now() + wait;
        let body = loop {
            let reason = match self.get("/v1/models", ERROR_BODY).await {
                Ok((status, body)) if status.is_success() => break body,
                Ok((status, body)) => format!("{status}: {}", fault(&body)),
                Err(e) => e,
            };
            if Instant::now() >= give_up {
                return Err(ClientError::Unreachable { url, reason });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let list: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        list["data"][0]["id"].as_str().map(str::to_owned).ok_or(ClientError::NoModel { url })
    }

    /// Runs one generating request to its end. `start` is the run's; `due` when the request was due.
    pub async fn generate(
        &self,
        options: &BenchOptions,
        model: &str,
        index: u64,
        item: &Item,
        start: Instant,
        due: Duration,
    ) -> Record {
        let body: Bytes = wire::body(options, model, item, index).into();
        let mut record = Record {
            index,
            due,
            sent: start.elapsed(),
            end: Duration::ZERO,
            first: None,
            gaps: Vec::new(),
            asked: item.output,
            input_tokens: 0,
            output_tokens: 0,
            gaps_are_tokens: true,
            outcome: Outcome::Served,
        };
        let path = format!("/v1{}", wire::path(options.endpoint));
        let run = self.exchange(options.stream, &path, body, start, &mut record);
        let result = tokio::time::timeout(options.timeout, run)
            .await
            .unwrap_or(Err(Outcome::Failed(Failure::Timeout)));
        record.end = start.elapsed();
        if let Err(outcome) = result {
            record.outcome = outcome;
        }
        record
    }

    async fn exchange(
        &self,
        stream: bool,
        path: &str,
        body: Bytes,
        start: Instant,
        record: &mut Record,
    ) -> Result<(), Outcome> {
        let response = self
            .send(Method::POST, path, Some(body))
            .await
            .map_err(|e| Outcome::Failed(Failure::Connection(e)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(unserved(status, response).await);
        }
        if stream { streamed(response, start, record).await } else { whole(response, record).await }
            .map_err(Outcome::Failed)
    }
}

async fn unserved(status: StatusCode, response: Response<Incoming>) -> Outcome {
    let body = Limited::new(response.into_body(), ERROR_BODY)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Outcome::Refused { status: status.as_u16() }
        }
        _ => Outcome::Failed(Failure::Status {
            status: status.as_u16(),
            message: body.map(|b| fault(&b)).unwrap_or_default(),
        }),
    }
}

async fn whole(response: Response<Incoming>, record: &mut Record) -> Result<(), Failure> {
    let body = response.into_body().collect().await.map_err(|e| Failure::Cut(chain(&e)))?.to_bytes();
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|e| Failure::Protocol(format!("the answer is not that of a completion: {e}")))?;
    let usage = answer.usage.ok_or_else(|| Failure::Protocol("the answer has no usage".into()))?;
    record.input_tokens = usage.prompt_tokens;
    record.output_tokens = usage.completion_tokens;
    Ok(())
}

/// What a stream said so far.
#[derive(Default)]
struct Heard {
    ids: u64,
    any_ids: bool,
    usage: Option<Usage>,
    finished: bool,
    done: bool,
    last: Option<Duration>,
}

async fn streamed(response: Response<Incoming>, start: Instant, record: &mut Record) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut events = Events::default();
    let mut heard = Heard::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::Cut(chain(&e)))?;
        let now = start.elapsed();
        if let Some(data) = frame.data_ref() {
            events.push(data);
        }
        while let Some(event) = events.next_event() {
            heard.event(&event, now, record)?;
        }
    }
    heard.close(record)
}

impl Heard {
    fn event(&mut self, event: &[u8], now: Duration, record: &mut Record) -> Result<(), Failure> {
        if event == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let answer: Answer = serde_json::from_slice(event)
            .map_err(|e| Failure::Protocol(format!("an event is not that of a completion: {e}")))?;
        if let Some(error) = answer.error {
            return Err(Failure::Stream(error.message.unwrap_or_default().into_owned()));
        }
        self.usage = answer.usage.or(self.usage);
        for choice in &answer.choices {
            self.finished |= choice.finish_reason.is_some();
            self.any_ids |= choice.token_ids.is_some();
            let tokens = match &choice.token_ids {
                Some(ids) => ids.len(),
                None => usize::from(choice.has_text()),
            };
            self.ids += choice.token_ids.as_ref().map_or(0, |ids| ids.len() as u64);
            for _ in 0..tokens {
                match self.last {
                    None => record.first = Some(now),
                    Some(last) => record.gaps.push(now.saturating_sub(last)),
                }
                self.last = Some(now);
            }
        }
        Ok(())
    }

    fn close(self, record: &mut Record) -> Result<(), Failure> {
        record.gaps_are_tokens = self.any_ids;
        record.input_tokens = self.usage.map_or(0, |u| u.prompt_tokens);
        record.output_tokens =
            if self.any_ids { self.ids } else { self.usage.map_or(0, |u| u.completion_tokens) };
        if !self.done || !self.finished {
            return Err(Failure::Cut("the stream ended before its finish_reason and [DONE]".into()));
        }
        match self.usage {
            None if !self.any_ids => Err(Failure::Protocol(
                "the stream has neither token_ids nor usage, so its tokens cannot be counted".into(),
            )),
            Some(usage) if self.any_ids && usage.completion_tokens != self.ids => Err(Failure::Protocol(
                format!("the usage says {} tokens and {} token_ids came", usage.completion_tokens, self.ids),
            )),
            _ => Ok(()),
        }
    }
}

/// The message of an OpenAI-shaped error, or the text as it is.
fn fault(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Answer>(body)
        .ok()
        .and_then(|a| a.error)
        .and_then(|e| e.message)
        .map(std::borrow::Cow::into_owned);
    message.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(300).collect())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_with_and_without_their_end() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(Target::new(url, None).unwrap().base(), "http://h:1");
        }
        assert_eq!(Target::new("https://h/deep/v1", Some("k")).unwrap().base(), "https://h/deep");
        for bad in ["h:1", "ftp://h", "", "http://"] {
            assert!(Target::new(bad, None).is_err(), "{bad}");
        }
        assert!(Target::new("http://h", Some("a\nb")).is_err());
    }
}
