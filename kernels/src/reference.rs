//! Plain f64 twins of the ops: what they mean, without a thought for speed.
//!
//! Matrices are row-major slices; inputs are f32 as the ops take them, results are f64.

/// `out[r][o] = sum_i x[r][i] w[o][i]`, for rows of `x` and of `w` with `inner` values.
pub fn matmul(x: &[f32], w: &[f32], inner: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(inner) {
        for w in w.chunks_exact(inner) {
            out.push(x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
        }
    }
    out
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// One row through an expert: gate and up `[f, d]`, down `[d, f]`, of which the inner columns `held` are used.
pub fn expert(x: &[f32], gate: &[f32], up: &[f32], down: &[f32], held: std::ops::Range<usize>) -> Vec<f64> {
    let d = x.len();
    let f = gate.len() / d;
    let gate = matmul(x, gate, d);
    let up = matmul(x, up, d);
    let h: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
    down.chunks_exact(f).map(|row| held.clone().map(|i| h[i] * f64::from(row[i])).sum()).collect()
}

/// `x / sqrt(mean(x^2) + eps)`, times the weight.
pub fn rmsnorm(x: &[f32], weight: Option<&[f32]>, eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .enumerate()
        .map(|(i, x)| f64::from(*x) * scale * weight.map_or(1.0, |w| f64::from(w[i])))
        .collect()
}

/// One head turned by the cosines and sines of its position.
pub fn rope(head: &[f32], cos: &[f32], sin: &[f32]) -> Vec<f64> {
    let half = cos.len();
    let mut out: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
    for i in 0..half {
        let (a, b) = (f64::from(head[i]), f64::from(head[half + i]));
        let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
        out[i] = a * c - b * s;
        out[half + i] = b * c + a * s;
    }
    out
}

/// One query over the keys and values of the positions it sees (`q.len()` values each).
pub fn attention(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Vec<f64> {
    let scores: Vec<f64> = keys
        .iter()
        .map(|k| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale))
        .collect();
    let weights = softmax(&scores);
    (0..q.len()).map(|i| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[i])).sum()).collect()
}

/// exp(x), normalised.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// The logarithm of the sum of exp(x).
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
    max + x.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// How a router chooses for one row; the fields mean what [`crate::cpu::Router`]'s do.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// Sigmoid scores, else softmax.
    pub sigmoid: bool,
    /// Added to select.
    pub selection_bias: Option<&'a [f32]>,
    /// Experts per token.
    pub top_k: usize,
    /// Divide by the chosen scores' sum.
    pub renormalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
}

/// The chosen experts with their weights, and the gap to the best one left out.
pub fn route(logits: &[f32], router: Router<'_>) -> (Vec<(usize, f64)>, f64) {
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let scores: Vec<f64> = if router.sigmoid {
        logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()
    } else {
        softmax(&logits)
    };
    let select = |e: usize| scores[e] + router.selection_bias.map_or(0.0, |b| f64::from(b[e]));
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| select(*b).total_cmp(&select(*a)).then(a.cmp(b)));
    let k = router.top_k;
    let gap = order.get(k).map_or(f64::INFINITY, |next| select(order[k - 1]) - select(*next));
    let sum: f64 = order[..k].iter().map(|e| scores[*e]).sum();
    let divide = if router.renormalise { sum } else { 1.0 };
    (order[..k].iter().map(|e| (*e, scores[*e] / divide * f64::from(router.scale))).collect(), gap)
}
