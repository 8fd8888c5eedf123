//! What the configurations of these architectures have in common.

use super::super::config::{Config, ConfigError};
use super::super::rope::{self, RopeContext};
use super::super::spec::{
    Activation, AttentionSpec, BlockSpec, FeedForward, ModelSpec, MoeSpec, NetworkSpec, QkNorm, RouterSpec,
    Score, SharedSpec,
};

/// Beyond these a configuration is broken rather than large. They keep every later product within 64 bits, and
/// nothing is allocated from a number that was not checked.
mod limits {
    pub const BLOCKS: usize = 1024;
    pub const EXPERTS: usize = 2048;
    pub const LENGTH: usize = 1 << 24;
    pub const POSITIONS: usize = 1 << 30;
}

/// What transformers takes for keys that are absent.
pub struct Defaults {
    pub vocab: usize,
    pub hidden: usize,
    pub blocks: usize,
    pub heads: usize,
    /// `None`: as many as there are heads.
    pub kv_heads: Option<usize>,
    pub max_positions: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
}

/// The keys that mean the same in all of them.
pub struct Shape<'a> {
    config: &'a Config,
    pub vocab: usize,
    pub hidden: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    pub activation: Activation,
    declared_positions: usize,
    max_positions: usize,
    rope_theta: f64,
    tied_head: bool,
}

/// What differs between blocks or architectures in attention.
pub struct AttentionOptions {
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub qk_norm: QkNorm,
    pub clip_qkv: Option<f32>,
}

impl<'a> Shape<'a> {
    /// Reads them.
    pub fn read(
        config: &'a Config,
        defaults: &Defaults,
        max_positions: Option<usize>,
    ) -> Result<Self, ConfigError> {
        refuse_quantised(config)?;
        let heads = size(config, "num_attention_heads", defaults.heads, limits::LENGTH)?;
        let kv_heads =
            size(config, "num_key_value_heads", defaults.kv_heads.unwrap_or(heads), limits::LENGTH)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(config.wrong("num_key_value_heads", format!("a divisor of the {heads} heads")));
        }
        let hidden = size(config, "hidden_size", defaults.hidden, limits::LENGTH)?;
        let head_dim = size(config, "head_dim", hidden / heads, limits::LENGTH)?;
        let declared_positions =
            size(config, "max_position_embeddings", defaults.max_positions, limits::POSITIONS)?;
        let norm_eps = config.number("rms_norm_eps")?.unwrap_or(defaults.norm_eps);
        if norm_eps < 0.0 {
            return Err(config.wrong("rms_norm_eps", "zero or more"));
        }
        let activation = match config.text("hidden_act")? {
            None | Some("silu" | "swish") => Activation::Silu,
            Some(other) => {
                return Err(config.unsupported(format!("the activation `{other}` (supported: silu)")));
            }
        };
        Ok(Self {
            config,
            vocab: size(config, "vocab_size", defaults.vocab, limits::LENGTH)?,
            hidden,
            blocks: size(config, "num_hidden_layers", defaults.blocks, limits::BLOCKS)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: norm_eps as f32,
            activation,
            declared_positions,
            max_positions: max_positions.unwrap_or(declared_positions).max(1),
            rope_theta: defaults.rope_theta,
            tied_head: config.flag("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// A gated network with `inner` from a key.
    pub fn network(&self, key: &str, default: usize) -> Result<NetworkSpec, ConfigError> {
        Ok(NetworkSpec {
            inner: size(self.config, key, default, limits::LENGTH)?,
            activation: self.activation,
        })
    }

    /// Routed experts with a softmax router.
    pub fn moe(
        &self,
        default_experts: usize,
        default_top_k: usize,
        expert: NetworkSpec,
        renormalise: bool,
        shared: Option<SharedSpec>,
    ) -> Result<MoeSpec, ConfigError> {
        // transformers 5 writes either name for any of them.
        let key =
            if self.config.value("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let experts = size(self.config, key, default_experts, limits::EXPERTS)?;
        let top_k = size(self.config, "num_experts_per_tok", default_top_k, limits::EXPERTS)?;
        if top_k > experts {
            return Err(self.config.wrong("num_experts_per_tok", format!("at most the {experts} experts")));
        }
        let router = RouterSpec { score: Score::Softmax, renormalise, scale: 1.0, selection_bias: false };
        Ok(MoeSpec { experts, top_k, expert, router, shared })
    }

    /// Which blocks are dense: those in `mlp_only_layers`, and of the others all but each `decoder_sparse_step`th.
    pub fn dense_blocks(&self) -> Result<Vec<bool>, ConfigError> {
        let listed = self.config.counts("mlp_only_layers")?.unwrap_or_default();
        let step = size(self.config, "decoder_sparse_step", 1, usize::MAX)?;
        Ok((0..self.blocks)
            .map(|block| listed.contains(&block) || !(block + 1).is_multiple_of(step))
            .collect())
    }

    /// The window of a model whose blocks all have the same.
    pub fn window(&self, window: Option<usize>) -> Result<Vec<Option<usize>>, ConfigError> {
        if window == Some(0) {
            return Err(self.config.wrong("sliding_window", "one or more, or null for none"));
        }
        Ok(vec![window; self.blocks])
    }

    /// Puts the blocks together.
    pub fn model(
        &self,
        attention: &AttentionOptions,
        windows: &[Option<usize>],
        feed_forward: impl IntoIterator<Item = FeedForward>,
    ) -> Result<ModelSpec, ConfigError> {
        let layer_types: Vec<&str> = windows
            .iter()
            .map(|window| if window.is_some() { "sliding_attention" } else { "full_attention" })
            .collect();
        let context = RopeContext {
            head_dim: self.head_dim,
            default_theta: self.rope_theta,
            declared_positions: self.declared_positions,
            served_positions: self.max_positions,
        };
        let ropes = rope::resolve(self.config, context, &layer_types)?;
        let blocks = ropes
            .into_iter()
            .zip(windows)
            .zip(feed_forward)
            .map(|((rope, &sliding_window), feed_forward)| BlockSpec {
                norm_eps: self.norm_eps,
                attention: AttentionSpec {
                    heads: self.heads,
                    kv_heads: self.kv_heads,
                    head_dim: self.head_dim,
                    scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
                    qkv_bias: attention.qkv_bias,
                    o_bias: attention.o_bias,
                    qk_norm: attention.qk_norm,
                    clip_qkv: attention.clip_qkv,
                    rope,
                    sliding_window,
                },
                feed_forward,
            })
            .collect();
        Ok(ModelSpec {
            hidden: self.hidden,
            vocab: self.vocab,
            blocks,
            tied_head: self.tied_head,
            final_norm_eps: self.norm_eps,
            max_positions: self.max_positions,
        })
    }
}

fn size(config: &Config, key: &str, default: usize, most: usize) -> Result<usize, ConfigError> {
    let value = config.count(key)?.unwrap_or(default);
    if value == 0 || value > most {
        return Err(config.wrong(key, format!("a number in 1..={most}")));
    }
    Ok(value)
}

/// Refuses a quantised checkpoint by its method's name.
fn refuse_quantised(config: &Config) -> Result<(), ConfigError> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(quantisation) = config.object(key)? {
            let method = quantisation.text("quant_method")?.unwrap_or("unnamed").to_owned();
            return Err(config.unsupported(format!(
                "a checkpoint quantised with `{method}` ({key}); use one in bf16, f16 or f32, quantisation"
            )));
        }
    }
    for key in ["dtype", "torch_dtype"] {
        if let Some(name) = config.text(key)?
            && !matches!(name.trim_start_matches("torch."), "bfloat16" | "float16" | "float32" | "auto")
        {
            return Err(config.unsupported(format!("the dtype `{name}` (bfloat16, float16 and float32 are)")));
        }
    }
    Ok(())
}
