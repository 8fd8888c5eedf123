//! The watch, and what becomes of it when the API server does not answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config};
use tokio::time::{sleep, timeout};

use super::objects::Objects;
use super::{Shared, State};

/// What cannot be had is tried again after at least, and at most, so long.
const RETRY: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];
/// After so many failures in a row all begins anew, with the kubeconfig or the certificates as they are then.
const ANEW: u32 = 6;
/// A watch that has not failed for so long since it last did stands again.
const STANDS: Duration = Duration::from_secs(15);
/// A connection to the API server has so long to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// A watch is for so many seconds, and then another begins: one whose server is gone without a word is noticed then.
const WATCH: u32 = 120;
/// The longest silence within an answer: longer than a watch.
const READ: Duration = Duration::from_secs(150);
/// Objects of one page of a list: each may have more than a megabyte.
const PAGE: u32 = 16;

/// With the credentials of the pod, or of the kubeconfig.
///
/// # Errors
/// What is wrong with them.
pub(super) async fn connect() -> Result<Client, String> {
    // Whatever else is in the binary: the one that all TLS of this process goes by.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::infer().await.map_err(|e| {
        format!("there is no way to the API server: {}; run in a pod, or set KUBECONFIG", words(&e))
    })?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    Client::try_from(config).map_err(|e| format!("the API server's address or keys are wrong: {}", words(&e)))
}

/// Pauses between attempts: each twice the one before, less up to a half, so that a thousand agents do not come at once.
#[derive(Debug)]
struct Pauses(Duration);

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (2 * pause).min(RETRY[1]);
        pause.mul_f64(rand::random_range(0.5..1.0))
    }

    fn reset(&mut self) {
        self.0 = RETRY[0];
    }
}

/// Keeps the table as the objects have it, for as long as the process runs.
pub(super) async fn follow<F>(shared: Arc<Shared>, connect: impl Fn() -> F)
where
    F: Future<Output = Result<Client, String>>,
{
    let mut pauses = Pauses(RETRY[0]);
    let mut objects = Objects::default();
    loop {
        match connect().await {
            Ok(client) => run(&shared, client, &mut objects, &mut pauses).await,
            Err(why) => shared.fails(why),
        }
        sleep(pauses.next()).await;
    }
}

/// Watches until it fails again and again.
async fn run(shared: &Arc<Shared>, client: Client, objects: &mut Objects, pauses: &mut Pauses) {
    let kind = GroupVersionKind::gvk("sluice.dev", "v1alpha1", "ExpertPlacement");
    let kind = ApiResource::from_gvk_with_plural(&kind, "expertplacements");
    let api: Api<DynamicObject> = Api::namespaced_with(client, &shared.scope.namespace, &kind);
    let config = watcher::Config::default().labels(&shared.scope.selector()).timeout(WATCH).page_size(PAGE);
    let mut events = pin!(watcher(api, config));
    let (mut failures, mut has_changed, mut complaint) = (0, false, String::new());
    loop {
        let event = match events.next().now_or_never() {
            Some(event) => event,
            // What comes at once is taken at once, and only its end made a table of.
            None if has_changed => {
                has_changed = false;
                shared.changed(objects, &mut complaint).await;
                continue;
            }
            None if failures > 0 => match timeout(STANDS, events.next()).await {
                Ok(event) => event,
                Err(_) => {
                    failures = 0;
                    shared.answers();
                    continue;
                }
            },
            None => events.next().await,
        };
        match event {
            // It is about to ask.
            Some(Ok(Event::Init)) => _ = objects.take(Event::Init, &shared.scope),
            Some(Ok(event)) => {
                let is_all = matches!(event, Event::InitDone);
                has_changed |= objects.take(event, &shared.scope);
                failures = 0;
                pauses.reset();
                shared.answers();
                if is_all {
                    shared.changed(objects, &mut complaint).await;
                    has_changed = false;
                    shared.state.send_modify(|s| s.listed = true);
                }
            }
            Some(Err(e)) if is_gone(&e) => {
                tracing::debug!("the watch begins anew: {}", words(&e));
                // A watch goes on by itself; the start of one would ask for the same again.
                if !matches!(e, watcher::Error::WatchError(_)) {
                    return;
                }
                sleep(pauses.next()).await;
            }
            Some(Err(e)) => {
                failures += 1;
                shared.fails(said(&e, &shared.scope.namespace));
                if failures >= ANEW {
                    return;
                }
                sleep(pauses.next()).await;
            }
            None => return,
        }
    }
}

impl Shared {
    /// What is wrong with the objects is logged once, and the table from before stays.
    async fn changed(self: &Arc<Self>, objects: &Objects, complaint: &mut String) {
        let (shared, live) = (Arc::clone(self), objects.live().clone());
        let Ok(taken) = tokio::task::spawn_blocking(move || shared.take(&live)).await else { return };
        let said = taken.err().unwrap_or_default();
        if !said.is_empty() && said != *complaint {
            tracing::error!("the placement table {}: {said}; the one from before stays in use", self.scope);
        }
        *complaint = said;
    }

    fn fails(&self, why: String) {
        self.state.send_if_modified(|state| {
            let is_new = state.trouble.as_ref() != Some(&why);
            if is_new {
                tracing::warn!("the placement is not watched, and stays as it is: {why}");
                state.trouble = Some(why);
            }
            is_new
        });
    }

    fn answers(&self) {
        self.state.send_if_modified(|State { trouble, .. }| {
            let was_in_trouble = trouble.take().is_some();
            if was_in_trouble {
                tracing::info!("the placement is watched again");
            }
            was_in_trouble
        });
    }
}

/// What the API server no longer remembers is listed anew: it happens, and is no trouble.
fn is_gone(e: &watcher::Error) -> bool {
    match e {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// A failure in words, with what to do where that is known.
fn said(e: &watcher::Error, namespace: &str) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let (InitialListFailed(kube::Error::Api(status))
    | WatchStartFailed(kube::Error::Api(status))
    | WatchFailed(kube::Error::Api(status))
    | WatchError(status)) = e
    else {
        return format!("the API server does not answer: {}", words(e));
    };
    let message = &status.message;
    match status.code {
        401 => {
            format!("the API server does not know this process: {message}; check its service account's token")
        }
        403 => format!(
            "the API server does not let this process read: {message}; let its service account list and watch \
             expertplacements.sluice.dev in namespace {namespace}"
        ),
        404 => {
            "the API server knows no ExpertPlacements: install the CustomResourceDefinitions of Sluice".into()
        }
        code => format!("the API server answers {code}: {message}"),
    }
}

/// An error and what it comes of. Causes that the one before has said already are left out.
fn words(e: &dyn std::error::Error) -> String {
    let mut said = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said += ": ";
            said += &text;
        }
        next = cause.source();
    }
    said
}
