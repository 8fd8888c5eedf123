//! How a worker's slab of hidden rows is divided. Every row holds `hidden` values of the boundary dtype.
//!
//! | region | rows | holds |
//! | --- | --- | --- |
//! | residual | tokens | the residual stream of a token at home |
//! | input | tokens | its normalised input to the experts, kept until its outputs are merged |
//! | returns | groups x top_k x parts | where expert outputs land: one row per (k, slice) |
//! | landing | landing | inputs put here by other ranks, in one ring per sender |
//! | outputs | 2 x outputs | expert outputs on their way to another worker, two banks |

use crate::ids::{Row, Slice};

/// The regions of one worker's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SlabLayout {
    /// Tokens at home at one time.
    pub tokens: u32,
    /// Return groups: at least `tokens`. More are of no use, since a token keeps its group as long as its own rows.
    pub groups: u32,
    /// K of the router.
    pub top_k: u32,
    /// The most slices an expert may be held in.
    pub parts: u32,
    /// Landing rows over all senders.
    pub landing: u32,
    /// Output rows per bank.
    pub outputs: u32,
}

impl SlabLayout {
    /// All rows of a slab that [`WorkerConfig::check`](crate::config::WorkerConfig::check) has let pass.
    pub fn rows(&self) -> u32 {
        self.total() as u32
    }

    /// All rows of a slab that may be too large.
    pub fn total(&self) -> u64 {
        let [tokens, groups, top_k, parts, landing, outputs] =
            [self.tokens, self.groups, self.top_k, self.parts, self.landing, self.outputs].map(u64::from);
        let returns = groups.saturating_mul(top_k).saturating_mul(parts);
        returns.saturating_add(2 * tokens + landing + 2 * outputs)
    }

    /// The residual row of a token.
    pub const fn residual(&self, token: u32) -> Row {
        token
    }

    /// The input row of a token.
    pub const fn input(&self, token: u32) -> Row {
        self.tokens + token
    }

    /// The return row of one slice of choice `k` in a return group, in a deployment of `segments`.
    pub const fn returned(&self, group: u32, k: u8, slice: Slice, segments: u8) -> Row {
        // Most experts are whole: no division for them.
        let part = if slice.lo == 0 { 0 } else { slice.lo as u32 * self.parts / segments as u32 };
        2 * self.tokens + (group * self.top_k + k as u32) * self.parts + part
    }

    /// A landing row.
    pub const fn landing(&self, index: u32) -> Row {
        2 * self.tokens + self.groups * self.top_k * self.parts + index
    }

    const fn output_base(&self) -> Row {
        self.landing(self.landing)
    }

    /// An output row of a bank (0 or 1).
    pub const fn output(&self, bank: u32, index: u32) -> Row {
        self.output_base() + bank * self.outputs + index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_slab_has_one_use() {
        let s = SlabLayout { tokens: 3, groups: 5, top_k: 2, parts: 4, landing: 7, outputs: 6 };
        // Slices of an eighth of an expert would not fit: a quarter is the least.
        let slice = |part| Slice { lo: 2 * part, hi: 2 * part + 2 };
        let mut rows: Vec<Row> = (0..3).flat_map(|t| [s.residual(t), s.input(t)]).collect();
        for (group, k, part) in (0..5 * 2 * 4).map(|i| (i / 8, i / 4 % 2, i % 4)) {
            rows.push(s.returned(group, k as u8, slice(part as u8), 8));
        }
        rows.extend((0..7).map(|i| s.landing(i)));
        rows.extend((0..12).map(|i| s.output(i / 6, i % 6)));
        rows.sort_unstable();
        assert_eq!(rows, (0..s.rows()).collect::<Vec<_>>());
        assert_eq!(s.returned(1, 1, Slice { lo: 4, hi: 8 }, 8), s.returned(1, 1, slice(2), 8), "a half");
        let huge = SlabLayout { groups: u32::MAX, top_k: u32::MAX, parts: u32::MAX, ..s };
        assert_eq!(huge.total(), u64::MAX);
    }
}
