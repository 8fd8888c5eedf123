//! The router's choices replaced by a skewed draw, for experiments.
//!
//! A draw is keyed by (routing seed, the sequence's sampling seed and choice, position, block): the same for every
//! schedule and after a replay. Sequences with equal prefixes but other seeds have other keys and values then, so
//! pages must not be shared between them.

use std::fmt;
use std::str::FromStr;

use crate::sampling::random::{Stream, unit, words};

/// Where the experts of a token come from.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Routing {
    /// The model's router.
    #[default]
    Model,
    /// Shares fall geometrically from the hottest expert's share of all assignments.
    Skew {
        /// The hottest expert's share; at most even shares give even shares.
        share: f64,
        /// Seeds the draws and which expert is the hottest in each block.
        seed: u64,
    },
    /// Zipf shares such that the busiest device's load is this multiple of the mean, experts dealt out in blocks of
    /// consecutive ids, averaged over the blocks.
    Busiest {
        /// Load of the busiest device over the mean, at least 1.
        ratio: f64,
        /// Seeds the draws and the order of popularity in each block.
        seed: u64,
    },
}

/// A routing that cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RoutingError {
    /// A token visits distinct experts, so none can have more than one of its assignments.
    #[error("a hottest share of {share} is more than 1/{top_k}: a token visits {top_k} distinct experts")]
    Share {
        /// What was asked for.
        share: f64,
        /// Experts per token.
        top_k: usize,
    },
    /// No popularity gives that load.
    #[error(
        "no popularity of {experts} experts loads the busiest of {devices} devices {ratio} times the mean"
    )]
    Ratio {
        /// What was asked for.
        ratio: f64,
        /// Experts per block.
        experts: usize,
        /// Devices.
        devices: usize,
    },
}

impl FromStr for Routing {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "model" {
            return Ok(Self::Model);
        }
        let (kind, rest) = s
            .split_once(':')
            .ok_or_else(|| format!("{s:?} is not a routing: model, skew:SHARE,SEED or busiest:RATIO,SEED"))?;
        let (number, seed) = rest
            .split_once(',')
            .ok_or_else(|| format!("{s:?} has no seed; write {kind}:NUMBER,SEED, as in {kind}:{rest},1"))?;
        let number: f64 = number.trim().parse().map_err(|_| format!("{number:?} is not a number"))?;
        let seed = seed.trim().parse().map_err(|_| format!("the seed {seed:?} is not a whole number"))?;
        match kind {
            "skew" if number > 0.0 && number <= 1.0 => Ok(Self::Skew { share: number, seed }),
            "skew" => Err(format!("the hottest expert's share {number} is not over 0 and at most 1")),
            "busiest" if number >= 1.0 && number.is_finite() => Ok(Self::Busiest { ratio: number, seed }),
            "busiest" => Err(format!("the busiest device's load over the mean, {number}, is not at least 1")),
            _ => Err(format!("unknown routing {kind:?}: model, skew:SHARE,SEED or busiest:RATIO,SEED")),
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model => f.write_str("model"),
            Self::Skew { share, seed } => write!(f, "skew:{share},{seed}"),
            Self::Busiest { ratio, seed } => write!(f, "busiest:{ratio},{seed}"),
        }
    }
}

/// What makes one token's draw its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// The sequence's sampling seed.
    pub seed: u64,
    /// The sequence's choice.
    pub choice: u16,
    /// The token's position.
    pub position: u32,
    /// The block.
    pub block: u16,
}

/// Orders per block between which a draw chooses, so that no two experts are always chosen together.
const ORDERS: usize = 64;

/// A routing ready to draw: K distinct experts with exactly the planned shares.
///
/// It draws by systematic sampling: the experts' probabilities of being chosen (which sum to K, none above 1) are laid
/// end to end in one of 64 random orders, and the experts under u, u + 1, ... u + K - 1 are taken, u uniform.
#[derive(Clone, Debug)]
pub struct SkewedRouting {
    seed: u64,
    top_k: usize,
    shares: Vec<Vec<f64>>,
    orders: Vec<[Order; ORDERS]>,
}

#[derive(Clone, Debug)]
struct Order {
    experts: Vec<u16>,
    /// The running sum of the experts' probabilities.
    ends: Vec<f64>,
}

impl SkewedRouting {
    /// `None` for [`Routing::Model`]. `devices` matters for [`Routing::Busiest`] alone.
    pub fn new(
        routing: Routing,
        blocks: usize,
        experts: usize,
        top_k: usize,
        devices: usize,
    ) -> Result<Option<Self>, RoutingError> {
        let (seed, base) = match routing {
            Routing::Model => return Ok(None),
            Routing::Skew { share, seed } => (seed, geometric(share, experts, top_k)?),
            Routing::Busiest { ratio, seed } => (seed, zipf(ratio, seed, blocks, experts, top_k, devices)?),
        };
        let shares = (0..blocks).map(|block| permuted(&base, seed, block)).collect();
        Ok(Some(Self::of_shares(shares, top_k, seed)))
    }

    /// Draws with the given shares of the experts of each block, which sum to 1 and of which none is over 1/K.
    pub fn of_shares(shares: Vec<Vec<f64>>, top_k: usize, seed: u64) -> Self {
        let orders =
            shares.iter().enumerate().map(|(block, shares)| orders(shares, top_k, seed, block)).collect();
        Self { seed, top_k, shares, orders }
    }

    /// The planned share of each expert of a block in all assignments.
    pub fn shares(&self, block: u16) -> &[f64] {
        &self.shares[usize::from(block)]
    }

    /// The experts of one token, K of them, appended to `experts`.
    pub fn draw(&self, key: DrawKey, experts: &mut Vec<u16>) {
        let block = usize::from(key.block);
        let seed =
            self.seed ^ key.seed.rotate_left(17) ^ u64::from(key.choice).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let [pick, a, b, _] = words(seed, Stream::Routing, key.position, u32::from(key.block));
        let order = &self.orders[block][pick as usize % ORDERS];
        let start = unit(a, b);
        let mut at = 0;
        for k in 0..self.top_k {
            let point = start + k as f64;
            while at + 1 < order.ends.len() && order.ends[at] <= point {
                at += 1;
            }
            experts.push(order.experts[at]);
            // No interval is longer than 1 but for rounding, so the next point lies beyond it.
            at = (at + 1).min(order.ends.len() - 1);
        }
    }
}

fn orders(shares: &[f64], top_k: usize, seed: u64, block: usize) -> [Order; ORDERS] {
    std::array::from_fn(|order| {
        let experts = shuffled(shares.len(), seed, (block * ORDERS + order + 1) as u32);
        let mut sum = 0.0;
        let ends = experts.iter().map(|&expert| {
            sum += shares[usize::from(expert)] * top_k as f64;
            sum
        });
        let mut ends: Vec<f64> = ends.collect();
        // The sum is K up to rounding; the last expert covers what is missing.
        if let Some(last) = ends.last_mut() {
            *last = last.max(top_k as f64);
        }
        Order { experts, ends }
    })
}

fn permuted(base: &[f64], seed: u64, block: usize) -> Vec<f64> {
    shuffled(base.len(), !seed, block as u32).into_iter().map(|rank| base[usize::from(rank)]).collect()
}

/// `0..len` in an order drawn by (seed, number).
fn shuffled(len: usize, seed: u64, number: u32) -> Vec<u16> {
    let mut order: Vec<u16> = (0..len as u16).collect();
    for i in (1..len).rev() {
        let [a, b, ..] = words(seed, Stream::Popularity, number, i as u32);
        order.swap(i, (unit(a, b) * (i + 1) as f64) as usize);
    }
    order
}

/// Shares `∝ exp(-a·i)` whose first is `share`.
fn geometric(share: f64, experts: usize, top_k: usize) -> Result<Vec<f64>, RoutingError> {
    if share * top_k as f64 > 1.0 + 1e-9 {
        return Err(RoutingError::Share { share, top_k });
    }
    let shares = |a: f64| normalised((0..experts).map(|i| (-a * i as f64).exp()).collect());
    let a = bisect(0.0, 64.0, |a| shares(a)[0] > share);
    Ok(capped(shares(a), top_k))
}

/// Zipf shares under which the busiest device has `ratio` times the mean load.
fn zipf(
    ratio: f64,
    seed: u64,
    blocks: usize,
    experts: usize,
    top_k: usize,
    devices: usize,
) -> Result<Vec<f64>, RoutingError> {
    let devices = devices.clamp(1, experts.max(1));
    let shares =
        |s: f64| capped(normalised((0..experts).map(|i| (i as f64 + 1.0).powf(-s)).collect()), top_k);
    let busiest = |s: f64| {
        let base = shares(s);
        let of_block = |block| {
            let shares = permuted(&base, seed, block);
            let load =
                |d: usize| shares[d * experts / devices..(d + 1) * experts / devices].iter().sum::<f64>();
            (0..devices).map(load).fold(0.0, f64::max) * devices as f64
        };
        (0..blocks).map(of_block).sum::<f64>() / blocks.max(1) as f64
    };
    let s = bisect(0.0, 32.0, |s| busiest(s) > ratio);
    if busiest(s) < ratio * 0.99 {
        return Err(RoutingError::Ratio { ratio, experts, devices });
    }
    Ok(shares(s))
}

/// The largest argument (to about 1e-12) at which a rising predicate is still false.
fn bisect(mut low: f64, mut high: f64, above: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if above(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    low
}

fn normalised(mut shares: Vec<f64>) -> Vec<f64> {
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

/// No share above 1/K: what is over goes to the others in proportion.
fn capped(mut shares: Vec<f64>, top_k: usize) -> Vec<f64> {
    let cap = 1.0 / top_k as f64;
    for _ in 0..shares.len() {
        let over: f64 = shares.iter().map(|share| (share - cap).max(0.0)).sum();
        let room: f64 = shares.iter().filter(|&&share| share < cap).sum();
        if over <= 1e-12 || room <= 0.0 {
            break;
        }
        for share in &mut shares {
            *share = if *share >= cap { cap } else { *share * (1.0 + over / room) };
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(routing: &SkewedRouting, block: u16, experts: usize) -> Vec<f64> {
        let (mut counts, mut drawn) = (vec![0u32; experts], Vec::new());
        let n = 40_000;
        for position in 0..n {
            drawn.clear();
            routing.draw(DrawKey { seed: u64::from(position % 64), choice: 0, position, block }, &mut drawn);
            assert_eq!(drawn.len(), routing.top_k);
            drawn.iter().for_each(|&expert| counts[usize::from(expert)] += 1);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), routing.top_k, "experts of a token are distinct");
        }
        counts.iter().map(|&c| f64::from(c) / f64::from(n) / routing.top_k as f64).collect()
    }

    #[test]
    fn draws_have_the_planned_shares() {
        for (share, experts, top_k) in [(0.12, 8, 2), (0.4, 8, 2), (0.5, 8, 2), (0.4, 8, 1), (0.05, 128, 8)] {
            let routing = Routing::Skew { share, seed: 5 };
            let routing = SkewedRouting::new(routing, 4, experts, top_k, 1).unwrap().unwrap();
            for block in 0..4 {
                let planned = routing.shares(block);
                let hottest = planned.iter().copied().fold(0.0, f64::max);
                assert!((hottest - share.max(1.0 / experts as f64)).abs() < 1e-6, "{hottest} for {share}");
                for (a, b) in measured(&routing, block, experts).iter().zip(planned) {
                    assert!((a - b).abs() < 0.01, "{a} planned {b}");
                }
            }
            let hottest = |b| routing.shares(b).iter().position(|&s| s > share - 1e-6);
            assert!(
                share < 0.2 || (1..4).any(|b| hottest(b) != hottest(0)),
                "every block has its own hottest"
            );
        }
    }

    #[test]
    fn the_busiest_device_has_its_ratio() {
        let (blocks, experts, top_k, devices) = (48, 128, 8, 8);
        let routing = Routing::Busiest { ratio: 2.0, seed: 1 };
        let routing = SkewedRouting::new(routing, blocks, experts, top_k, devices).unwrap().unwrap();
        let mut sum = 0.0;
        for block in 0..blocks as u16 {
            let load = |d: usize| routing.shares(block)[d * 16..(d + 1) * 16].iter().sum::<f64>() * 8.0;
            sum += (0..8).map(load).fold(0.0, f64::max);
        }
        assert!((sum / blocks as f64 - 2.0).abs() < 0.01);
    }

    #[test]
    fn impossible_routings_say_why() {
        let error = |r| SkewedRouting::new(r, 2, 8, 2, 8).unwrap_err().to_string();
        assert!(error(Routing::Skew { share: 0.6, seed: 0 }).contains("more than 1/2"));
        assert!(error(Routing::Busiest { ratio: 5.0, seed: 0 }).contains("5 times the mean"));
        for bad in ["skew", "skew:0.4", "skew:x,1", "skew:-1,1", "busiest:0.5,1", "skew:NaN,1", "other:1,1"] {
            assert!(bad.parse::<Routing>().is_err(), "{bad}");
        }
        let parsed: Routing = "skew:0.4,7".parse().unwrap();
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
}
