//! `Qwen3MoeForCausalLM`.

use super::super::config::{Config, ConfigError};
use super::super::spec::{FeedForward, ModelSpec, QkNorm};
use super::super::tensor::{TensorId, llama_style};
use super::Architecture;
use super::shape::{AttentionOptions, Defaults, Shape};

pub struct Qwen3Moe;

impl Architecture for Qwen3Moe {
    fn class(&self) -> &'static str {
        "Qwen3MoeForCausalLM"
    }

    fn model_type(&self) -> &'static str {
        "qwen3_moe"
    }

    fn spec(&self, config: &Config, max_positions: Option<usize>) -> Result<ModelSpec, ConfigError> {
        let defaults = Defaults {
            vocab: 151_936,
            hidden: 2048,
            blocks: 24,
            heads: 32,
            kv_heads: Some(4),
            max_positions: 32_768,
            norm_eps: 1e-6,
            rope_theta: 1e4,
        };
        let shape = Shape::read(config, &defaults, max_positions)?;
        let renormalise = config.flag("norm_topk_prob")?.unwrap_or(false);
        let moe = shape.moe(128, 8, shape.network("moe_intermediate_size", 768)?, renormalise, None)?;
        let dense = shape.network("intermediate_size", 6144)?;
        let feed_forward = shape
            .dense_blocks()?
            .into_iter()
            .map(|is_dense| if is_dense { FeedForward::Dense(dense) } else { FeedForward::Moe(moe.clone()) });
        let bias = config.flag("attention_bias")?.unwrap_or(false);
        let attention = AttentionOptions {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: QkNorm::PerHead { eps: shape.norm_eps },
            clip_qkv: None,
        };
        let window = if config.flag("use_sliding_window")?.unwrap_or(false) {
            // A key that is there and null means no window; one that is absent means transformers' default.
            if config.has("sliding_window") { config.count("sliding_window")? } else { Some(4096) }
        } else {
            None
        };
        shape.model(&attention, &shape.window(window)?, feed_forward)
    }

    fn names(&self, tensor: TensorId) -> Vec<String> {
        llama_style(tensor, &["mlp"], ["gate_proj", "up_proj", "down_proj"])
    }
}
