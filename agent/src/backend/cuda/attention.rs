//! Attention steps: entry, attention of each block, and what follows in the block here.

use sluice_core::step::{AttentionStep, Outcome};
use sluice_kernels::cpu::{KvSegment, Score as KernelScore};
use sluice_kernels::cuda::{DenseOutput, DenseTuning, Routed, Router, RowNorm, Rows};

use super::{CudaBackend, MAX_SEGMENTS, StepError};
use crate::backend::RoutedToken;
use crate::backend::error::check_attention;
use crate::backend::routing::DrawKey;
use crate::model::spec::Score;

/// Which attention kernel a step takes. Its bits are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decode,
    Prefill,
}

impl CudaBackend {
    pub(super) fn attention(&mut self, step: &AttentionStep) -> Result<Outcome, StepError> {
        check_attention(step, self.spec.blocks.len(), self.layout.tokens)?;
        if step.segments.len() > MAX_SEGMENTS || step.rows.len() > self.layout.tokens as usize {
            return Err(StepError::Inconsistent("more segments or rows than a step may have"));
        }
        let rows = step.rows.len();
        if rows == 0 {
            return Ok(if step.span { Outcome::Spanned(vec![]) } else { Outcome::Routed(vec![]) });
        }
        self.enter(step.rows.iter().map(|row| (row.token, row.entry)), &step.slicing)?;
        let kind = self.plan(step)?;
        for block in step.blocks.clone() {
            self.attend(block, rows, kind)?;
            self.route(block, step)?;
            if step.span {
                self.span_experts(block, rows)?;
            }
        }
        self.keep(step)?;
        if step.span { self.spanned(step) } else { self.routed(step) }
    }

    /// Says where the rows stand, and cuts the work of their attention.
    fn plan(&mut self, step: &AttentionStep) -> Result<Kind, StepError> {
        let segments: Vec<KvSegment<'_>> = step
            .segments
            .iter()
            .map(|segment| KvSegment {
                len: segment.len as usize,
                first_position: segment.start,
                pages: &step.pages[segment.pages.start as usize..segment.pages.end as usize],
            })
            .collect();
        let rank = self.rank.as_mut().ok_or(StepError::NoRank)?;
        rank.call.set(&self.device, rank.kv.shape(), &segments)?;
        // A tile of prefill takes 16 rows and more, of decode 8 queries.
        let longest = segments.iter().map(|segment| segment.len).max().unwrap_or(1);
        let kind = if longest * rank.group <= 16 { Kind::Decode } else { Kind::Prefill };
        let plan = match kind {
            Kind::Decode => &mut rank.decode,
            Kind::Prefill => &mut rank.prefill,
        };
        plan.build(&self.device, &rank.call, 0..segments.len(), 0)?;
        Ok(kind)
    }

    /// Attention of a block, added to the residual, and the norm of that.
    fn attend(&mut self, block: u16, rows: usize, kind: Kind) -> Result<(), StepError> {
        let Self { spec, device, ops, buffers, rank, .. } = self;
        let rank = rank.as_mut().ok_or(StepError::NoRank)?;
        let (index, d) = (usize::from(block), spec.hidden);
        let (eps, weights) = (spec.blocks[index].norm_eps, &rank.weights.blocks[index]);
        let norm = RowNorm { weight: &weights.attention_norm, eps };
        ops.rows.add_rmsnorm(device, rows, &mut buffers.x, None, &norm, &mut buffers.normed)?;
        let normed = Rows { data: &buffers.normed, stride: d };
        let (qkv_columns, columns) = (rank.qkv_columns, rank.query_columns);
        let (tuning, qkv) = (DenseTuning::default(), DenseOutput::Half(&mut rank.qkv));
        ops.dense.run(device, rows, &normed, &weights.qkv, qkv, qkv_columns, tuning)?;
        let (qkv, table, norms) = (&mut rank.qkv, &rank.weights.rope, weights.norms.as_ref());
        ops.rope.run(device, &mut rank.kv, index, &rank.call, qkv, qkv_columns, rank.heads, table, norms)?;
        let queries = Rows { data: &rank.qkv, stride: qkv_columns };
        let plan = match kind {
            Kind::Decode => &mut rank.decode,
            Kind::Prefill => &mut rank.prefill,
        };
        plan.run(device, &rank.kv, index, &rank.call, &queries, &mut rank.attended, columns, 0)?;
        let attended = Rows { data: &rank.attended, stride: columns };
        let delta = DenseOutput::Half(&mut buffers.delta);
        ops.dense.run(device, rows, &attended, &weights.output, delta, d, tuning)?;
        let norm = RowNorm { weight: &weights.feed_forward_norm, eps };
        Ok(ops.rows.add_rmsnorm(
            device,
            rows,
            &mut buffers.x,
            Some(&buffers.delta),
            &norm,
            &mut buffers.normed,
        )?)
    }

    /// Chooses the experts of the step's rows.
    fn route(&mut self, block: u16, step: &AttentionStep) -> Result<(), StepError> {
        let (index, rows) = (usize::from(block), step.rows.len());
        let Some(moe) = self.spec.blocks[index].feed_forward.moe() else { return Ok(()) };
        let (experts, top_k) = (self.experts, moe.top_k);
        let rank = self.rank.as_mut().ok_or(StepError::NoRank)?;
        let weights = &rank.weights.blocks[index];
        let normed = Rows { data: &self.buffers.normed, stride: self.spec.hidden };
        let (device, tuning) = (&self.device, DenseTuning::default());
        let logits = DenseOutput::Single(&mut rank.router_logits);
        self.ops.dense.run(device, rows, &normed, &weights.router, logits, experts, tuning)?;
        let router = Router {
            score: match moe.router.score {
                Score::Softmax => KernelScore::Softmax,
                Score::Sigmoid => KernelScore::Sigmoid,
            },
            selection_bias: weights.selection_bias.as_ref().map(|bias| bias.as_view()),
            experts,
            top_k,
            renormalise: moe.router.renormalise,
            scale: moe.router.scale,
        };
        let (ids, gaps) = (&mut rank.ids[index], Some(&mut rank.gaps));
        let out = Routed { ids, weights: &mut rank.weights_of_choices, gaps };
        self.ops.route.run(device, &rank.router_logits.slice(..rows * experts), &router, out)?;
        if self.routing.is_some() {
            self.draw(block, step)?;
        }
        if self.probe.is_some() {
            self.show(block, step)?;
        }
        Ok(())
    }

    /// Replaces the router's choices.
    fn draw(&mut self, block: u16, step: &AttentionStep) -> Result<(), StepError> {
        let Some(routing) = self.routing.clone() else { return Ok(()) };
        let (top_k, mut experts) = (self.layout.top_k as usize, Vec::new());
        for segment in &step.segments {
            let sampler = self.sampler(segment.seq)?;
            for position in segment.start..segment.start + segment.len {
                let key = DrawKey { seed: sampler.params().seed, choice: sampler.choice(), position, block };
                routing.draw(key, &mut experts);
            }
        }
        let ids: Vec<i32> = experts.into_iter().map(i32::from).collect();
        let weights = vec![1.0 / top_k as f32; ids.len()];
        let rank = self.rank.as_mut().ok_or(StepError::NoRank)?;
        self.device.write(&ids, &mut rank.ids[usize::from(block)].slice_mut(..ids.len()))?;
        Ok(self.device.write(&weights, &mut rank.weights_of_choices.slice_mut(..weights.len()))?)
    }

    /// Shows a probe what was chosen for the rows that are wanted.
    fn show(&mut self, block: u16, step: &AttentionStep) -> Result<(), StepError> {
        let (top_k, rows) = (self.layout.top_k as usize, step.rows.len());
        let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
        let ids = self.device.download(&rank.ids[usize::from(block)].slice(..rows * top_k))?;
        let gaps = self.device.download(&rank.gaps.slice(..rows))?;
        let is_last = usize::from(block) + 1 == self.spec.blocks.len();
        let Some(probe) = &mut self.probe else { return Ok(()) };
        let mut row = 0;
        for segment in &step.segments {
            for position in segment.start..segment.start + segment.len {
                let experts: Vec<u16> = ids[row * top_k..][..top_k].iter().map(|id| *id as u16).collect();
                if !is_last || step.rows[row].wanted {
                    let (seq, gap) = (segment.seq, gaps[row]);
                    probe.routed(RoutedToken { seq, position, block, experts: &experts, gap });
                }
                row += 1;
            }
        }
        Ok(())
    }

    /// Puts the residuals, and what experts read, into the tokens' rows.
    fn keep(&mut self, step: &AttentionStep) -> Result<(), StepError> {
        let (rows, d, lists) = (step.rows.len(), self.spec.hidden, &mut self.lists);
        lists.clear();
        let tokens = lists.push(step.rows.iter().map(|row| row.token));
        lists.send(&self.device)?;
        let (x, copy) = (&self.buffers.x, &self.ops.rows);
        let to = Some(lists.view(&tokens));
        copy.copy(&self.device, rows, d, x, None, &mut self.slab.residual, to)?;
        if step.span {
            return Ok(());
        }
        let to = Some(lists.view(&tokens));
        Ok(copy.copy(&self.device, rows, d, &self.buffers.normed, None, &mut self.slab.inputs, to)?)
    }

    /// What a single block's router chose; the weights stay here.
    fn routed(&mut self, step: &AttentionStep) -> Result<Outcome, StepError> {
        let top_k = self.layout.top_k as usize;
        let choices = step.rows.len() * top_k;
        let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
        let ids = self.device.download(&rank.ids[usize::from(step.blocks.start)].slice(..choices))?;
        let weights = self.device.download(&rank.weights_of_choices.slice(..choices))?;
        for (row, weights) in step.rows.iter().zip(weights.chunks_exact(top_k)) {
            self.weights[row.token as usize * top_k..][..top_k].copy_from_slice(weights);
        }
        Ok(Outcome::Routed(ids.into_iter().map(|id| id as u16).collect()))
    }

    /// Rows of each block and expert of a span. Those that are not wanted of the last block count as little as they matter.
    fn spanned(&mut self, step: &AttentionStep) -> Result<Outcome, StepError> {
        let (top_k, experts) = (self.layout.top_k as usize, self.experts);
        let rank = self.rank.as_ref().ok_or(StepError::NoRank)?;
        let mut counts = vec![0; step.blocks.len() * experts];
        for (block, counts) in step.blocks.clone().zip(counts.chunks_exact_mut(experts)) {
            let is_last = usize::from(block) + 1 == self.spec.blocks.len();
            let ids = self.device.download(&rank.ids[usize::from(block)].slice(..step.rows.len() * top_k))?;
            for (row, ids) in step.rows.iter().zip(ids.chunks_exact(top_k)) {
                if is_last && !row.wanted {
                    continue;
                }
                for &id in ids {
                    if let Some(count) = counts.get_mut(id as usize) {
                        *count += 1;
                    }
                }
            }
        }
        Ok(Outcome::Spanned(counts))
    }
}
