//! A table in a file: watched, and replaced by a push. What cannot be taken is logged, once, and the table from before
//! stays. The file is also what a process that starts anew begins with.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::current::Current;
use super::{Engine, PlacementSource, SourceError, Table, Why, parse};

/// How often the file is looked at. Read, not only looked at: a mounted file changes by a link that is set anew.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// No table has more bytes.
pub const LARGEST: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub struct FileSource {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    seen: Mutex<Seen>,
    current: Current,
}

/// What was in the file. Whoever writes it in place is seen half-way, and half a table may well be one.
#[derive(Debug)]
struct Seen {
    /// Taken, or refused.
    judged: String,
    /// Something else at the last look: judged if it is still there at the next one.
    fresh: Option<String>,
}

impl FileSource {
    /// Reads the file, and then watches it.
    ///
    /// # Errors
    /// If there is no table in it now.
    pub async fn open(path: &Path) -> Result<Self, SourceError> {
        let fail = |why| SourceError { at: path.display().to_string(), why };
        let text = settled(path).await.map_err(fail)?;
        let current = Current::new(parse(&text).map_err(|e| fail(e.into()))?);
        let seen = Mutex::new(Seen { judged: text, fresh: None });
        let shared = Arc::new(Shared { path: path.into(), seen, current });
        let task = tokio::spawn(follow(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    fn named<T>(&self, done: Result<T, impl Into<Why>>) -> Result<T, SourceError> {
        done.map_err(|why| SourceError { at: self.name(), why: why.into() })
    }
}

impl PlacementSource for FileSource {
    fn name(&self) -> String {
        self.shared.path.display().to_string()
    }

    fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.shared.current.watch()
    }

    fn hold(&self, engine: Engine) -> Result<(), SourceError> {
        self.named(self.shared.current.hold(engine))
    }

    fn replace(&self, text: String) -> Result<(), SourceError> {
        self.named(self.shared.replace(text))
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
        // Held to the end: of a push and a look at the file, one comes first.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.take(table, || write(&self.path, &text).map_err(Why::Write))?;
        *seen = Seen { judged: text, fresh: None };
        Ok(())
    }

    /// Takes what is in the file, if it is something new and was there at the last look too.
    fn look(&self) -> Result<(), Why> {
        let text = read(&self.path)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.fresh.take();
        if seen.judged == text {
            return Ok(());
        }
        if before.as_ref() != Some(&text) {
            seen.fresh = Some(text);
            return Ok(());
        }
        let table = parse(&text);
        seen.judged = text;
        self.current.take(table?, || Ok(()))
    }
}

fn read(path: &Path) -> Result<String, Why> {
    let size = std::fs::metadata(path).map_err(Why::Read)?.len();
    if size > LARGEST as u64 {
        return Err(Why::Large(size));
    }
    std::fs::read_to_string(path).map_err(Why::Read)
}

/// What is in a file that nobody writes at this moment.
async fn settled(path: &Path) -> Result<String, Why> {
    let mut text = read(path)?;
    let is_fresh = || {
        let changed = std::fs::metadata(path).and_then(|m| m.modified());
        changed.is_ok_and(|at| at.elapsed().unwrap_or_default() < LOOK_EVERY)
    };
    while is_fresh() {
        tokio::time::sleep(LOOK_EVERY).await;
        let again = read(path)?;
        if again == text {
            break;
        }
        text = again;
    }
    Ok(text)
}

/// In one step: who reads it meanwhile, or after a crash, finds the old one or the new one whole. Under a name of its own
/// until then: processes may share the file.
pub(super) fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    let new = path.with_file_name(name);
    let put = || {
        let mut file = std::fs::File::create_new(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    put().inspect_err(|_| drop(std::fs::remove_file(&new)))
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
        let source = FileSource::open(&path).await.unwrap();
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
        assert!(FileSource::open(&path).await.unwrap_err().to_string().contains("cannot be read"));
        std::fs::write(&path, text(1, 1)).unwrap();
        let source = FileSource::open(&path).await.unwrap();
        source.task.abort();
        let looks = |put: &str| {
            std::fs::write(&path, put).unwrap();
            [source.shared.look(), source.shared.look()]
        };
        for wrong in ["{", &text(1, 2)] {
            let [first, second] = looks(wrong);
            assert!(first.is_ok() && second.is_err(), "{first:?}");
            assert!(source.shared.look().is_ok(), "it is complained of once");
        }
        assert!(looks(&text(2, 3)).iter().all(Result::is_ok));
        assert_eq!(source.watch().borrow().slices[0].replicas.len(), 3);
        let watching = FileSource::open(&path).await.unwrap();
        let mut tables = watching.watch();
        std::fs::write(&path, text(3, 1)).unwrap();
        tables.changed().await.unwrap();
        assert_eq!(tables.borrow().slices[0].replicas.len(), 1);
    }

    #[tokio::test]
    async fn half_a_table_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.yaml");
        let whole = text(2, 3);
        let half = &whole[..whole.rfind("  - ").unwrap()];
        assert_eq!(parse(half).unwrap().slices[0].replicas.len(), 2);
        std::fs::write(&path, text(1, 1)).unwrap();
        let source = FileSource::open(&path).await.unwrap();
        source.task.abort();
        std::fs::write(&path, half).unwrap();
        source.shared.look().unwrap();
        std::fs::write(&path, &whole).unwrap();
        source.shared.look().unwrap();
        assert_eq!(source.watch().borrow().slices[0].generation, 1);
        source.shared.look().unwrap();
        assert_eq!(source.watch().borrow().slices[0].replicas.len(), 3);

        // Nor at the start.
        std::fs::write(&path, half).unwrap();
        let (opened, ()) = tokio::join!(FileSource::open(&path), async {
            std::fs::write(&path, &whole).unwrap();
        });
        assert_eq!(opened.unwrap().watch().borrow().slices[0].replicas.len(), 3);
    }

    #[tokio::test]
    async fn pushes_of_processes_that_share_a_file_leave_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.yaml");
        std::fs::write(&path, text(1, 1)).unwrap();
        let sources = [FileSource::open(&path).await.unwrap(), FileSource::open(&path).await.unwrap()];
        sources.iter().for_each(|s| s.task.abort());
        std::thread::scope(|scope| {
            for source in &sources {
                scope.spawn(|| (2..40).for_each(|g| source.replace(text(g, 1000)).unwrap()));
            }
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text(39, 1000));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[tokio::test]
    async fn what_the_engine_cannot_serve_is_refused_by_name_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.yaml");
        std::fs::write(&path, text(1, 1)).unwrap();
        let source = FileSource::open(&path).await.unwrap();
        let engine = |segments| Engine { moe: vec![true], experts: 2, segments, parts: Some(1) };
        let why = source.hold(engine(4)).unwrap_err().to_string();
        assert!(why.contains("table.yaml: slices[0].units[0]: slice [0, 8]"), "{why}");
        source.hold(engine(8)).unwrap();
        let halves = text(2, 1).replace("[0, 8]", "[0, 4]");
        let why = source.replace(halves.clone()).unwrap_err().to_string();
        assert!(why.contains("--slices 2"), "{why}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text(1, 1));
        source.task.abort();
        std::fs::write(&path, halves).unwrap();
        assert!([source.shared.look(), source.shared.look()][1].is_err());
        assert_eq!(source.watch().borrow().slices[0].generation, 1);
        source.replace(text(2, 2)).unwrap();
    }
}
