//! The operator as a process: the lease, the watches, the reconciles, the pages.

use crate::admin::{Admin, router};
use crate::apply::Writer;
use crate::authority::Authorities;
use crate::context::Context;
use crate::leader::Leadership;
use crate::pressure::Hub;
use crate::reconcile;
use crate::stores::{Queue, Stores};
use anyhow::Context as _;
use futures_util::StreamExt;
use futures_util::future::{join_all, select_all};
use kube::Client;
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config, ReconcileRequest};
use kube::runtime::reflector::ObjectRef;
use sluice_crds::MoEDeployment;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Reconciles at a time.
const AT_A_TIME: u16 = 16;
/// Changes that come in a burst are one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Deployments that wait to be looked at.
const WAITING: usize = 4096;

/// What the operator is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image of agents where a manifest gives none.
    pub agent_image: String,
    /// The namespaces that are watched; all of them if it is empty.
    pub watched: Vec<String>,
    /// The operator's own namespace.
    pub namespace: String,
    /// Who it is among operators.
    pub identity: String,
    /// Where its pages are.
    pub listen: SocketAddr,
    /// How long the lease lasts without being renewed.
    pub lease: Duration,
}

/// Runs until it is told to stop, or has lost its lease.
///
/// # Errors
/// What it cannot do without.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("cannot find a cluster: neither KUBECONFIG nor a pod's account")?;
    let admin = Arc::new(Admin::new().context("cannot register metrics")?);
    let listener = tokio::net::TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", settings.listen))?;
    let pages = router(Arc::clone(&admin));
    tokio::spawn(async move { axum::serve(listener, pages).await });

    // A part per namespace: rights in some namespaces are no rights to list them all.
    let namespaces: Vec<Option<&str>> = match settings.watched.as_slice() {
        [] => vec![None],
        some => some.iter().map(|n| Some(n.as_str())).collect(),
    };
    let mut parts: Vec<Part> = namespaces.into_iter().map(|n| Part::watch(&client, n)).collect();
    let leadership =
        Leadership::new(client.clone(), &settings.namespace, settings.identity.clone(), settings.lease);
    tokio::pin!(stop);
    let stores: Vec<Stores> = parts.iter().map(|p| p.stores.clone()).collect();
    // A standby keeps its cache warm, and does not let the queues fill.
    let synced = async {
        join_all(stores.iter().map(Stores::ready)).await;
        admin.is_synced.store(true, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = leadership.acquire() => {}
        () = drain(&mut parts) => {}
        () = synced => {}
        () = &mut stop => return Ok(()),
    }
    tracing::info!(identity = settings.identity, "leads");
    admin.leads.set(1);
    let done = tokio::select! {
        done = lead(client, parts, &settings, admin) => done,
        () = leadership.hold() => anyhow::bail!("the lease is lost: another operator goes on"),
        () = &mut stop => Ok(()),
    };
    leadership.release().await;
    done
}

/// The watches of a namespace, or of all.
struct Part {
    stores: Stores,
    queue: Queue,
    waiting: mpsc::Receiver<ObjectRef<MoEDeployment>>,
}

impl Part {
    fn watch(client: &Client, namespace: Option<&str>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        Self { stores: Stores::watch(client, namespace, &queue), queue, waiting }
    }
}

async fn drain(parts: &mut [Part]) {
    let all = parts.iter_mut().map(|p| async { while p.waiting.recv().await.is_some() {} });
    join_all(all).await;
}

/// Reconciles until a watch ends, which none does.
async fn lead(
    client: Client,
    parts: Vec<Part>,
    settings: &Settings,
    admin: Arc<Admin>,
) -> anyhow::Result<()> {
    join_all(parts.iter().map(|p| p.stores.ready())).await;
    admin.is_synced.store(true, Ordering::Relaxed);
    let writer = Arc::new(Writer::new(client));
    let authorities = Arc::new(Authorities::open(&writer, &settings.namespace).await?);
    let told = (settings.agent_image.clone(), settings.namespace.clone(), settings.identity.clone());
    let all = parts.into_iter().map(|part| {
        let hub = Arc::new(Hub::new(part.queue.clone()));
        let shared = (Arc::clone(&writer), Arc::clone(&authorities), Arc::clone(&admin));
        reconcile_all(Context::new((part.stores, hub), shared, told.clone()), part.waiting)
    });
    tokio::select! {
        _ = select_all(all.map(Box::pin)) => {}
        () = authorities.tend(&writer, &settings.namespace) => {}
    }
    anyhow::bail!("the watches have ended")
}

async fn reconcile_all(context: Context, waiting: mpsc::Receiver<ObjectRef<MoEDeployment>>) {
    let store = context.stores.deployments.clone();
    // What was drained while another led.
    let all: Vec<_> = store.state().iter().map(|d| ObjectRef::from_obj(&**d)).collect();
    let guarded = |of: ObjectRef<MoEDeployment>| {
        ObjectRef::new(&of.name).within(of.namespace.as_deref().unwrap_or_default())
    };
    let asked = futures_util::stream::unfold(waiting, |mut w| async move { Some((w.recv().await?, w)) });
    let requests = futures_util::stream::iter(all)
        .chain(asked.map(guarded))
        .map(|of| Ok::<_, Infallible>(ReconcileRequest::from(of)));
    let config = Config::default().concurrency(AT_A_TIME).debounce(DEBOUNCE);
    let reconcile = |guard, ctx| Box::pin(reconcile::run(guard, ctx));
    let done = applier(reconcile, retry, Arc::new(context), store, Box::pin(requests), config);
    done.for_each(|done| async move {
        if let Err(e) = done {
            tracing::debug!("{e}");
        }
    })
    .await;
}

// The library hands over what it has.
#[allow(clippy::needless_pass_by_value)]
fn retry(
    guard: Arc<crate::stores::Guard<MoEDeployment>>,
    error: &reconcile::ReconcileError,
    ctx: Arc<Context>,
) -> Action {
    use kube::ResourceExt;
    ctx.admin.failures.with_label_values(&[error.kind()]).inc();
    let (namespace, deployment) = (guard.namespace().unwrap_or_default(), guard.name_any());
    match error.kind() {
        "conflict" | "stale" => tracing::debug!(namespace, deployment, "tried again: {error}"),
        _ => tracing::warn!(namespace, deployment, "tried again: {error}"),
    }
    Action::requeue(error.patience())
}
