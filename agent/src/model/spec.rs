//! What a compute backend must know about a model, with nothing left of its file format or architecture's name.
//!
//! Vectors are rows; a weight of a linear layer is `[out, in]`, row-major, and the layer computes `y = W x (+ b)`.

use std::ops::Range;
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

/// A run of segments of an expert's inner dimension: what one slot holds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Slice {
    /// First segment.
    pub lo: u8,
    /// One past the last segment.
    pub hi: u8,
    /// Segments of a whole expert, the deployment's G.
    pub of: u8,
}

impl Slice {
    /// The whole expert, in one segment.
    pub const WHOLE: Self = Self { lo: 0, hi: 1, of: 1 };

    /// The rows of gate and up, and columns of down, that this slice covers in a network of the given inner size.
    #[must_use]
    pub fn columns(self, inner: usize) -> Range<usize> {
        segment_boundary(inner, self.of, self.lo)..segment_boundary(inner, self.of, self.hi)
    }
}

/// Where segment `index` of `of` begins in an inner dimension (and where segment `index - 1` ends).
///
/// Segments are as even as can be; boundaries lie at multiples of 32 where the dimension has at least one such step
/// per segment. They are part of the numerics id: changing them changes the bits of every model with more than one
/// segment.
#[must_use]
pub fn segment_boundary(inner: usize, of: u8, index: u8) -> usize {
    const STEP: usize = 32;
    let (of, index) = (usize::from(of.max(1)), usize::from(index));
    if index >= of {
        return inner;
    }
    let step = if inner / STEP >= of { STEP } else { 1 };
    inner / step * index / of * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_partition_the_inner_dimension() {
        for inner in [1, 7, 8, 31, 96, 256, 768, 1000, 1408, 14336] {
            for of in [1u8, 2, 4, 8] {
                let whole = Slice { lo: 0, hi: of, of }.columns(inner);
                assert_eq!(whole, 0..inner);
                let mut end = 0;
                let mut lengths = Vec::new();
                for lo in 0..of {
                    let part = Slice { lo, hi: lo + 1, of }.columns(inner);
                    assert_eq!(part.start, end);
                    end = part.end;
                    lengths.push(part.len());
                }
                assert_eq!(end, inner);
                let step = if inner >= 32 * usize::from(of) { 32 } else { 1 };
                let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
                assert!(most - least <= step + inner % step, "{inner} in {of}: {lengths:?}");
            }
        }
    }

    #[test]
    fn boundaries_are_multiples_of_32_when_there_is_room() {
        let lengths = |inner: usize, of: u8| -> Vec<usize> {
            (0..of).map(|lo| Slice { lo, hi: lo + 1, of }.columns(inner).len()).collect()
        };
        assert_eq!(lengths(256, 8), [32; 8]);
        assert_eq!(lengths(1408, 8), [160, 192, 160, 192, 160, 192, 160, 192]);
        assert_eq!(lengths(64, 4), [16; 4]);
        assert_eq!(lengths(3, 4), [0, 1, 1, 1]);
    }
}
