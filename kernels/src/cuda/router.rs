//! From a router's logits to experts and weights.

use cudarc::driver::CudaView;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::kv::at_most;
use super::launch::{Start, argument, launch};
use super::merge::int;
use crate::cpu::Score;
use crate::error::same;

const THREADS: u32 = 128;
const ROWS_PER_BLOCK: usize = THREADS as usize / 32;
/// `kFewMine` and `kMaxMine` of `router.cu`, for 32 lanes.
const FEW_EXPERTS: usize = 128;
const MAX_EXPERTS: usize = 512;
/// A lane keeps one choice.
const MAX_TOP_K: usize = 32;

/// How a router chooses; the fields mean what [`crate::cpu::Router`]'s do.
#[derive(Debug)]
pub struct Router<'a> {
    /// Logits to scores.
    pub score: Score,
    /// Added to the scores to select, never to weigh: one value per expert.
    pub selection_bias: Option<CudaView<'a, f32>>,
    /// Experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Divide the chosen scores by their sum.
    pub renormalise: bool,
    /// Multiplies the weights at last.
    pub scale: f32,
}

/// What a router chose, row after row.
#[derive(Debug)]
pub struct Routed<'a> {
    /// Experts by falling selection score; ties to the lower id.
    pub ids: &'a mut Buffer<i32>,
    /// Their weights.
    pub weights: &'a mut Buffer<f32>,
    /// Per row, by how much the last chosen selection score exceeds the best one left out.
    pub gaps: Option<&'a mut Buffer<f32>>,
}

/// Chooses experts. The same bits as the CPU kernels' from the same logits.
#[derive(Debug)]
pub struct Route {
    few: Kernel,
    many: Kernel,
}

/// `Params` of `router.cu`.
#[repr(C)]
struct Params {
    logits: u64,
    bias: u64,
    ids: u64,
    weights: u64,
    gaps: u64,
    rows: i32,
    experts: i32,
    top_k: i32,
    sigmoid: i32,
    renormalise: i32,
    scale: f32,
}

impl Route {
    /// Finds the kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self {
            few: device.kernel("router", "route_128", THREADS)?,
            many: device.kernel("router", "route_512", THREADS)?,
        })
    }

    /// Chooses for each row of `logits`.
    pub fn run(
        &self,
        device: &Device,
        logits: &CudaView<'_, f32>,
        router: &Router<'_>,
        out: Routed<'_>,
    ) -> Result<(), Error> {
        let (experts, top_k) = (router.experts, router.top_k);
        if experts == 0 || experts > MAX_EXPERTS || top_k == 0 || top_k > MAX_TOP_K.min(experts) {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "choosing {top_k} of {experts} experts on a GPU: use 1 to {MAX_TOP_K} of at most {MAX_EXPERTS}"
                ),
            }
            .into());
        }
        if let Some(bias) = &router.selection_bias {
            same("values of the selection bias", experts, bias.len())?;
        }
        let rows = logits.len() / experts;
        same("logits of whole rows", rows * experts, logits.len())?;
        at_most("chosen experts (as in memory)", out.ids.len(), rows * top_k)?;
        at_most("weights (as in memory)", out.weights.len(), rows * top_k)?;
        if let Some(gaps) = &out.gaps {
            at_most("gaps (as in memory)", gaps.len(), rows)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let mut params = Params {
            logits: device.address(logits),
            bias: router.selection_bias.as_ref().map_or(0, |bias| device.address(bias)),
            ids: device.address_mut(out.ids),
            weights: device.address_mut(out.weights),
            gaps: out.gaps.map_or(0, |gaps| device.address_mut(gaps)),
            rows: int(rows)?,
            experts: int(experts)?,
            top_k: int(top_k)?,
            sigmoid: i32::from(router.score == Score::Sigmoid),
            renormalise: i32::from(router.renormalise),
            scale: router.scale,
        };
        let kernel = if experts <= FEW_EXPERTS { self.few } else { self.many };
        let grid = (rows.div_ceil(ROWS_PER_BLOCK) as u32, 1);
        // SAFETY: `Params` is the kernel's; every buffer has room for `rows` rows.
        unsafe { launch(device, kernel, grid, Start::Overlapped, &mut [argument(&mut params)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel reads it field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernel() {
        assert_eq!(size_of::<Params>(), 64);
    }
}
