//! Grammars as they reach a rank: compiled once, however many sequences use them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OnceCell, Semaphore};

use super::message::{self, Source};
use crate::sampling::{CompiledGrammar, GrammarCompiler};

/// Grammars kept: each is a few megabytes at most, and deployments use a handful at a time.
const KEPT: usize = 64;
/// Compiled at once: a rank has better things to do with its processors.
const AT_ONCE: usize = 2;

/// A grammar, or why it cannot be had.
type Compiled = Result<CompiledGrammar, String>;
type Cell = Arc<OnceCell<Compiled>>;

/// Compiles and remembers.
#[derive(Debug)]
pub(super) struct Grammars {
    compiler: Option<Arc<GrammarCompiler>>,
    kept: Mutex<Kept>,
    permits: Semaphore,
}

#[derive(Debug, Default)]
struct Kept {
    /// By the hash of the source, and when each was last asked for.
    cells: HashMap<[u8; 32], (Cell, u64)>,
    asked: u64,
}

impl Kept {
    fn cell(&mut self, hash: [u8; 32]) -> Cell {
        self.asked += 1;
        if let Some((cell, asked)) = self.cells.get_mut(&hash) {
            *asked = self.asked;
            return Arc::clone(cell);
        }
        while self.cells.len() >= KEPT
            && let Some(oldest) = self.cells.iter().min_by_key(|(_, (_, asked))| *asked).map(|(h, _)| *h)
        {
            self.cells.remove(&oldest);
        }
        let cell = Cell::default();
        self.cells.insert(hash, (Arc::clone(&cell), self.asked));
        cell
    }
}

/// A grammar that was asked for.
pub(super) enum Wanted {
    /// It is there.
    Now(Compiled),
    /// It is to be waited for.
    Later(Pending),
}

/// A grammar that is being compiled, or will be.
pub(super) struct Pending {
    cell: Cell,
    source: Source,
}

impl Grammars {
    /// Without a compiler, if the model's tokenizer allows none.
    pub(super) fn new(compiler: Option<Arc<GrammarCompiler>>) -> Self {
        Self { compiler, kept: Mutex::default(), permits: Semaphore::new(AT_ONCE) }
    }

    /// Asks for a grammar.
    pub(super) fn want(&self, source: &Source) -> Wanted {
        let hash = blake3::hash(&message::encode(source)).into();
        let cell = self.kept.lock().unwrap_or_else(PoisonError::into_inner).cell(hash);
        match cell.get() {
            Some(compiled) => Wanted::Now(compiled.clone()),
            None => Wanted::Later(Pending { cell, source: source.clone() }),
        }
    }

    /// Compiles it off the threads that carry messages, unless somebody else has.
    pub(super) async fn compile(&self, pending: Pending) -> Compiled {
        let Pending { cell, source } = pending;
        cell.get_or_init(|| self.run(source)).await.clone()
    }

    async fn run(&self, source: Source) -> Compiled {
        let Some(compiler) = self.compiler.clone() else {
            return Err("this rank has no grammar compiler: its model's tokenizer does not allow one".into());
        };
        // Never closed.
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        let compiled = tokio::task::spawn_blocking(move || {
            let grammar = source.grammar().map_err(|error| format!("its JSON schema is no JSON: {error}"))?;
            compiler.compile(&grammar).map_err(|error| error.to_string())
        });
        compiled.await.unwrap_or_else(|error| Err(format!("its compiler broke off: {error}")))
    }
}
