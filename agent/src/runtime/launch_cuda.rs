//! Engines and workers on a GPU.

use std::sync::Arc;

use super::engine::Runtime;
use super::launch::{SoloWanted, Surroundings, numerics, rope_bytes, routing, skewed};
use super::loader::UnitSource;
use super::observe::Observer;
use super::sizing::{Footprint, WorkerPlan, size, size_one};
use super::solo::{Solo, SoloParts, start_solo};
use super::start::{Parts, StartError, start};
use crate::backend::cuda::{CudaBackend, CudaConfig, PAGE_TOKENS, UnitWeights, WeightStore, kv_page_bytes};
use crate::backend::routing::SkewedRouting;
use crate::cli::EngineOptions;
use crate::model::weights::Weights;
use sluice_core::ids::Unit;
use sluice_kernels::cuda::{Device, KERNEL_SET};

/// One part in so many of the free memory is left to what steps work in, and to the driver.
const WORKING_PART: usize = 10;

impl UnitSource for WeightStore {
    type Unit = UnitWeights;

    fn load(&self, unit: Unit) -> Result<Arc<UnitWeights>, String> {
        self.unit(unit).map_err(|e| e.to_string())
    }
}

/// Starts an engine on a GPU: all of its workers share it.
///
/// # Errors
/// What could not be had.
pub fn launch_cuda(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    around: Surroundings,
) -> Result<Runtime, StartError> {
    let spec = Arc::clone(weights.spec());
    let device = open(o)?;
    let sizing = size(&spec, o, footprint(weights, &device)?)?;
    let positions = usize::try_from(sizing.kv_tokens).unwrap_or(usize::MAX).min(spec.max_positions);
    let store = WeightStore::new(Arc::clone(weights), Arc::clone(&device), o.segments, positions);
    let store = Arc::new(store);
    let routing = routing(&spec, o, &sizing)?;
    let rank = store.rank().map_err(|e| StartError::Load(e.to_string()))?;
    let parts = Parts {
        source: Arc::clone(&store),
        numerics: numerics(weights, o, &kernels(&device)),
        queue: around.queue,
        observer: around.observer,
        progress: around.progress,
        link: None,
        cancelled: around.cancelled,
    };
    start(&sizing, parts, |plan| {
        let rank = plan.config.rank.is_some().then(|| Arc::clone(&rank));
        let config = config(plan, o, routing.clone());
        CudaBackend::new(&spec, &device, rank, &config).map_err(|e| e.to_string())
    })
}

/// Starts a worker alone in its process, on a GPU.
pub(super) fn solo_cuda(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    wanted: SoloWanted,
    observer: Arc<dyn Observer>,
) -> Result<Solo, StartError> {
    let spec = Arc::clone(weights.spec());
    let device = open(o)?;
    let footprint = footprint(weights, &device)?;
    let plan = size_one(&spec, o, footprint, wanted.id, wanted.room, wanted.slots)?;
    let pages = plan.config.rank.as_ref().map_or(0, |r| r.pages);
    let positions = (pages as usize).saturating_mul(o.page_size as usize).min(spec.max_positions);
    let store = WeightStore::new(Arc::clone(weights), Arc::clone(&device), o.segments, positions);
    let rank = match wanted.room.is_rank {
        true => Some(store.rank().map_err(|e| StartError::Load(e.to_string()))?),
        false => None,
    };
    let numerics = numerics(weights, o, &kernels(&device));
    let (row_len, config) = (spec.hidden, config(&plan, o, skewed(&spec, o.routing, 1)?));
    let backend = CudaBackend::new(&spec, &device, rank, &config)
        .map_err(|e| StartError::Backend { worker: wanted.id, why: e.to_string() })?;
    start_solo(plan, SoloParts { source: Arc::new(store), numerics, row_len, observer }, backend)
}

fn open(o: &EngineOptions) -> Result<Arc<Device>, StartError> {
    if o.page_size != PAGE_TOKENS {
        return Err(StartError::PageSize { is: o.page_size, must: PAGE_TOKENS });
    }
    let device = Device::open(0).map_err(|e| StartError::Device(e.to_string()))?;
    Ok(Arc::new(device))
}

fn footprint(weights: &Weights, device: &Device) -> Result<Footprint, StartError> {
    let (free, _) = device.memory().map_err(|e| StartError::Device(e.to_string()))?;
    let inventory = weights.inventory();
    Ok(Footprint {
        kv_page: kv_page_bytes(weights.spec()) as u64,
        available: (free - free / WORKING_PART) as u64,
        rank: inventory.rank_bytes + rope_bytes(weights.spec()),
        experts: inventory.expert_bytes,
    })
}

fn config(plan: &WorkerPlan, o: &EngineOptions, routing: Option<Arc<SkewedRouting>>) -> CudaConfig {
    CudaConfig {
        layout: plan.config.slab,
        segments: o.segments,
        slices: o.slices,
        slots: plan.config.host.as_ref().map_or(0, |h| h.slots),
        expert_rows: plan.config.max_expert_rows,
        kv_pages: plan.config.rank.as_ref().map_or(0, |r| r.pages),
        routing,
    }
}

/// The kernels and the kind of device that compute the bits.
fn kernels(device: &Device) -> String {
    format!("{KERNEL_SET} {}", device.name())
}
