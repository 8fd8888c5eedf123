//! Clients of the gateway: streamed answers, and crowds of them while something happens.

use crate::cluster;
use crate::objects::Space;
use crate::shell::Group;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;

/// The text of an answer in server-sent events; lines of anything else are passed over.
///
/// # Errors
/// The answer is not complete, or is an error.
pub fn joined(printed: &str) -> anyhow::Result<String> {
    let mut answer = Answer::default();
    for line in printed.lines() {
        answer.line(line)?;
    }
    answer.complete()
}

/// What transformers answers to a question of models/tiny-moe/reference.json, in 64 tokens.
///
/// # Errors
/// It has no such question.
pub fn reference(question: &str) -> anyhow::Result<String> {
    let path = cluster::top().join("models/tiny-moe/reference.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let all = file["references"].as_array().context("no references")?;
    let asked = |r: &&Value| r["kind"] == "chat" && r["prompt"] == question && r["eos_at"].is_null();
    let found = all.iter().find(asked).with_context(|| format!("no reference for {question:?}"))?;
    Ok(found["greedy_text"].as_str().context("no text")?.into())
}

#[derive(Default)]
struct Answer {
    text: String,
    finished: bool,
    done: bool,
}

impl Answer {
    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        let Some(data) = line.strip_prefix("data: ") else { return Ok(()) };
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?;
        ensure!(event["error"].is_null(), "an error in the stream: {}", event["error"]);
        let choice = &event["choices"][0];
        self.text += choice["delta"]["content"].as_str().unwrap_or_default();
        self.finished |= choice["finish_reason"].is_string();
        Ok(())
    }

    fn complete(self) -> anyhow::Result<String> {
        ensure!(self.done && self.finished, "the stream ended after {:?}", self.text);
        Ok(self.text)
    }
}

/// A way to a deployment's gateway.
struct Way {
    port: u16,
    /// What it lasts as long as.
    _forward: Option<(Child, Group)>,
}

impl Way {
    async fn to(space: &Space<'_>, deployment: &str) -> anyhow::Result<Self> {
        let port = space.kubectl(&["get", "service", deployment, "-o", "jsonpath={.spec.ports[0].nodePort}"]);
        let port = port.text().await?;
        if space.world.cluster.own.is_some() && !port.is_empty() {
            Self::through_node(space, deployment, &port).await
        } else if space.world.cluster.own.is_some() {
            Self::direct(space, deployment).await
        } else {
            Self::forward(space, deployment).await
        }
    }

    /// To the pod's address: it lasts when the API server or a containerd is away.
    async fn direct(space: &Space<'_>, deployment: &str) -> anyhow::Result<Self> {
        let pods = space.role(deployment, "gateway").await?;
        let address = pods.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.as_ref());
        let address = format!("{}:8080", address.context("the gateway has no address")?);
        Self::reach(space, &address).await
    }

    /// By the Service, at a node that has a gateway: it goes on when that is exchanged.
    async fn through_node(space: &Space<'_>, deployment: &str, port: &str) -> anyhow::Result<Self> {
        let pods = space.role(deployment, "gateway").await?;
        let address = pods.iter().find_map(|pod| pod.status.as_ref()?.host_ip.as_ref());
        let address = format!("{}:{port}", address.context("the gateway has no node")?);
        Self::reach(space, &address).await
    }

    async fn reach(space: &Space<'_>, address: &str) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        space.world.cluster.verb(&["reach", address, &port.to_string()]).await?;
        Ok(Self { port, _forward: None })
    }

    /// As a person gets there on any cluster.
    async fn forward(space: &Space<'_>, deployment: &str) -> anyhow::Result<Self> {
        let target = format!("service/{deployment}");
        let run = space.kubectl(&["port-forward", "--address", "127.0.0.1", &target, ":80"]);
        let (mut child, group) = run.start()?;
        let out = child.stdout.take().context("no output")?;
        let mut lines = BufReader::new(out).lines();
        let first = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = first.context("port-forward says nothing")??.context("port-forward ended")?;
        // "Forwarding from 127.0.0.1:41234 -> 8080"
        let port = line.split(&[':', ' '][..]).find_map(|word| word.parse().ok());
        let port = port.with_context(|| format!("no port in {line:?}"))?;
        // It says a line for each connection, and must not wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { port, _forward: Some((child, group)) })
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// One answer, and the longest time without a token of it.
async fn ask(http: &Http, port: u16, body: &Value) -> anyhow::Result<(String, Duration)> {
    let uri = format!("http://127.0.0.1:{port}/v1/chat/completions");
    let request = Request::post(uri).header(CONTENT_TYPE, "application/json");
    let response = http.request(request.body(Full::new(Bytes::from(body.to_string())))?).await?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let text = body.collect().await?.to_bytes();
        bail!("{status}: {}", String::from_utf8_lossy(&text));
    }
    let (mut answer, mut rest) = (Answer::default(), Vec::new());
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        gap = gap.max(last.elapsed());
        last = Instant::now();
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            answer.line(std::str::from_utf8(&line)?.trim_end())?;
        }
    }
    Ok((answer.complete()?, gap))
}

/// What is asked: each once greedily and once with a seed.
const QUESTIONS: [&str; 4] = [
    "Tell me a story about a clever fox and a little hen.",
    "Write a paragraph of a speech about peace.",
    "Tell me a story about a lost kite.",
    "Tell me a story.",
];

fn requests() -> Vec<Value> {
    let ask = |question: &str, temperature: f64, seed: usize| {
        json!({
            "model": "tiny", "stream": true, "max_tokens": 200, "temperature": temperature, "seed": seed,
            "messages": [{ "role": "user", "content": question }],
        })
    };
    let mut all = Vec::new();
    for (i, question) in QUESTIONS.iter().enumerate() {
        all.push(ask(question, 0.0, i));
        all.push(ask(question, 0.8, i));
    }
    all
}

/// Clients that ask one thing after the other, until the end, and compare every answer with that of before.
pub struct Streams {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Tally>>,
    _way: Way,
}

#[derive(Default)]
struct Tally {
    answers: usize,
    failed: Vec<String>,
    different: Vec<String>,
    gap: Duration,
}

impl Streams {
    /// Asks everything once, undisturbed, and then begins.
    ///
    /// # Errors
    /// Something is not answered.
    pub async fn begin(space: &Space<'_>, deployment: &str, clients: usize) -> anyhow::Result<Self> {
        let way = Way::to(space, deployment).await?;
        let (port, http) = (way.port, Client::builder(TokioExecutor::new()).build_http());
        let mut known = Vec::new();
        for mut request in requests() {
            request["model"] = deployment.into();
            let (text, _) = ask(&http, port, &request).await.context("before any fault")?;
            known.push((request, text));
        }
        let (stop, known) = (Arc::new(AtomicBool::new(false)), Arc::new(known));
        let tasks = (0..clients).map(|client| {
            let (stop, known, http) = (stop.clone(), known.clone(), http.clone());
            tokio::spawn(async move { one_after_the_other(&http, port, &known, client, &stop).await })
        });
        Ok(Self { tasks: tasks.collect(), stop, _way: way })
    }

    /// Lets what runs finish. No answer may have failed or been different, and there must be so many.
    ///
    /// # Errors
    /// What failed.
    pub async fn end(mut self, least: usize) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for task in self.tasks.drain(..) {
            let one = tokio::time::timeout(Duration::from_secs(90), task)
                .await
                .context("an answer does not end")??;
            all.answers += one.answers;
            all.failed.extend(one.failed);
            all.different.extend(one.different);
            all.gap = all.gap.max(one.gap);
        }
        let Tally { answers, failed, different, gap } = all;
        println!(
            "      {answers} answers, {} failed, {} different, longest gap {gap:.2?}",
            failed.len(),
            different.len()
        );
        ensure!(
            failed.is_empty(),
            "{} of {answers} failed: {:?}",
            failed.len(),
            &failed[..failed.len().min(3)]
        );
        ensure!(different.is_empty(), "{} of {answers} differ: {}", different.len(), different[0]);
        ensure!(answers >= least, "only {answers} answers");
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn one_after_the_other(
    http: &Http,
    port: u16,
    known: &[(Value, String)],
    client: usize,
    stop: &AtomicBool,
) -> Tally {
    let mut tally = Tally::default();
    for (request, expected) in known.iter().cycle().skip(client % known.len()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tally.answers += 1;
        match ask(http, port, request).await {
            Ok((text, gap)) => {
                tally.gap = tally.gap.max(gap);
                if text != *expected {
                    tally.different.push(format!("{text:?} instead of {expected:?}"));
                }
            }
            Err(error) => {
                tally.failed.push(format!("{error:#}"));
                // No storm of what is refused at once.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_among_other_lines() {
        let text = "deployed\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n";
        assert_eq!(joined(text).unwrap(), "ab");
        assert!(joined(&text.replace("data: [DONE]", "")).is_err());
        assert!(joined("data: {\"error\":{\"message\":\"full\"}}\ndata: [DONE]\n").is_err());
    }

    #[test]
    fn the_quickstarts_question_has_a_reference() {
        assert!(reference(QUESTIONS[0]).unwrap().starts_with("Once upon a time"));
    }
}
