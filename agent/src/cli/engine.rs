//! The flags of a model and its engine, shared by `serve` and `generate`.

use std::path::PathBuf;

use clap::Args;

use super::Invalid;
use super::options::{EngineOptions, KvSize, ModelSource};
use super::values::{BackendChoice, IsaChoice, Layout, Schedulers, Switch, bytes};
use crate::backend::routing::Routing;
use sluice_core::config::Policy;

/// Which model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A Hugging Face model directory (config.json, *.safetensors, tokenizer.json). Without it, the small model that
    /// comes with Sluice.
    #[arg(long, env = "SLUICE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    pub(super) fn source(&self) -> ModelSource {
        self.model.clone().map_or(ModelSource::Bundled, ModelSource::Directory)
    }
}

/// How many workers there are in one process.
#[derive(Args, Clone, Debug)]
pub struct LayoutArgs {
    /// Where attention and experts run: on workers of their own, or every worker does both.
    #[arg(
        long,
        env = "SLUICE_LAYOUT",
        value_enum,
        default_value = "hybrid",
        hide_possible_values = true,
        value_name = "disaggregated|hybrid",
        help_heading = "Parallelism"
    )]
    pub layout: Layout,
    /// Workers that run attention. Each owns the KV cache of the sequences bound to it.
    #[arg(
        long,
        env = "SLUICE_ATTENTION_RANKS",
        default_value_t = 1,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        help_heading = "Parallelism"
    )]
    pub attention_ranks: u32,
    /// Workers that run experts. In the hybrid layout these are the attention ranks, so leave it out there.
    /// [default: 1]
    #[arg(
        long,
        env = "SLUICE_EXPERT_WORKERS",
        value_name = "M",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        help_heading = "Parallelism"
    )]
    pub expert_workers: Option<u32>,
    /// Copies of every expert, on different workers.
    #[arg(
        long,
        env = "SLUICE_REPLICAS",
        default_value_t = 1,
        value_name = "R",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Parallelism"
    )]
    pub replicas: u32,
}

impl LayoutArgs {
    /// One worker, with others in processes of their own.
    pub(super) const ALONE: Self =
        Self { layout: Layout::Hybrid, attention_ranks: 1, expert_workers: None, replicas: 1 };

    fn expert_worker_count(&self) -> Result<u32, Invalid> {
        match (self.layout, self.expert_workers) {
            (Layout::Disaggregated, given) => Ok(given.unwrap_or(1)),
            (Layout::Hybrid, Some(given)) if given != self.attention_ranks => Err(Invalid(format!(
                "--expert-workers {given} with --layout hybrid: every one of the {} worker(s) runs both roles; leave it out, or take --layout disaggregated",
                self.attention_ranks
            ))),
            (Layout::Hybrid, _) => Ok(self.attention_ranks),
        }
    }
}

/// How the model is run.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Slices an expert is cut into, so that several workers share one expert's work. Divides --segments. An attention
    /// rank of several processes asks for an expert in so many slices at most. [default: 1, or of a rank of several
    /// processes as many as the table has at its start]
    #[arg(long, env = "SLUICE_SLICES", value_name = "S", help_heading = "Parallelism")]
    pub slices: Option<u8>,
    /// Segments of an expert's inner dimension: 1, 2, 4 or 8. They fix the order of sums, so that every number of
    /// slices gives the same bits; models run with different --segments differ in the last bits.
    #[arg(
        long,
        env = "SLUICE_SEGMENTS",
        default_value_t = 8,
        value_name = "G",
        help_heading = "Parallelism"
    )]
    pub segments: u8,

    /// What a worker runs next: frontier, defrag, mtfs (most tokens first), flfs (first layer first), or sync (the
    /// baseline with barriers). One name, or attention=NAME,experts=NAME.
    #[arg(
        long,
        env = "SLUICE_SCHEDULER",
        default_value = "frontier",
        value_name = "NAME",
        help_heading = "Batching"
    )]
    pub scheduler: Schedulers,
    /// Groups that decoding sequences move in, so that one group's attention overlaps another's experts.
    #[arg(
        long,
        env = "SLUICE_WAVES",
        default_value_t = 1,
        value_name = "W",
        value_parser = clap::value_parser!(u8).range(1..=8),
        help_heading = "Batching"
    )]
    pub waves: u8,
    /// Long prompts are cut into chunks of at most so many tokens.
    #[arg(
        long,
        env = "SLUICE_PREFILL_CHUNK",
        default_value_t = 512,
        value_name = "C",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Batching"
    )]
    pub prefill_chunk: u32,
    /// Prompt tokens under way per attention rank. [default: four chunks]
    #[arg(long, env = "SLUICE_PREFILL_TOKENS", value_name = "N", help_heading = "Batching")]
    pub prefill_tokens: Option<u32>,
    /// Sequences per attention rank at one time.
    #[arg(
        long,
        env = "SLUICE_MAX_SEQUENCES",
        default_value_t = 256,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65536),
        help_heading = "Batching"
    )]
    pub max_sequences: u32,
    /// Tokens of one attention step. [default: the larger of 512 and --prefill-chunk]
    #[arg(long, env = "SLUICE_MAX_STEP_TOKENS", value_name = "N", help_heading = "Batching")]
    pub max_step_tokens: Option<u32>,
    /// Rows of one expert step.
    #[arg(
        long,
        env = "SLUICE_MAX_EXPERT_ROWS",
        default_value_t = 4096,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Batching"
    )]
    pub max_expert_rows: u32,
    /// A token that waited so many cycles releases its whole queue, whatever the scheduler would rather do.
    #[arg(
        long,
        env = "SLUICE_RELEASE_CYCLES",
        default_value_t = 4,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Batching"
    )]
    pub release_cycles: u32,
    /// A worker that holds all of a block runs attention and experts in one step.
    #[arg(
        long,
        env = "SLUICE_SPANS",
        value_enum,
        default_value = "on",
        hide_possible_values = true,
        value_name = "on|off",
        help_heading = "Batching"
    )]
    pub spans: Switch,

    /// Room for keys and values per attention rank, in tokens. [default: chosen from the model and free memory]
    #[arg(long, env = "SLUICE_KV_TOKENS", value_name = "N", help_heading = "KV cache")]
    pub kv_tokens: Option<u64>,
    /// The same, in bytes (2GiB).
    #[arg(long, env = "SLUICE_KV_MEMORY", value_name = "SIZE", value_parser = bytes, help_heading = "KV cache")]
    pub kv_memory: Option<u64>,
    /// Tokens per page; the CPU and CUDA backends take 16 only.
    #[arg(
        long,
        env = "SLUICE_PAGE_SIZE",
        default_value_t = 16,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        help_heading = "KV cache"
    )]
    pub page_size: u32,
    /// Prompts that begin alike share their keys and values (only within one API key).
    #[arg(
        long,
        env = "SLUICE_PREFIX_CACHE",
        value_enum,
        default_value = "on",
        hide_possible_values = true,
        value_name = "on|off",
        help_heading = "KV cache"
    )]
    pub prefix_cache: Switch,

    /// What runs the steps: cpu, cuda (the first NVIDIA GPU, in bf16), or modelled:FILE (steps take the time of a cost curve and compute nothing).
    #[arg(
        long,
        env = "SLUICE_BACKEND",
        default_value = "cpu",
        value_name = "cpu|cuda|modelled:FILE",
        help_heading = "Compute"
    )]
    pub backend: BackendChoice,
    /// Compute threads, for all workers together. [default: one per core]
    #[arg(
        long,
        env = "SLUICE_THREADS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        help_heading = "Compute"
    )]
    pub threads: Option<u32>,
    /// Instruction set of the CPU kernels: auto, avx512, avx2, neon or portable. The results are the same, bit by bit.
    #[arg(
        long,
        env = "SLUICE_ISA",
        value_enum,
        default_value = "auto",
        hide_possible_values = true,
        value_name = "NAME",
        help_heading = "Compute"
    )]
    pub isa: IsaChoice,
    /// Who chooses the experts: model, or for experiments a draw, skew:SHARE,SEED (the hottest expert's share of all
    /// assignments) or busiest:RATIO,SEED (the busiest worker's load over the mean). With a draw the text is nonsense.
    #[arg(
        long,
        env = "SLUICE_ROUTING",
        default_value = "model",
        value_name = "HOW",
        help_heading = "Compute"
    )]
    pub routing: Routing,
}

/// Whether an expert can be cut so.
pub(super) fn check_slices(slices: u8, segments: u8) -> Result<(), Invalid> {
    if ![1, 2, 4, 8].contains(&segments) {
        return Err(Invalid(format!("--segments {segments} is none of 1, 2, 4 and 8")));
    }
    if slices == 0 || !segments.is_multiple_of(slices) {
        return Err(Invalid(format!(
            "--slices {slices} does not divide --segments {segments}: an expert is cut between segments only"
        )));
    }
    Ok(())
}

impl EngineArgs {
    pub(super) fn check(&self, l: &LayoutArgs) -> Result<EngineOptions, Invalid> {
        let expert_workers = l.expert_worker_count()?;
        let slices = self.slices.unwrap_or(1);
        check_slices(slices, self.segments)?;
        if l.replicas > expert_workers {
            return Err(Invalid(format!(
                "--replicas {} needs as many workers with experts, and there are {expert_workers}: copies on one worker would gain nothing",
                l.replicas
            )));
        }
        let Schedulers { attention, experts } = self.scheduler;
        if attention != experts {
            if l.layout == Layout::Hybrid {
                return Err(Invalid(
                    "in the hybrid layout a worker has both roles and one scheduler: give --scheduler one name, or take --layout disaggregated".into(),
                ));
            }
            if attention == Policy::Sync || experts == Policy::Sync {
                return Err(Invalid(
                    "the sync scheduler is a barrier over all workers: use it for both roles or for none"
                        .into(),
                ));
            }
        }
        if attention == Policy::Sync && self.waves > 1 {
            return Err(Invalid(format!(
                "--waves {} with the sync scheduler: all of a step moves at once, there is one wave",
                self.waves
            )));
        }
        let max_step_tokens = self.max_step_tokens.unwrap_or(self.prefill_chunk.max(512));
        if max_step_tokens < self.prefill_chunk {
            return Err(Invalid(format!(
                "--max-step-tokens {max_step_tokens} is less than --prefill-chunk {}: a chunk would never fit a step",
                self.prefill_chunk
            )));
        }
        let prefill_tokens = self.prefill_tokens.unwrap_or_else(|| self.prefill_chunk.saturating_mul(4));
        if prefill_tokens < self.prefill_chunk {
            return Err(Invalid(format!(
                "--prefill-tokens {prefill_tokens} is less than --prefill-chunk {}: no chunk could start",
                self.prefill_chunk
            )));
        }
        Ok(EngineOptions {
            layout: l.layout,
            attention_ranks: l.attention_ranks,
            expert_workers,
            replicas: l.replicas,
            segments: self.segments,
            slices,
            schedulers: self.scheduler,
            waves: self.waves,
            prefill_chunk: self.prefill_chunk,
            prefill_tokens,
            max_step_tokens,
            max_expert_rows: self.max_expert_rows,
            max_sequences: self.max_sequences,
            release_cycles: self.release_cycles,
            spans: self.spans.is_on(),
            kv: self.kv_size()?,
            page_size: self.page_size,
            prefix_cache: self.prefix_cache.is_on(),
            backend: self.backend.clone(),
            threads: self.threads,
            isa: self.isa,
            routing: self.routing,
        })
    }

    fn kv_size(&self) -> Result<KvSize, Invalid> {
        match (self.kv_tokens, self.kv_memory) {
            (None, None) => Ok(KvSize::Auto),
            (Some(_), Some(_)) => Err(Invalid("give --kv-tokens or --kv-memory, not both".into())),
            (Some(tokens), None) if tokens < u64::from(self.page_size) => Err(Invalid(format!(
                "--kv-tokens {tokens} is less than one page of {} tokens",
                self.page_size
            ))),
            (Some(tokens), None) => Ok(KvSize::Tokens(tokens)),
            (None, Some(0)) => Err(Invalid("--kv-memory 0 holds no token".into())),
            (None, Some(bytes)) => Ok(KvSize::Bytes(bytes)),
        }
    }
}
