//! Where the placement of a process comes from, and what it shows until that is there.

use std::sync::{Arc, OnceLock};

use crate::cli::{NodeOptions, PlacementOptions};
use crate::gateway::Admin;
use crate::table::{FileSource, KubeSource, PlacementSource, Scope, SourceError, Table};

/// The pages of a process from its first moment: its own as soon as it has any.
pub(super) struct Starting {
    /// What it waits for.
    waits: &'static str,
    source: OnceLock<Arc<dyn PlacementSource>>,
    own: OnceLock<Arc<dyn Admin>>,
}

impl Starting {
    /// Of one that `waits` first.
    pub(super) fn new(waits: &'static str) -> Self {
        Self { waits, source: OnceLock::new(), own: OnceLock::new() }
    }

    /// It has come so far.
    pub(super) fn shows(&self, own: Arc<dyn Admin>) {
        let _ = self.own.set(own);
    }

    /// The source that the options name, as soon as its table is one that this process can begin with. A file has it now
    /// or is wrong; the API server will have it some time.
    ///
    /// # Errors
    /// There is no table in the file.
    pub(super) async fn open(
        &self,
        node: &NodeOptions,
        rows: bool,
        is_enough: impl Fn(&Table) -> bool,
    ) -> Result<Arc<dyn PlacementSource>, SourceError> {
        let (namespace, name, cohort, cache) = match &node.placement {
            PlacementOptions::File(file) => return Ok(Arc::new(FileSource::open(file).await?)),
            PlacementOptions::Watched { namespace, name, cohort, cache } => (namespace, name, cohort, cache),
        };
        let scope =
            Scope { namespace: namespace.clone(), deployment: name.clone(), cohort: cohort.clone(), rows };
        let source: Arc<dyn PlacementSource> = Arc::new(KubeSource::open(scope, cache.clone()).await);
        let source = self.source.get_or_init(|| source);
        if !is_enough(&source.watch().borrow()) {
            tracing::info!("{}, {}", self.waits, source.name());
        }
        // A source that is held does not end.
        let _ = source.watch().wait_for(|table| is_enough(table)).await;
        Ok(Arc::clone(source))
    }
}

impl Admin for Starting {
    fn healthy(&self) -> Result<(), String> {
        self.own.get().map_or(Ok(()), |own| own.healthy())
    }

    fn ready(&self) -> Result<(), String> {
        if let Some(own) = self.own.get() {
            return own.ready();
        }
        let trouble = self.source.get().and_then(|source| source.trouble());
        Err(trouble.map_or_else(|| self.waits.into(), |why| format!("{}: {why}", self.waits)))
    }

    fn metrics(&self) -> String {
        self.own.get().map(|own| own.metrics()).unwrap_or_default()
    }

    fn pressure(&self) -> serde_json::Value {
        let nothing = || serde_json::json!({ "workers": [], "front": null });
        self.own.get().map_or_else(nothing, |own| own.pressure())
    }
}
