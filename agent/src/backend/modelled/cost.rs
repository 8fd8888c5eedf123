//! The cost model: a floor from bytes and arithmetic, plus what a launch costs. All times are in seconds.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_core::cost::{Costs, Curve};

use crate::model::spec::{
    Activation, AttentionSpec, BlockSpec, FeedForward, ModelSpec, MoeSpec, NetworkSpec, QkNorm, RopeSpec,
    RouterSpec, Score,
};

/// A model on a kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// What it is, for people.
    pub name: String,
    /// The model.
    pub model: ModelShape,
    /// The device.
    pub device: DeviceCosts,
    /// Positions that each segment attends to, whatever its own: long sequences without their prefill.
    #[serde(default)]
    pub context: Option<u32>,
    /// How steps vary.
    #[serde(default)]
    pub jitter: Jitter,
    /// What lies between the devices; without it frames arrive as fast as the host passes them on.
    #[serde(default)]
    pub link: Option<Link>,
    /// Every step takes this many times as long: so that the host keeps up with devices it could not follow.
    #[serde(default = "one")]
    pub slow_down: f64,
    /// Numbers in a row that travels. They mean nothing; without them frames carry no rows, whatever the link's time for
    /// them.
    #[serde(default)]
    pub row_values: usize,
}

/// What lies between two devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Seconds from one device to another.
    pub hop: f64,
    /// Bytes per second and device, in each direction.
    pub bandwidth: f64,
    /// Bytes of a row.
    pub row_bytes: f64,
}

impl Link {
    /// The same link, so many times slower.
    pub fn slowed(self, factor: f64) -> Self {
        Self { hop: self.hop * factor, bandwidth: self.bandwidth / factor, row_bytes: self.row_bytes }
    }
}

/// The sizes of a model that decide how long its steps take. All blocks are alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Length of a hidden state.
    pub hidden: usize,
    /// Decoder layers.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Length of one head.
    pub head_dim: usize,
    /// Inner size of an expert.
    pub inner: usize,
    /// Experts per block.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Token ids.
    pub vocab: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Bytes of a weight.
    pub weight_bytes: f64,
    /// Bytes of a value of a hidden state at an expert's boundary.
    pub activation_bytes: f64,
    /// Bytes of a value in the KV cache.
    pub kv_bytes: f64,
}

/// What a device does in a second, and what a launch costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCosts {
    /// Bytes read in a second.
    pub bandwidth: f64,
    /// Floating-point operations in a second.
    pub flops: f64,
    /// Seconds a launch costs beside its work.
    pub launch: f64,
    /// Whether attention's arithmetic counts (it matters to prefill) or its bytes alone.
    #[serde(default = "yes")]
    pub attention_arithmetic: bool,
    /// Whether a head step costs anything.
    #[serde(default = "yes")]
    pub head: bool,
}

/// A step takes `t · (1 + x)`, with `x` exponentially distributed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// The mean of `x`: 0.2 makes steps vary by 20%.
    pub mean: f64,
    /// Seeds the draws.
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// A cost file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CostModelError {
    /// Not TOML of this form.
    #[error("the cost file is not valid: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value that makes no sense.
    #[error("the cost file's {name} must be {range}")]
    Range {
        /// The key.
        name: &'static str,
        /// What is allowed.
        range: &'static str,
    },
}

/// One segment of an attention step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWork {
    /// Position of its first row.
    pub start: u32,
    /// Rows.
    pub len: u32,
}

impl CostModel {
    /// Reads a cost file.
    pub fn parse(text: &str) -> Result<Self, CostModelError> {
        let model: Self = toml::from_str(text)?;
        let m = &model.model;
        let counts =
            [m.hidden, m.blocks, m.heads, m.kv_heads, m.head_dim, m.inner, m.experts, m.top_k, m.vocab];
        let rates = [model.device.bandwidth, model.device.flops, model.slow_down];
        let range = |name, range| CostModelError::Range { name, range };
        if counts.contains(&0) || m.max_positions == 0 {
            return Err(range("model sizes", "at least 1"));
        }
        if m.top_k > m.experts || m.experts > usize::from(u16::MAX) || m.blocks > usize::from(u16::MAX) {
            return Err(range(
                "top_k, experts and blocks",
                "such that top_k <= experts <= 65535, blocks <= 65535",
            ));
        }
        if rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
            return Err(range("bandwidth, flops and slow_down", "over 0"));
        }
        let link = model.link.map_or([0.0; 2], |l| [l.hop, l.row_bytes]);
        if model.link.is_some_and(|l| l.bandwidth.is_nan() || l.bandwidth <= 0.0)
            || link.iter().any(|x| !x.is_finite() || *x < 0.0)
        {
            return Err(range("link", "such that bandwidth > 0, hop and row_bytes >= 0"));
        }
        let times = [model.device.launch, model.jitter.mean, m.weight_bytes, m.activation_bytes, m.kv_bytes];
        if times.iter().any(|time| !time.is_finite() || *time < 0.0) {
            return Err(range("launch, jitter.mean and bytes", "at least 0"));
        }
        Ok(model)
    }

    /// A launch of units over (rows, part of the expert's inner dimension) each: the launch, and for each unit the
    /// larger of the time of its bytes and of its arithmetic. Units without rows cost nothing.
    pub fn experts(&self, units: impl IntoIterator<Item = (u32, f64)>) -> f64 {
        let units = units.into_iter().filter(|unit| unit.0 > 0);
        (self.device.launch + units.map(|(rows, part)| self.unit(rows, part)).sum::<f64>()) * self.slow_down
    }

    /// One unit, without the launch and the slow-down.
    fn unit(&self, rows: u32, part: f64) -> f64 {
        let (m, d) = (&self.model, &self.device);
        let weights = 3.0 * (m.hidden * m.inner) as f64 * part;
        let rows = f64::from(rows);
        let bytes = weights * m.weight_bytes + rows * 2.0 * m.hidden as f64 * m.activation_bytes;
        (bytes / d.bandwidth).max(2.0 * weights * rows / d.flops)
    }

    /// Attention of one block: its weights, and the keys and values of each segment's context.
    pub fn attention(&self, segments: impl IntoIterator<Item = AttentionWork>) -> f64 {
        (self.device.launch + self.attention_work(segments)) * self.slow_down
    }

    fn attention_work(&self, segments: impl IntoIterator<Item = AttentionWork>) -> f64 {
        let (m, d) = (&self.model, &self.device);
        let width = m.heads * m.head_dim;
        let weights = (m.hidden * (2 * width + 2 * m.kv_heads * m.head_dim + m.experts)) as f64;
        let (mut bytes, mut flops) = (weights * m.weight_bytes, 0.0);
        for AttentionWork { start, len } in segments {
            let context = self.context.map_or(f64::from(start) + f64::from(len), f64::from);
            let (start, len) = (f64::from(start), f64::from(len));
            bytes += context * (2 * m.kv_heads * m.head_dim) as f64 * m.kv_bytes;
            let seen = self.context.map_or(len * start + len * (len + 1.0) / 2.0, |c| len * f64::from(c));
            flops += 2.0 * weights * len + 4.0 * width as f64 * seen;
        }
        let arithmetic = if d.attention_arithmetic { flops / d.flops } else { 0.0 };
        (bytes / d.bandwidth).max(arithmetic)
    }

    /// A span: attention and experts of each block in one launch. `experts` gives, for each block of the span, the
    /// rows of each expert.
    pub fn span<'a>(&self, segments: &[AttentionWork], experts: impl IntoIterator<Item = &'a [u32]>) -> f64 {
        let work = experts.into_iter().map(|experts| {
            let units = experts.iter().filter(|&&rows| rows > 0).map(|&rows| self.unit(rows, 1.0));
            self.attention_work(segments.iter().copied()) + units.sum::<f64>()
        });
        (self.device.launch + work.sum::<f64>()) * self.slow_down
    }

    /// The head over some rows.
    pub fn head(&self, rows: u32) -> f64 {
        if !self.device.head {
            return 0.0;
        }
        let (m, d) = (&self.model, &self.device);
        let weights = (m.hidden * m.vocab) as f64;
        let time = (weights * m.weight_bytes / d.bandwidth).max(2.0 * weights * f64::from(rows) / d.flops);
        (d.launch + time) * self.slow_down
    }

    /// The curves a worker decides by, as they would be measured with units of `part` of an expert.
    pub fn curves(&self, part: f64) -> Costs {
        let rows = || (0..=14).map(|power| 1u32 << power);
        let nanos = |seconds: f64| seconds * 1e9;
        let attention =
            |n| self.attention(std::iter::repeat_n(AttentionWork { start: 0, len: 1 }, n as usize));
        Costs {
            attention: Curve::new(rows().map(|n| (f64::from(n), nanos(attention(n)))).collect()),
            unit: Curve::new(
                rows().map(|n| (f64::from(n), nanos(self.unit(n, part) * self.slow_down))).collect(),
            ),
            launch: nanos(self.device.launch * self.slow_down) as u64,
        }
    }

    /// The model as the rest of the agent knows models. Its numbers are never used.
    pub fn spec(&self) -> ModelSpec {
        let m = &self.model;
        let network = NetworkSpec { inner: m.inner, activation: Activation::Silu };
        let rope = Arc::new(RopeSpec { inv_freq: vec![1.0; (m.head_dim / 2).max(1)], attention_factor: 1.0 });
        let block = BlockSpec {
            norm_eps: 1e-5,
            attention: AttentionSpec {
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                scale: 1.0,
                qkv_bias: false,
                o_bias: false,
                qk_norm: QkNorm::None,
                clip_qkv: None,
                rope,
                sliding_window: None,
            },
            feed_forward: FeedForward::Moe(MoeSpec {
                experts: m.experts,
                top_k: m.top_k,
                expert: network,
                router: RouterSpec {
                    score: Score::Softmax,
                    renormalise: true,
                    scale: 1.0,
                    selection_bias: false,
                },
                shared: None,
            }),
        };
        ModelSpec {
            hidden: m.hidden,
            vocab: m.vocab,
            blocks: vec![block; m.blocks],
            tied_head: false,
            final_norm_eps: 1e-5,
            max_positions: m.max_positions,
        }
    }

    /// The part of an expert's inner dimension that segments `range` of `of` hold.
    pub fn part(&self, range: Range<u8>, of: u8) -> f64 {
        f64::from(range.end - range.start) / f64::from(of.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixtral() -> CostModel {
        CostModel::parse(include_str!("../../../costs/mixtral-8x7b-h100.toml")).unwrap()
    }

    /// The floors of the experts of one Mixtral block on an H100, in microseconds.
    #[test]
    fn the_bundled_file_has_the_known_floors() {
        let model = mixtral();
        let floor = |units: Vec<(u32, f64)>| (model.experts(units) - model.device.launch) * 1e6;
        assert!((floor(vec![(1, 1.0)]) - 117.4).abs() < 0.5, "one expert: 352 MB at 3.0 TB/s");
        assert!((floor(vec![(1, 1.0); 2]) - 235.0).abs() < 1.0);
        assert!((floor(vec![(64, 1.0); 8]) - 940.0).abs() < 5.0);
        assert!((floor(vec![(1, 0.125); 8]) - floor(vec![(1, 1.0)])).abs() < 0.1, "slices share the bytes");
        assert_eq!(floor(vec![(0, 1.0)]), 0.0);
        let knee = (1..4096).find(|&n| floor(vec![(n, 1.0)]) > floor(vec![(1, 1.0)]) * 1.05).unwrap();
        assert!((250..400).contains(&knee), "{knee}");
        let attention = model.attention(std::iter::repeat_n(AttentionWork { start: 999, len: 1 }, 64));
        let bytes = 4096.0 * (2.0 * 4096.0 + 2.0 * 1024.0 + 8.0) * 2.0 + 64.0 * 1000.0 * 2048.0 * 2.0;
        assert!((attention - model.device.launch - bytes / 3.0e12).abs() < 1e-9);
    }

    #[test]
    fn a_span_is_its_blocks_in_one_launch() {
        let model = mixtral();
        let work = AttentionWork { start: 10, len: 1 };
        let span = model.span(&[work], [&[1, 1, 0][..], &[0, 0, 2][..]]);
        let apart =
            2.0 * model.attention([work]) + model.experts([(1, 1.0), (1, 1.0)]) + model.experts([(2, 1.0)]);
        assert!((apart - span - 3.0 * model.device.launch).abs() < 1e-9);
    }

    #[test]
    fn a_fixed_context_stands_for_every_length() {
        let model = mixtral();
        let fixed = CostModel { context: Some(1000), ..mixtral() };
        let at = |start| AttentionWork { start, len: 1 };
        assert_eq!(fixed.attention([at(0), at(7)]), model.attention([at(999), at(999)]));
    }

    #[test]
    fn curves_are_of_the_units_held() {
        let model = CostModel { slow_down: 3.0, ..mixtral() };
        let (whole, quarter) = (model.curves(1.0), model.curves(0.25));
        assert!((whole.unit.at(1.0) * 1e-9 - 3.0 * model.unit(1, 1.0)).abs() < 1e-9);
        assert!((quarter.unit.at(1.0) * 1e-9 - 3.0 * model.unit(1, 0.25)).abs() < 1e-9);
    }

    #[test]
    fn files_that_make_no_sense_are_refused_by_key() {
        let text = include_str!("../../../costs/mixtral-8x7b-h100.toml");
        let error = |from: &str, to: &str| CostModel::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error("top_k = 2", "top_k = 9").contains("top_k"));
        assert!(error("bandwidth = 3.0e12", "bandwidth = 0.0").contains("bandwidth"));
        assert!(error("hidden = 4096", "hiden = 4096").contains("hiden"));
        assert!(error("bandwidth = 50.0e9", "bandwidth = 0.0").contains("link"));
    }
}
