//! `attention`, `experts` and `hybrid`: one worker, its connections and its pages, until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_core::hello::{Hello, Role};
use sluice_core::ids::{Class, MILLI, SECOND, Unit, WorkerId};
use sluice_identity::{Identity, role_name};
use tokio::sync::watch;

use super::admin::{AdminTask, EngineFacts, WorkerPages, stop_admin};
use super::drain::drain;
use super::error::NodeError;
use super::front::grammars;
use super::incarnation::incarnation;
use super::listen::{bind, bind_if};
use super::observers::Peers;
use super::open_model;
use super::ranks::{Accepting, Side};
use super::source::Starting;
use crate::cli::{NodeOptions, WorkerOptions};
use crate::gateway::Admin;
use crate::link::LinkConfig;
use crate::link::rank::Gateways as Sessions;
use crate::runtime::{Door, Room, Slots, Solo, SoloWanted, launch_solo, served_spec};
use crate::table::{self, PlacementSource, Table};
use crate::telemetry::Telemetry;
use crate::transport::{Gateways, LONGEST_MESSAGE, Mesh, MeshConfig, Security, Sockets};

/// A peer that holds something of ours and gives no sign for so long, and for 64 cycles, is masked.
const PATIENCE: u64 = 200 * MILLI;
/// A worker that is much slower than its siblings gets a batch so often.
const PROBE_EVERY: u64 = SECOND;

/// Where a worker is.
#[derive(Clone, Debug)]
pub struct WorkerServing {
    /// Its name.
    pub name: String,
    /// Peers and gateways.
    pub peers: SocketAddr,
    /// Health, metrics, pressure.
    pub admin: Option<SocketAddr>,
    /// The hash of all that decides the bits.
    pub numerics: String,
}

/// Runs until `stop` resolves; then what is held may finish, or is handed over, within the grace period.
///
/// # Errors
/// What could not be had; nothing is left running then.
pub async fn run_worker(
    options: WorkerOptions,
    ready: impl FnOnce(&WorkerServing),
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let (listener, peers) = bind(options.peer_listen).await?;
    let admin = bind_if(options.admin_listen).await?;
    let sockets = options.node.sockets.as_deref().map(Sockets::new);
    let local = sockets.map(|sockets| sockets.listen(&options.node.name)).transpose()?;
    let security = Arc::new(security(&options.node, options.role)?);
    let admin_at = admin.as_ref().map(|(_, at)| *at);
    let open = options.node.tls.is_none();
    let starting = Arc::new(Starting::new("waiting for the placement to name this worker"));
    let admin = admin.map(|(listener, _)| AdminTask::start(listener, starting.clone(), open));
    let mut stop = std::pin::pin!(stop);
    let source = tokio::select! {
        source = starting.open(&options.node, true, |t| t.member(&options.node.name).is_some()) => source?,
        () = &mut stop => {
            stop_admin(admin).await?;
            return Ok(());
        }
    };
    let table = source.watch();
    let own = own(&options, &*source)?;
    let telemetry = Arc::new(Telemetry::new(own.0..own.0 + 1)?);
    let (name, incarnation) = (options.node.name.as_str(), incarnation(&options.node));
    let pages = Arc::new(WorkerPages::new(telemetry.clone(), (own, name), incarnation, table.clone()));
    starting.shows(pages.clone());
    let observer = Arc::new(Peers { telemetry: telemetry.clone(), worker: own });

    let loaded = tokio::select! {
        loaded = load(&options, &source, own, telemetry) => loaded?,
        () = &mut stop => {
            stop_admin(admin).await?;
            return Ok(());
        }
    };
    let Loaded { solo, sessions } = loaded;
    let door = solo.door();
    if let Some(host) = &solo.plan().config.host {
        tracing::info!(slots = host.slots, "room for units of experts");
    }
    let _ = pages.engine.set(EngineFacts {
        slots: solo.plan().config.host.as_ref().map_or(0, |h| h.slots),
        numerics: solo.numerics_id().to_owned(),
        shape: solo.plan().config.shape.clone(),
    });
    let sessions = sessions.map(Arc::new);
    let gateways = sessions.clone().map(|s| Arc::new(Accepting(s)) as Arc<dyn Gateways>);
    let shown = pages.clone();
    let pressure = Arc::new(move || Admin::pressure(&*shown));
    let hello = Hello {
        deployment: options.node.deployment.clone(),
        worker: Some(own),
        name: options.node.name.clone(),
        incarnation,
        role: options.role,
        wire: options.node.wire,
        numerics: Some(solo.numerics_id().to_owned()),
        schedule: Some(solo.plan().config.schedule()),
    };
    let mesh = Mesh::start(
        listener,
        table.clone(),
        MeshConfig {
            hello,
            security,
            door: Arc::clone(&door),
            observer,
            row_len: solo.row_len(),
            prefill: Class(options.engine.waves),
            all_pairs: solo.plan().config.policy == sluice_core::config::Policy::Sync,
            pages: Arc::new(crate::transport::Pages { source: Arc::clone(&source), pressure }),
            masks: Arc::clone(&pages.masks),
            local,
            gateways,
        },
    );
    let placing = tokio::spawn(place(table.clone(), Arc::clone(&door), Arc::clone(&pages)));
    let numerics = solo.numerics_id().to_owned();
    ready(&WorkerServing { name: options.node.name.clone(), peers, admin: admin_at, numerics });
    let lost = tokio::select! {
        () = &mut stop => None,
        why = solo.lost() => Some(why),
    };
    pages.draining.store(true, Ordering::Relaxed);
    if lost.is_none() {
        let is_needed = |late| {
            !pages.is_drained(late)
                || sessions.as_ref().is_some_and(|s| s.has_bound())
                || table.borrow().depends_on(own)
        };
        drain(&*door, options.shutdown_grace, is_needed).await;
    }
    placing.abort();
    drop(mesh);
    tokio::task::spawn_blocking(move || drop(solo)).await?;
    stop_admin(admin).await?;
    lost.map_or(Ok(()), |why| Err(NodeError::Lost(why)))
}

/// TLS as the options want it.
pub(super) fn security(node: &NodeOptions, role: Role) -> Result<Security, NodeError> {
    match &node.tls {
        Some(dir) => {
            let worker = Some(node.name.clone());
            Ok(Security::from_dir(dir, Identity { deployment: node.deployment.clone(), role, worker })?)
        }
        None => {
            tracing::warn!("--tls off: whoever reaches the ports can read and change what is served");
            Ok(Security::Off)
        }
    }
}

/// The number that the table has for this process.
fn own(options: &WorkerOptions, source: &dyn PlacementSource) -> Result<WorkerId, NodeError> {
    let (name, at) = (&options.node.name, source.name());
    let table = Arc::clone(&source.watch().borrow());
    match table.member(name) {
        Some(m) if m.role == options.role => Ok(m.number),
        Some(m) => Err(NodeError::Table(format!(
            "the placement table {at} has {name} as {}, and this process is {}",
            role_name(m.role),
            role_name(options.role)
        ))),
        None => Err(NodeError::Table(format!(
            "the placement table {at} has no worker {name:?}: add it, or give --name"
        ))),
    }
}

/// A worker, and its end of gateways' links if it is a rank.
struct Loaded {
    solo: Solo,
    sessions: Option<Sessions>,
}

async fn load(
    options: &WorkerOptions,
    source: &Arc<dyn PlacementSource>,
    own: WorkerId,
    telemetry: Arc<Telemetry>,
) -> Result<Loaded, NodeError> {
    let table = Arc::clone(&source.watch().borrow());
    let segments = |unit: Unit| u32::from(unit.slice.hi - unit.slice.lo);
    let slots = Slots {
        given: options.slots,
        units: table.held_by(own).count() as u32,
        segments: table.held_by(own).map(segments).sum(),
    };
    let room = Room {
        is_rank: options.role.is_rank(),
        is_host: options.role.is_host(),
        ranks: options.max_ranks,
        patience: PATIENCE,
        probe_every: Some(PROBE_EVERY),
        message: LONGEST_MESSAGE,
    };
    let (placement, from, mut engine) = (Arc::clone(source), options.model.clone(), options.engine.clone());
    // What a rank has return rows for is fixed for its life.
    engine.slices = options.slices.unwrap_or_else(|| table.finest(engine.segments));
    tokio::task::spawn_blocking(move || {
        let model = open_model(&from)?;
        let spec = served_spec(&model.weights, &engine)?;
        let parts = room.is_rank.then_some(engine.slices);
        placement.hold(table::Engine::of(&spec, engine.segments, parts))?;
        let solo = launch_solo(&model.weights, &engine, SoloWanted { id: own, room, slots }, telemetry)?;
        let sessions = room.is_rank.then(|| {
            let side = Arc::new(Side { door: solo.door(), clock: solo.clock() });
            // What a gateway lets through is compiled here, however large its limit is.
            let compiler = grammars(&model, usize::MAX);
            Sessions::new(side, model.spec.vocab, compiler, LinkConfig::default())
        });
        Ok(Loaded { solo, sessions })
    })
    .await?
}

/// Tells the worker each newer slice, and complains, once, if it has not room for all of them.
async fn place(mut table: watch::Receiver<Arc<Table>>, door: Arc<dyn Door>, pages: Arc<WorkerPages>) {
    let mut complaint = None;
    loop {
        let current = Arc::clone(&table.borrow_and_update());
        current.slices.iter().for_each(|slice| door.placement(Arc::clone(slice)));
        let overfull = pages.overfull();
        if let Some(why) = overfull.as_ref().filter(|why| complaint.as_ref() != Some(*why)) {
            tracing::error!("{why}");
        }
        complaint = overfull;
        if table.changed().await.is_err() {
            return;
        }
    }
}
