//! The table in use, and what the next one is held against: shared by all sources.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Engine, Misfit, Table, Why};

/// See the module.
#[derive(Debug)]
pub(super) struct Current {
    tables: watch::Sender<Arc<Table>>,
    engine: Mutex<Option<Engine>>,
}

impl Current {
    /// Begins with a table, for no engine yet.
    pub fn new(first: Table) -> Self {
        Self { tables: watch::channel(Arc::new(first)).0, engine: Mutex::default() }
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.tables.subscribe()
    }

    /// See [`super::PlacementSource::hold`].
    pub fn hold(&self, engine: Engine) -> Result<(), Misfit> {
        let mut held = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.borrow().fits(&engine)?;
        *held = Some(engine);
        Ok(())
    }

    /// Puts a table in place of the one in use if it may follow it and the engine can serve it, and after `keep`, which
    /// puts it where the next start finds it.
    pub fn take(&self, table: Table, keep: impl FnOnce() -> Result<(), Why>) -> Result<(), Why> {
        // Held to the end: of two tables one comes first.
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.borrow().check(&table)?;
        if let Some(engine) = &*engine {
            table.fits(engine)?;
        }
        keep()?;
        let slices: Vec<u64> = table.slices.iter().map(|s| s.generation).collect();
        let (workers, generation) = (table.workers.len(), table.generation);
        tracing::info!(workers, generation, ?slices, "the placement table has changed");
        self.tables.send_replace(Arc::new(table));
        Ok(())
    }
}
