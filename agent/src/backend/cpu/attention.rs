//! Attention steps: entry, attention of each block, and what follows in the block here.

use sluice_core::step::{AttentionStep, Entry, Outcome};
use sluice_kernels::cpu::{Attention, Epilogue, Io, KvColumns, KvSegment, Norm, Rows};

use super::{CpuBackend, StepError};
use crate::backend::error::check_attention;
use crate::backend::weights::{BlockWeights, RankWeights};
use crate::model::spec::{AttentionSpec, QkNorm};

/// The rows of a step that are computed in a block. Reused from step to step.
#[derive(Debug, Default)]
pub struct Batch {
    /// Indexes into the step's rows.
    pub index: Vec<u32>,
    /// Their tokens.
    pub tokens: Vec<u32>,
    /// Their tokens' input rows.
    pub inputs: Vec<u32>,
    /// Of all rows of the step: position, and the segment it belongs to.
    positions: Vec<u32>,
    segment_of: Vec<u32>,
    embed_ids: Vec<u32>,
    embed_rows: Vec<u32>,
    /// The experts of each row of `index`, K each.
    pub experts: Vec<u16>,
    /// By how much each of them was ahead of those not chosen.
    pub gaps: Vec<f32>,
}

impl Batch {
    /// The position of a row of the step, and its segment.
    pub fn place(&self, row: u32) -> (u32, usize) {
        (self.positions[row as usize], self.segment_of[row as usize] as usize)
    }
}

impl CpuBackend {
    pub(super) fn attention(&mut self, step: &AttentionStep) -> Result<Outcome, StepError> {
        let rank = self.rank()?;
        check_attention(step, self.spec.blocks.len(), self.layout.tokens)?;
        self.enter(step, &rank)?;
        let last_block = self.spec.blocks.len() - 1;
        let segments: Vec<KvSegment<'_>> = step
            .segments
            .iter()
            .map(|segment| KvSegment {
                len: segment.len as usize,
                first_position: segment.start,
                pages: &step.pages[segment.pages.start as usize..segment.pages.end as usize],
            })
            .collect();
        self.take_rows(step, |_| true);
        let mut outcome = Outcome::Routed(Vec::new());
        let mut spanned = Vec::new();
        for block in step.blocks.clone() {
            let weights = &rank.blocks[usize::from(block)];
            self.project(block, weights, &segments)?;
            let narrowed;
            let visible = if usize::from(block) == last_block && step.rows.iter().any(|row| !row.wanted) {
                self.take_rows(step, |row| step.rows[row].wanted);
                narrowed = wanted_segments(step, &segments);
                &narrowed
            } else {
                &segments
            };
            self.attend(block, weights, visible)?;
            self.feed_forward(block, weights, step)?;
            if step.span {
                self.span_experts(block, &mut spanned)?;
            } else {
                outcome = Outcome::Routed(self.choices_of_all(step.rows.len()));
            }
        }
        Ok(if step.span { Outcome::Spanned(spanned) } else { outcome })
    }

    /// Makes every row's residual whole.
    fn enter(&mut self, step: &AttentionStep, rank: &RankWeights) -> Result<(), StepError> {
        let batch = &mut self.batch;
        batch.embed_ids.clear();
        batch.embed_rows.clear();
        for row in &step.rows {
            if let Entry::Embed(id) = row.entry {
                batch.embed_ids.push(id);
                batch.embed_rows.push(row.token);
            }
        }
        batch.positions.clear();
        batch.segment_of.clear();
        for (index, segment) in step.segments.iter().enumerate() {
            batch.positions.extend(segment.start..segment.start + segment.len);
            batch.segment_of.extend(std::iter::repeat_n(index as u32, segment.len as usize));
        }
        if !batch.embed_ids.is_empty() {
            let rows = Rows::List(&batch.embed_rows);
            self.cpu.embed(&rank.embedding, &batch.embed_ids, &mut self.slab.residual, rows)?;
        }
        self.merge_returns(step.rows.iter().map(|row| (row.token, row.entry)), &step.slicing)
    }

    /// Narrows the batch to some rows of the step.
    fn take_rows(&mut self, step: &AttentionStep, wanted: impl Fn(usize) -> bool) {
        let batch = &mut self.batch;
        batch.index.clear();
        batch.index.extend((0..step.rows.len()).filter(|&row| wanted(row)).map(|row| row as u32));
        batch.tokens.clear();
        batch.tokens.extend(batch.index.iter().map(|&row| step.rows[row as usize].token));
        batch.inputs.clear();
        batch.inputs.extend(batch.tokens.iter().map(|&token| self.slab.input(token)));
    }

    /// Queries, keys and values of all rows; keys and values go to their pages.
    fn project(
        &mut self,
        block: u16,
        weights: &BlockWeights,
        segments: &[KvSegment<'_>],
    ) -> Result<(), StepError> {
        let spec = &self.spec.blocks[usize::from(block)];
        let attention = &spec.attention;
        let (q, kv, head) = (attention.q_dim(), attention.kv_dim(), attention.head_dim);
        let (batch, cpu) = (&self.batch, &mut self.cpu);
        let count = batch.tokens.len();
        let rows = Rows::first(count);
        let normed = self.buffers.normed.get(count, self.spec.hidden);
        let norm = Norm { weight: Some(&weights.attention_norm), eps: spec.norm_eps };
        cpu.rmsnorm(Io::across(&self.slab.residual, &batch.tokens, normed, rows), norm)?;
        let qkv = self.buffers.qkv.get(count, q + 2 * kv);
        let bias = Epilogue { bias: weights.qkv_bias.as_deref(), accumulate: false };
        cpu.matmul(Io::across(normed, rows, qkv, rows), &weights.qkv, bias)?;
        if let Some((q_norm, k_norm)) = &weights.qk_norm {
            let (eps, q_len, k_len) = norm_lengths(attention);
            cpu.rmsnorm_heads(qkv, rows, 0..q, q_len, Norm { weight: Some(q_norm), eps })?;
            cpu.rmsnorm_heads(qkv, rows, q..q + kv, k_len, Norm { weight: Some(k_norm), eps })?;
        }
        if let Some(limit) = attention.clip_qkv {
            cpu.clamp(qkv, rows, 0..q + 2 * kv, limit)?;
        }
        cpu.rope(qkv, rows, 0..q + kv, head, &batch.positions, &weights.rope)?;
        let columns = KvColumns { key: q, value: q + kv };
        Ok(cpu.kv_append(&mut self.kv, usize::from(block), qkv, rows, columns, segments)?)
    }

    /// Attention of the batch's rows, projected and added to the residual.
    fn attend(
        &mut self,
        block: u16,
        weights: &BlockWeights,
        segments: &[KvSegment<'_>],
    ) -> Result<(), StepError> {
        let attention = &self.spec.blocks[usize::from(block)].attention;
        let (q, kv) = (attention.q_dim(), attention.kv_dim());
        let (batch, cpu) = (&self.batch, &mut self.cpu);
        let count = batch.index.len();
        let rows = Rows::first(count);
        let qkv = self.buffers.qkv.get(count, q + 2 * kv);
        let attended = self.buffers.attended.get(count, q);
        let op = Attention {
            block: usize::from(block),
            heads: attention.heads,
            query_column: 0,
            scale: attention.scale,
            window: attention.sliding_window.map(|window| window as u32),
        };
        cpu.paged_attention(&self.kv, Io::across(qkv, &batch.index, attended, rows), segments, op)?;
        let add = Epilogue { bias: weights.output_bias.as_deref(), accumulate: true };
        Ok(cpu.matmul(
            Io::across(attended, rows, &mut self.slab.residual, &batch.tokens),
            &weights.output,
            add,
        )?)
    }

    /// The experts of every row of the step, K each; 0 for rows that were not computed. Empty for a dense block.
    fn choices_of_all(&self, rows: usize) -> Vec<u16> {
        let (batch, top_k) = (&self.batch, self.layout.top_k as usize);
        if batch.experts.is_empty() || batch.index.len() == rows {
            return batch.experts.clone();
        }
        let mut choices = vec![0; rows * top_k];
        for (&row, experts) in batch.index.iter().zip(batch.experts.chunks_exact(top_k)) {
            choices[row as usize * top_k..][..top_k].copy_from_slice(experts);
        }
        choices
    }
}

/// Epsilon and the lengths that q and k are normalised over.
fn norm_lengths(attention: &AttentionSpec) -> (f32, usize, usize) {
    match attention.qk_norm {
        QkNorm::None => (0.0, attention.head_dim, attention.head_dim),
        QkNorm::PerHead { eps } => (eps, attention.head_dim, attention.head_dim),
        QkNorm::Projection { eps } => (eps, attention.q_dim(), attention.kv_dim()),
    }
}

/// The runs of wanted rows.
fn wanted_segments<'a>(step: &AttentionStep, segments: &[KvSegment<'a>]) -> Vec<KvSegment<'a>> {
    let (mut runs, mut row) = (Vec::new(), 0);
    for segment in segments {
        let rows = &step.rows[row..row + segment.len];
        row += segment.len;
        let mut first = segment.first_position;
        for run in rows.chunk_by(|a, b| a.wanted == b.wanted) {
            if run[0].wanted {
                runs.push(KvSegment { len: run.len(), first_position: first, pages: segment.pages });
            }
            first += run.len() as u32;
        }
    }
    runs
}
