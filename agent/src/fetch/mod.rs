//! A model from a Hugging Face hub, into a directory that several processes may share: one of them downloads, the others
//! wait for it. What was cut is resumed, and what is there at last is what the hub says it is.

mod error;
mod file;
mod hub;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

pub use error::FetchError;

use self::file::{Patience, Wanted};
use self::hub::Hub;
use crate::cli::FetchOptions;

/// What a directory says of itself when all is there.
const DONE: &str = ".sluice-fetch.json";
/// Held by who downloads.
const LOCK: &str = ".sluice-fetch.lock";
/// Where the shards are listed.
const INDEX: &str = "model.safetensors.index.json";
/// The weights of a model that has one file of them.
const WEIGHTS: &str = "model.safetensors";
/// Files that are downloaded at a time.
const AT_ONCE: usize = 4;

/// What a directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The repository.
    pub repository: String,
    /// The revision that was asked for.
    pub revision: String,
    /// The commit that it was.
    pub commit: String,
    /// Its files, and their sizes.
    pub files: Vec<(String, u64)>,
}

/// Downloads what a model needs, unless it is there.
///
/// # Errors
/// What cannot be had, and why. What is there of it is kept, and the next call goes on with it.
pub async fn fetch(options: &FetchOptions) -> Result<Fetched, FetchError> {
    let patience = Patience { tries: 10, pause: Duration::from_secs(1), silence: Duration::from_secs(60) };
    fetch_with(options, patience).await
}

async fn fetch_with(options: &FetchOptions, patience: Patience) -> Result<Fetched, FetchError> {
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(FetchError::file(out))?;
    let _lock = lock(out).await?;
    if let Some(fetched) = done(options) {
        tracing::info!(commit = fetched.commit, "the model is there");
        return Ok(fetched);
    }
    let hub = Hub::new(options, patience.silence)?;
    let listing = patience.again(|| hub.listing(&options.repository, &options.revision)).await?;
    let (commit, all) = (listing.commit, listing.files);
    tracing::info!(repository = options.repository, revision = options.revision, commit, "fetching");
    let url = |name: &str| hub.url(&options.repository, &commit, name);

    let describes = |w: &&Wanted| w.name.ends_with(".json") || w.name.ends_with(".jinja");
    let mut wanted: Vec<&Wanted> = all.iter().filter(describes).collect();
    each(&wanted, async |w| file::fetch(&hub, &url(&w.name), out, w, patience).await).await?;
    let shards = shards(out, &all)?;
    each(&shards, async |w| file::fetch(&hub, &url(&w.name), out, w, patience).await).await?;

    wanted.extend(shards);
    let size = |w: &&Wanted| {
        let path = out.join(&w.name);
        Ok((w.name.clone(), path.metadata().map_err(FetchError::file(&path))?.len()))
    };
    let files = wanted.iter().map(size).collect::<Result<_, FetchError>>()?;
    let (repository, revision) = (options.repository.clone(), options.revision.clone());
    let fetched = Fetched { repository, revision, commit, files };
    finish(out, &fetched).map_err(FetchError::file(out))?;
    Ok(fetched)
}

async fn each(
    wanted: &[&Wanted],
    fetch: impl AsyncFn(&Wanted) -> Result<(), FetchError>,
) -> Result<(), FetchError> {
    stream::iter(wanted).map(|w| fetch(w)).buffer_unordered(AT_ONCE).try_collect().await
}

/// The files of weights: those of the index that has been fetched, or the one.
fn shards<'a>(out: &Path, all: &'a [Wanted]) -> Result<Vec<&'a Wanted>, FetchError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = out.join(INDEX);
    let names: BTreeSet<String> = match all.iter().any(|w| w.name == INDEX) {
        false => [WEIGHTS.into()].into(),
        true => {
            let text = std::fs::read(&path).map_err(FetchError::file(&path))?;
            let index: Index = serde_json::from_slice(&text)
                .map_err(|e| FetchError::Listing(format!("{INDEX} is none: {e}")))?;
            index.weight_map.into_values().collect()
        }
    };
    let of =
        |name: &String| all.iter().find(|w| w.name == *name).ok_or_else(|| FetchError::Lacks(name.clone()));
    names.iter().map(of).collect()
}

/// Waits until no other process downloads into the directory.
async fn lock(out: &Path) -> Result<File, FetchError> {
    let path = out.join(LOCK);
    let fail = FetchError::file(&path);
    let file = File::options().create(true).append(true).open(&path).map_err(fail)?;
    if file.try_lock().is_err() {
        tracing::info!(lock = %path.display(), "another process fetches into the directory: waiting for it");
    }
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(std::io::Error::other).and_then(|locked| locked).map_err(FetchError::file(&path))
}

/// What is there already, if it is all of what is wanted. A hub that is away is not asked then, nor whether a branch has
/// moved: all pods of a deployment are to have the same.
fn done(options: &FetchOptions) -> Option<Fetched> {
    let text = std::fs::read(options.out.join(DONE)).ok()?;
    let fetched: Fetched = serde_json::from_slice(&text).ok()?;
    let is_there = |(name, size): &(String, u64)| {
        options.out.join(name).metadata().is_ok_and(|m| m.is_file() && m.len() == *size)
    };
    let is_wanted = fetched.repository == options.repository && fetched.revision == options.revision;
    (is_wanted && fetched.files.iter().all(is_there)).then_some(fetched)
}

/// Says that all is there, and clears away what is left of attempts.
fn finish(out: &Path, fetched: &Fetched) -> std::io::Result<()> {
    for entry in std::fs::read_dir(out)? {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|e| e == "part") {
            std::fs::remove_file(path)?;
        }
    }
    let new = out.join(format!("{DONE}.new"));
    std::fs::write(&new, serde_json::to_vec_pretty(fetched)?)?;
    std::fs::rename(new, out.join(DONE))?;
    File::open(out)?.sync_all()
}
