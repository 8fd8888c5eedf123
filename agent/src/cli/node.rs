//! The flags of processes that are one engine together.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use sluice_core::hello::{Role, WireVersions};
use sluice_wire::WIRE;

use super::Invalid;
use super::engine::{EngineArgs, LayoutArgs, ModelArgs, check_slices};
use super::front::{FrontArgs, ProcessArgs};
use super::options::{GatewayOptions, NodeOptions, PlacementOptions, PlanOptions, WorkerOptions};

pub(super) const EXAMPLES: &str = "\
Examples:
  Two workers and a gateway on one machine. workers.yaml lists the workers:
    workers:
    - {number: 0, name: a0, role: attention, address: \"127.0.0.1:7000\"}
    - {number: 1, name: e0, role: experts, address: \"127.0.0.1:7001\"}

    sluice-agent plan --workers workers.yaml > table.yaml
    sluice-agent attention --name a0 --table table.yaml --tls off --peer-listen 127.0.0.1:7000 --admin-listen off
    sluice-agent experts --name e0 --table table.yaml --tls off --peer-listen 127.0.0.1:7001 --admin-listen off
    sluice-agent gateway --name g0 --table table.yaml --tls off

The table is watched: who holds which expert, and who there is, may change at any time.";

pub(super) const PLAN_EXAMPLES: &str = "\
Examples:
  sluice-agent plan --workers workers.yaml > table.yaml
  sluice-agent plan --workers table.yaml --replicas 2 > newer.yaml    (generations rise)";

/// What processes of one deployment have in common.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Deployment")]
pub struct NodeArgs {
    /// The name of this process in the table and in its certificate, the same over restarts.
    #[arg(long, env = "SLUICE_NAME", value_name = "NAME")]
    pub name: String,
    /// The deployment: who belongs to another is not talked to.
    #[arg(long, env = "SLUICE_DEPLOYMENT", default_value = "default/sluice", value_name = "NAMESPACE/NAME")]
    pub deployment: String,
    /// The placement table: workers, and who holds which expert (YAML; see `sluice-agent plan`). Watched. In a pod it is
    /// --placement instead.
    #[arg(long, env = "SLUICE_TABLE", value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// The MoEDeployment whose ExpertPlacements are the placement table, in the namespace of --deployment. They are
    /// watched through the API server of the pod's service account, or of KUBECONFIG. Until they name this process, it
    /// waits.
    #[arg(long, env = "SLUICE_PLACEMENT", value_name = "NAME")]
    pub placement: Option<String>,
    /// With --placement: the cohort that this worker is of. A gateway without it serves all cohorts.
    #[arg(long, env = "SLUICE_COHORT", value_name = "NAME")]
    pub cohort: Option<String>,
    /// With --placement: where the last table is kept. A process that starts while the API server is away begins with it.
    #[arg(long, env = "SLUICE_PLACEMENT_CACHE", value_name = "FILE")]
    pub placement_cache: Option<PathBuf>,
    /// A directory with tls.crt, tls.key and ca.crt for mutual TLS between the processes, read again when they change.
    /// The certificate names spiffe://sluice/ns/NAMESPACE/moe/NAME/role/ROLE/worker/NAME (gateways: .../role/gateway).
    /// `off` for none: anybody who reaches the ports can then read and change what is served.
    #[arg(long, env = "SLUICE_TLS", value_name = "DIR|off")]
    pub tls: PathBuf,
    /// The newest version of the wire to speak. Each connection has the newest that both of its ends speak; this holds
    /// all of them at an old one during an upgrade: give it to processes of the new release, and take it away when
    /// every process is of that.
    #[arg(
        long,
        env = "SLUICE_WIRE_MAX",
        default_value_t = WIRE.max,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(i64::from(WIRE.min)..=i64::from(WIRE.max))
    )]
    pub wire_max: u16,
    /// A directory in which the processes of this host find each other's Unix sockets, and talk over them instead of
    /// TCP: faster, and without TLS. It must be this deployment's own; who runs as another user is not talked to. Others,
    /// and those without a socket there, are reached over TCP as before.
    #[arg(long, env = "SLUICE_PEER_SOCKETS", value_name = "DIR")]
    pub peer_sockets: Option<PathBuf>,
}

impl NodeArgs {
    /// `needs_cohort`: it is a worker.
    fn check(&self, needs_cohort: bool) -> Result<NodeOptions, Invalid> {
        let parts: Vec<&str> = self.deployment.split('/').collect();
        if parts.len() != 2 || parts.iter().any(|p| p.is_empty()) {
            return Err(Invalid(format!(
                "--deployment {:?}: write NAMESPACE/NAME, as in default/sluice",
                self.deployment
            )));
        }
        if self.name.is_empty() {
            return Err(Invalid(
                "--name is empty: give the process the name that the table has for it".into(),
            ));
        }
        Ok(NodeOptions {
            name: self.name.clone(),
            deployment: self.deployment.clone(),
            placement: self.placement(parts[0], needs_cohort)?,
            tls: (self.tls.as_os_str() != "off").then(|| self.tls.clone()),
            wire: WireVersions { max: self.wire_max, ..WIRE },
            sockets: self.peer_sockets.clone(),
        })
    }

    fn placement(&self, namespace: &str, needs_cohort: bool) -> Result<PlacementOptions, Invalid> {
        let invalid = |why: &str| Err(Invalid(why.into()));
        let name = match (&self.table, &self.placement) {
            (Some(_), Some(_)) => {
                return invalid(
                    "--table and --placement (or SLUICE_TABLE and SLUICE_PLACEMENT) are both given: the placement comes \
                     from a file or from the API server, so leave one out",
                );
            }
            (None, None) => {
                return invalid(
                    "neither --table nor --placement is given: say where the placement comes from, --table FILE or, in a \
                     cluster, --placement NAME of the MoEDeployment",
                );
            }
            (Some(_), None) if self.cohort.is_some() || self.placement_cache.is_some() => {
                return invalid("--cohort and --placement-cache go with --placement, not with --table");
            }
            (Some(file), None) => return Ok(PlacementOptions::File(file.clone())),
            (None, Some(name)) => name,
        };
        if needs_cohort && self.cohort.is_none() {
            return invalid(
                "--placement needs --cohort: a worker is of one cohort, and serves with no other",
            );
        }
        for (flag, value) in [("--placement", Some(name)), ("--cohort", self.cohort.as_ref())] {
            if let Some(value) = value.filter(|v| !is_label(v)) {
                return invalid(&format!(
                    "{flag} {value:?}: names have small letters, digits and dashes, 63 at most"
                ));
            }
        }
        Ok(PlacementOptions::Watched {
            namespace: namespace.into(),
            name: name.clone(),
            cohort: self.cohort.clone(),
            cache: self.placement_cache.clone(),
        })
    }
}

/// Whether it may be a label's value, and selects nothing else.
fn is_label(value: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    (1..=63).contains(&value.len()) && value.chars().all(is_plain)
}

/// The flags of `attention`, `experts` and `hybrid`.
#[derive(Args, Clone, Debug)]
pub struct WorkerArgs {
    /// The process.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where peers and gateways connect.
    #[arg(
        long,
        env = "SLUICE_PEER_LISTEN",
        default_value = "0.0.0.0:7070",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    pub peer_listen: SocketAddr,
    /// Experts (slices of experts) that there is room for. [default: what the table gives this worker at its start, and
    /// half of that again; if that is none, all of the model's, as far as memory allows]
    #[arg(long, env = "SLUICE_SLOTS", value_name = "N", help_heading = "Parallelism")]
    pub slots: Option<u32>,
    /// Attention ranks that an expert worker has landing rows for.
    #[arg(
        long,
        env = "SLUICE_MAX_RANKS",
        default_value_t = 16,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=4096),
        help_heading = "Parallelism"
    )]
    pub max_ranks: u32,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// What every process has.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl WorkerArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self, role: Role) -> Result<WorkerOptions, Invalid> {
        Ok(WorkerOptions {
            node: self.node.check(true)?,
            role,
            model: self.model.source(),
            engine: self.engine.check(&LayoutArgs::ALONE)?,
            peer_listen: self.peer_listen,
            admin_listen: self.process.admin_listen.0,
            slots: self.slots,
            slices: self.engine.slices,
            max_ranks: self.max_ranks,
            shutdown_grace: self.process.shutdown_grace,
        })
    }
}

/// The flags of `gateway`.
#[derive(Args, Clone, Debug)]
pub struct GatewayArgs {
    /// The process.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the operator finds /v1/pressure, that of all workers with it, and /v1/placement, with a certificate of the
    /// deployment. [default: nowhere]
    #[arg(long, env = "SLUICE_PEER_LISTEN", value_name = "ADDR", help_heading = "Network")]
    pub peer_listen: Option<SocketAddr>,
    /// The front.
    #[command(flatten)]
    pub front: FrontArgs,
}

impl GatewayArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<GatewayOptions, Invalid> {
        let (front, traces) = self.front.check()?;
        let (node, model, peer_listen) = (self.node.check(false)?, self.model.source(), self.peer_listen);
        Ok(GatewayOptions { node, model, peer_listen, front, traces })
    }
}

/// The flags of `plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A table with the workers (YAML). If it has slices, those printed have higher generations.
    #[arg(long, value_name = "FILE")]
    pub workers: PathBuf,
    /// Copies of every expert, on different workers.
    #[arg(long, default_value_t = 1, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: u32,
    /// Slices an expert is cut into. Divides --segments.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub slices: u8,
    /// Segments of an expert's inner dimension: 1, 2, 4 or 8.
    #[arg(long, default_value_t = 8, value_name = "G")]
    pub segments: u8,
    /// Slots of each worker. [default: as many as it takes]
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
}

impl PlanArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<PlanOptions, Invalid> {
        check_slices(self.slices, self.segments)?;
        Ok(PlanOptions {
            model: self.model.source(),
            workers: self.workers.clone(),
            replicas: self.replicas,
            slices: self.slices,
            segments: self.segments,
            slots: self.slots,
        })
    }
}
