//! What a compute backend must know about a model, with nothing left of its file format or architecture's name.
//!
//! Vectors are rows; a weight of a linear layer is `[out, in]`, row-major, and the layer computes `y = W x (+ b)`.

use std::sync::Arc;

use serde::Serialize;

/// A decoder-only Mixture-of-Experts language model.
///
/// For one token: embedding row, then every block in order, then the final RMSNorm and the head. One block is
/// `h += attention(rms_norm(h))` followed by `h += feed_forward(rms_norm(h))`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Length of a hidden state.
    pub hidden: usize,
    /// Rows of the embedding and of the head: token ids are in `0..vocab`.
    pub vocab: usize,
    /// The decoder layers in order.
    pub blocks: Vec<BlockSpec>,
    /// The head is the embedding matrix itself; there is no tensor of its own.
    pub tied_head: bool,
    /// Epsilon of the RMSNorm before the head.
    pub final_norm_eps: f32,
    /// The longest sequence, prompt and completion together, in tokens.
    pub max_positions: usize,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockSpec {
    /// Epsilon of both RMSNorms, the one before attention and the one before the feed-forward part.
    pub norm_eps: f32,
    /// Self-attention.
    pub attention: AttentionSpec,
    /// The experts, or a dense network.
    pub feed_forward: FeedForward,
}

/// Causal grouped-query attention.
///
/// In this order: projections with their biases, [`QkNorm`], clip, rotary embedding of q and k, attention with
/// `softmax(scale · q·k)` in f32, output projection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Length of one head.
    pub head_dim: usize,
    /// Factor on `q·k`.
    pub scale: f32,
    /// The q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub o_bias: bool,
    /// Normalisation of q and k.
    pub qk_norm: QkNorm,
    /// q, k and v are clamped to `[-c, c]`, after [`QkNorm`].
    pub clip_qkv: Option<f32>,
    /// Rotary embedding, shared by the blocks that have the same.
    pub rope: Arc<RopeSpec>,
    /// A position sees itself and the `window - 1` before it; `None`: all before it.
    pub sliding_window: Option<usize>,
}

impl AttentionSpec {
    /// Length of q for one token: `heads · head_dim`.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Length of k, and of v, for one token: `kv_heads · head_dim`.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// RMSNorm of queries and keys before the rotary embedding, each with a weight of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head; weights `[head_dim]`, the same for every head.
    PerHead {
        /// Epsilon.
        eps: f32,
    },
    /// Over the whole projection; weights `[heads · head_dim]` and `[kv_heads · head_dim]`.
    Projection {
        /// Epsilon.
        eps: f32,
    },
}

/// Rotary embedding, resolved: every scaling is already in the numbers, so a position's rotation depends on the
/// position only.
///
/// The pair `i` of a head is elements `i` and `i + n` with `n = inv_freq.len()` (= `head_dim / 2`). At position `p`
/// with `a = p as f32 * inv_freq[i]`, `c = cos(a) · attention_factor`, `s = sin(a) · attention_factor`:
/// `x[i]' = x[i]·c − x[i+n]·s`, `x[i+n]' = x[i+n]·c + x[i]·s`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Radians per position for each pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub attention_factor: f32,
}

/// What follows attention in a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// One gated network for all tokens.
    Dense(NetworkSpec),
    /// Routed experts.
    Moe(MoeSpec),
}

impl FeedForward {
    /// The experts' description, if the block has experts.
    #[must_use]
    pub fn moe(&self) -> Option<&MoeSpec> {
        match self {
            Self::Moe(moe) => Some(moe),
            Self::Dense(_) => None,
        }
    }
}

/// A gated feed-forward network: `down( act(gate(x)) ⊙ up(x) )`, without biases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NetworkSpec {
    /// Rows of gate and up, columns of down.
    pub inner: usize,
    /// The activation of the gate.
    pub activation: Activation,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
}

/// Routed experts, and the shared one if there is one. The block's output is the weighted sum of the chosen
/// experts' outputs in the router's order, plus the shared expert's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoeSpec {
    /// Experts of this block.
    pub experts: usize,
    /// Experts per token, `1..=experts`.
    pub top_k: usize,
    /// The shape of each expert.
    pub expert: NetworkSpec,
    /// How the experts of a token are chosen and weighted.
    pub router: RouterSpec,
    /// An expert that every token visits.
    pub shared: Option<SharedSpec>,
}

/// The router: `logits = W x` with `W` `[experts, hidden]`; scores; the `top_k` highest of score (+ bias), ties to the
/// lower id, in falling order; their weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RouterSpec {
    /// From logits to scores, in f32, over all experts.
    pub score: Score,
    /// The weights are divided by their sum. The bias is no part of a weight.
    pub renormalise: bool,
    /// Factor on the weights, after renormalisation.
    pub scale: f32,
    /// A tensor `[experts]` is added to the scores for the choice alone.
    pub selection_bias: bool,
}

/// A router's score function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Softmax over the block's experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
}

/// A shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SharedSpec {
    /// Its shape.
    pub network: NetworkSpec,
    /// Its output is multiplied by `sigmoid(g · x)` with a weight `g` `[1, hidden]`.
    pub gated: bool,
}
