//! The shape of the experts of a block, or of a slice of them.

use std::ops::Range;

use crate::Error;
use crate::cpu::segments;

/// Columns of a block of weights: what slices and segments are cut by.
const BLOCK_COLUMNS: usize = 32;
/// The most segments.
pub(crate) const MAX_SEGMENTS: usize = 8;

/// Hidden size d, and the inner columns held, in segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    hidden: usize,
    /// Of the whole expert.
    whole_inner: usize,
    inner: Range<usize>,
    /// Ends of the held segments, within the held columns.
    ends: Vec<usize>,
}

impl ExpertShape {
    /// Experts of inner size `inner`, cut into `g` segments, of which `held` are here: a subtree.
    pub fn new(hidden: usize, inner: usize, g: usize, held: Range<usize>) -> Result<Self, Error> {
        let unsupported = |what| Err(Error::Unsupported { what });
        if !(g.is_power_of_two() && g <= MAX_SEGMENTS) {
            return unsupported(format!("{g} segments: use 1, 2, 4 or 8"));
        }
        if !held.len().is_power_of_two() || !held.start.is_multiple_of(held.len()) || held.end > g {
            return unsupported(format!(
                "segments {held:?} of {g} are no subtree: use a power of two that starts at a multiple of itself"
            ));
        }
        if hidden == 0 || !hidden.is_multiple_of(BLOCK_COLUMNS) || hidden > 1 << 20 {
            return unsupported(format!("hidden size {hidden}: use a multiple of {BLOCK_COLUMNS}"));
        }
        let cut = segments(inner, g);
        if inner > 1 << 20 || cut.iter().any(|s| s.is_empty() || !s.end.is_multiple_of(BLOCK_COLUMNS)) {
            return unsupported(format!(
                "inner size {inner} in {g} segments: each must be of whole blocks of {BLOCK_COLUMNS} columns"
            ));
        }
        let start = cut[held.start].start;
        let ends: Vec<usize> = cut[held].iter().map(|s| s.end - start).collect();
        let len = ends.last().copied().unwrap_or(0);
        Ok(Self { hidden, whole_inner: inner, inner: start..start + len, ends })
    }

    /// A whole expert in one segment.
    pub fn whole(hidden: usize, inner: usize) -> Result<Self, Error> {
        Self::new(hidden, inner, 1, 0..1)
    }

    /// Hidden size, d.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Inner size of the whole expert.
    pub fn whole_inner(&self) -> usize {
        self.whole_inner
    }

    /// The inner columns held.
    pub fn inner(&self) -> Range<usize> {
        self.inner.clone()
    }

    /// Whether all of the expert is held: its output is then rounded to bf16, else it is an f32 subtree.
    pub fn is_whole(&self) -> bool {
        self.inner.len() == self.whole_inner
    }

    /// Ends of the held segments, in blocks of 32 columns.
    pub(crate) fn segment_ends(&self) -> impl ExactSizeIterator<Item = usize> {
        self.ends.iter().map(|end| end / BLOCK_COLUMNS)
    }

    /// Values of a slot: gate, up and down of the held columns.
    pub fn slot_values(&self) -> usize {
        3 * self.hidden * self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_qwen3_are_cut_at_multiples_of_96() {
        let slice = ExpertShape::new(2048, 768, 8, 2..4).unwrap();
        assert_eq!(slice.inner(), 192..384);
        assert_eq!(slice.segment_ends().collect::<Vec<_>>(), [3, 6]);
        assert_eq!(slice.slot_values(), 3 * 2048 * 192);
        assert!(!slice.is_whole());
        assert!(ExpertShape::new(2048, 768, 8, 0..8).unwrap().is_whole());
    }

    #[test]
    fn what_no_kernel_computes_is_refused_with_the_reason() {
        let refused = |d, f, g, held| ExpertShape::new(d, f, g, held).unwrap_err().to_string();
        assert!(refused(2040, 768, 1, 0..1).contains("hidden size 2040"));
        assert!(refused(2048, 760, 1, 0..1).contains("inner size 760"));
        assert!(refused(2048, 128, 8, 0..8).contains("inner size 128 in 8 segments"));
        assert!(refused(2048, 768, 3, 0..3).contains("3 segments"));
        assert!(refused(2048, 768, 8, 1..3).contains("no subtree"));
        assert!(refused(2048, 768, 2, 2..3).contains("no subtree"));
    }
}
