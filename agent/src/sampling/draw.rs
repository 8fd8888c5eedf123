//! One draw from a row of logits.

use super::math;
use super::params::SamplingParams;

/// Buffers of a draw.
#[derive(Debug, Default)]
pub struct DrawScratch {
    weights: Vec<f32>,
    order: Vec<u32>,
}

/// Draws the token at which the running sum of weights passes `unit` times their total: over the kept tokens in
/// falling order where top-k or top-p asks for an order, by id otherwise.
///
/// `None` when no token has a finite logit.
pub fn draw(logits: &[f32], params: &SamplingParams, unit: f64, scratch: &mut DrawScratch) -> Option<u32> {
    let max = math::max(logits);
    if !max.is_finite() {
        return None;
    }
    let scale = 1.0 / params.temperature;
    let weigh = |logit: f32| {
        let weight = math::exp((logit - max) * scale);
        // NaN compares false, so such a logit weighs nothing.
        if weight >= params.min_p { weight } else { 0.0 }
    };
    scratch.weights.clear();
    scratch.weights.extend(logits.iter().map(|&logit| weigh(logit)));
    if params.top_k == 0 && params.top_p >= 1.0 {
        draw_by_id(&scratch.weights, unit)
    } else {
        draw_in_order(logits, max, params, unit, scratch)
    }
}

fn draw_by_id(weights: &[f32], unit: f64) -> Option<u32> {
    let target = unit * math::sum_by(weights, |w| w);
    let (mut sum, mut first, mut last) = (0.0f64, 0, None);
    for chunk in math::chunks(weights) {
        let next = sum + f64::from(math::chunk_sum_by(chunk, |w| w));
        if next > target {
            for (i, &weight) in chunk.iter().enumerate().filter(|&(_, &weight)| weight > 0.0) {
                sum += f64::from(weight);
                last = Some((first + i) as u32);
                if sum > target {
                    return last;
                }
            }
        } else if let Some(i) = chunk.iter().rposition(|&weight| weight > 0.0) {
            last = Some((first + i) as u32);
        }
        sum = next;
        first += chunk.len();
    }
    last
}

fn draw_in_order(
    logits: &[f32],
    max: f32,
    params: &SamplingParams,
    unit: f64,
    scratch: &mut DrawScratch,
) -> Option<u32> {
    let DrawScratch { weights, order } = scratch;
    let most = if params.top_k == 0 { usize::MAX } else { params.top_k as usize };
    // top-p is a part of what top-k and min-p left: with top-k that total is known once the order is.
    let whole = if params.top_k == 0 { Some(math::sum_by(weights, |w| w)) } else { None };
    // The tokens within `depth` temperatures of the best are a prefix of the order: usually they suffice.
    for depth in [8.0f32, 20.0, f32::INFINITY] {
        let cut = if depth.is_finite() { max - depth * params.temperature } else { f32::NEG_INFINITY };
        order.clear();
        order.extend(
            (0..logits.len() as u32).filter(|&id| logits[id as usize] >= cut && weights[id as usize] > 0.0),
        );
        let complete = depth.is_infinite();
        if params.top_k > 0 && order.len() < most && !complete {
            continue;
        }
        let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if order.len() > most {
            order.select_nth_unstable_by(most - 1, by_rank);
            order.truncate(most);
        }
        order.sort_unstable_by(by_rank);
        let total = whole.unwrap_or_else(|| order.iter().map(|&id| f64::from(weights[id as usize])).sum());
        let nucleus = f64::from(params.top_p) * total;
        let (mut kept, mut sum) = (order.len(), 0.0f64);
        if params.top_p < 1.0 {
            for (i, &id) in order.iter().enumerate() {
                sum += f64::from(weights[id as usize]);
                if sum >= nucleus {
                    kept = i + 1;
                    break;
                }
            }
            if sum < nucleus && !complete {
                continue;
            }
        } else {
            sum = total;
        }
        let target = unit * sum;
        let mut walked = 0.0f64;
        for &id in &order[..kept] {
            walked += f64::from(weights[id as usize]);
            if walked > target {
                return Some(id);
            }
        }
        return order[..kept].last().copied();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::random::unit_draw;

    fn logits() -> Vec<f32> {
        (0..1000).map(|i| (i as f32 * 12.9898).sin() * 6.0).collect()
    }

    /// The same by the book: probabilities in f64, sorted, filtered one after another.
    fn allowed(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut probs: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(i, &x)| (i as u32, (f64::from(x - max) / f64::from(params.temperature)).exp()))
            .filter(|&(_, p)| p >= f64::from(params.min_p))
            .collect();
        probs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            probs.truncate(params.top_k as usize);
        }
        let total: f64 = probs.iter().map(|p| p.1).sum();
        let mut sum = 0.0;
        let kept = probs.iter().position(|p| {
            sum += p.1;
            sum >= f64::from(params.top_p) * total
        });
        probs.truncate(kept.map_or(probs.len(), |i| i + 1));
        let total: f64 = probs.iter().map(|p| p.1).sum();
        probs.into_iter().map(|(id, p)| (id, p / total)).collect()
    }

    #[test]
    fn draws_follow_the_filtered_distribution() {
        let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
        for params in [
            base.clone(),
            SamplingParams { top_p: 0.7, ..base.clone() },
            SamplingParams { top_k: 20, ..base.clone() },
            SamplingParams { top_k: 50, top_p: 0.5, min_p: 0.1, temperature: 1.5, ..base.clone() },
            SamplingParams { min_p: 0.3, ..base.clone() },
            SamplingParams { top_p: 0.999, temperature: 5.0, ..base },
        ] {
            let logits = logits();
            let expected = allowed(&logits, &params);
            let draws = 40_000u32;
            let mut counts = vec![0u32; logits.len()];
            let mut scratch = DrawScratch::default();
            for i in 0..draws {
                let id = draw(&logits, &params, unit_draw(3, 0, i), &mut scratch).unwrap();
                counts[id as usize] += 1;
            }
            let mut distance = 0.0;
            for &(id, p) in &expected {
                distance += (f64::from(counts[id as usize]) / f64::from(draws) - p).abs();
                counts[id as usize] = 0;
            }
            assert!(counts.iter().all(|&n| n == 0), "a token outside the kept set: {params:?}");
            // The expected L1 distance of m cells after n draws is below sqrt(m / n).
            let bound = 1.5 * (expected.len() as f64 / f64::from(draws)).sqrt();
            assert!(distance < bound, "{distance} over {} tokens: {params:?}", expected.len());
        }
    }

    #[test]
    fn edges() {
        let mut scratch = DrawScratch::default();
        let params = SamplingParams::default();
        assert_eq!(draw(&[f32::NEG_INFINITY; 3], &params, 0.5, &mut scratch), None);
        assert_eq!(draw(&[f32::NAN, 1.0], &params, 0.999, &mut scratch), Some(1));
        let one = SamplingParams { top_k: 1, ..SamplingParams::default() };
        assert_eq!(draw(&[2.0, 3.0, 3.0], &one, 0.999, &mut scratch), Some(1));
        let almost_one = 1.0 - f64::EPSILON;
        for params in [params, SamplingParams { top_p: 0.9, ..SamplingParams::default() }] {
            assert!(draw(&logits(), &params, almost_one, &mut scratch).is_some());
            assert!(draw(&logits(), &params, 0.0, &mut scratch).is_some());
        }
    }
}
