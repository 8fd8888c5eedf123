//! What of a model the GPU's kernels do not compute: refused at load, by name.

use crate::model::spec::{AttentionSpec, ModelSpec, MoeSpec, QkNorm};

/// Rows of a matrix come in strips of so many.
pub const STRIP: usize = 8;
/// Columns of a matrix come in stages of so many.
const STAGE: usize = 64;
/// Heads that there are kernels for; shorter ones are filled up with zeros.
const HEAD_DIMS: [usize; 2] = [64, 128];

/// A model, or what it has, that does not run on a GPU.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not on a GPU yet: {0}; use --backend cpu")]
pub struct NotYet(String);

/// The shape that all blocks have.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    /// Attention.
    pub attention: &'a AttentionSpec,
    /// Experts.
    pub moe: &'a MoeSpec,
    /// Values of a head in memory.
    pub head: usize,
}

/// The shape of a model's blocks, if the kernels compute them.
pub fn blocks(spec: &ModelSpec) -> Result<Blocks<'_>, NotYet> {
    let Some(first) = spec.blocks.first() else { return Err(not("a model without blocks")) };
    let Some(moe) = first.feed_forward.moe() else { return Err(not("blocks with a dense network")) };
    for block in &spec.blocks {
        match block.feed_forward.moe() {
            None => return Err(not("blocks with a dense network")),
            Some(other) if other.shared.is_some() => return Err(not("a shared expert")),
            Some(other)
                if (other.experts, other.top_k, other.expert) != (moe.experts, moe.top_k, moe.expert) =>
            {
                return Err(not("blocks whose experts differ in number or size"));
            }
            Some(_) => {}
        }
        if block.attention != first.attention {
            return Err(not("blocks whose attention differs"));
        }
    }
    let attention = &first.attention;
    if attention.qkv_bias || attention.o_bias {
        return Err(not("projections with a bias"));
    }
    if attention.clip_qkv.is_some() {
        return Err(not("clipped queries, keys and values"));
    }
    if let QkNorm::Projection { .. } = attention.qk_norm {
        return Err(not("a norm over the whole projection of queries and keys"));
    }
    let Some(head) = HEAD_DIMS.into_iter().find(|head| *head >= attention.head_dim) else {
        return Err(NotYet(format!("heads of {} values (at most {})", attention.head_dim, HEAD_DIMS[1])));
    };
    if head != attention.head_dim && attention.qk_norm != QkNorm::None {
        return Err(NotYet(format!("a norm over heads of {} values (64 and 128 are)", attention.head_dim)));
    }
    if !attention.head_dim.is_multiple_of(2) || attention.rope.inv_freq.len() * 2 != attention.head_dim {
        return Err(not("heads that turn in part"));
    }
    if !spec.hidden.is_multiple_of(STAGE) {
        return Err(NotYet(format!("a hidden size of {} (a multiple of {STAGE} is)", spec.hidden)));
    }
    if !moe.experts.is_multiple_of(STRIP) {
        return Err(NotYet(format!("{} experts (a multiple of {STRIP} is)", moe.experts)));
    }
    Ok(Blocks { attention, moe, head })
}

/// A slab for another number of experts per token.
pub fn other_top_k(top_k: usize) -> NotYet {
    NotYet(format!("a slab for other than the model's {top_k} experts per token"))
}

/// A block that should have a router and has none.
pub fn no_router(block: usize) -> NotYet {
    NotYet(format!("block {block}, which has no router"))
}

fn not(what: &str) -> NotYet {
    NotYet(what.to_owned())
}

/// Where the values of a head lie in memory: its halves, which turn against each other, at the beginnings of the halves of
/// `head` values.
#[derive(Clone, Copy, Debug)]
pub struct HeadPlaces {
    /// Values.
    pub values: usize,
    /// Values in memory.
    pub head: usize,
}

impl HeadPlaces {
    /// Where value `i` lies.
    pub fn of(self, i: usize) -> usize {
        let half = self.values / 2;
        if i < half { i } else { self.head / 2 + i - half }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_short_head_begin_the_halves_of_a_long_one() {
        let short = HeadPlaces { values: 32, head: 64 };
        assert_eq!([0, 15, 16, 31].map(|i| short.of(i)), [0, 15, 32, 47]);
        let long = HeadPlaces { values: 128, head: 128 };
        assert!((0..128).all(|i| long.of(i) == i));
    }
}
