//! The tensors of a model, by what they are rather than what a file calls them.

use std::fmt;

use super::spec::{BlockSpec, FeedForward, ModelSpec, NetworkSpec, QkNorm};

/// One tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// `[vocab, hidden]`.
    Embedding,
    /// `[vocab, hidden]`; absent where the head is tied to the embedding.
    Head,
    /// `[hidden]`.
    FinalNorm,
    /// A tensor of one block.
    Block(usize, BlockTensor),
}

impl TensorId {
    /// Whether it belongs to routed experts, which slots hold; a rank has all the others.
    pub fn is_expert(self) -> bool {
        use BlockTensor::{Expert, FusedDown, FusedGateUp};
        matches!(self, Self::Block(_, Expert(..) | FusedGateUp | FusedDown))
    }
}

/// A tensor of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockTensor {
    /// The norm before attention, `[hidden]`.
    AttentionNorm,
    /// The weight of a projection of attention: q, k and v `[heads · head_dim, hidden]`, o its transpose's shape.
    Attention(AttentionPart),
    /// The bias of one.
    AttentionBias(AttentionPart),
    /// The norm of q.
    QNorm,
    /// The norm of k.
    KNorm,
    /// The norm before the feed-forward part, `[hidden]`.
    FeedForwardNorm,
    /// A weight of a dense block's network.
    Dense(Projection),
    /// `[experts, hidden]`.
    Router,
    /// `[experts]`, added to the scores for the choice.
    RouterBias,
    /// A weight of one expert.
    Expert(usize, Projection),
    /// Gate and up of all experts, `[experts, 2 · inner, hidden]`: gate's rows, then up's.
    FusedGateUp,
    /// Down of all experts, `[experts, hidden, inner]`.
    FusedDown,
    /// A weight of the shared expert.
    Shared(Projection),
    /// The gate on the shared expert's output, `[1, hidden]`.
    SharedGate,
}

/// A projection of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttentionPart {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output.
    O,
}

impl AttentionPart {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Q, Self::K, Self::V, Self::O];
}

/// A weight of a gated network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// `[inner, hidden]`, goes through the activation.
    Gate,
    /// `[inner, hidden]`.
    Up,
    /// `[hidden, inner]`.
    Down,
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    fn shape(self, hidden: usize, network: NetworkSpec) -> Vec<usize> {
        match self {
            Self::Gate | Self::Up => vec![network.inner, hidden],
            Self::Down => vec![hidden, network.inner],
        }
    }
}

impl TensorId {
    /// Its shape in a model.
    #[must_use]
    pub fn shape(self, spec: &ModelSpec) -> Option<Vec<usize>> {
        match self {
            Self::Embedding | Self::Head => Some(vec![spec.vocab, spec.hidden]),
            Self::FinalNorm => Some(vec![spec.hidden]),
            Self::Block(block, tensor) => tensor.shape(spec.hidden, spec.blocks.get(block)?),
        }
    }
}

impl BlockTensor {
    /// Its shape in a block; `None` where the block has no such tensor.
    fn shape(self, hidden: usize, block: &BlockSpec) -> Option<Vec<usize>> {
        let attention = &block.attention;
        let moe = block.feed_forward.moe();
        match self {
            Self::AttentionNorm | Self::FeedForwardNorm => Some(vec![hidden]),
            Self::Attention(AttentionPart::Q) => Some(vec![attention.q_dim(), hidden]),
            Self::Attention(AttentionPart::K | AttentionPart::V) => Some(vec![attention.kv_dim(), hidden]),
            Self::Attention(AttentionPart::O) => Some(vec![hidden, attention.q_dim()]),
            Self::AttentionBias(AttentionPart::O) => attention.o_bias.then(|| vec![hidden]),
            Self::AttentionBias(AttentionPart::Q) => attention.qkv_bias.then(|| vec![attention.q_dim()]),
            Self::AttentionBias(AttentionPart::K | AttentionPart::V) => {
                attention.qkv_bias.then(|| vec![attention.kv_dim()])
            }
            Self::QNorm | Self::KNorm => match attention.qk_norm {
                QkNorm::None => None,
                QkNorm::PerHead { .. } => Some(vec![attention.head_dim]),
                QkNorm::Projection { .. } if self == Self::QNorm => Some(vec![attention.q_dim()]),
                QkNorm::Projection { .. } => Some(vec![attention.kv_dim()]),
            },
            Self::Dense(projection) => match block.feed_forward {
                FeedForward::Dense(network) => Some(projection.shape(hidden, network)),
                FeedForward::Moe(_) => None,
            },
            Self::Router => Some(vec![moe?.experts, hidden]),
            Self::RouterBias => moe.filter(|moe| moe.router.selection_bias).map(|moe| vec![moe.experts]),
            Self::Expert(expert, projection) => {
                moe.filter(|moe| expert < moe.experts).map(|moe| projection.shape(hidden, moe.expert))
            }
            Self::FusedGateUp => moe.map(|moe| vec![moe.experts, 2 * moe.expert.inner, hidden]),
            Self::FusedDown => moe.map(|moe| vec![moe.experts, hidden, moe.expert.inner]),
            Self::Shared(projection) => Some(projection.shape(hidden, moe?.shared?.network)),
            Self::SharedGate => moe?.shared.filter(|shared| shared.gated).map(|_| vec![1, hidden]),
        }
    }
}

/// How an expert's weights lie in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// Three tensors for each expert.
    PerExpert,
    /// Two tensors for all of a block.
    Fused,
}

/// Every tensor of a model, in the order of the computation. `layout` says how a block's experts lie.
pub fn all(spec: &ModelSpec, layout: impl Fn(usize) -> ExpertLayout) -> Vec<TensorId> {
    let mut tensors = vec![TensorId::Embedding];
    for (index, block) in spec.blocks.iter().enumerate() {
        let mut add = |tensor| tensors.push(TensorId::Block(index, tensor));
        add(BlockTensor::AttentionNorm);
        for part in AttentionPart::ALL {
            add(BlockTensor::Attention(part));
            let bias = match part {
                AttentionPart::O => block.attention.o_bias,
                _ => block.attention.qkv_bias,
            };
            if bias {
                add(BlockTensor::AttentionBias(part));
            }
        }
        if block.attention.qk_norm != QkNorm::None {
            add(BlockTensor::QNorm);
            add(BlockTensor::KNorm);
        }
        add(BlockTensor::FeedForwardNorm);
        match &block.feed_forward {
            FeedForward::Dense(_) => Projection::ALL.into_iter().map(BlockTensor::Dense).for_each(add),
            FeedForward::Moe(moe) => {
                add(BlockTensor::Router);
                if moe.router.selection_bias {
                    add(BlockTensor::RouterBias);
                }
                match layout(index) {
                    ExpertLayout::Fused => {
                        add(BlockTensor::FusedGateUp);
                        add(BlockTensor::FusedDown);
                    }
                    ExpertLayout::PerExpert => {
                        for expert in 0..moe.experts {
                            for projection in Projection::ALL {
                                add(BlockTensor::Expert(expert, projection));
                            }
                        }
                    }
                }
                if let Some(shared) = moe.shared {
                    Projection::ALL.into_iter().map(BlockTensor::Shared).for_each(&mut add);
                    if shared.gated {
                        add(BlockTensor::SharedGate);
                    }
                }
            }
        }
    }
    tensors.push(TensorId::FinalNorm);
    if !spec.tied_head {
        tensors.push(TensorId::Head);
    }
    tensors
}

/// The names of Llama's descendants in transformers. `moe` holds the names the expert part of a block may have,
/// `expert` those of an expert's gate, up and down.
#[must_use]
pub fn llama_style(tensor: TensorId, moe: &[&str], expert: [&str; 3]) -> Vec<String> {
    let (block, tensor) = match tensor {
        TensorId::Embedding => return vec!["model.embed_tokens.weight".to_owned()],
        TensorId::Head => return vec!["lm_head.weight".to_owned()],
        TensorId::FinalNorm => return vec!["model.norm.weight".to_owned()],
        TensorId::Block(block, tensor) => (block, tensor),
    };
    let dense = |projection| match projection {
        Projection::Gate => "gate_proj",
        Projection::Up => "up_proj",
        Projection::Down => "down_proj",
    };
    let in_block = |name: fmt::Arguments<'_>| vec![format!("model.layers.{block}.{name}")];
    let in_moe = |name: fmt::Arguments<'_>| {
        moe.iter().map(|moe| format!("model.layers.{block}.{moe}.{name}")).collect()
    };
    let attention = |part| match part {
        AttentionPart::Q => "q_proj",
        AttentionPart::K => "k_proj",
        AttentionPart::V => "v_proj",
        AttentionPart::O => "o_proj",
    };
    match tensor {
        BlockTensor::AttentionNorm => in_block(format_args!("input_layernorm.weight")),
        BlockTensor::Attention(part) => in_block(format_args!("self_attn.{}.weight", attention(part))),
        BlockTensor::AttentionBias(part) => in_block(format_args!("self_attn.{}.bias", attention(part))),
        BlockTensor::QNorm => in_block(format_args!("self_attn.q_norm.weight")),
        BlockTensor::KNorm => in_block(format_args!("self_attn.k_norm.weight")),
        BlockTensor::FeedForwardNorm => in_block(format_args!("post_attention_layernorm.weight")),
        BlockTensor::Dense(projection) => in_block(format_args!("mlp.{}.weight", dense(projection))),
        BlockTensor::Router => in_moe(format_args!("gate.weight")),
        BlockTensor::RouterBias => in_moe(format_args!("gate.e_score_correction_bias")),
        BlockTensor::Expert(index, projection) => {
            let name = match projection {
                Projection::Gate => expert[0],
                Projection::Up => expert[1],
                Projection::Down => expert[2],
            };
            in_moe(format_args!("experts.{index}.{name}.weight"))
        }
        BlockTensor::FusedGateUp => in_moe(format_args!("experts.gate_up_proj")),
        BlockTensor::FusedDown => in_moe(format_args!("experts.down_proj")),
        BlockTensor::Shared(projection) => in_moe(format_args!("shared_expert.{}.weight", dense(projection))),
        BlockTensor::SharedGate => in_moe(format_args!("shared_expert_gate.weight")),
    }
}
