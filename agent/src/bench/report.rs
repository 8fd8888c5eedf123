//! What a run came to: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::options::{BenchOptions, DEFAULT_OUTPUT, End, Endpoint, Load, PromptSpec};
use super::record::{Outcome, Record};
use super::stats::Summary;

/// The result of a run. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was asked.
    pub config: Config,
    /// From the run's start to the end of its window: `--duration`, or the end of the last request.
    pub window: f64,
    /// Requests by what became of them.
    pub requests: Requests,
    /// Tokens of served requests, and their rates in the window.
    pub tokens: Tokens,
    /// Time to the first token, served requests.
    pub ttft: Option<Summary>,
    /// Time between tokens, every gap of every served request.
    pub inter_token: Option<Summary>,
    /// From due to the end, served requests.
    pub latency: Option<Summary>,
    /// How late the client itself sent its requests: not the server's doing, unless a limit on requests in flight held
    /// them back.
    pub send_delay: Option<Summary>,
    /// Served requests that met the objectives, if there are any.
    pub goodput: Option<Goodput>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    url: String,
    model: String,
    endpoint: &'static str,
    stream: bool,
    load: String,
    end: String,
    prompts: String,
    output: String,
    warmup: u64,
    seed: u64,
}

/// Requests by what became of them. `sent` is the sum of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Sent.
    pub sent: u64,
    /// The whole answer came.
    pub served: u64,
    /// Of those, with fewer tokens than asked for.
    pub short: u64,
    /// 429 or 503.
    pub refused: u64,
    /// Everything else.
    pub failed: u64,
    /// The failed by kind.
    pub failures: BTreeMap<String, u64>,
    /// What the first failure said.
    pub first_failure: Option<String>,
}

/// Tokens of served requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tokens {
    /// Of prompts.
    pub input: u64,
    /// Of answers.
    pub output: u64,
    /// Prompt tokens per second: those of requests whose first token came in the window.
    pub input_per_second: f64,
    /// Tokens that came in the window, per second.
    pub output_per_second: f64,
    /// Requests whose end was in the window, per second.
    pub requests_per_second: f64,
    /// The server sent no token ids: `inter_token` is between events, and tokens count where their request ended.
    pub by_usage: bool,
}

/// Requests that met the objectives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Time to the first token, at most.
    pub slo_ttft: Option<f64>,
    /// Mean time between a request's tokens, at most.
    pub slo_itl: Option<f64>,
    /// Served within both.
    pub good: u64,
    /// Of those, with every single gap within `slo_itl` too.
    pub strict: u64,
    /// `good` in the window, per second.
    pub per_second: f64,
    /// `good` over all requests sent: a refused or failed one is not good.
    pub share: f64,
}

impl Report {
    /// Sums up a run's records.
    pub fn new(options: &BenchOptions, model: &str, records: &[Record]) -> Self {
        let last = records.iter().map(|r| r.end).max().unwrap_or_default();
        let window = match options.end {
            End::After(time) if last > time => time,
            _ => last,
        };
        let served: Vec<&Record> = records.iter().filter(|r| r.is_served()).collect();
        Self {
            config: Config::new(options, model),
            window: window.as_secs_f64(),
            requests: Requests::of(records),
            tokens: Tokens::of(&served, window),
            ttft: Summary::of(served.iter().filter_map(|r| r.ttft())),
            inter_token: Summary::of(served.iter().flat_map(|r| r.gaps.iter().copied())),
            latency: Summary::of(served.iter().map(|r| r.latency())),
            send_delay: Summary::of(records.iter().map(|r| r.sent.saturating_sub(r.due))),
            goodput: options.slo.is_set().then(|| Goodput::of(options, records.len(), &served, window)),
        }
    }
}

impl Config {
    fn new(options: &BenchOptions, model: &str) -> Self {
        Self {
            url: options.url.clone(),
            model: model.into(),
            endpoint: match options.endpoint {
                Endpoint::Completions => "completions",
                Endpoint::Chat => "chat",
            },
            stream: options.stream,
            load: match options.load {
                Load::Closed { concurrency } => format!("closed, {concurrency} at a time"),
                Load::Open { rate, limit: None } => format!("open, {rate} requests/s"),
                Load::Open { rate, limit: Some(n) } => {
                    format!("open, {rate} requests/s, at most {n} at a time")
                }
            },
            end: match options.end {
                End::Requests(n) => format!("{n} requests"),
                End::After(time) => format!("{} s", time.as_secs_f64()),
            },
            prompts: match &options.prompts {
                PromptSpec::File(path) => path.display().to_string(),
                PromptSpec::Random { lengths, vocabulary } => {
                    format!("random ids below {vocabulary}, length {lengths}")
                }
            },
            output: match (&options.output, &options.prompts) {
                (Some(output), _) => output.to_string(),
                (None, PromptSpec::File(_)) => format!("as the file says, or {DEFAULT_OUTPUT}"),
                (None, PromptSpec::Random { .. }) => DEFAULT_OUTPUT.to_string(),
            },
            warmup: options.warmup,
            seed: options.seed,
        }
    }
}

impl Requests {
    fn of(records: &[Record]) -> Self {
        let mut sums = Self { sent: records.len() as u64, ..Self::default() };
        for record in records {
            match &record.outcome {
                Outcome::Served => {
                    sums.served += 1;
                    sums.short += u64::from(record.output_tokens < u64::from(record.asked));
                }
                Outcome::Refused { .. } => sums.refused += 1,
                Outcome::Failed(failure) => {
                    sums.failed += 1;
                    *sums.failures.entry(failure.label()).or_default() += 1;
                    sums.first_failure
                        .get_or_insert_with(|| format!("{}: {}", failure.label(), failure.message()));
                }
            }
        }
        sums
    }
}

fn per_second(n: u64, window: Duration) -> f64 {
    if window.is_zero() { 0.0 } else { n as f64 / window.as_secs_f64() }
}

impl Tokens {
    fn of(served: &[&Record], window: Duration) -> Self {
        let (mut input_in, mut output_in, mut ended_in) = (0, 0, 0);
        for record in served {
            let ended = record.end <= window;
            ended_in += u64::from(ended);
            if record.first.unwrap_or(record.end) <= window {
                input_in += record.input_tokens;
            }
            output_in += if record.gaps_are_tokens && record.first.is_some() {
                record.token_times().filter(|t| *t <= window).count() as u64
            } else if ended {
                record.output_tokens
            } else {
                0
            };
        }
        Self {
            input: served.iter().map(|r| r.input_tokens).sum(),
            output: served.iter().map(|r| r.output_tokens).sum(),
            input_per_second: per_second(input_in, window),
            output_per_second: per_second(output_in, window),
            requests_per_second: per_second(ended_in, window),
            by_usage: served.iter().any(|r| !r.gaps_are_tokens),
        }
    }
}

impl Goodput {
    fn of(options: &BenchOptions, sent: usize, served: &[&Record], window: Duration) -> Self {
        let slo = options.slo;
        let within = |limit: Option<Duration>, time: Option<Duration>| {
            limit.is_none_or(|l| time.is_none_or(|t| t <= l))
        };
        // Without a stream the first token's time is unknown: the objective counts as missed, not as met.
        let started = |r: &Record| slo.ttft.is_none() || (r.first.is_some() && within(slo.ttft, r.ttft()));
        let good: Vec<&&Record> =
            served.iter().filter(|r| started(r) && within(slo.itl, r.mean_gap())).collect();
        let strict = good.iter().filter(|r| r.gaps.iter().all(|g| within(slo.itl, Some(*g)))).count();
        let in_window = good.iter().filter(|r| r.end <= window).count() as u64;
        Self {
            slo_ttft: slo.ttft.map(|t| t.as_secs_f64()),
            slo_itl: slo.itl.map(|t| t.as_secs_f64()),
            good: good.len() as u64,
            strict: strict as u64,
            per_second: per_second(in_window, window),
            share: if sent == 0 { 0.0 } else { good.len() as f64 / sent as f64 },
        }
    }
}

/// Milliseconds with four significant digits or so.
fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    match ms.abs() {
        x if x >= 1000.0 => format!("{ms:.0}"),
        x if x >= 100.0 => format!("{ms:.1}"),
        x if x >= 10.0 => format!("{ms:.2}"),
        _ => format!("{ms:.3}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { url, model, endpoint, load, end, prompts, output, seed, .. } = &self.config;
        writeln!(f, "{model} at {url} ({endpoint}{})", if self.config.stream { ", streamed" } else { "" })?;
        writeln!(f, "{load}; {end}; prompts: {prompts}; output: {output}; seed {seed}")?;
        writeln!(f)?;
        let Requests { sent, served, short, refused, failed, .. } = self.requests;
        let short = if short > 0 { format!(" ({short} shorter than asked)") } else { String::new() };
        writeln!(f, "requests    {sent} sent: {served} served{short}, {refused} refused, {failed} failed")?;
        for (kind, n) in &self.requests.failures {
            writeln!(f, "            {n} x {kind}")?;
        }
        if let Some(first) = &self.requests.first_failure {
            writeln!(f, "            first failure: {first}")?;
        }
        let t = &self.tokens;
        writeln!(f, "window      {:.2} s, {:.2} requests/s served", self.window, t.requests_per_second)?;
        writeln!(f, "tokens in   {:>12} {:>12.1} tokens/s", t.input, t.input_per_second)?;
        writeln!(f, "tokens out  {:>12} {:>12.1} tokens/s", t.output, t.output_per_second)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<20}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "milliseconds", "mean", "p50", "p90", "p99", "max"
        )?;
        let gaps = if t.by_usage { "between events" } else { "between tokens" };
        for (name, summary) in [
            ("to first token", self.ttft),
            (gaps, self.inter_token),
            ("end to end", self.latency),
            ("sent late by", self.send_delay),
        ] {
            match summary {
                None => writeln!(f, "{name:<20}{:>10}", "-")?,
                Some(s) => writeln!(
                    f,
                    "{name:<20}{:>10}{:>10}{:>10}{:>10}{:>10}",
                    ms(s.mean),
                    ms(s.p50),
                    ms(s.p90),
                    ms(s.p99),
                    ms(s.max)
                )?,
            }
        }
        if let Some(g) = &self.goodput {
            let slo = |name: &str, limit: Option<f64>| limit.map(|l| format!("{name} <= {} ms", ms(l)));
            let slos: Vec<String> =
                [slo("first token", g.slo_ttft), slo("mean gap", g.slo_itl)].into_iter().flatten().collect();
            writeln!(f)?;
            writeln!(
                f,
                "goodput     {:.2} requests/s within {}: {} of {sent} sent ({:.1} %); {} with every gap within",
                g.per_second,
                slos.join(", "),
                g.good,
                g.share * 100.0,
                g.strict
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::options;
    use crate::bench::options::Slo;
    use crate::bench::record::Failure;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Due at `due`, first token 100 ms later, then one each of `gaps`.
    fn served(due: u64, gaps: &[u64]) -> Record {
        let end = due + 100 + gaps.iter().sum::<u64>();
        Record {
            index: due,
            due: at(due),
            sent: at(due + 1),
            end: at(end),
            first: Some(at(due + 100)),
            gaps: gaps.iter().copied().map(at).collect(),
            asked: gaps.len() as u32 + 1,
            input_tokens: 10,
            output_tokens: gaps.len() as u64 + 1,
            gaps_are_tokens: true,
            outcome: Outcome::Served,
        }
    }

    fn unserved(due: u64, outcome: Outcome) -> Record {
        Record { outcome, ..served(due, &[1, 1]) }
    }

    fn records() -> Vec<Record> {
        vec![
            served(0, &[10, 10, 10]),
            served(200, &[10, 40, 10]),
            served(400, &[200, 200, 200]),
            unserved(500, Outcome::Refused { status: 429 }),
            unserved(500, Outcome::Failed(Failure::Cut("gone".into()))),
        ]
    }

    #[test]
    fn only_the_served_count() {
        let r = Report::new(&options("http://h"), "m", &records());
        assert_eq!((r.requests.sent, r.requests.served, r.requests.refused, r.requests.failed), (5, 3, 1, 1));
        assert_eq!((r.tokens.input, r.tokens.output), (30, 12));
        assert_eq!(r.window, 1.1);
        assert_eq!(r.inter_token.unwrap().count, 9);
        assert!((r.tokens.output_per_second - 12.0 / 1.1).abs() < 1e-9);
        assert_eq!(r.requests.failures.get("cut"), Some(&1));
    }

    #[test]
    fn goodput_is_of_all_that_was_sent() {
        let slo = Slo { ttft: Some(at(100)), itl: Some(at(20)) };
        let g = Report::new(&BenchOptions { slo, ..options("http://h") }, "m", &records()).goodput.unwrap();
        assert_eq!((g.good, g.strict), (2, 1), "a mean gap of 20 ms is good, a gap of 40 ms is not strictly");
        assert!((g.share - 0.4).abs() < 1e-9);
        let slo = Slo { ttft: Some(at(99)), itl: None };
        let g = Report::new(&BenchOptions { slo, ..options("http://h") }, "m", &records()).goodput.unwrap();
        assert_eq!(g.good, 0);
    }

    #[test]
    fn with_a_duration_only_what_came_within_it_is_a_rate() {
        let o = BenchOptions { end: End::After(at(700)), ..options("http://h") };
        let r = Report::new(&o, "m", &records());
        // Of the third request's four tokens (500, 700, 900, 1100) two came in time.
        assert!((r.tokens.output_per_second - 10.0 / 0.7).abs() < 1e-9, "{}", r.tokens.output_per_second);
        assert!((r.tokens.requests_per_second - 2.0 / 0.7).abs() < 1e-9);
        assert_eq!(r.tokens.output, 12);
    }

    #[test]
    fn an_empty_run_is_a_report_too() {
        let r = Report::new(&options("http://h"), "m", &[]);
        assert_eq!(r.tokens.output_per_second, 0.0);
        assert!(r.to_string().contains("0 sent"));
    }

    #[test]
    fn the_table_is_aligned() {
        let slo = Slo { ttft: Some(at(100)), itl: Some(at(20)) };
        let table = Report::new(&BenchOptions { slo, ..options("http://h") }, "m", &records()).to_string();
        let expected = "\
m at http://h (completions, streamed)
closed, 2 at a time; 4 requests; prompts: random ids below 100, length 8; output: 5; seed 1

requests    5 sent: 3 served, 1 refused, 1 failed
            1 x cut
            first failure: cut: gone
window      1.10 s, 2.73 requests/s served
tokens in             30         27.3 tokens/s
tokens out            12         10.9 tokens/s

milliseconds              mean       p50       p90       p99       max
to first token           100.0     100.0     100.0     100.0     100.0
between tokens           76.67     10.00     200.0     200.0     200.0
end to end               330.0     160.0     592.0     689.2     700.0
sent late by             1.000     1.000     1.000     1.000     1.000

goodput     1.82 requests/s within first token <= 100.0 ms, mean gap <= 20.00 ms: 2 of 5 sent (40.0 %); 1 with every gap within
";
        assert_eq!(table, expected);
    }
}
