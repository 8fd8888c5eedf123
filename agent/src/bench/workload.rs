//! The requests of a run: a pure function of the seed and the request's number, so that runs at another rate or
//! concurrency ask for the same things.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::lengths::LengthSpec;
use super::options::{BenchOptions, DEFAULT_OUTPUT, PromptSpec};
use super::trace::{self, Row};

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(Arc<str>),
    /// Token ids.
    Ids(Arc<[u32]>),
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What is sent.
    pub prompt: Prompt,
    /// Tokens asked for.
    pub output: u32,
}

/// A workload that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file of prompts.
    #[error("the prompts in {}: {message}", path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A trace file.
    #[error("the trace {}: {message}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// A line of a file of prompts.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    prompt: Prompt,
    #[serde(default)]
    max_tokens: Option<u32>,
}

#[derive(Debug)]
enum Prompts {
    Listed(Vec<Line>),
    Random { lengths: Lengths, vocabulary: u32 },
}

#[derive(Debug)]
enum Lengths {
    Drawn(LengthSpec),
    Rows(Arc<[Row]>),
}

/// The requests of a run.
#[derive(Debug)]
pub struct Workload {
    prompts: Prompts,
    /// `None`: as the prompt's line says.
    output: Option<Lengths>,
    max_total: Option<u32>,
    seed: u64,
}

impl Workload {
    /// Reads the files the options name.
    ///
    /// # Errors
    /// A file is missing or malformed.
    pub fn new(options: &BenchOptions) -> Result<Self, WorkloadError> {
        let mut read: Vec<(PathBuf, Arc<[Row]>)> = Vec::new();
        let mut lengths = |spec: &LengthSpec| -> Result<Lengths, WorkloadError> {
            let LengthSpec::Trace(path) = spec else { return Ok(Lengths::Drawn(spec.clone())) };
            if let Some((_, rows)) = read.iter().find(|(p, _)| p == path) {
                return Ok(Lengths::Rows(rows.clone()));
            }
            let rows: Arc<[Row]> = trace::read(path, options.bytes_per_token)
                .map_err(|message| WorkloadError::Trace { path: path.clone(), message })?
                .into();
            read.push((path.clone(), rows.clone()));
            Ok(Lengths::Rows(rows))
        };
        let prompts = match &options.prompts {
            PromptSpec::File(path) => {
                let mut lines = read_prompts(path)?;
                lines.shuffle(&mut SmallRng::seed_from_u64(options.seed));
                Prompts::Listed(lines)
            }
            PromptSpec::Random { lengths: spec, vocabulary } => {
                Prompts::Random { lengths: lengths(spec)?, vocabulary: (*vocabulary).max(1) }
            }
        };
        let output = options.output.as_ref().map(&mut lengths).transpose()?;
        Ok(Self { prompts, output, max_total: options.max_total, seed: options.seed })
    }

    /// Request number `index`.
    pub fn item(&self, index: u64) -> Item {
        let mut rng = SmallRng::seed_from_u64(mix(self.seed, index));
        // Drawn first, and once, so that input and output of one trace come from one row.
        let row: u64 = rng.random();
        let length = |lengths: &Lengths, rng: &mut SmallRng, field: fn(&Row) -> u32| match lengths {
            Lengths::Drawn(spec) => spec.draw(rng),
            Lengths::Rows(rows) => field(&rows[(row % rows.len() as u64) as usize]),
        };
        let output = self.output.as_ref().map(|output| length(output, &mut rng, |r| r.output));
        match &self.prompts {
            Prompts::Listed(lines) => {
                let line = &lines[(index % lines.len() as u64) as usize];
                let input = if let Prompt::Ids(ids) = &line.prompt { ids.len() as u32 } else { 0 };
                let output = output.or(line.max_tokens).unwrap_or(DEFAULT_OUTPUT);
                Item { prompt: line.prompt.clone(), output: self.room(input, output) }
            }
            Prompts::Random { lengths, vocabulary } => {
                let mut input = length(lengths, &mut rng, |r| r.input);
                if let Some(max) = self.max_total {
                    input = input.min(max.saturating_sub(1)).max(1);
                }
                let ids = (0..input).map(|_| rng.random_range(0..*vocabulary)).collect();
                Item { prompt: Prompt::Ids(ids), output: self.room(input, output.unwrap_or(DEFAULT_OUTPUT)) }
            }
        }
    }

    fn room(&self, input: u32, output: u32) -> u32 {
        self.max_total.map_or(output, |max| output.min(max.saturating_sub(input)).max(1))
    }
}

fn mix(seed: u64, index: u64) -> u64 {
    // SplitMix64, so that neighbouring indices have unrelated streams.
    let mut z =
        seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn read_prompts(path: &Path) -> Result<Vec<Line>, WorkloadError> {
    let fail = |message| WorkloadError::Prompts { path: path.into(), message };
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot read the file: {e}")))?;
    let mut prompts = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).map_err(|e| {
            fail(format!(
                "line {} is not an object with a field `prompt` (a text or an array of token ids): {e}",
                n + 1
            ))
        })?;
        prompts.push(line);
    }
    if prompts.is_empty() {
        return Err(fail("the file has no line".into()));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::options;

    fn traces() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/traces")
    }

    fn random(input: &str, output: &str) -> BenchOptions {
        BenchOptions {
            prompts: PromptSpec::Random { lengths: input.parse().unwrap(), vocabulary: 50 },
            output: Some(output.parse().unwrap()),
            ..options("http://unused")
        }
    }

    #[test]
    fn an_item_depends_on_seed_and_number_only() {
        let w = Workload::new(&random("uniform:1,40", "uniform:1,40")).unwrap();
        let forwards: Vec<Item> = (0..20).map(|i| w.item(i)).collect();
        let backwards: Vec<Item> = (0..20).rev().map(|i| w.item(i)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        assert!(forwards.windows(2).any(|p| p[0] != p[1]));
        let other =
            Workload::new(&BenchOptions { seed: 99, ..random("uniform:1,40", "uniform:1,40") }).unwrap();
        assert_ne!(other.item(0), w.item(0));
        for item in forwards {
            let Prompt::Ids(ids) = item.prompt else { panic!("random prompts are ids") };
            assert!((1..=40).contains(&ids.len()) && ids.iter().all(|id| *id < 50));
        }
    }

    #[test]
    fn input_and_output_of_a_trace_come_from_one_row() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "input_tokens,output_tokens\n1,101\n2,102\n3,103\n4,104\n").unwrap();
        let spec = format!("trace:{}", file.path().display());
        let w = Workload::new(&random(&spec, &spec)).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..50 {
            let item = w.item(i);
            let Prompt::Ids(ids) = item.prompt else { panic!("random prompts are ids") };
            assert_eq!(item.output, ids.len() as u32 + 100);
            seen.insert(item.output);
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn the_total_is_kept() {
        let spec = format!("trace:{}", traces().join("sharegpt_lengths.csv.gz").display());
        let w = Workload::new(&BenchOptions { max_total: Some(256), ..random(&spec, &spec) }).unwrap();
        for i in 0..200 {
            let item = w.item(i);
            let Prompt::Ids(ids) = item.prompt else { panic!("random prompts are ids") };
            assert!(!ids.is_empty() && item.output >= 1 && ids.len() as u32 + item.output <= 256);
        }
    }

    #[test]
    fn prompts_come_from_the_file() {
        let o = BenchOptions {
            prompts: PromptSpec::File(traces().join("prompts.jsonl")),
            ..options("http://unused")
        };
        let w = Workload::new(&o).unwrap();
        assert!(matches!(w.item(0).prompt, Prompt::Text(t) if !t.is_empty()));
    }

    #[test]
    fn every_line_is_used_once_before_one_is_used_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String =
            (1..=9).map(|i| format!("{{\"prompt\": [{i}], \"max_tokens\": {}}}\n", i + 10)).collect();
        std::fs::write(file.path(), text).unwrap();
        let o = BenchOptions {
            prompts: PromptSpec::File(file.path().into()),
            output: None,
            ..options("http://unused")
        };
        let w = Workload::new(&o).unwrap();
        let items: Vec<Item> = (0..9).map(|i| w.item(i)).collect();
        let mut outputs: Vec<u32> = items.iter().map(|i| i.output).collect();
        for item in &items {
            let Prompt::Ids(ids) = &item.prompt else { panic!("the file has ids") };
            assert_eq!(item.output, ids[0] + 10);
        }
        assert_ne!(outputs, (11..=19).collect::<Vec<u32>>(), "not in the file's order");
        outputs.sort_unstable();
        assert_eq!(outputs, (11..=19).collect::<Vec<u32>>());
        assert_eq!(w.item(9), items[0]);
        let fixed = Workload::new(&BenchOptions { output: Some("5".parse().unwrap()), ..o }).unwrap();
        assert_eq!(fixed.item(0).output, 5, "a flag wins over the file");
    }

    #[test]
    fn a_bad_line_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"prompt\": [1, 2]}\n{\"text\": \"x\"}\n").unwrap();
        let o = BenchOptions { prompts: PromptSpec::File(file.path().into()), ..options("http://unused") };
        let message = Workload::new(&o).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("`prompt`"), "{message}");
    }
}
