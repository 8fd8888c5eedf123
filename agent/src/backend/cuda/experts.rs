//! Expert steps, and the experts of a span.

use sluice_core::step::{ExpertStep, Outcome};
use sluice_kernels::cuda::{MergeIo, Returned};

use super::slab::Place;
use super::units::Item;
use super::{CudaBackend, StepError};

impl CudaBackend {
    /// The units of one block.
    pub(super) fn experts(&mut self, step: &ExpertStep) -> Result<Outcome, StepError> {
        let mut items = Vec::with_capacity(step.items.len());
        for batch in &step.units {
            if !self.units.holds(batch.slot, batch.unit) || batch.unit.block != step.block {
                return Err(StepError::NotHeld { slot: batch.slot, unit: batch.unit });
            }
            let (start, end) = (batch.items.start as usize, batch.items.end as usize);
            let Some(these) = step.items.get(start..end) else {
                return Err(StepError::Range { what: "expert item", index: end, len: step.items.len() });
            };
            for item in these {
                let (Some(Place::Input(src)), Some(Place::Output(dst))) =
                    (self.slab.place(item.src), self.slab.place(item.dst))
                else {
                    return Err(StepError::Inconsistent("an expert reads no input, or writes no output"));
                };
                let (slice, expert, slot) = (batch.unit.slice, batch.unit.expert, batch.slot);
                items.push(Item { slice, expert, slot, src, dst });
            }
        }
        let slab = &mut self.slab;
        self.units.run(&self.device, &mut self.lists, &items, &slab.inputs, &mut slab.outputs)?;
        Ok(Outcome::Experts)
    }

    /// The experts that the step's `rows` rows were routed to in a block, all held here, and their merge.
    pub(super) fn span_experts(&mut self, block: u16, rows: usize) -> Result<(), StepError> {
        let top_k = self.layout.top_k as usize;
        let slices = if self.units.all_whole(&self.device, block)? {
            let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
            let (ids, buffers) = (&rank.ids[usize::from(block)], &mut self.buffers);
            let outputs = &mut buffers.outputs;
            self.units.run_whole(&self.device, block, ids, (rows, top_k), &buffers.normed, outputs)?;
            1
        } else {
            self.span_slices(block, rows)?
        };
        let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
        let (d, buffers) = (self.spec.hidden, &mut self.buffers);
        let io = MergeIo {
            returned: Returned::Slices(&buffers.outputs, slices),
            rows: None,
            weights: rank.weights_of_choices.slice(..rows * top_k),
            residual: Some(buffers.x.slice(..rows * d)),
            out: buffers.merged.slice_mut(..rows * d),
        };
        self.ops.merge.run(&self.device, rows, top_k, d, io)?;
        std::mem::swap(&mut buffers.x, &mut buffers.merged);
        Ok(())
    }

    /// The same where some expert is held in slices. Returns how many rows each choice has: those that an expert in fewer
    /// slices does not need hold zeros.
    fn span_slices(&mut self, block: u16, rows: usize) -> Result<usize, StepError> {
        let top_k = self.layout.top_k as usize;
        let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
        let ids = self.device.download(&rank.ids[usize::from(block)].slice(..rows * top_k))?;
        self.units.holdings.prepare(block);
        let Some(held) = self.units.holdings.block(block) else { return Ok(1) };
        let most = held.covers.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let mut items = Vec::with_capacity(rows * top_k * most);
        for (pair, &expert) in ids.iter().enumerate() {
            let expert = expert as u16;
            let cover = held.covers.get(usize::from(expert)).filter(|cover| !cover.is_empty());
            let Some(cover) = cover else { return Err(StepError::NotCovered { block, expert }) };
            for (part, &unit) in cover.iter().enumerate() {
                let (unit, slot) = held.units[unit as usize];
                let (src, dst) = ((pair / top_k) as u32, (pair * most + part) as u32);
                items.push(Item { slice: unit.slice, expert, slot, src, dst });
            }
        }
        let buffers = &mut self.buffers;
        self.device.fill_bytes(&mut buffers.outputs, 0)?;
        self.units.run(&self.device, &mut self.lists, &items, &buffers.normed, &mut buffers.outputs)?;
        Ok(most)
    }
}
