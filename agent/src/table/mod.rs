//! Who there is and who holds which unit: the placement table as processes are told it.
//!
//! The words are those of the `ExpertPlacement` kind. A table is taken whole or not at all; what a slice of it says
//! counts if its generation is newer than the one known.

mod file;
mod parse;

use std::collections::HashSet;
use std::sync::Arc;

use sluice_core::hello::Role;
use sluice_core::ids::{Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use tokio::sync::watch;

pub use file::{FileError, FileSource, LARGEST, Why};
pub use parse::{TableError, parse, render};

/// A worker of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it goes by on the wire.
    pub number: WorkerId,
    /// Its name, the same over restarts.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// `HOST:PORT` of its peer listener.
    pub address: String,
}

/// One state of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Who there is.
    pub workers: Vec<Member>,
    /// Who holds what.
    pub slices: Vec<Arc<PlacementSlice>>,
}

impl Table {
    /// Whether `newer` may follow: no slice of it is older, and none has other rows under the same generation.
    ///
    /// # Errors
    /// The first slice for which it is not so.
    pub fn check(&self, newer: &Self) -> Result<(), Stale> {
        for new in &newer.slices {
            for old in self
                .slices
                .iter()
                .filter(|o| o.blocks.start < new.blocks.end && new.blocks.start < o.blocks.end)
            {
                let blocks = [new.blocks.start, new.blocks.end];
                if new.generation < old.generation {
                    return Err(Stale::Older { blocks, theirs: new.generation, ours: old.generation });
                }
                if new.generation == old.generation && new != old {
                    return Err(Stale::Same { blocks, generation: new.generation });
                }
            }
        }
        Ok(())
    }

    /// Whether a worker is the only one that serves some unit.
    pub fn depends_on(&self, worker: WorkerId) -> bool {
        let serves = |r: &&Replica| r.state == ReplicaState::Active;
        self.slices.iter().any(|slice| {
            let active = || slice.replicas.iter().filter(serves);
            let others: HashSet<Unit> = active().filter(|r| r.worker != worker).map(|r| r.unit).collect();
            active().any(|r| r.worker == worker && !others.contains(&r.unit))
        })
    }

    /// The worker of a name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.workers.iter().find(|w| w.name == name)
    }
}

/// A table that comes too late.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// A slice is older than the one in use.
    #[error(
        "the slice of blocks {blocks:?} has generation {theirs}, and the one in use {ours}: read it, and raise the generation"
    )]
    Older {
        /// First block, and one past the last.
        blocks: [u16; 2],
        /// The one that came.
        theirs: u64,
        /// The one in use.
        ours: u64,
    },
    /// A slice has changed, and its generation has not.
    #[error("the slice of blocks {blocks:?} has other rows under the same generation {generation}: raise it")]
    Same {
        /// First block, and one past the last.
        blocks: [u16; 2],
        /// Both have it.
        generation: u64,
    },
}

/// Where tables come from: a file, a push over HTTP, the Kubernetes API.
pub trait PlacementSource: Send + Sync {
    /// The table as it is, and as it becomes.
    fn watch(&self) -> watch::Receiver<Arc<Table>>;
}
