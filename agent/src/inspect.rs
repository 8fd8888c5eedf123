//! What a model directory holds, and what it takes to serve it: `sluice-agent inspect`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use sluice_kernels::cpu::segments;

use crate::model::chat::ChatTemplates;
use crate::model::checkpoint::CheckpointError;
use crate::model::generation::GenerationDefaults;
use crate::model::spec::{ModelSpec, NetworkSpec, QkNorm};
use crate::model::tensor::{BlockTensor, TensorId};
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::Weights;
use crate::model::{ModelError, ModelOptions, describe};

/// The finest cut of an expert.
const SEGMENTS: usize = 8;

/// A model directory, looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The directory's name.
    pub name: String,
    /// The class in transformers.
    pub architecture: String,
    /// The shape.
    pub shape: Shape,
    /// Parameters.
    pub parameters: Parameters,
    /// Memory, in bytes, in the dtypes of the files.
    pub memory: Memory,
    /// The tensors.
    pub tensors: Tensors,
    /// Tokens of `tokenizer.json`, if it can be read.
    pub tokens: Option<usize>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// What is wrong with other files than the weights, in words.
    pub problems: Vec<String>,
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// Blocks.
    pub blocks: usize,
    /// Blocks without experts.
    pub dense_blocks: usize,
    /// Length of a hidden state.
    pub hidden: usize,
    /// Query heads, key heads, length of a head.
    pub heads: [usize; 3],
    /// Rows of the embedding.
    pub vocab: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Experts of a block.
    pub experts: usize,
    /// Experts for one token.
    pub top_k: usize,
    /// The inner dimension of an expert.
    pub expert_inner: usize,
    /// The inner dimension of the shared expert.
    pub shared_inner: Option<usize>,
    /// Query and key norms, sliding windows and other things out of the ordinary.
    pub features: Vec<String>,
}

/// How many numbers a model has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// Those that one token meets.
    pub active: u64,
    /// Embedding and head.
    pub embedding: u64,
    /// Attention, norms and routers.
    pub attention: u64,
    /// Routed experts.
    pub experts: u64,
    /// Shared experts and dense blocks.
    pub shared_and_dense: u64,
}

/// What serving takes, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The weights as they lie in the files, by dtype.
    pub weights: BTreeMap<String, u64>,
    /// One slot (one unit), by the number of slices an expert is held in.
    pub slot: BTreeMap<usize, u64>,
    /// Slots of the whole model at one slice: experts of all blocks.
    pub slots: usize,
    /// One attention rank's weights: all but the routed experts.
    pub attention_rank: u64,
    /// Keys and values of one token over all blocks, by the bytes of one number (f32 on the CPU).
    pub kv_per_token: BTreeMap<usize, u64>,
}

/// The tensors of a model directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tensors {
    /// Those that are there and fit.
    pub found: usize,
    /// Those that are missing, in words.
    pub missing: Vec<String>,
    /// Those with a shape or dtype that cannot be used, in words.
    pub wrong: Vec<String>,
    /// Those that the model has no use for.
    pub unexpected: Vec<String>,
}

/// Looks at a model directory; without one, at the model inside the executable. Reads no weights.
///
/// # Errors
/// The configuration cannot be understood, or there are no weights. Tensors and a tokenizer that are missing or broken
/// are part of the result.
pub fn inspect(directory: Option<&Path>) -> Result<Inspection, ModelError> {
    let (files, config, architecture, spec) = describe(directory, ModelOptions::default())?;
    let weights = Weights::open(&files, architecture, Arc::clone(&spec))?;
    let inventory = weights.inventory();
    let (missing, wrong): (Vec<_>, Vec<_>) = inventory
        .problems
        .iter()
        .partition(|problem| matches!(problem, CheckpointError::MissingTensor { .. }));
    let words = |problems: Vec<&CheckpointError>| problems.into_iter().map(ToString::to_string).collect();

    let mut problems = Vec::new();
    let tokenizer = Tokenizer::open(&files).map_err(|error| problems.push(error.to_string())).ok();
    let chat = ChatTemplates::open(&files).map_err(|error| problems.push(error.to_string())).ok().flatten();
    if let Some(tokenizer) = &tokenizer
        && let Err(error) = GenerationDefaults::open(&files, &config, tokenizer)
    {
        problems.push(error.to_string());
    }
    Ok(Inspection {
        name: files.name(),
        architecture: architecture.class().to_owned(),
        shape: shape(&spec),
        parameters: parameters(&spec),
        memory: memory(&spec, &weights, &inventory.found),
        tensors: Tensors {
            found: inventory.found.len(),
            missing: words(missing),
            wrong: words(wrong),
            unexpected: inventory.unexpected,
        },
        tokens: tokenizer.map(|tokenizer| tokenizer.size()),
        chat_template: chat.is_some(),
        problems,
    })
}

fn shape(spec: &ModelSpec) -> Shape {
    let attention = spec.blocks.first().map(|block| &block.attention);
    let moe = spec.blocks.iter().find_map(|block| block.feed_forward.moe());
    let mut features = Vec::new();
    if let Some(attention) = attention {
        match attention.qk_norm {
            QkNorm::None => {}
            QkNorm::PerHead { .. } => features.push("query and key norm per head".to_owned()),
            QkNorm::Projection { .. } => features.push("query and key norm over the projection".to_owned()),
        }
        if attention.qkv_bias {
            features.push("attention bias".to_owned());
        }
        if let Some(clip) = attention.clip_qkv {
            features.push(format!("queries, keys and values clipped at {clip}"));
        }
    }
    let windowed = spec.blocks.iter().filter(|block| block.attention.sliding_window.is_some()).count();
    if let Some(window) = spec.blocks.iter().find_map(|block| block.attention.sliding_window) {
        features.push(format!("sliding window of {window} on {windowed} blocks"));
    }
    if moe.is_some_and(|moe| moe.router.renormalise) {
        features.push("router weights renormalised".to_owned());
    }
    if spec.tied_head {
        features.push("head tied to the embedding".to_owned());
    }
    Shape {
        blocks: spec.blocks.len(),
        dense_blocks: spec.blocks.iter().filter(|block| block.feed_forward.moe().is_none()).count(),
        hidden: spec.hidden,
        heads: attention
            .map_or([0; 3], |attention| [attention.heads, attention.kv_heads, attention.head_dim]),
        vocab: spec.vocab,
        max_positions: spec.max_positions,
        experts: moe.map_or(0, |moe| moe.experts),
        top_k: moe.map_or(0, |moe| moe.top_k),
        expert_inner: moe.map_or(0, |moe| moe.expert.inner),
        shared_inner: moe.and_then(|moe| moe.shared).map(|shared| shared.network.inner),
        features,
    }
}

/// Numbers in a tensor of a model.
fn size(spec: &ModelSpec, tensor: TensorId) -> u64 {
    tensor.shape(spec).map_or(0, |shape| shape.iter().map(|length| *length as u64).product())
}

fn network(hidden: usize, network: NetworkSpec) -> u64 {
    3 * hidden as u64 * network.inner as u64
}

fn parameters(spec: &ModelSpec) -> Parameters {
    let mut sum = Parameters::default();
    let mut idle = 0;
    for tensor in crate::model::tensor::all(spec, |_| crate::model::tensor::ExpertLayout::Fused) {
        let numbers = size(spec, tensor);
        sum.total += numbers;
        let part = match tensor {
            TensorId::Embedding | TensorId::Head => &mut sum.embedding,
            TensorId::Block(_, BlockTensor::FusedGateUp | BlockTensor::FusedDown) => &mut sum.experts,
            TensorId::Block(_, BlockTensor::Dense(_) | BlockTensor::Shared(_) | BlockTensor::SharedGate) => {
                &mut sum.shared_and_dense
            }
            TensorId::FinalNorm | TensorId::Block(..) => &mut sum.attention,
        };
        *part += numbers;
    }
    for moe in spec.blocks.iter().filter_map(|block| block.feed_forward.moe()) {
        idle += (moe.experts - moe.top_k) as u64 * network(spec.hidden, moe.expert);
    }
    sum.active = sum.total - idle;
    sum
}

fn memory(spec: &ModelSpec, weights: &Weights, found: &[TensorId]) -> Memory {
    let mut by_dtype = BTreeMap::new();
    let (mut rank, mut expert_bytes) = (0, 0);
    for &tensor in found {
        let Some((dtype, element)) = weights.dtype(tensor) else { continue };
        let bytes = size(spec, tensor) * element;
        *by_dtype.entry(dtype).or_default() += bytes;
        match tensor.is_expert() {
            true => expert_bytes = expert_bytes.max(element),
            false => rank += bytes,
        }
    }
    let moes = || spec.blocks.iter().filter_map(|block| block.feed_forward.moe());
    let slot = [1, 2, 4, SEGMENTS]
        .into_iter()
        .map(|slices| {
            let widest = |inner| {
                segments(inner, SEGMENTS)
                    .chunks(SEGMENTS / slices)
                    .map(|slice| slice.iter().map(ExactSizeIterator::len).sum::<usize>())
                    .max()
            };
            let inner = moes().filter_map(|moe| widest(moe.expert.inner)).max().unwrap_or(0);
            (slices, 3 * spec.hidden as u64 * inner as u64 * expert_bytes)
        })
        .collect();
    let kv: u64 = spec.blocks.iter().map(|block| 2 * block.attention.kv_dim() as u64).sum();
    Memory {
        weights: by_dtype,
        slot,
        slots: moes().map(|moe| moe.experts).sum(),
        attention_rank: rank,
        kv_per_token: [(2, 2 * kv), (4, 4 * kv)].into(),
    }
}

impl Inspection {
    /// Whether the model can be served.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.tensors.missing.is_empty() && self.tensors.wrong.is_empty() && self.problems.is_empty()
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, parameters, memory, .. } = self;
        let mut line = |name: &str, text: fmt::Arguments<'_>| writeln!(f, "{name:<16}{text}");
        line("model", format_args!("{} ({})", self.name, self.architecture))?;
        let [heads, kv_heads, head_dim] = shape.heads;
        line(
            "blocks",
            format_args!(
                "{}, {} of them dense; hidden {}, {heads} query and {kv_heads} key heads of {head_dim}",
                shape.blocks, shape.dense_blocks, shape.hidden
            ),
        )?;
        let shared =
            shape.shared_inner.map_or(String::new(), |inner| format!(", and a shared one of {inner}"));
        line(
            "experts",
            format_args!(
                "{} a block, {} a token, inner {}{shared}",
                shape.experts, shape.top_k, shape.expert_inner
            ),
        )?;
        line("vocabulary", format_args!("{}", shape.vocab))?;
        line("context", format_args!("{} tokens", shape.max_positions))?;
        for feature in &shape.features {
            line("", format_args!("{feature}"))?;
        }
        line(
            "parameters",
            format_args!("{}, {} active for a token", grouped(parameters.total), grouped(parameters.active)),
        )?;
        for (name, numbers) in [
            ("embedding, head", parameters.embedding),
            ("attention", parameters.attention),
            ("experts", parameters.experts),
            ("shared, dense", parameters.shared_and_dense),
        ] {
            line("", format_args!("{name:<16}{:>20}", grouped(numbers)))?;
        }
        for (dtype, bytes) in &memory.weights {
            line("weights", format_args!("{} in {dtype}", scaled(*bytes)))?;
        }
        for (slices, bytes) in &memory.slot {
            let (slots, plural) = (memory.slots * slices, if *slices == 1 { "" } else { "s" });
            let size = scaled(*bytes);
            line(
                "slot",
                format_args!("{size} with experts in {slices} slice{plural}; {slots} hold each once"),
            )?;
        }
        line("attention rank", format_args!("{}", scaled(memory.attention_rank)))?;
        for (width, bytes) in &memory.kv_per_token {
            line("KV cache", format_args!("{} a token at {width} bytes a number", scaled(*bytes)))?;
        }
        let tokens =
            self.tokens.map_or("none that can be read".to_owned(), |tokens| format!("{tokens} tokens"));
        line("tokenizer", format_args!("{tokens}"))?;
        line("chat template", format_args!("{}", if self.chat_template { "yes" } else { "none" }))?;
        let Tensors { found, missing, wrong, unexpected } = &self.tensors;
        let (lost, bad, more) = (missing.len(), wrong.len(), unexpected.len());
        line("tensors", format_args!("{found} found, {lost} missing, {bad} wrong, {more} unexpected"))?;
        for name in unexpected {
            line("  unexpected", format_args!("{name}"))?;
        }
        for problem in missing.iter().chain(wrong).chain(&self.problems) {
            line("  problem", format_args!("{problem}"))?;
        }
        Ok(())
    }
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a unit that suits them.
fn scaled(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    /// The figures of models/tiny-moe/README.md.
    #[test]
    fn tiny_moe() {
        let tiny = inspect(None).unwrap();
        assert_eq!((tiny.parameters.total, tiny.parameters.active), (12_532_992, 5_455_104));
        assert_eq!(tiny.memory.weights, [("bf16".to_owned(), 2 * 12_532_992)].into());
        assert_eq!(tiny.memory.slot, [(1, 393_216), (2, 196_608), (4, 98_304), (8, 49_152)].into());
        assert_eq!(tiny.memory.slots, 48);
        assert_eq!(tiny.memory.attention_rank + 48 * 393_216, 2 * 12_532_992);
        assert_eq!(tiny.memory.kv_per_token[&4], 6 * 2 * 64 * 4);
        assert_eq!((tiny.tokens, tiny.chat_template), (Some(4096), true));
        assert!(tiny.is_complete());
        let text = tiny.to_string();
        assert!(text.contains("12,532,992, 5,455,104 active"), "{text}");
        assert!(text.contains("384.0 KiB with experts in 1 slice; 48 hold"), "{text}");
        serde_json::to_string(&tiny).unwrap();
    }

    #[test]
    fn every_fixture_is_counted_whole() {
        for path in testing::fixtures() {
            let inspection = inspect(Some(&path)).unwrap();
            assert!(inspection.is_complete(), "{path:?}");
            let parts = inspection.parameters;
            assert_eq!(
                parts.total,
                parts.embedding + parts.attention + parts.experts + parts.shared_and_dense
            );
            let stored: u64 = std::fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"))
                .map(|file| {
                    let bytes = std::fs::read(file).unwrap();
                    bytes.len() as u64 - 8 - u64::from_le_bytes(bytes[..8].try_into().unwrap())
                })
                .sum();
            assert_eq!(inspection.memory.weights.values().sum::<u64>(), stored, "{path:?}");
        }
    }

    #[test]
    fn what_is_missing_is_part_of_the_result() {
        let model = testing::copy(&testing::fixture("olmoe-clip"));
        std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
        let config = model.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let more = text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
        let more = if more == text {
            text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4")
        } else {
            more
        };
        assert_ne!(more, text);
        std::fs::write(&config, more).unwrap();
        let inspection = inspect(Some(model.path())).unwrap();
        assert!(!inspection.is_complete());
        assert!(inspection.tokens.is_none() && inspection.problems[0].contains("tokenizer.json"));
        let missing = &inspection.tensors.missing;
        assert!(missing.iter().any(|tensor| tensor.contains("input_layernorm")), "{missing:?}");
        assert!(inspection.tensors.wrong.is_empty());
        assert!(inspection.to_string().contains("problem"));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(scaled(1023), "1023 B");
        assert_eq!(scaled(1536), "1.5 KiB");
        assert_eq!(scaled(u64::MAX), "16777216.0 TiB");
    }
}
