//! Adding expert outputs to the residual stream: `h += Σ_k w_k · y_k` in the router's order, each `y_k` the fixed
//! binary tree over the slices it came in.

use sluice_core::ids::Slice;
use sluice_core::step::Entry;
use sluice_kernels::Error as KernelError;
use sluice_kernels::cpu::{Cpu, Merge, Rows, Slab, SliceIo};

use super::rows::Scratch;
use super::{CpuBackend, StepError};

/// Tokens to merge. Reused from step to step.
#[derive(Debug, Default)]
pub struct MergePlan {
    top_k: usize,
    /// Residual rows.
    rows: Vec<u32>,
    /// K weights per row.
    weights: Vec<f32>,
    /// K numbers of slices per row.
    slices: Vec<u8>,
    /// The rows of the slices, in order.
    parts: Vec<u32>,
}

impl MergePlan {
    /// Starts a plan for K choices per token.
    pub fn clear(&mut self, top_k: usize) {
        self.top_k = top_k;
        self.rows.clear();
        self.weights.clear();
        self.slices.clear();
        self.parts.clear();
    }

    /// One token; its choices follow.
    pub fn token(&mut self, row: u32, weights: &[f32]) {
        self.rows.push(row);
        self.weights.extend_from_slice(weights);
    }

    /// The next choice of the last token: the rows of its slices in order.
    pub fn choice(&mut self, parts: impl ExactSizeIterator<Item = u32>) {
        self.slices.push(parts.len() as u8);
        self.parts.extend(parts);
    }

    /// Merges. Where choices of a token came in different numbers of slices, these are added up first, which is the
    /// same tree.
    pub fn run(
        &self,
        cpu: &mut Cpu,
        outputs: &Slab,
        residual: &mut Slab,
        combined: &mut Scratch,
    ) -> Result<(), KernelError> {
        let Some(&first) = self.slices.first() else { return Ok(()) };
        if self.slices.iter().all(|&slices| slices == first) {
            return self.merge(cpu, outputs, residual, usize::from(first), &self.parts);
        }
        let combined = combined.get(self.slices.len(), outputs.cols());
        for slices in [1u8, 2, 4, 8] {
            let (mut parts, mut rows, mut at) = (Vec::new(), Vec::new(), 0);
            for (choice, &n) in self.slices.iter().enumerate() {
                if n == slices {
                    rows.push(choice as u32);
                    parts.extend_from_slice(&self.parts[at..at + usize::from(n)]);
                }
                at += usize::from(n);
            }
            if !rows.is_empty() {
                let io = SliceIo {
                    src: outputs,
                    parts: Rows::List(&parts),
                    dst: combined,
                    rows: Rows::List(&rows),
                };
                cpu.combine_slices(usize::from(slices), io)?;
            }
        }
        let choices: Vec<u32> = (0..self.slices.len() as u32).collect();
        self.merge(cpu, combined, residual, 1, &choices)
    }

    fn merge(
        &self,
        cpu: &mut Cpu,
        outputs: &Slab,
        residual: &mut Slab,
        slices: usize,
        parts: &[u32],
    ) -> Result<(), KernelError> {
        let tokens: Vec<Merge<'_>> = self
            .rows
            .iter()
            .zip(self.weights.chunks_exact(self.top_k))
            .zip(parts.chunks_exact(self.top_k * slices))
            .map(|((&row, weights), parts)| Merge { row, weights, parts })
            .collect();
        cpu.merge_topk(outputs, residual, slices, &tokens)
    }
}

impl CpuBackend {
    /// Merges the return groups of the tokens that enter so. `slicing` holds K values per merging token.
    pub(super) fn merge_returns(
        &mut self,
        entries: impl Iterator<Item = (u32, Entry)>,
        slicing: &[u8],
    ) -> Result<(), StepError> {
        let top_k = self.layout.top_k as usize;
        self.merge.clear(top_k);
        let mut slicing = slicing.chunks_exact(top_k.max(1));
        for (token, entry) in entries {
            let Entry::Merge(group) = entry else { continue };
            if group >= self.layout.groups {
                let (index, len) = (group as usize, self.layout.groups as usize);
                return Err(StepError::Range { what: "return group", index, len });
            }
            let slices =
                slicing.next().ok_or(StepError::Inconsistent("too few slice counts for its merges"))?;
            self.merge.token(token, &self.weights[token as usize * top_k..][..top_k]);
            for (k, &slices) in slices.iter().enumerate() {
                if slices == 0
                    || !self.segments.is_multiple_of(slices)
                    || u32::from(slices) > self.layout.parts
                {
                    return Err(StepError::Inconsistent(
                        "a choice in a number of slices that the slab has no rows for",
                    ));
                }
                let width = self.segments / slices;
                self.merge.choice((0..slices).map(|part| {
                    let slice = Slice { lo: part * width, hi: (part + 1) * width };
                    self.layout.returned(group, k as u8, slice, self.segments) - self.layout.tokens
                }));
            }
        }
        if slicing.next().is_some() {
            return Err(StepError::Inconsistent("more slice counts than merges"));
        }
        let (residual, rest) = (&mut self.slab.residual, &self.slab.rest);
        Ok(self.merge.run(&mut self.cpu, rest, residual, &mut self.buffers.combined)?)
    }
}
