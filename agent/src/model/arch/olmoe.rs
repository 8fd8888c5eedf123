//! `OlmoeForCausalLM`.

use super::super::config::{Config, ConfigError};
use super::super::spec::{FeedForward, ModelSpec, QkNorm};
use super::super::tensor::{TensorId, llama_style};
use super::Architecture;
use super::shape::{AttentionOptions, Defaults, Shape};

pub struct Olmoe;

impl Architecture for Olmoe {
    fn class(&self) -> &'static str {
        "OlmoeForCausalLM"
    }

    fn model_type(&self) -> &'static str {
        "olmoe"
    }

    fn spec(&self, config: &Config, max_positions: Option<usize>) -> Result<ModelSpec, ConfigError> {
        let defaults = Defaults {
            vocab: 50_304,
            hidden: 2048,
            blocks: 16,
            heads: 16,
            kv_heads: None,
            max_positions: 4096,
            norm_eps: 1e-5,
            rope_theta: 1e4,
        };
        let shape = Shape::read(config, &defaults, max_positions)?;
        let renormalise = config.flag("norm_topk_prob")?.unwrap_or(false);
        let moe = shape.moe(64, 8, shape.network("intermediate_size", 2048)?, renormalise, None)?;
        let clip_qkv = config.number("clip_qkv")?;
        if clip_qkv.is_some_and(|clip| clip <= 0.0) {
            return Err(config.wrong("clip_qkv", "a positive number, or null for none"));
        }
        let bias = config.flag("attention_bias")?.unwrap_or(false);
        let attention = AttentionOptions {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: QkNorm::Projection { eps: shape.norm_eps },
            clip_qkv: clip_qkv.map(|clip| clip as f32),
        };
        shape.model(&attention, &shape.window(None)?, vec![FeedForward::Moe(moe); shape.blocks])
    }

    fn names(&self, tensor: TensorId) -> Vec<String> {
        llama_style(tensor, &["mlp"], ["gate_proj", "up_proj", "down_proj"])
    }
}
