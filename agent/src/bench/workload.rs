//! The requests of a run: a pure function of the seed and the request's number, so that runs at another rate or
//! concurrency ask for the same things.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::lengths::LengthSpec;
use super::options::{BenchOptions, PromptSpec};
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

#[derive(Debug)]
enum Prompts {
    Listed(Vec<Prompt>),
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
    output: Lengths,
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
            PromptSpec::File(path) => Prompts::Listed(read_prompts(path)?),
            PromptSpec::Random { lengths: spec, vocabulary } => {
                Prompts::Random { lengths: lengths(spec)?, vocabulary: (*vocabulary).max(1) }
            }
        };
        Ok(Self {
            prompts,
            output: lengths(&options.output)?,
            max_total: options.max_total,
            seed: options.seed,
        })
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
        let output = length(&self.output, &mut rng, |r| r.output);
        match &self.prompts {
            Prompts::Listed(prompts) => Item {
                prompt: prompts[(row % prompts.len() as u64) as usize].clone(),
                output: self.room(0, output),
            },
            Prompts::Random { lengths, vocabulary } => {
                let mut input = length(lengths, &mut rng, |r| r.input);
                if let Some(max) = self.max_total {
                    input = input.min(max.saturating_sub(1)).max(1);
                }
                let ids = (0..input).map(|_| rng.random_range(0..*vocabulary)).collect();
                Item { prompt: Prompt::Ids(ids), output: self.room(input, output) }
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

fn read_prompts(path: &Path) -> Result<Vec<Prompt>, WorkloadError> {
    #[derive(Deserialize)]
    struct Line {
        prompt: Prompt,
    }
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
        prompts.push(line.prompt);
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
            output: output.parse().unwrap(),
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
    fn a_bad_line_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"prompt\": [1, 2]}\n{\"text\": \"x\"}\n").unwrap();
        let o = BenchOptions { prompts: PromptSpec::File(file.path().into()), ..options("http://unused") };
        let message = Workload::new(&o).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("`prompt`"), "{message}");
    }
}
