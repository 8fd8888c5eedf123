//! A table from the Kubernetes API: the ExpertPlacements of a deployment, watched. The API server may go away for as long
//! as it likes: the last table stays in use, and in a file, which a process that starts meanwhile begins with.

mod combine;
#[cfg(test)]
mod fake;
mod follow;
mod objects;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::combine::{Inconsistent, of_all, of_cohort};
use self::objects::Object;
use super::current::Current;
use super::file::write;
use super::{Engine, PlacementSource, SourceError, Table, Why, parse, render};

/// What was kept is taken for the newest if the API server has not answered within this.
const FIRST: Duration = Duration::from_secs(5);

/// Which objects are watched, and what of them counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Where they are.
    pub namespace: String,
    /// The MoEDeployment.
    pub deployment: String,
    /// Its cohort; `None`: all.
    pub cohort: Option<String>,
    /// With the rows of units. A gateway has workers only.
    pub rows: bool,
}

impl Scope {
    fn selector(&self) -> String {
        let deployment = format!("sluice.dev/deployment={}", self.deployment);
        match &self.cohort {
            Some(cohort) => format!("{deployment},sluice.dev/cohort={cohort}"),
            None => deployment,
        }
    }

    fn combine(
        &self,
        objects: &BTreeMap<String, Object>,
        before: &Table,
    ) -> Result<Option<Table>, Inconsistent> {
        if self.rows { of_cohort(objects, before) } else { of_all(objects, before) }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of ExpertPlacements of {}/{}", self.namespace, self.deployment)?;
        self.cohort.as_ref().map_or(Ok(()), |cohort| write!(f, ", cohort {cohort}"))
    }
}

/// See the module.
#[derive(Debug)]
pub struct KubeSource {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    scope: Scope,
    /// Where the table is kept.
    cache: Option<PathBuf>,
    current: Current,
    state: watch::Sender<State>,
}

/// How it is with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// It has said all that there is.
    listed: bool,
    /// Why the table may not be the newest.
    trouble: Option<String>,
}

impl KubeSource {
    /// Begins to watch with the credentials of the pod, or those of the kubeconfig if there is one. What is in the file
    /// is only waited past for as long as it may be found to be old.
    pub async fn open(scope: Scope, cache: Option<PathBuf>) -> Self {
        Self::with(scope, cache, follow::connect).await
    }

    async fn with<F>(scope: Scope, cache: Option<PathBuf>, connect: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Client, String>> + Send + 'static,
    {
        let kept = cache.as_deref().and_then(|path| kept(path, &scope));
        let has_kept = kept.is_some();
        let (state, mut told) = watch::channel(State::default());
        let current = Current::new(kept.unwrap_or_default());
        let shared = Arc::new(Shared { scope, cache, current, state });
        let task = tokio::spawn(follow::follow(Arc::clone(&shared), connect));
        if has_kept {
            let answered = told.wait_for(|s| s.listed || s.trouble.is_some());
            let is_new = matches!(timeout(FIRST, answered).await, Ok(Ok(state)) if state.listed);
            if !is_new {
                tracing::warn!("the placement is that of the last run: the API server has not said another");
            }
        }
        Self { shared, task }
    }

    fn named<T>(&self, done: Result<T, impl Into<Why>>) -> Result<T, SourceError> {
        done.map_err(|why| SourceError { at: self.name(), why: why.into() })
    }
}

impl PlacementSource for KubeSource {
    fn name(&self) -> String {
        self.shared.scope.to_string()
    }

    fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.shared.current.watch()
    }

    fn hold(&self, engine: Engine) -> Result<(), SourceError> {
        self.named(self.shared.current.hold(engine))
    }

    fn trouble(&self) -> Option<String> {
        self.shared.state.borrow().trouble.clone()
    }
}

impl Drop for KubeSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Takes the table that the objects are together, if it is another one. May wait for the disk.
    fn take(&self, objects: &BTreeMap<String, Object>) -> Result<(), String> {
        let before = Arc::clone(&self.current.watch().borrow());
        let table = self.scope.combine(objects, &before).map_err(|e| e.to_string())?;
        let Some(table) = table.filter(|table| *table != *before) else { return Ok(()) };
        let text = self.cache.as_ref().map(|path| (path, format!("{}{}", head(&self.scope), render(&table))));
        let keep = || {
            // The next start waits for the API server then, and that is all.
            if let Some((path, Err(e))) = text.map(|(path, text)| (path, write(path, &text))) {
                tracing::warn!("the placement cannot be kept in {}: {e}", path.display());
            }
            Ok(())
        };
        self.current.take(table, keep).map_err(|why| why.to_string())
    }
}

/// What a kept table begins with: a volume may have been another's.
fn head(scope: &Scope) -> String {
    let what = if scope.rows { "placement table" } else { "list of workers" };
    format!("# The last {what} {scope}. Written by sluice-agent.\n")
}

/// The table of the last run, if there is one and it is this scope's.
fn kept(path: &Path, scope: &Scope) -> Option<Table> {
    let ignored = |why: String| {
        tracing::warn!("the kept placement in {} is ignored: {why}", path.display());
        None
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return None,
        Err(e) => return ignored(e.to_string()),
    };
    if !text.starts_with(&head(scope)) {
        return ignored(format!("it is not {scope}"));
    }
    parse(&text).map_or_else(|e| ignored(e.to_string()), Some)
}
