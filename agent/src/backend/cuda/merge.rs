//! Making the residual of a step's rows whole: embeddings, what experts returned, or what already is.

use sluice_core::ids::Slice;
use sluice_core::step::Entry;
use sluice_kernels::cuda::{MergeIo, Returned};

use super::{CudaBackend, StepError};

/// What merges: rows of the step, their tokens and weights, and the rows of their parts, as many for each choice.
#[derive(Debug, Default)]
pub(super) struct Merging {
    pub at: Vec<u32>,
    pub tokens: Vec<u32>,
    pub weights: Vec<f32>,
    pub parts: Vec<u32>,
    pub slices: usize,
}

impl CudaBackend {
    /// Brings the residuals of tokens, whole, into the first rows of the step's residual stream.
    pub(super) fn enter(
        &mut self,
        entries: impl Iterator<Item = (u32, Entry)> + Clone,
        slicing: &[u8],
    ) -> Result<(), StepError> {
        let merging = self.merging(entries.clone(), slicing)?;
        let (mut ids, mut embedded, mut carried, mut carried_tokens) = (vec![], vec![], vec![], vec![]);
        for (at, (token, entry)) in entries.enumerate() {
            match entry {
                Entry::Embed(id) if id as usize >= self.spec.vocab => {
                    return Err(StepError::Range {
                        what: "token id",
                        index: id as usize,
                        len: self.spec.vocab,
                    });
                }
                Entry::Embed(id) => {
                    ids.push(id);
                    embedded.push(at as u32);
                }
                Entry::Carry => {
                    carried.push(at as u32);
                    carried_tokens.push(token);
                }
                Entry::Merge(_) => {}
            }
        }
        let (embeds, carries, merges) = (ids.len(), carried.len(), merging.at.len());
        let lists = &mut self.lists;
        lists.clear();
        let (ids, embedded) = (lists.push(ids), lists.push(embedded));
        let (carried_tokens, carried) = (lists.push(carried_tokens), lists.push(carried));
        let (tokens, at) = (lists.push(merging.tokens), lists.push(merging.at));
        let parts = lists.push(merging.parts);
        lists.send(&self.device)?;
        let Self { device, ops, buffers, slab, rank, lists, .. } = self;
        let (d, rank) = (self.spec.hidden, rank.as_ref().ok_or(StepError::NoRank)?);
        let view = |list| Some(lists.view(list));
        let copy = &ops.rows;
        copy.copy(device, embeds, d, &rank.weights.embedding, view(&ids), &mut buffers.x, view(&embedded))?;
        copy.copy(device, carries, d, &slab.residual, view(&carried_tokens), &mut buffers.x, view(&carried))?;
        if merges == 0 {
            return Ok(());
        }
        copy.copy(device, merges, d, &slab.residual, view(&tokens), &mut buffers.delta, None)?;
        device.write(&merging.weights, &mut buffers.merge_weights.slice_mut(..merging.weights.len()))?;
        let io = MergeIo {
            returned: Returned::Slices(&slab.outputs, merging.slices),
            rows: view(&parts),
            weights: buffers.merge_weights.slice(..merging.weights.len()),
            residual: Some(buffers.delta.slice(..merges * d)),
            out: buffers.merged.slice_mut(..merges * d),
        };
        ops.merge.run(device, merges, self.layout.top_k as usize, d, io)?;
        Ok(copy.copy(device, merges, d, &buffers.merged, None, &mut buffers.x, view(&at))?)
    }

    /// The rows that merge. `slicing` holds K values for each. Choices in fewer slices than others have rows of zeros in the
    /// places of those: adding them changes nothing of a tree.
    fn merging(
        &self,
        entries: impl Iterator<Item = (u32, Entry)>,
        slicing: &[u8],
    ) -> Result<Merging, StepError> {
        let top_k = self.layout.top_k as usize;
        let most = slicing.iter().copied().max().unwrap_or(1);
        let mut merging = Merging { slices: usize::from(most), ..Merging::default() };
        let mut slicing = slicing.chunks_exact(top_k.max(1));
        for (at, (token, entry)) in entries.enumerate() {
            let Entry::Merge(group) = entry else { continue };
            if group >= self.layout.groups {
                let (index, len) = (group as usize, self.layout.groups as usize);
                return Err(StepError::Range { what: "return group", index, len });
            }
            let slices =
                slicing.next().ok_or(StepError::Inconsistent("too few slice counts for its merges"))?;
            merging.at.push(at as u32);
            merging.tokens.push(token);
            merging.weights.extend_from_slice(&self.weights[token as usize * top_k..][..top_k]);
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
                let returns = 2 * self.layout.tokens;
                merging.parts.extend((0..slices).map(|part| {
                    let slice = Slice { lo: part * width, hi: (part + 1) * width };
                    self.layout.returned(group, k as u8, slice, self.segments) - returns
                }));
                let missing = usize::from(most - slices);
                merging.parts.extend(std::iter::repeat_n(self.slab.zero_row(), missing));
            }
        }
        if slicing.next().is_some() {
            return Err(StepError::Inconsistent("more slice counts than merges"));
        }
        Ok(merging)
    }
}
