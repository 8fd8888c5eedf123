//! Steps that cannot be run, and what every backend checks of them.

use sluice_core::ids::Unit;
use sluice_core::step::AttentionStep;
use sluice_kernels::Error as KernelError;

/// A step that cannot be run as it stands.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] sluice_kernels::cuda::Error),
    #[error("an attention or head step came to a worker without attention weights")]
    NoRank,
    #[error("{what} {index} is out of range: there are {len}")]
    Range { what: &'static str, index: usize, len: usize },
    #[error("the step is inconsistent: {0}")]
    Inconsistent(&'static str),
    #[error("slot {slot} does not hold {unit}")]
    NotHeld { slot: u32, unit: Unit },
    #[error("the span needs expert {expert} of block {block}, which no slots hold whole")]
    NotCovered { block: u16, expert: u16 },
    #[error("sequence {0} is not open")]
    NotOpen(u32),
}

/// Everything of an attention step that kernels do not check and that could not be undone, for a model of `blocks` blocks and
/// a slab of `tokens` tokens.
pub(super) fn check_attention(step: &AttentionStep, blocks: usize, tokens: u32) -> Result<(), StepError> {
    if usize::from(step.blocks.end) > blocks || step.blocks.is_empty() {
        return Err(StepError::Range { what: "block", index: usize::from(step.blocks.end), len: blocks });
    }
    if !step.span && step.blocks.len() != 1 {
        return Err(StepError::Inconsistent("several blocks without their experts"));
    }
    if step.segments.iter().map(|segment| segment.len as usize).sum::<usize>() != step.rows.len() {
        return Err(StepError::Inconsistent("the segments' lengths do not sum to its rows"));
    }
    for segment in &step.segments {
        let (start, end) = (segment.pages.start as usize, segment.pages.end as usize);
        if start > end || end > step.pages.len() {
            return Err(StepError::Range { what: "page entry", index: end, len: step.pages.len() });
        }
    }
    check_tokens(step.rows.iter().map(|row| row.token), tokens)
}

/// Whether there are such tokens.
pub(super) fn check_tokens(mut tokens: impl Iterator<Item = u32>, len: u32) -> Result<(), StepError> {
    match tokens.find(|&token| token >= len) {
        None => Ok(()),
        Some(token) => Err(StepError::Range { what: "token", index: token as usize, len: len as usize }),
    }
}
