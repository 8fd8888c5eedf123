//! A model whose hidden states are digests. Each operation makes a new digest of all that the real one reads, in the
//! order it must read it, so a row that is wrong, lost, stale, merged twice or in another order ends in other tokens.

use crate::rng::mix;
use sluice_core::config::Shape;
use sluice_core::ids::{SeqKey, Slice};
use sluice_core::sequence::{Abort, Finish, StopRule};
use sluice_core::step::Sample;
use std::sync::Arc;

/// A digest that stands for a row.
pub type Digest = u64;

/// Token ids are below this: few, so that stop ids and equal prefixes occur.
pub const VOCABULARY: u64 = 24;

/// The value of a token id. The salt stands in it, so that a prefix of another API key is a wrong one.
pub fn embed(salt: u64, id: u32) -> Digest {
    mix(mix(1, salt), u64::from(id))
}

/// Keys and values of a position in a block.
pub fn kv(block: u16, position: u32, residual: Digest) -> Digest {
    mix(mix(2 + u64::from(block), u64::from(position)), residual)
}

/// The residual after attention over `context`, the keys and values of all positions up to this one.
pub fn attend(residual: Digest, context: impl Iterator<Item = Digest>) -> Digest {
    context.fold(mix(3, residual), mix)
}

/// The residual after a dense block's feed-forward.
pub fn dense(block: u16, residual: Digest) -> Digest {
    mix(mix(4, u64::from(block)), residual)
}

/// The input of a block's experts.
pub fn norm(block: u16, residual: Digest) -> Digest {
    mix(mix(5, u64::from(block)), residual)
}

/// The router's choices for an input, best first. `hot` of 8 first choices are expert 0.
pub fn route(shape: &Shape, hot: u64, input: Digest, out: &mut Vec<u16>) {
    let start = out.len();
    let mut r = mix(6, input);
    if (r >> 5) & 7 < hot {
        out.push(0);
    }
    while out.len() - start < shape.top_k as usize {
        r = mix(r, 7);
        let e = ((u128::from(r) * u128::from(shape.experts)) >> 64) as u16;
        if !out[start..].contains(&e) {
            out.push(e);
        }
    }
}

/// The subtree of one slice of an expert's output.
pub fn expert(block: u16, expert: u16, slice: Slice, input: Digest) -> Digest {
    if slice.hi - slice.lo <= 1 {
        let weights = mix(mix(8 + u64::from(block), u64::from(expert)), u64::from(slice.lo));
        return mix(weights, input);
    }
    let mid = slice.lo + (slice.hi - slice.lo) / 2;
    mix(
        self::expert(block, expert, Slice { lo: slice.lo, hi: mid }, input),
        self::expert(block, expert, Slice { lo: mid, hi: slice.hi }, input),
    )
}

/// The whole of an expert's output, from the subtrees of its slices in their order.
pub fn join(slices: &[Digest]) -> Digest {
    match slices {
        [] => 0,
        [one] => *one,
        many => {
            let (a, b) = many.split_at(many.len() / 2);
            mix(join(a), join(b))
        }
    }
}

/// The residual with one choice's output added, weighted with what the router said for `input`.
pub fn merge(residual: Digest, input: Digest, output: Digest) -> Digest {
    mix(residual, mix(input, output))
}

/// What a client asks for, and what the sampler's state for it would hold.
#[derive(Clone, Debug)]
pub struct Request {
    /// The sequence.
    pub key: SeqKey,
    /// Its prompt.
    pub prompt: Arc<[u32]>,
    /// When it stops.
    pub stop: StopRule,
    /// Its API key's salt.
    pub salt: u64,
    /// Structured output is complete after so many tokens.
    pub done_at: Option<u32>,
    /// Its grammar fails after so many tokens.
    pub abort_at: Option<u32>,
}

/// Samples the `index`-th token of a request from the residual of its last position.
pub fn sample(request: &Request, index: u32, residual: Digest) -> Sample {
    if request.abort_at == Some(index) {
        return Sample::Abort(Abort::Constraint);
    }
    if request.done_at == Some(index) {
        return Sample::Done;
    }
    let key = mix(request.key.request, u64::from(request.key.choice));
    let mut r = mix(mix(key, u64::from(index)), residual);
    loop {
        let id = ((u128::from(r) * u128::from(VOCABULARY)) >> 64) as u32;
        if index >= request.stop.min_tokens || !request.stop.ids.contains(&id) {
            return Sample::Token(id);
        }
        r = mix(r, 9);
    }
}

/// What a request must end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Why it is over.
    pub finish: Finish,
}

/// Evaluates a request alone, position by position: no batches, no pages, no workers.
pub fn evaluate(shape: &Shape, hot: u64, request: &Request) -> Expected {
    let mut keys: Vec<Vec<Digest>> = vec![vec![]; shape.moe.len()];
    let mut ids = request.prompt.to_vec();
    let mut choices = vec![];
    let mut position = 0;
    loop {
        let mut r = embed(request.salt, ids[position]);
        for (b, moe) in shape.moe.iter().enumerate() {
            let block = b as u16;
            keys[b].push(kv(block, position as u32, r));
            r = attend(r, keys[b].iter().copied());
            if !moe {
                r = dense(block, r);
                continue;
            }
            let x = norm(block, r);
            choices.clear();
            route(shape, hot, x, &mut choices);
            for e in &choices {
                r = merge(r, x, expert(block, *e, Slice::whole(shape.segments), x));
            }
        }
        position += 1;
        if position < ids.len() {
            continue;
        }
        let produced = ids.len() - request.prompt.len();
        let over = |finish| Expected { ids: ids[request.prompt.len()..].to_vec(), finish };
        match sample(request, produced as u32, r) {
            Sample::Abort(why) => return over(Finish::Aborted(why)),
            Sample::Done => return over(Finish::Stop),
            Sample::Token(id) => {
                ids.push(id);
                let ids = ids[request.prompt.len()..].to_vec();
                if request.stop.ids.contains(&id) {
                    return Expected { ids, finish: Finish::Stop };
                }
                if produced as u32 + 1 >= request.stop.max_tokens {
                    return Expected { ids, finish: Finish::Length };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_is_the_same_in_any_slicing() {
        for slices in [1u8, 2, 4, 8] {
            let width = 8 / slices;
            let parts: Vec<Digest> =
                (0..slices).map(|s| expert(1, 2, Slice { lo: s * width, hi: (s + 1) * width }, 42)).collect();
            assert_eq!(join(&parts), expert(1, 2, Slice::whole(8), 42), "{slices} slices");
        }
        let (a, b) = (expert(1, 2, Slice { lo: 0, hi: 4 }, 42), expert(1, 2, Slice { lo: 4, hi: 8 }, 42));
        assert_ne!(join(&[b, a]), join(&[a, b]));
    }

    #[test]
    fn evaluation_depends_on_every_token_of_the_prompt() {
        let shape = Shape { moe: vec![true, false, true], experts: 4, top_k: 2, segments: 2 };
        let request = |prompt: &[u32]| Request {
            key: SeqKey { request: 1, choice: 0 },
            prompt: prompt.into(),
            stop: StopRule { ids: vec![], min_tokens: 0, max_tokens: 12 },
            salt: 0,
            done_at: None,
            abort_at: None,
        };
        let base = evaluate(&shape, 0, &request(&[1, 2, 3]));
        assert_eq!((base.ids.len(), base.finish), (12, Finish::Length));
        for other in [[2, 2, 3], [1, 3, 3], [1, 2, 4], [2, 1, 3]] {
            assert_ne!(evaluate(&shape, 0, &request(&other)).ids, base.ids, "{other:?}");
        }
        let done = evaluate(&shape, 0, &Request { done_at: Some(5), ..request(&[1, 2, 3]) });
        assert_eq!((&done.ids[..], done.finish), (&base.ids[..5], Finish::Stop));
    }
}
