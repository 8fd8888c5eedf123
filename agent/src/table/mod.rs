//! Who there is and who holds which unit: the placement table as processes are told it.
//!
//! The words are those of the `ExpertPlacement` kind. A table is taken whole or not at all: if it may follow the one in
//! use, by its generations, and if the engine can serve it.

mod current;
mod file;
mod fits;
mod kube;
mod parse;

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use sluice_core::hello::Role;
use sluice_core::ids::{Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use tokio::sync::watch;

pub use self::kube::{KubeSource, Scope};
pub use file::{FileSource, LARGEST};
pub use fits::{Engine, Misfit};
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
    /// Of the list of workers: rises whenever it changes.
    pub generation: u64,
    /// Segments of an expert's inner dimension that the units are slices of, if it says.
    pub segments: Option<u8>,
    /// Who there is.
    pub workers: Vec<Member>,
    /// Who holds what.
    pub slices: Vec<Arc<PlacementSlice>>,
}

impl Table {
    /// Whether `newer` may follow: neither its list of workers nor a slice of it is older, none has changed under the same
    /// generation, and no block is left out.
    ///
    /// # Errors
    /// The first for which it is not so.
    pub fn check(&self, newer: &Self) -> Result<(), Stale> {
        let (theirs, ours) = (newer.generation, self.generation);
        if theirs < ours {
            return Err(Stale::OlderList { theirs, ours });
        }
        if theirs == ours && newer.workers != self.workers {
            return Err(Stale::SameList { generation: ours });
        }
        let covered: HashSet<u16> = newer.slices.iter().flat_map(|s| s.blocks.clone()).collect();
        if let Some(block) = self.slices.iter().flat_map(|s| s.blocks.clone()).find(|b| !covered.contains(b))
        {
            return Err(Stale::LeftOut { block });
        }
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

    /// The units that a worker is to hold, whatever their state.
    pub fn held_by(&self, worker: WorkerId) -> impl Iterator<Item = Unit> {
        self.slices.iter().flat_map(|s| &s.replicas).filter(move |r| r.worker == worker).map(|r| r.unit)
    }

    /// The worker of a name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.workers.iter().find(|w| w.name == name)
    }
}

/// A table that comes too late.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The list of workers is older than the one in use.
    #[error(
        "the list of workers has generation {theirs}, and the one in use {ours}: read it, and raise the generation"
    )]
    OlderList {
        /// The one that came.
        theirs: u64,
        /// The one in use.
        ours: u64,
    },
    /// The list of workers has changed, and its generation has not.
    #[error(
        "another list of workers under the same generation {generation}: raise it (`generation` of the whole table)"
    )]
    SameList {
        /// Both have it.
        generation: u64,
    },
    /// A block that the table in use has.
    #[error(
        "no slice has block {block}, and the table in use does: a slice may lose its rows, but not its blocks"
    )]
    LeftOut {
        /// The first.
        block: u16,
    },
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

/// A source without a table, or a table that it does not take.
#[derive(Debug, thiserror::Error)]
#[error("the placement table {at}: {why}")]
pub struct SourceError {
    /// Where the source has it from.
    pub at: String,
    /// Why.
    pub why: Why,
}

/// Why a table is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Where it is kept.
    #[error("it cannot be read: {0}")]
    Read(std::io::Error),
    /// Where it is kept, on the way back.
    #[error("it cannot be written: {0}")]
    Write(std::io::Error),
    /// Somebody else writes it.
    #[error("it is only read here, and changed where it comes from")]
    ReadOnly,
    /// Its size.
    #[error("it has {0} bytes, and none may have more than {LARGEST}")]
    Large(u64),
    /// What it says.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It is older than the one in use.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The engine cannot serve it.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// Where tables come from: a file, a push over HTTP, the Kubernetes API.
pub trait PlacementSource: Debug + Send + Sync {
    /// Where it has them from, as messages name it behind "the placement table".
    fn name(&self) -> String;

    /// The table as it is, and as it becomes.
    fn watch(&self) -> watch::Receiver<Arc<Table>>;

    /// From now on a table that this engine cannot serve is not taken.
    ///
    /// # Errors
    /// It cannot serve the one in use.
    fn hold(&self, engine: Engine) -> Result<(), SourceError>;

    /// Puts a table in place of the one in use, and where the next start finds it. May wait for the disk. A source that
    /// others write takes none.
    ///
    /// # Errors
    /// Why it is not taken; the one in use stays then.
    fn replace(&self, _text: String) -> Result<(), SourceError> {
        Err(SourceError { at: self.name(), why: Why::ReadOnly })
    }

    /// Why the table in use may not be the newest one, if that is so.
    fn trouble(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
generation: 2
workers:
- {number: 0, name: e0, role: experts, address: "h:1"}
slices:
- {blocks: [0, 2], generation: 3, units: [{worker: e0, block: 1, expert: 0, slice: [0, 8]}]}
- {blocks: [2, 3], generation: 5, units: []}
"#;

    #[test]
    fn a_table_follows_only_what_is_older() {
        let table = parse(TEXT).unwrap();
        let after = |from: &str, to: &str| {
            assert!(TEXT.contains(from), "{from}");
            table.check(&parse(&TEXT.replace(from, to)).unwrap()).map_err(|e| e.to_string())
        };
        for (from, to) in [
            ("h:1", "h:1"),
            ("generation: 2", "generation: 7"),
            ("generation: 3", "generation: 4"),
            ("- {blocks: [2, 3], generation: 5", "- {blocks: [2, 6], generation: 6"),
        ] {
            assert_eq!(after(from, to), Ok(()), "{from} -> {to}");
        }
        for (from, to, says) in [
            ("generation: 2", "generation: 1", "the list of workers has generation 1, and the one in use 2"),
            ("generation: 2\n", "", "the list of workers has generation 0"),
            ("h:1", "h:2", "another list of workers under the same generation 2"),
            ("generation: 3", "generation: 2", "blocks [0, 2] has generation 2, and the one in use 3"),
            ("expert: 0", "expert: 1", "other rows under the same generation 3"),
            ("- {blocks: [2, 3], generation: 5, units: []}", "", "no slice has block 2"),
            ("[0, 2], generation: 3", "[1, 2], generation: 4", "no slice has block 0"),
        ] {
            let said = after(from, to).unwrap_err();
            assert!(said.contains(says), "{from} -> {to}: {said}");
        }
        let moved = TEXT.replace("generation: 2", "generation: 3").replace("h:1", "h:2");
        assert_eq!(table.check(&parse(&moved).unwrap()), Ok(()));
        assert_eq!(Table::default().check(&table), Ok(()));
    }
}
