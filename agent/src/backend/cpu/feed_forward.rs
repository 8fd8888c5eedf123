//! What follows attention in a block, on the rank: the norm, and a dense network or the router and the shared expert.

use sluice_core::ids::SeqHandle;
use sluice_core::step::AttentionStep;
use sluice_kernels::cpu::{
    Epilogue, Expert, ExpertIo, ExpertRow, Io, Norm, Router, Rows, Score as KernelScore, sigmoid,
};

use super::{CpuBackend, StepError};
use crate::backend::RoutedToken;
use crate::backend::routing::DrawKey;
use crate::backend::weights::{BlockWeights, FeedForwardWeights, SharedExpert};
use crate::model::spec::{RouterSpec, Score};

impl CpuBackend {
    /// Normalises the batch into its input rows, then routes it and runs what every token visits.
    pub(super) fn feed_forward(
        &mut self,
        block: u16,
        weights: &BlockWeights,
        step: &AttentionStep,
    ) -> Result<(), StepError> {
        self.batch.experts.clear();
        let eps = self.spec.blocks[usize::from(block)].norm_eps;
        let norm = Norm { weight: Some(&weights.feed_forward_norm), eps };
        let (batch, slab) = (&self.batch, &mut self.slab);
        self.cpu.rmsnorm(Io::across(&slab.residual, &batch.tokens, &mut slab.rest, &batch.inputs), norm)?;
        match &weights.feed_forward {
            FeedForwardWeights::Dense(network) => self.network(network, None),
            FeedForwardWeights::Moe { router, bias, shared } => {
                let count = self.batch.inputs.len();
                let logits = self.buffers.router.get(count, router.rows());
                let io = Io::across(&self.slab.rest, &self.batch.inputs, logits, Rows::first(count));
                self.cpu.matmul(io, router, Epilogue::default())?;
                self.route(block, bias.as_deref(), step)?;
                shared.as_ref().map_or(Ok(()), |shared| self.shared(shared))
            }
        }
    }

    /// Chooses the experts of the batch and keeps their weights.
    fn route(&mut self, block: u16, bias: Option<&[f32]>, step: &AttentionStep) -> Result<(), StepError> {
        let Some(moe) = self.spec.blocks[usize::from(block)].feed_forward.moe() else { return Ok(()) };
        let (top_k, count) = (moe.top_k, self.batch.index.len());
        let logits = self.buffers.router.get(count, moe.experts);
        self.cpu.route(
            logits,
            Rows::first(count),
            kernel_router(moe.router, bias, top_k),
            &mut self.routed,
        )?;
        self.batch.gaps.clear();
        if let Some(routing) = self.routing.clone() {
            for i in 0..count {
                let (position, segment) = self.batch.place(self.batch.index[i]);
                let sampler = self.sampler(step.segments[segment].seq)?;
                let key = DrawKey { seed: sampler.params().seed, choice: sampler.choice(), position, block };
                routing.draw(key, &mut self.batch.experts);
            }
            self.routed.weights.fill(1.0 / top_k as f32);
            self.batch.gaps.resize(count, f32::INFINITY);
        } else {
            self.batch.experts.extend(self.routed.ids.iter().map(|&id| id as u16));
            self.batch.gaps.extend_from_slice(&self.routed.gaps);
        }
        for (&token, weights) in self.batch.tokens.iter().zip(self.routed.weights.chunks_exact(top_k)) {
            self.weights[token as usize * top_k..][..top_k].copy_from_slice(weights);
        }
        if let Some(probe) = &mut self.probe {
            for (i, experts) in self.batch.experts.chunks_exact(top_k).enumerate() {
                let (position, segment) = self.batch.place(self.batch.index[i]);
                let seq: SeqHandle = step.segments[segment].seq;
                probe.routed(RoutedToken { seq, position, block, experts, gap: self.batch.gaps[i] });
            }
        }
        Ok(())
    }

    fn shared(&mut self, shared: &SharedExpert) -> Result<(), StepError> {
        let Some(gate) = &shared.gate else { return self.network(&shared.network, None) };
        let count = self.batch.inputs.len();
        let values = self.buffers.gate.get(count, 1);
        let io = Io::across(&self.slab.rest, &self.batch.inputs, values, Rows::first(count));
        self.cpu.matmul(io, gate, Epilogue::default())?;
        let gates: Vec<f32> = (0..count).map(|row| sigmoid(values.row(row)[0])).collect();
        self.network(&shared.network, Some(&gates))
    }

    /// Adds a network's output to the residual, each row times its factor if there is one.
    fn network(&mut self, network: &Expert, factors: Option<&[f32]>) -> Result<(), StepError> {
        let count = self.batch.inputs.len();
        self.expert_rows.clear();
        let rows = self.batch.inputs.iter().enumerate();
        self.expert_rows.extend(rows.map(|(dst, &src)| ExpertRow { unit: 0, src, dst: dst as u32 }));
        let dst = self.buffers.network.get(count, self.spec.hidden);
        let io = ExpertIo::Across { src: &self.slab.rest, dst };
        self.cpu.expert_ffn(&[network], &self.expert_rows, io)?;
        self.merge.clear(1);
        for (i, &token) in self.batch.tokens.iter().enumerate() {
            self.merge.token(token, &[factors.map_or(1.0, |factors| factors[i])]);
            self.merge.choice(std::iter::once(i as u32));
        }
        let outputs = self.buffers.network.get(count, self.spec.hidden);
        Ok(self.merge.run(&mut self.cpu, outputs, &mut self.slab.residual, &mut self.buffers.combined)?)
    }
}

fn kernel_router(spec: RouterSpec, selection_bias: Option<&[f32]>, top_k: usize) -> Router<'_> {
    Router {
        score: match spec.score {
            Score::Softmax => KernelScore::Softmax,
            Score::Sigmoid => KernelScore::Sigmoid,
        },
        selection_bias,
        top_k,
        renormalise: spec.renormalise,
        scale: spec.scale,
    }
}
