//! `MixtralForCausalLM`.

use super::super::config::{Config, ConfigError};
use super::super::spec::{FeedForward, ModelSpec, QkNorm};
use super::super::tensor::{TensorId, llama_style};
use super::Architecture;
use super::shape::{AttentionOptions, Defaults, Shape};

pub struct Mixtral;

impl Architecture for Mixtral {
    fn class(&self) -> &'static str {
        "MixtralForCausalLM"
    }

    fn model_type(&self) -> &'static str {
        "mixtral"
    }

    fn spec(&self, config: &Config, max_positions: Option<usize>) -> Result<ModelSpec, ConfigError> {
        let defaults = Defaults {
            vocab: 32_000,
            hidden: 4096,
            blocks: 32,
            heads: 32,
            kv_heads: Some(8),
            max_positions: 131_072,
            norm_eps: 1e-5,
            rope_theta: 1e6,
        };
        let shape = Shape::read(config, &defaults, max_positions)?;
        let moe = shape.moe(8, 2, shape.network("intermediate_size", 14_336)?, true, None)?;
        let attention =
            AttentionOptions { qkv_bias: false, o_bias: false, qk_norm: QkNorm::None, clip_qkv: None };
        let windows = shape.window(config.count("sliding_window")?)?;
        shape.model(&attention, &windows, vec![FeedForward::Moe(moe); shape.blocks])
    }

    fn names(&self, tensor: TensorId) -> Vec<String> {
        // `mlp` is the name inside transformers 5, which saves under the classic one unless told otherwise.
        llama_style(tensor, &["block_sparse_moe", "mlp"], ["w1", "w3", "w2"])
    }
}
