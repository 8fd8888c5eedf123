//! `gateway`: the OpenAI API before ranks in other processes, until it is told to stop.

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use sluice_core::front::RankLoad;
use sluice_core::hello::{Hello, Role};
use sluice_core::ids::{Attempt, Nanos, SeqKey, WorkerId};
use sluice_core::sequence::Bind;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::admin::{AdminTask, Pages, stop_admin};
use super::error::NodeError;
use super::front::{gateway, serve_front, served_name};
use super::hearing::hear;
use super::incarnation::incarnation;
use super::listen::{bind, bind_if};
use super::open_model;
use super::serve::Serving;
use super::source::Starting;
use super::worker::security;
use crate::cli::GatewayOptions;
use crate::gateway::{Admin, Keys};
use crate::link::gateway::{DialError, Dialed, GatewaySide, Link, Rank};
use crate::link::{LinkConfig, Lost};
use crate::runtime::{FrontDoor, RankLink, Told, start_front};
use crate::sampling::Draw;
use crate::table::{Member, Table};
use crate::telemetry::Telemetry;
use crate::transport::{Asker, Connection, Dialer, GreetError, Sockets, listen_for_pages};

/// Serves until `stop` resolves; then what runs may finish within the grace period. Returns how many connections had
/// to be cut.
///
/// # Errors
/// What could not be had; nothing is left running then.
pub async fn run_gateway(
    options: GatewayOptions,
    ready: impl FnOnce(&Serving),
    stop: impl Future<Output = ()>,
) -> Result<usize, NodeError> {
    let (listener, address) = bind(options.front.listen).await?;
    let admin = bind_if(options.front.admin_listen).await?;
    let peers = bind_if(options.peer_listen).await?;
    let keys = options.front.api_key_file.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
    let security = Arc::new(security(&options.node, Role::Gateway)?);
    // A gateway has no experts: what is wrong with the units is for workers to say.
    let admin_at = admin.as_ref().map(|(_, at)| *at);
    let open = options.node.tls.is_none();
    let starting = Arc::new(Starting::new("waiting for the placement's list of workers"));
    let admin = admin.map(|(listener, _)| AdminTask::start(listener, starting.clone(), open));
    let mut stop = std::pin::pin!(stop);
    let source = tokio::select! {
        source = starting.open(&options.node, false, |table| table.generation > 0) => source?,
        () = &mut stop => {
            stop_admin(admin).await?;
            return Ok(0);
        }
    };
    let telemetry = Arc::new(Telemetry::new(0..0)?);
    let pages = Arc::new(Pages {
        telemetry: telemetry.clone(),
        runtime: OnceLock::new(),
        draining: AtomicBool::new(false),
        heard: Arc::default(),
    });
    starting.shows(pages.clone());
    let asker = Asker::new(Arc::clone(&security), options.node.deployment.clone());
    let _hearing = Ends(tokio::spawn(hear(Arc::clone(&pages.heard), asker, source.watch())));
    let _peers = peers.map(|(listener, at)| {
        tracing::info!(%at, "pages for who has a certificate of the deployment");
        let shown = pages.clone();
        let pressure = Arc::new(move || Admin::pressure(&*shown));
        let pages = Arc::new(crate::transport::Pages { source: Arc::clone(&source), pressure });
        let deployment = options.node.deployment.clone();
        Ends(tokio::spawn(listen_for_pages(listener, Arc::clone(&security), deployment, pages)))
    });
    let from = options.model.clone();
    let model = tokio::select! {
        model = tokio::task::spawn_blocking(move || open_model(&from)) => model??,
        () = &mut stop => {
            stop_admin(admin).await?;
            return Ok(0);
        }
    };

    let (runtime, door) = start_front(options.front.max_queue as usize, telemetry.clone())?;
    let runtime = Arc::new(runtime);
    let _ = pages.runtime.set(runtime.clone());
    let hello = Hello {
        deployment: options.node.deployment.clone(),
        worker: None,
        name: options.node.name.clone(),
        incarnation: incarnation(&options.node),
        role: Role::Gateway,
        wire: options.node.wire,
        numerics: None,
        schedule: None,
    };
    let table = source.watch();
    let sockets = options.node.sockets.as_deref().map(Sockets::new);
    let dialer = Arc::new(Dialer::new(hello, Arc::clone(&security), sockets, table.clone()));
    let renewing = tokio::spawn(async move { security.watch().await });
    let following = tokio::spawn(follow(table, dialer, door));

    let front = gateway(&model, runtime.clone(), &options.front, &telemetry)
        .with_keys(keys)
        .with_traces(options.traces.sample);
    let numerics = runtime.numerics_id().as_ref().to_owned();
    let model = served_name(&model, &options.front);
    ready(&Serving { model, listen: address, admin: admin_at, numerics });
    let served = serve_front(front, listener, &options.front, &runtime, &pages, stop).await;
    following.abort();
    renewing.abort();
    stop_admin(admin).await?;
    served
}

/// A task that ends with the gateway.
struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A link that ends with its rank's row in the table.
struct Kept {
    member: Member,
    task: JoinHandle<()>,
    door: FrontDoor,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
        self.door.rank_down(self.member.number);
    }
}

/// Keeps a link with each rank of the table.
async fn follow(mut table: watch::Receiver<Arc<Table>>, dialer: Arc<Dialer>, door: FrontDoor) {
    let mut links: HashMap<WorkerId, Kept> = HashMap::new();
    loop {
        let current = Arc::clone(&table.borrow_and_update());
        links.retain(|_, kept| current.workers.contains(&kept.member));
        for member in current.workers.iter().filter(|m| m.role.is_rank()) {
            links.entry(member.number).or_insert_with(|| {
                let task = tokio::spawn(keep(member.clone(), Arc::clone(&dialer), door.clone()));
                Kept { member: member.clone(), task, door: door.clone() }
            });
        }
        if table.changed().await.is_err() {
            return;
        }
    }
}

async fn keep(member: Member, dialer: Arc<Dialer>, door: FrontDoor) {
    let side = Arc::new(Side { rank: member.number, door });
    let rank = member.name.clone();
    let incarnation = dialer.incarnation();
    let dial = move || {
        let (dialer, member) = (Arc::clone(&dialer), member.clone());
        async move {
            let (hello, connection) = dialer.rank(&member).await.map_err(|e| dial_error(&e))?;
            let Connection { stream, .. } = connection;
            Ok(Dialed { stream, numerics: hello.numerics.unwrap_or_default().into() })
        }
    };
    Link { dial, side, rank, incarnation, config: LinkConfig::default() }.run().await;
}

fn dial_error(e: &GreetError) -> DialError {
    match e {
        GreetError::Io(io) | GreetError::Handshake(io) if io.kind() != ErrorKind::ConnectionRefused => {
            DialError::Failed(e.to_string())
        }
        GreetError::Silent | GreetError::Garbage(_) => DialError::Failed(e.to_string()),
        _ => DialError::Refused(e.to_string()),
    }
}

/// What a link calls.
struct Side {
    rank: WorkerId,
    door: FrontDoor,
}

impl GatewaySide for Side {
    fn now(&self) -> Nanos {
        self.door.now()
    }

    fn up(&self, rank: Rank, numerics: &str, load: RankLoad) {
        self.door.rank_up(self.rank, numerics, load, Arc::new(Remote(rank)));
    }

    fn down(&self, _why: &Lost) {
        self.door.rank_down(self.rank);
    }

    fn told(&self, events: Vec<Told>) {
        self.door.rank(self.rank, events, None);
    }

    fn load(&self, load: RankLoad) {
        self.door.rank(self.rank, vec![], Some(load));
    }
}

/// A rank of another process.
struct Remote(Rank);

impl RankLink for Remote {
    fn bind(&self, bind: Bind, draw: Draw) {
        self.0.bind(bind, draw.sampling, draw.grammar.as_ref().map(|g| &**g.source()));
    }

    fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        self.0.cancel(seq, attempt);
    }
}
