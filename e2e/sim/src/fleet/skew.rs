//! Router choices with planned popularity: the hottest expert has a given share of all assignments.

use crate::rng::{Rng, mix};

/// Orders in which a block's experts are laid out, so that which experts come together varies.
const ORDERS: usize = 16;

/// A seeded draw of experts.
#[derive(Clone, Debug)]
pub struct Skew {
    top_k: usize,
    shares: Vec<Vec<f64>>,
    /// Per (block, order): the experts, and where each one's part of `0..K` ends.
    orders: Vec<Vec<(u16, f64)>>,
}

impl Skew {
    /// Shares that fall geometrically from the hottest, another expert being the hottest in each block. A share no
    /// larger than even gives even shares.
    pub fn new(share: f64, blocks: u16, experts: u16, top_k: u8, seed: u64) -> Self {
        let mut r = Rng::new(seed);
        let base = geometric(share, experts, top_k);
        let (mut shares, mut orders) = (vec![], vec![]);
        for _ in 0..blocks {
            let mut own = base.clone();
            r.shuffle(&mut own);
            lay_out(&own, top_k, &mut r, &mut orders);
            shares.push(own);
        }
        Self { top_k: top_k as usize, shares, orders }
    }

    /// Given shares of each block's experts, which sum to 1 and of which none is over 1/K.
    pub fn of_shares(shares: Vec<Vec<f64>>, top_k: u8, seed: u64) -> Self {
        let (mut r, mut orders) = (Rng::new(seed), vec![]);
        shares.iter().for_each(|own| lay_out(own, top_k, &mut r, &mut orders));
        Self { top_k: top_k as usize, shares, orders }
    }

    /// Each expert's part of a block's assignments.
    pub fn shares(&self, block: u16) -> &[f64] {
        &self.shares[block as usize]
    }

    /// K distinct experts for what `key` stands for.
    pub fn draw(&self, key: u64, block: u16, out: &mut Vec<u16>) {
        let r = mix(key, u64::from(block) + 1);
        let order = &self.orders[block as usize * ORDERS + r as usize % ORDERS];
        let start = (r >> 11) as f64 / (1u64 << 53) as f64;
        let mut at = 0;
        for k in 0..self.top_k {
            while at + 1 < order.len() && order[at].1 <= start + k as f64 {
                at += 1;
            }
            out.push(order[at].0);
        }
    }
}

/// The orders of one block.
fn lay_out(shares: &[f64], top_k: u8, r: &mut Rng, orders: &mut Vec<Vec<(u16, f64)>>) {
    for _ in 0..ORDERS {
        let mut order: Vec<u16> = (0..shares.len() as u16).collect();
        r.shuffle(&mut order);
        let mut end = 0.0;
        let ends = order.into_iter().map(|e| {
            end += shares[e as usize] * f64::from(top_k);
            (e, end)
        });
        orders.push(ends.collect());
    }
}

fn geometric(share: f64, experts: u16, top_k: u8) -> Vec<f64> {
    let shares = |a: f64| {
        let all: Vec<f64> = (0..experts).map(|i| (-a * f64::from(i)).exp()).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
    };
    let (mut low, mut high) = (0.0, 64.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if shares(middle)[0] > share { high = middle } else { low = middle }
    }
    let mut all = shares(low);
    // A token visits distinct experts: none has more than one of its K.
    let cap = 1.0 / f64::from(top_k);
    for _ in 0..experts {
        let over: f64 = all.iter().map(|s| (s - cap).max(0.0)).sum();
        let room: f64 = all.iter().filter(|s| **s < cap).sum();
        if over <= 1e-12 || room <= 0.0 {
            break;
        }
        for s in &mut all {
            *s = if *s >= cap { cap } else { *s * (1.0 + over / room) };
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_planned_shares_and_are_distinct() {
        for share in [0.12, 0.4] {
            let s = Skew::new(share, 3, 8, 2, 7);
            let given = (0..3).map(|b| s.shares(b).to_vec()).collect();
            let again = Skew::of_shares(given, 2, 8);
            for (s, block) in [&s, &again].into_iter().flat_map(|s| (0..3).map(move |b| (s, b))) {
                let mut counts = [0.0; 8];
                for key in 0..40_000u64 {
                    let mut out = vec![];
                    s.draw(mix(key, 3), block, &mut out);
                    assert!(out.len() == 2 && out[0] != out[1]);
                    out.iter().for_each(|e| counts[*e as usize] += 1.0 / 80_000.0);
                }
                let hottest = s.shares(block).iter().copied().fold(0.0, f64::max);
                assert!((hottest - share.max(0.125)).abs() < 1e-6);
                for (a, b) in counts.iter().zip(s.shares(block)) {
                    assert!((a - b).abs() < 0.01, "{a} {b}");
                }
            }
        }
    }
}
