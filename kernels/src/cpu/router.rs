//! From router logits to experts and weights.

use super::context::Cpu;
use super::math::sigmoid;
use super::reduce::{Max, SumExp, reduce};
use super::simd::{Kernel, Simd, dispatch};
use super::slab::{Rows, Slab};
use crate::Error;
use crate::error::same;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// exp(logit), normalised over all experts (Mixtral, Qwen).
    Softmax,
    /// `1 / (1 + exp(-logit))`, each for itself (DeepSeek-V3).
    Sigmoid,
}

/// How a router chooses.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// Logits to scores.
    pub score: Score,
    /// Added to the scores to select, never to weigh: one value per expert.
    pub selection_bias: Option<&'a [f32]>,
    /// Experts per token.
    pub top_k: usize,
    /// Divide the chosen scores by their sum.
    pub renormalise: bool,
    /// Multiplies the weights at last.
    pub scale: f32,
}

/// What a router chose, for all rows of a call. Reused from call to call.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// `[rows][top_k]`: experts by falling selection score; ties to the lower id.
    pub ids: Vec<u32>,
    /// `[rows][top_k]`: their weights.
    pub weights: Vec<f32>,
    /// `[rows]`: by how much the last chosen selection score exceeds the best one left out; infinite where none is.
    pub gaps: Vec<f32>,
    scores: Vec<f32>,
}

impl Cpu {
    /// Chooses experts for each row of `logits` (one column per expert).
    ///
    /// A NaN logit poisons its row's scores: the row still gets `top_k` distinct ids, and NaN weights.
    pub fn route(
        &mut self,
        logits: &Slab,
        rows: Rows<'_>,
        router: Router<'_>,
        out: &mut Routed,
    ) -> Result<(), Error> {
        let (experts, k) = (logits.cols(), router.top_k);
        if k == 0 || k > experts {
            return Err(Error::Size {
                what: "experts per token (at least 1, at most)",
                expected: experts,
                found: k,
            });
        }
        if let Some(bias) = router.selection_bias {
            same("values of the selection bias", experts, bias.len())?;
        }
        logits.check_reads(rows)?;
        out.ids.clear();
        out.weights.clear();
        out.gaps.clear();
        out.scores.resize(experts, 0.0);
        for i in 0..rows.len() {
            let row = logits.row(rows.at(i));
            // SAFETY: `scores` is as long as the row.
            unsafe {
                dispatch(self.isa, Scores { logits: row, scores: &mut out.scores, score: router.score });
            };
            choose(router, out);
        }
        Ok(())
    }
}

/// Selects from `out.scores` and appends a row.
fn choose(router: Router<'_>, out: &mut Routed) {
    let k = router.top_k;
    let start = out.ids.len();
    let select = |e: usize| {
        let score = router.selection_bias.map_or(out.scores[e], |bias| out.scores[e] + bias[e]);
        // NaN orders below everything, so that the choice is defined.
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    };
    let mut best_left = f32::NEG_INFINITY;
    for e in 0..out.scores.len() {
        let score = select(e);
        if out.ids.len() - start == k {
            let last = select(out.ids[start + k - 1] as usize);
            if score <= last {
                best_left = if best_left < score { score } else { best_left };
                continue;
            }
            best_left = if best_left < last { last } else { best_left };
            out.ids.pop();
        }
        // Behind all that are as good: those have lower ids.
        let mut at = out.ids.len();
        while at > start && select(out.ids[at - 1] as usize) < score {
            at -= 1;
        }
        out.ids.insert(at, e as u32);
    }
    let last = select(out.ids[start + k - 1] as usize);
    out.gaps.push(if out.scores.len() == k { f32::INFINITY } else { last - best_left });
    let mut sum = 0.0;
    for &id in &out.ids[start..] {
        sum += out.scores[id as usize];
    }
    for &id in &out.ids[start..] {
        let score = out.scores[id as usize];
        let share = if router.renormalise { score / sum } else { score };
        out.weights.push(share * router.scale);
    }
}

struct Scores<'a> {
    logits: &'a [f32],
    scores: &'a mut [f32],
    score: Score,
}

impl Kernel for Scores<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.logits.len();
        let (x, y) = (self.logits.as_ptr(), self.scores.as_mut_ptr());
        // SAFETY: both have `len` values; the last lanes go through a padded copy.
        unsafe {
            let (shift, sum) = match self.score {
                Score::Softmax => {
                    let shift = reduce::<S, Max>(x, len, Max);
                    (shift, reduce::<S, SumExp>(x, len, SumExp { shift }))
                }
                Score::Sigmoid => (0.0, 1.0),
            };
            let mut i = 0;
            while i < len {
                let lanes = S::LANES.min(len - i);
                let mut padded = [0f32; 16];
                let v = if lanes == S::LANES {
                    S::load(x.add(i))
                } else {
                    std::ptr::copy_nonoverlapping(x.add(i), padded.as_mut_ptr(), lanes);
                    S::load(padded.as_ptr())
                };
                let v = match self.score {
                    Score::Softmax => {
                        S::div(super::math::exp::<S>(S::sub(v, S::splat(shift))), S::splat(sum))
                    }
                    Score::Sigmoid => sigmoid::<S>(v),
                };
                if lanes == S::LANES {
                    S::store(y.add(i), v);
                } else {
                    S::store(padded.as_mut_ptr(), v);
                    std::ptr::copy_nonoverlapping(padded.as_ptr(), y.add(i), lanes);
                }
                i += S::LANES;
            }
        }
    }
}
