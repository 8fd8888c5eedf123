//! The scheduler table: real cores on modelled devices, every scheduler on the same placements.

use crate::fleet::cost::CostModel;
use crate::fleet::{Fleet, Measured, Setting, ideal};
use sluice_core::config::Policy;
use sluice_core::ids::MICRO;

/// What the table runs over.
#[derive(Clone, Debug)]
pub struct Table {
    /// Blocks of the model.
    pub blocks: u16,
    /// Tokens in flight.
    pub tokens: Vec<u32>,
    /// The hottest expert's share.
    pub shares: Vec<f64>,
    /// Steps vary by this part.
    pub jitters: Vec<f64>,
    /// (slices, replicas).
    pub placements: Vec<(u8, u32)>,
    /// Schedulers; `sync` is the yardstick and always runs.
    pub policies: Vec<Policy>,
    /// Attention ranks of the 8 devices; 0 is hybrid.
    pub ranks: u32,
    /// Decode waves.
    pub waves: u8,
    /// Positions that each token attends to.
    pub context: f64,
    /// Latency of a hop, in microseconds.
    pub hop: u64,
    /// Bytes per nanosecond of a link; 0 is unlimited.
    pub bandwidth: f64,
    /// The draws.
    pub seed: u64,
}

impl Table {
    /// One cell.
    pub fn setting(
        &self,
        tokens: u32,
        share: f64,
        jitter: f64,
        placement: (u8, u32),
        policy: Policy,
    ) -> Result<Setting, String> {
        Ok(Setting {
            costs: CostModel::mixtral()?,
            blocks: self.blocks,
            devices: 8,
            ranks: self.ranks,
            tokens,
            context: self.context,
            share,
            shares: None,
            jitter,
            slices: placement.0,
            replicas: placement.1,
            waves: if policy == Policy::Sync { 1 } else { self.waves },
            policy,
            hop: self.hop * MICRO,
            bandwidth: self.bandwidth,
            seed: self.seed,
        })
    }

    /// Passes to warm up and to measure: few where many tokens make each of them a good sample.
    pub fn passes(tokens: u32) -> (u64, u64) {
        let passes = (16_384 / u64::from(tokens)).clamp(6, 40);
        (passes / 2, passes)
    }

    /// Runs one cell.
    pub fn measure(setting: &Setting) -> Result<Measured, String> {
        let (warm, passes) = Self::passes(setting.tokens);
        Fleet::run(setting, warm, passes, false)
    }

    /// Prints it, a line per cell.
    ///
    /// # Errors
    /// A cell that could not run.
    pub fn print(&self) -> Result<(), String> {
        let layout = match self.ranks {
            0 => "hybrid".into(),
            ranks => format!("{ranks} ranks + {} hosts", 8 - ranks),
        };
        crate::say!(
            "Mixtral 8x7B, {0} of 32 blocks (tokens/s and ITL are of {0} blocks), 8 devices ({layout}), hop {1} us, {2} GB/s, context {3}, {4} waves (`sync` 1)\n",
            self.blocks,
            self.hop,
            self.bandwidth,
            self.context,
            self.waves,
        );
        crate::say!(
            "| hottest | n | steps | slices | replicas | scheduler | tokens/s | of sync | of ideal barrier | rows per unit | rows per step | ITL p50 ms | p99 ms | busiest, mean |"
        );
        crate::say!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        for &share in &self.shares {
            for &tokens in &self.tokens {
                for &jitter in &self.jitters {
                    for &placement in &self.placements {
                        self.print_cell(tokens, share, jitter, placement)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn print_cell(&self, tokens: u32, share: f64, jitter: f64, placement: (u8, u32)) -> Result<(), String> {
        let of = |policy| self.setting(tokens, share, jitter, placement, policy);
        let sync = Self::measure(&of(Policy::Sync)?)?;
        let best = ideal::throughput(&of(Policy::Sync)?, (20_000 / tokens).clamp(3, 12))?;
        let mut policies = self.policies.clone();
        policies.retain(|p| *p != Policy::Sync);
        policies.push(Policy::Sync);
        for policy in policies {
            let m = if policy == Policy::Sync { sync } else { Self::measure(&of(policy)?)? };
            crate::say!(
                "| {share:.2} | {tokens} | {} | {} | {} | {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2}, {:.2} |",
                if jitter > 0.0 { format!("vary {:.0}%", jitter * 100.0) } else { "exact".into() },
                placement.0,
                placement.1,
                policy.name(),
                m.throughput,
                m.throughput / sync.throughput,
                m.throughput / best,
                m.rows_per_unit,
                m.rows_per_step,
                m.itl_p50 * 1e3,
                m.itl_p99 * 1e3,
                m.busy.0,
                m.busy.1,
            );
        }
        Ok(())
    }
}

/// "4x2": 4 slices, 2 replicas.
///
/// # Errors
/// The text is another.
pub fn placement(text: &str) -> Result<(u8, u32), String> {
    let parts = text.split_once('x').and_then(|(s, r)| Some((s.parse().ok()?, r.parse().ok()?)));
    parts.ok_or_else(|| format!("{text:?} is not SLICESxREPLICAS, as in 4x2"))
}
