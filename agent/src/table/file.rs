//! A table in a file: watched, and replaced by a push. What cannot be taken is logged, once, and the table from before
//! stays. The file is also what a process that starts anew begins with.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{PlacementSource, Stale, Table, TableError, parse};

/// How often the file is looked at. Read, not only looked at: a mounted file changes by a link that is set anew.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// No table has more bytes.
pub const LARGEST: usize = 64 << 20;

/// A file without a table, or a table that is not taken.
#[derive(Debug, thiserror::Error)]
#[error("the placement table {}: {why}", path.display())]
pub struct FileError {
    path: PathBuf,
    /// Why.
    pub why: Why,
}

/// Why a table is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The file.
    #[error("it cannot be read: {0}")]
    Read(std::io::Error),
    /// The file, on the way back.
    #[error("it cannot be written: {0}")]
    Write(std::io::Error),
    /// Its size.
    #[error("it has {0} bytes, and none may have more than {LARGEST}")]
    Large(u64),
    /// What it says.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It is older than the one in use.
    #[error(transparent)]
    Stale(#[from] Stale),
}

/// See the module.
#[derive(Debug)]
pub struct FileSource {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The text that was last looked at.
    last: Mutex<String>,
    tables: watch::Sender<Arc<Table>>,
}

impl FileSource {
    /// Reads the file, and then watches it.
    ///
    /// # Errors
    /// If there is no table in it now.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let fail = |why| FileError { path: path.into(), why };
        let text = read(path).map_err(fail)?;
        let table = parse(&text).map_err(|e| fail(e.into()))?;
        let (tables, _) = watch::channel(Arc::new(table));
        let shared = Arc::new(Shared { path: path.into(), last: Mutex::new(text), tables });
        let task = tokio::spawn(follow(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// Puts a table in place of the one in use, if no slice of it is older, and in the file. May wait for the disk.
    ///
    /// # Errors
    /// Why it is not taken; the one in use stays then.
    pub fn replace(&self, text: String) -> Result<(), FileError> {
        self.shared.replace(text).map_err(|why| FileError { path: self.shared.path.clone(), why })
    }
}

impl PlacementSource for FileSource {
    fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.shared.tables.subscribe()
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn replace(&self, text: String) -> Result<(), Why> {
        if text.len() > LARGEST {
            return Err(Why::Large(text.len() as u64));
        }
        let table = parse(&text)?;
        // Held to the end: of two pushes, or a push and a look at the file, one comes first.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.borrow().check(&table)?;
        write(&self.path, &text).map_err(Why::Write)?;
        *last = text;
        self.publish(table);
        Ok(())
    }

    /// Takes what is in the file, if it is something new.
    fn look(&self) -> Result<(), Why> {
        let text = read(&self.path)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == text {
            return Ok(());
        }
        last.clone_from(&text);
        let table = parse(&text)?;
        self.tables.borrow().check(&table)?;
        self.publish(table);
        Ok(())
    }

    fn publish(&self, table: Table) {
        let generations: Vec<u64> = table.slices.iter().map(|s| s.generation).collect();
        tracing::info!(workers = table.workers.len(), ?generations, "the placement table has changed");
        self.tables.send_replace(Arc::new(table));
    }
}

fn read(path: &Path) -> Result<String, Why> {
    let size = std::fs::metadata(path).map_err(Why::Read)?.len();
    if size > LARGEST as u64 {
        return Err(Why::Large(size));
    }
    std::fs::read_to_string(path).map_err(Why::Read)
}

/// In one step: who reads it meanwhile, or after a crash, finds the old one or the new one whole.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

async fn follow(shared: Arc<Shared>) {
    let mut complaint = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let looking = Arc::clone(&shared);
        let Ok(looked) = tokio::task::spawn_blocking(move || looking.look()).await else { return };
        let said = looked.err().map(|why| why.to_string()).unwrap_or_default();
        if !said.is_empty() && said != complaint {
            tracing::error!(
                "the placement table {}: {said}; the one from before stays in use",
                shared.path.display()
            );
        }
        complaint = said;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(generation: u64, experts: u16) -> String {
        let rows: String = (0..experts)
            .map(|e| format!("  - {{worker: e, block: 0, expert: {e}, slice: [0, 8]}}\n"))
            .collect();
        format!(
            "workers:\n- {{number: 0, name: e, role: experts, address: \"h:1\"}}\nslices:\n- blocks: [0, 1]\n  \
             generation: {generation}\n  units:\n{rows}"
        )
    }

    #[tokio::test]
    async fn a_push_is_kept_and_an_older_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.yaml");
        std::fs::write(&path, text(3, 1)).unwrap();
        let source = FileSource::open(&path).unwrap();
        let tables = source.watch();
        source.replace(text(4, 2)).unwrap();
        assert_eq!(tables.borrow().slices[0].replicas.len(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text(4, 2));
        for (pushed, says) in [
            (text(3, 3), "generation 3, and the one in use 4"),
            (text(4, 1), "other rows under the same generation"),
            ("workers: 1".into(), "not a placement table"),
        ] {
            let why = source.replace(pushed).unwrap_err().to_string();
            assert!(why.contains(says) && why.contains("table.yaml"), "{why}");
        }
        source.replace(text(4, 2)).unwrap();
        assert_eq!(tables.borrow().slices[0].generation, 4);
    }

    #[tokio::test]
    async fn the_file_is_watched_and_what_is_wrong_in_it_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.yaml");
        assert!(FileSource::open(&path).unwrap_err().to_string().contains("cannot be read"));
        std::fs::write(&path, text(1, 1)).unwrap();
        let source = FileSource::open(&path).unwrap();
        let mut tables = source.watch();
        for wrong in ["{", &text(1, 2)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(source.shared.look().is_err());
        }
        std::fs::write(&path, text(2, 3)).unwrap();
        tables.changed().await.unwrap();
        assert_eq!(tables.borrow().slices[0].replicas.len(), 3);
    }
}
