//! `Qwen2MoeForCausalLM`.

use super::super::config::{Config, ConfigError};
use super::super::spec::{FeedForward, ModelSpec, QkNorm, SharedSpec};
use super::super::tensor::{TensorId, llama_style};
use super::Architecture;
use super::shape::{AttentionOptions, Defaults, Shape};

pub struct Qwen2Moe;

impl Architecture for Qwen2Moe {
    fn class(&self) -> &'static str {
        "Qwen2MoeForCausalLM"
    }

    fn model_type(&self) -> &'static str {
        "qwen2_moe"
    }

    fn spec(&self, config: &Config, max_positions: Option<usize>) -> Result<ModelSpec, ConfigError> {
        let defaults = Defaults {
            vocab: 151_936,
            hidden: 2048,
            blocks: 24,
            heads: 16,
            kv_heads: Some(16),
            max_positions: 32_768,
            norm_eps: 1e-6,
            rope_theta: 1e4,
        };
        let shape = Shape::read(config, &defaults, max_positions)?;
        let shared =
            SharedSpec { network: shape.network("shared_expert_intermediate_size", 5632)?, gated: true };
        let renormalise = config.flag("norm_topk_prob")?.unwrap_or(false);
        let expert = shape.network("moe_intermediate_size", 1408)?;
        let moe = shape.moe(60, 4, expert, renormalise, Some(shared))?;
        let dense = shape.network("intermediate_size", 5632)?;
        let feed_forward = shape
            .dense_blocks()?
            .into_iter()
            .map(|is_dense| if is_dense { FeedForward::Dense(dense) } else { FeedForward::Moe(moe.clone()) });
        let attention = AttentionOptions {
            qkv_bias: config.flag("qkv_bias")?.unwrap_or(true),
            o_bias: false,
            qk_norm: QkNorm::None,
            clip_qkv: None,
        };
        shape.model(&attention, &windows(config, &shape)?, feed_forward)
    }

    fn names(&self, tensor: TensorId) -> Vec<String> {
        llama_style(tensor, &["mlp"], ["gate_proj", "up_proj", "down_proj"])
    }
}

/// The window of each block. Without `layer_types`, transformers 5 gives it to every second block (the first, the
/// third, ...) below `max_window_layers`.
fn windows(config: &Config, shape: &Shape<'_>) -> Result<Vec<Option<usize>>, ConfigError> {
    let blocks = shape.blocks;
    let types = config.texts("layer_types")?;
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        if types.is_some_and(|types| types.iter().any(|kind| kind == "sliding_attention")) {
            return Err(
                config.wrong("use_sliding_window", "true, since `layer_types` has `sliding_attention`")
            );
        }
        return Ok(vec![None; blocks]);
    }
    let window = if config.has("sliding_window") { config.count("sliding_window")? } else { Some(4096) };
    let window =
        window.filter(|window| *window > 0).ok_or_else(|| config.wrong("sliding_window", "one or more"))?;
    if let Some(types) = types {
        if types.len() != blocks {
            return Err(config.wrong("layer_types", format!("{blocks} entries, one for each layer")));
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(Some(window)),
                "full_attention" => Ok(None),
                other => Err(config.unsupported(format!("the layer type `{other}`"))),
            })
            .collect();
    }
    let below = config.count("max_window_layers")?.unwrap_or(28);
    Ok((0..blocks).map(|block| (block % 2 == 0 && block < below).then_some(window)).collect())
}
