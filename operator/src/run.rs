//! The operator as a process: the lease, the watches, the reconciles, the pages.

use crate::admin::{Admin, router};
use crate::apply::Writer;
use crate::context::{Context, authority};
use crate::leader::Leadership;
use crate::pressure::Hub;
use crate::reconcile;
use crate::stores::{Queue, Stores};
use anyhow::Context as _;
use futures_util::StreamExt;
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
    /// The namespace that is watched; all of them without it.
    pub watched: Option<String>,
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

    let (queue, waiting) = mpsc::channel(WAITING);
    let stores = Stores::watch(&client, settings.watched.as_deref(), &queue);
    let leadership =
        Leadership::new(client.clone(), &settings.namespace, settings.identity.clone(), settings.lease);
    tokio::pin!(stop);
    // A standby keeps its cache warm, and does not let the queue fill.
    let mut waiting = waiting;
    tokio::select! {
        () = leadership.acquire() => {}
        () = drain(&mut waiting) => {}
        () = &mut stop => return Ok(()),
    }
    tracing::info!(identity = settings.identity, "leads");
    admin.leads.set(1);
    let done = tokio::select! {
        done = lead(client, stores, (queue, waiting), &settings, admin) => done,
        () = leadership.hold() => anyhow::bail!("the lease is lost: another operator goes on"),
        () = &mut stop => Ok(()),
    };
    leadership.release().await;
    done
}

async fn drain(waiting: &mut mpsc::Receiver<ObjectRef<MoEDeployment>>) {
    while waiting.recv().await.is_some() {}
}

async fn lead(
    client: Client,
    stores: Stores,
    (queue, waiting): (Queue, mpsc::Receiver<ObjectRef<MoEDeployment>>),
    settings: &Settings,
    admin: Arc<Admin>,
) -> anyhow::Result<()> {
    let writer = Writer::new(client);
    stores.ready().await;
    admin.is_synced.store(true, Ordering::Relaxed);
    let authority = authority(&writer, &settings.namespace).await?;
    let hub = Arc::new(Hub::new(queue.clone()));
    let store = stores.deployments.clone();
    let told = (settings.agent_image.clone(), settings.namespace.clone(), settings.identity.clone());
    let context = Arc::new(Context::new((stores, writer, hub), authority, told, admin));
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
    let done = applier(reconcile, retry, context, store, Box::pin(requests), config);
    done.for_each(|done| async move {
        if let Err(e) = done {
            tracing::debug!("{e}");
        }
    })
    .await;
    anyhow::bail!("the watches have ended")
}

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
