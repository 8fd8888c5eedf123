//! Expert steps, and the experts of a span.

use sluice_core::step::{ExpertStep, Outcome};
use sluice_kernels::cpu::{Expert, ExpertIo, ExpertRow};

use super::{CpuBackend, StepError};

impl CpuBackend {
    /// One grouped launch.
    pub(super) fn experts(&mut self, step: &ExpertStep) -> Result<Outcome, StepError> {
        self.expert_rows.clear();
        let mut units: Vec<&Expert> = Vec::with_capacity(step.units.len());
        for (index, batch) in step.units.iter().enumerate() {
            let held = self.slots.get(batch.slot as usize).and_then(Option::as_ref);
            let held = held.filter(|held| held.unit == batch.unit && held.unit.block == step.block);
            let held = held.ok_or(StepError::NotHeld { slot: batch.slot, unit: batch.unit })?;
            units.push(&held.expert);
            let (start, end) = (batch.items.start as usize, batch.items.end as usize);
            let Some(items) = step.items.get(start..end) else {
                return Err(StepError::Range { what: "expert item", index: end, len: step.items.len() });
            };
            for item in items {
                let (Some(src), Some(dst)) = (self.slab.in_rest(item.src), self.slab.in_rest(item.dst))
                else {
                    return Err(StepError::Inconsistent("an expert reads or writes the residual stream"));
                };
                self.expert_rows.push(ExpertRow { unit: index as u32, src, dst });
            }
        }
        self.cpu.expert_ffn(&units, &self.expert_rows, ExpertIo::Within(&mut self.slab.rest))?;
        Ok(Outcome::Experts)
    }

    /// The experts that the batch was routed to, all held here, and their merge. Appends the rows per expert.
    pub(super) fn span_experts(&mut self, block: u16, spanned: &mut Vec<u32>) -> Result<(), StepError> {
        let most =
            self.spec.blocks.iter().filter_map(|block| block.feed_forward.moe()).map(|moe| moe.experts).max();
        let counts = spanned.len();
        spanned.resize(counts + most.unwrap_or(0), 0);
        self.holdings.prepare(block);
        let Some(held) = self.holdings.block(block) else { return Ok(()) };
        let top_k = self.layout.top_k as usize;
        self.expert_rows.clear();
        self.merge.clear(top_k);
        let mut dst = 0;
        for (i, experts) in self.batch.experts.chunks_exact(top_k.max(1)).enumerate() {
            let (token, src) = (self.batch.tokens[i], self.batch.inputs[i]);
            self.merge.token(token, &self.weights[token as usize * top_k..][..top_k]);
            for &expert in experts {
                let cover = &held.covers[usize::from(expert)];
                if cover.is_empty() {
                    return Err(StepError::NotCovered { block, expert });
                }
                spanned[counts + usize::from(expert)] += 1;
                self.merge.choice(dst..dst + cover.len() as u32);
                for &unit in cover {
                    self.expert_rows.push(ExpertRow { unit, src, dst });
                    dst += 1;
                }
            }
        }
        if self.expert_rows.is_empty() {
            return Ok(());
        }
        let units: Vec<&Expert> = held
            .units
            .iter()
            .filter_map(|(_, slot)| self.slots[*slot as usize].as_ref().map(|held| &held.expert))
            .collect();
        let outputs = self.buffers.outputs.get(dst as usize, self.spec.hidden);
        let io = ExpertIo::Across { src: &self.slab.rest, dst: outputs };
        self.cpu.expert_ffn(&units, &self.expert_rows, io)?;
        Ok(self.merge.run(&mut self.cpu, outputs, &mut self.slab.residual, &mut self.buffers.combined)?)
    }
}
