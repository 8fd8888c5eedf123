//! From a model and options to a running engine, on the backend that was chosen.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::engine::Runtime;
use super::loader::UnitSource;
use super::memory;
use super::observe::Observer;
use super::sizing::{Footprint, Room, Sizing, Slots, size, size_one};
use super::solo::{Solo, SoloParts, start_solo};
use super::start::{Parts, Progress, StartError, start};
use crate::backend::Backend as _;
use crate::backend::cpu::{CpuBackend, CpuConfig, PAGE_TOKENS, kv_page_bytes};
use crate::backend::modelled::{CostModel, ModelledBackend, ModelledConfig};
use crate::backend::routing::{Routing, SkewedRouting};
use crate::backend::weights::{UnitWeights, WeightStore};
use crate::cli::{BackendChoice, EngineOptions, IsaChoice};
use crate::model::spec::{ModelSpec, RopeSpec};
use crate::model::weights::Weights;
use sluice_core::ids::{Unit, WorkerId};
use sluice_kernels::cpu::Isa;

/// Idle compute threads of a worker spin for so long when every worker has its cores to itself.
const SPIN: Duration = Duration::from_micros(50);

/// What a build for CPUs says of `--backend cuda`.
#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str =
    "this build has no CUDA: build sluice-agent with --features cuda, or take --backend cpu";

/// What an engine is told beside its options.
pub struct Surroundings {
    /// New sequences that wait for a rank, at most.
    pub queue: usize,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Told while loading.
    pub progress: Progress,
    /// Loading ends, with an error, when this is set.
    pub cancelled: Arc<AtomicBool>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl UnitSource for WeightStore {
    type Unit = UnitWeights;

    fn load(&self, unit: Unit) -> Result<Arc<UnitWeights>, String> {
        self.unit(unit).map_err(|e| e.to_string())
    }
}

/// Units of a modelled device weigh nothing.
struct Weightless;

impl UnitSource for Weightless {
    type Unit = Unit;

    fn load(&self, unit: Unit) -> Result<Arc<Unit>, String> {
        Ok(Arc::new(unit))
    }
}

/// Bytes of the rotary tables, one for each kind of block, at the longest context.
pub(super) fn rope_bytes(spec: &ModelSpec) -> u64 {
    let mut known: Vec<&RopeSpec> = vec![];
    for block in &spec.blocks {
        let rope = &*block.attention.rope;
        if !known.contains(&rope) {
            known.push(rope);
        }
    }
    let pairs: usize = known.iter().map(|r| r.inv_freq.len()).sum();
    (spec.max_positions as u64).saturating_mul(2 * size_of::<f32>() as u64 * pairs as u64)
}

/// Starts an engine on the CPU.
///
/// # Errors
/// What could not be had.
pub fn launch_cpu(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    around: Surroundings,
) -> Result<Runtime, StartError> {
    let spec = Arc::clone(weights.spec());
    if o.page_size != PAGE_TOKENS {
        return Err(StartError::PageSize { is: o.page_size, must: PAGE_TOKENS });
    }
    let sizing = size(&spec, o, footprint(weights))?;
    let isa = isa(o.isa)?;
    // Longer sequences than the pool holds are refused at the door.
    let positions = usize::try_from(sizing.kv_tokens).unwrap_or(usize::MAX).min(spec.max_positions);
    let store = Arc::new(WeightStore::new(Arc::clone(weights), o.segments, positions));
    let routing = routing(&spec, o, &sizing)?;
    let rank = store.rank().map_err(|e| StartError::Load(e.to_string()))?;
    let numerics = numerics(weights, o, sluice_kernels::cpu::KERNEL_SET);
    let parts = Parts {
        source: Arc::clone(&store),
        numerics,
        queue: around.queue,
        observer: around.observer,
        progress: around.progress,
        link: None,
        cancelled: around.cancelled,
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let crowded = sizing.workers.iter().map(|w| w.threads).sum::<usize>() > cores;
    start(&sizing, parts, |plan| {
        let config = CpuConfig {
            isa,
            threads: plan.threads,
            spin: if crowded { Duration::ZERO } else { SPIN },
            layout: plan.config.slab,
            segments: o.segments,
            slots: plan.config.host.as_ref().map_or(0, |h| h.slots),
            kv_pages: plan.config.rank.as_ref().map_or(0, |r| r.pages),
            routing: routing.clone(),
        };
        let rank = plan.config.rank.is_some().then(|| Arc::clone(&rank));
        CpuBackend::new(Arc::clone(&spec), rank, config).map_err(|e| e.to_string())
    })
}

fn footprint(weights: &Weights) -> Footprint {
    let spec = weights.spec();
    let inventory = weights.inventory();
    Footprint {
        kv_page: kv_page_bytes(spec) as u64,
        available: memory::available(),
        rank: inventory.rank_bytes + rope_bytes(spec),
        experts: inventory.expert_bytes,
    }
}

/// The shape that is run: the model's, or that of the modelled devices.
///
/// # Errors
/// If the cost file cannot be read or makes no sense.
pub fn served_spec(weights: &Weights, o: &EngineOptions) -> Result<Arc<ModelSpec>, StartError> {
    match &o.backend {
        BackendChoice::Cpu | BackendChoice::Cuda => Ok(Arc::clone(weights.spec())),
        BackendChoice::Modelled(file) => Ok(Arc::new(read_costs(file)?.spec())),
    }
}

/// A worker that is to be alone in its process.
#[derive(Clone, Copy, Debug)]
pub struct SoloWanted {
    /// Its number.
    pub id: WorkerId,
    /// What it holds and whom it serves.
    pub room: Room,
    /// How much it is to hold.
    pub slots: Slots,
}

/// Starts a worker alone in its process, on the backend of the options.
///
/// # Errors
/// What could not be had.
pub fn launch_solo(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    wanted: SoloWanted,
    observer: Arc<dyn Observer>,
) -> Result<Solo, StartError> {
    match &o.backend {
        BackendChoice::Cpu => solo_cpu(weights, o, wanted, observer),
        #[cfg(feature = "cuda")]
        BackendChoice::Cuda => super::launch_cuda::solo_cuda(weights, o, wanted, observer),
        #[cfg(not(feature = "cuda"))]
        BackendChoice::Cuda => Err(StartError::Device(NO_CUDA.into())),
        BackendChoice::Modelled(file) => solo_modelled(file, o, wanted, observer),
    }
}

fn solo_cpu(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    wanted: SoloWanted,
    observer: Arc<dyn Observer>,
) -> Result<Solo, StartError> {
    let spec = Arc::clone(weights.spec());
    if o.page_size != PAGE_TOKENS {
        return Err(StartError::PageSize { is: o.page_size, must: PAGE_TOKENS });
    }
    let isa = isa(o.isa)?;
    let plan = size_one(&spec, o, footprint(weights), wanted.id, wanted.room, wanted.slots)?;
    let pages = plan.config.rank.as_ref().map_or(0, |r| r.pages);
    let positions = (pages as usize).saturating_mul(o.page_size as usize).min(spec.max_positions);
    let store = Arc::new(WeightStore::new(Arc::clone(weights), o.segments, positions));
    let rank = match wanted.room.is_rank {
        true => Some(store.rank().map_err(|e| StartError::Load(e.to_string()))?),
        false => None,
    };
    let config = CpuConfig {
        isa,
        threads: plan.threads,
        spin: SPIN,
        layout: plan.config.slab,
        segments: o.segments,
        slots: plan.config.host.as_ref().map_or(0, |h| h.slots),
        kv_pages: pages,
        routing: skewed(&spec, o.routing, 1)?,
    };
    let row_len = spec.hidden;
    let backend = CpuBackend::new(spec, rank, config)
        .map_err(|e| StartError::Backend { worker: wanted.id, why: e.to_string() })?;
    let numerics = numerics(weights, o, sluice_kernels::cpu::KERNEL_SET);
    start_solo(plan, SoloParts { source: store, numerics, row_len, observer }, backend)
}

fn solo_modelled(
    file: &Path,
    o: &EngineOptions,
    wanted: SoloWanted,
    observer: Arc<dyn Observer>,
) -> Result<Solo, StartError> {
    let costs = read_costs(file)?;
    let spec = costs.spec();
    let memory = Footprint::WEIGHTLESS;
    // Modelled rows have no values.
    let room = Room { message: usize::MAX, ..wanted.room };
    let plan = size_one(&spec, o, memory, wanted.id, room, wanted.slots)?;
    let even = Routing::Skew { share: 0.0, seed: 1 };
    let routing = match skewed(&spec, o.routing, 1)? {
        Some(r) => r,
        None => skewed(&spec, even, 1)?.ok_or(StartError::NoExperts)?,
    };
    let numerics = format!("modelled {}", costs.name);
    let backend = ModelledBackend::new(ModelledConfig {
        costs: Arc::new(costs),
        routing,
        segments: o.segments,
        slices: o.slices,
        device: wanted.id.0,
    });
    let row_len = backend.row_len();
    start_solo(plan, SoloParts { source: Arc::new(Weightless), numerics, row_len, observer }, backend)
}

/// Starts an engine on modelled devices: the shape of the model comes from the file.
///
/// # Errors
/// What could not be had.
pub fn launch_modelled(file: &Path, o: &EngineOptions, around: Surroundings) -> Result<Runtime, StartError> {
    let costs = read_costs(file)?;
    let spec = costs.spec();
    let memory = Footprint::WEIGHTLESS;
    let sizing = size(&spec, o, memory)?;
    let even = Routing::Skew { share: 0.0, seed: 1 };
    let routing = match routing(&spec, o, &sizing)? {
        Some(r) => r,
        None => skewed(&spec, even, sizing.workers.len())?.ok_or(StartError::NoExperts)?,
    };
    start_modelled(costs, &sizing, &routing, o.slices, around)
}

/// Starts an engine on modelled devices with workers and a placement of one's own choice.
///
/// # Errors
/// What could not be had.
pub fn start_modelled(
    costs: CostModel,
    sizing: &Sizing,
    routing: &Arc<SkewedRouting>,
    slices: u8,
    around: Surroundings,
) -> Result<Runtime, StartError> {
    let costs = Arc::new(costs);
    let link = costs.link.map(|l| l.slowed(costs.slow_down));
    let parts = Parts {
        source: Arc::new(Weightless),
        numerics: format!("modelled {}", costs.name),
        queue: around.queue,
        observer: around.observer,
        progress: around.progress,
        link,
        cancelled: around.cancelled,
    };
    start(sizing, parts, |plan| {
        Ok(ModelledBackend::new(ModelledConfig {
            costs: Arc::clone(&costs),
            routing: Arc::clone(routing),
            segments: plan.config.shape.segments,
            slices,
            device: plan.config.id.0,
        }))
    })
}

/// Reads a cost file.
///
/// # Errors
/// If it cannot be read or makes no sense.
pub fn read_costs(file: &Path) -> Result<CostModel, StartError> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| StartError::Load(format!("the cost file {} cannot be read: {e}", file.display())))?;
    CostModel::parse(&text).map_err(|e| StartError::Load(format!("{}: {e}", file.display())))
}

/// Starts an engine on the backend of the options.
///
/// # Errors
/// What could not be had.
pub fn launch(
    weights: &Arc<Weights>,
    o: &EngineOptions,
    around: Surroundings,
) -> Result<Runtime, StartError> {
    match &o.backend {
        BackendChoice::Cpu => launch_cpu(weights, o, around),
        #[cfg(feature = "cuda")]
        BackendChoice::Cuda => super::launch_cuda::launch_cuda(weights, o, around),
        #[cfg(not(feature = "cuda"))]
        BackendChoice::Cuda => Err(StartError::Device(NO_CUDA.into())),
        BackendChoice::Modelled(file) => launch_modelled(file, o, around),
    }
}

fn isa(choice: IsaChoice) -> Result<Isa, StartError> {
    let isa = match choice {
        IsaChoice::Auto => Isa::best(),
        IsaChoice::Avx512 => Isa::Avx512,
        IsaChoice::Avx2 => Isa::Avx2,
        IsaChoice::Neon => Isa::Neon,
        IsaChoice::Portable => Isa::Portable,
    };
    match isa.is_available() {
        true => Ok(isa),
        false => Err(StartError::Isa { wanted: isa.to_string() }),
    }
}

pub(super) fn routing(
    spec: &ModelSpec,
    o: &EngineOptions,
    sizing: &Sizing,
) -> Result<Option<Arc<SkewedRouting>>, StartError> {
    let hosts = sizing.workers.iter().filter(|w| w.config.host.is_some()).count();
    skewed(spec, o.routing, hosts)
}

pub(super) fn skewed(
    spec: &ModelSpec,
    routing: Routing,
    devices: usize,
) -> Result<Option<Arc<SkewedRouting>>, StartError> {
    let Some(moe) = spec.blocks.iter().find_map(|b| b.feed_forward.moe()) else { return Ok(None) };
    let drawn = SkewedRouting::new(routing, spec.blocks.len(), moe.experts, moe.top_k, devices);
    Ok(drawn.map_err(|e| StartError::Load(e.to_string()))?.map(Arc::new))
}

/// The hash of all that decides the bits: weights, segments, kernels, the kind of device, sampler. Nothing of the layout.
pub(super) fn numerics(weights: &Weights, o: &EngineOptions, kernels: &str) -> String {
    let mut h = blake3::Hasher::new();
    h.update(kernels.as_bytes());
    h.update(crate::sampling::SAMPLER.as_bytes());
    h.update(&[o.segments]);
    h.update(format!("{:?}", o.routing).as_bytes());
    h.update(weights.fingerprint().to_string().as_bytes());
    format!("sluice-{}", &h.finalize().to_hex()[..16])
}
