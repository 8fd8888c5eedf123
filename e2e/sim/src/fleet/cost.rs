//! The agent's cost files for modelled devices, and the same formula.

use serde::Deserialize;
use sluice_core::cost::{Costs, Curve};
use sluice_core::step::Step;

/// Mixtral 8x7B on an H100, as the agent bundles it.
const MIXTRAL: &str = include_str!("../../../../agent/costs/mixtral-8x7b-h100.toml");

/// A cost file. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
pub struct CostModel {
    /// The model.
    pub model: Model,
    /// The device.
    pub device: DeviceCosts,
}

/// The sizes that decide how long steps take.
#[derive(Clone, Debug, Deserialize)]
pub struct Model {
    /// Length of a hidden state.
    pub hidden: f64,
    /// Decoder layers.
    pub blocks: u16,
    heads: f64,
    kv_heads: f64,
    head_dim: f64,
    inner: f64,
    /// Experts per block.
    pub experts: u16,
    /// Experts per token.
    pub top_k: u8,
    weight_bytes: f64,
    /// Bytes of a value on the wire.
    pub activation_bytes: f64,
    kv_bytes: f64,
}

/// What a device does in a second, and what a launch costs.
#[derive(Clone, Debug, Deserialize)]
pub struct DeviceCosts {
    bandwidth: f64,
    flops: f64,
    launch: f64,
}

impl CostModel {
    /// The bundled file.
    ///
    /// # Errors
    /// It is not what this reads.
    pub fn mixtral() -> Result<Self, String> {
        Self::parse(MIXTRAL)
    }

    /// A file of this form.
    ///
    /// # Errors
    /// The text is another.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| format!("the cost file is not valid: {e}"))
    }

    /// One unit of `part` of an expert over `rows`, without the launch: the larger of its bytes' and its
    /// arithmetic's time.
    pub fn unit(&self, rows: f64, part: f64) -> f64 {
        let (m, d) = (&self.model, &self.device);
        let weights = 3.0 * m.hidden * m.inner * part;
        let bytes = weights * m.weight_bytes + rows * 2.0 * m.hidden * m.activation_bytes;
        (bytes / d.bandwidth).max(2.0 * weights * rows / d.flops)
    }

    /// Attention of one block over `rows` of `context` positions each: its weights, keys and values.
    pub fn attention(&self, rows: f64, context: f64) -> f64 {
        let (m, d) = (&self.model, &self.device);
        let kv = 2.0 * m.kv_heads * m.head_dim;
        let weights = m.hidden * (2.0 * m.heads * m.head_dim + kv + f64::from(m.experts));
        d.launch + (weights * m.weight_bytes + rows * context * kv * m.kv_bytes) / d.bandwidth
    }

    /// The time of a step. `segments`: of an expert; `context`: positions that each token attends to.
    pub fn step(&self, step: &Step, segments: u8, context: f64) -> f64 {
        match step {
            Step::Attention(a) => self.attention(a.rows.len() as f64, context),
            Step::Experts(e) => {
                let unit = |u: &sluice_core::step::UnitBatch| {
                    let part = f64::from(u.unit.slice.hi - u.unit.slice.lo) / f64::from(segments);
                    self.unit(u.items.len() as f64, part)
                };
                self.device.launch + e.units.iter().map(unit).sum::<f64>()
            }
            Step::Head(_) => 0.0,
        }
    }

    /// What a worker would have measured, with experts held in slices of `part`.
    pub fn curves(&self, part: f64, context: f64) -> Costs {
        let curve = |f: &dyn Fn(f64) -> f64| {
            Curve::new((0..=14).map(|p| f64::from(1u32 << p)).map(|n| (n, f(n) * 1e9)).collect())
        };
        Costs {
            attention: curve(&|n| self.attention(n, context)),
            unit: curve(&|n| self.unit(n, part)),
            launch: (self.device.launch * 1e9) as u64,
        }
    }

    /// Launch of a step, in seconds.
    pub fn launch(&self) -> f64 {
        self.device.launch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_file_has_the_known_floors() {
        let m = CostModel::mixtral().unwrap();
        assert!((m.unit(1.0, 1.0) * 1e6 - 117.4).abs() < 0.5, "352 MB at 3.0 TB/s");
        assert!((8.0 * m.unit(1.0, 0.125) - m.unit(1.0, 1.0)).abs() < 1e-6, "slices share the bytes");
        assert!(m.unit(512.0, 1.0) > 1.5 * m.unit(1.0, 1.0), "beyond the knee");
    }
}
