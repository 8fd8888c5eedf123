//! One file: what is there of it is gone on with, and it has its name only when all of it is right.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::header::CONTENT_RANGE;
use ring::digest::{Context, SHA256};
use tokio::time::{sleep, timeout};

use super::error::FetchError;
use super::hub::Hub;

/// How far a file is, is said so often.
const REPORT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(30);

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub size: Option<u64>,
    /// Of large files only.
    pub sha256: Option<String>,
}

/// How often and how long something is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Attempts in a row that bring nothing.
    pub tries: u32,
    /// Before the second of them; each pause is twice the one before.
    pub pause: Duration,
    /// What says nothing for so long is cut.
    pub silence: Duration,
}

impl Patience {
    /// Tries again what may pass.
    pub async fn again<T>(self, attempt: impl AsyncFn() -> Result<T, FetchError>) -> Result<T, FetchError> {
        let mut failed = 0;
        loop {
            match attempt().await {
                Err(why) if why.may_pass() && failed + 1 < self.tries => {
                    failed += 1;
                    self.pause(failed, &why).await;
                }
                done => return done,
            }
        }
    }

    async fn pause(self, failed: u32, why: &FetchError) {
        let pause = (self.pause * 2u32.saturating_pow(failed.saturating_sub(1))).min(PAUSE);
        tracing::warn!("{why}; trying again in {pause:?}");
        sleep(pause).await;
    }
}

/// What is there of a file.
struct Part {
    file: File,
    len: u64,
    hash: Context,
}

impl Part {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        let (mut hash, mut len) = (Context::new(&SHA256), 0);
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return Ok(Self { file, len, hash }),
                Ok(n) => {
                    hash.update(&chunk[..n]);
                    len += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        (self.len, self.hash) = (0, Context::new(&SHA256));
        Ok(())
    }

    /// Whether it is what it should be.
    fn check(&self, wanted: &Wanted) -> Result<(), FetchError> {
        if let Some(due) = wanted.size.filter(|due| *due != self.len) {
            return Err(FetchError::Size { file: wanted.name.clone(), is: self.len, due });
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let is = hex(self.hash.clone().finish().as_ref());
        match &wanted.sha256 {
            Some(due) if *due != is => {
                Err(FetchError::Checksum { file: wanted.name.clone(), is, due: due.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// Fetches a file into a directory, unless it is there.
pub(super) async fn fetch(
    hub: &Hub,
    url: &str,
    dir: &Path,
    wanted: &Wanted,
    patience: Patience,
) -> Result<(), FetchError> {
    let path = dir.join(&wanted.name);
    let parent = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent).map_err(FetchError::file(parent))?;
    let open = async |path: &Path| {
        let (opened, fail) = (path.to_owned(), FetchError::file(path));
        let part = tokio::task::spawn_blocking(move || Part::open(&opened)).await;
        part.map_err(std::io::Error::other).and_then(|part| part).map_err(fail)
    };
    // One of a run that was cut later on. Without a size or a checksum nothing says that it is whole.
    if path.is_file() && wanted.size.is_some() && open(&path).await?.check(wanted).is_ok() {
        return Ok(());
    }
    // What is there of other bytes has another name.
    let id: String = wanted.sha256.as_deref().unwrap_or("plain").chars().take(16).collect();
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = path.with_file_name(format!(".{file}.{id}.part"));
    let fail = FetchError::file(&kept);
    let mut part = open(&kept).await?;
    if wanted.sha256.is_none() {
        // Nothing would tell the halves of two versions from one.
        part.clear().map_err(&fail)?;
    }
    let mut was_there = part.len > 0;
    loop {
        whole(hub, url, wanted, &mut part, patience).await?;
        match part.check(wanted) {
            Ok(()) => break,
            Err(why) => {
                part.clear().map_err(&fail)?;
                // Not what came now, but what an earlier run left, may be what is wrong.
                if !was_there {
                    let _ = std::fs::remove_file(&kept);
                    return Err(why);
                }
                tracing::warn!("{why}; it is fetched anew");
                was_there = false;
            }
        }
    }
    part.file.sync_all().map_err(&fail)?;
    std::fs::rename(&kept, &path).map_err(&fail)?;
    tracing::info!("{}: all {} are there", wanted.name, ByteSize(part.len));
    Ok(())
}

/// Goes on until all has come, however often it is cut.
async fn whole(
    hub: &Hub,
    url: &str,
    wanted: &Wanted,
    part: &mut Part,
    patience: Patience,
) -> Result<(), FetchError> {
    let mut failed = 0;
    while wanted.size.is_none_or(|size| part.len < size) {
        let before = part.len;
        match some(hub, url, wanted, part, patience.silence).await {
            Ok(()) => return Ok(()),
            Err(why) if why.may_pass() => {
                failed = if part.len > before { 1 } else { failed + 1 };
                if failed >= patience.tries {
                    return Err(why);
                }
                patience.pause(failed, &why).await;
            }
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

/// One attempt, from where the part ends.
async fn some(
    hub: &Hub,
    url: &str,
    wanted: &Wanted,
    part: &mut Part,
    silence: Duration,
) -> Result<(), FetchError> {
    let cut = |why: String| FetchError::Cut { url: url.into(), why };
    let fail = FetchError::file(Path::new(&wanted.name));
    let answer = hub.get(url, part.len).await?;
    let range = answer.headers().get(CONTENT_RANGE).and_then(|r| r.to_str().ok());
    let goes_on = range.is_some_and(|r| r.starts_with(&format!("bytes {}-", part.len)));
    match answer.status() {
        StatusCode::OK => part.clear().map_err(&fail)?,
        StatusCode::PARTIAL_CONTENT if goes_on => {}
        status => {
            part.clear().map_err(&fail)?;
            return Err(cut(format!(
                "what was asked for is not what came ({status}, {range:?}): it begins anew"
            )));
        }
    }
    let mut body = answer.into_body();
    let (mut said, begun, from) = (Instant::now(), Instant::now(), part.len);
    loop {
        let frame = timeout(silence, body.frame()).await;
        let Some(frame) = frame.map_err(|_| cut(format!("nothing came for {silence:?}")))? else { break };
        let frame = frame.map_err(|e| cut(format!("it was cut after {}: {e}", ByteSize(part.len))))?;
        if let Some(bytes) = frame.data_ref() {
            part.put(bytes).map_err(&fail)?;
        }
        if let Some(due) = wanted.size.filter(|due| part.len > *due) {
            let is = part.len;
            part.clear().map_err(&fail)?;
            return Err(FetchError::Size { file: wanted.name.clone(), is, due });
        }
        if said.elapsed() >= REPORT {
            said = Instant::now();
            let speed = (part.len - from) as f64 / begun.elapsed().as_secs_f64();
            let of = wanted.size.map(|size| format!(" of {}", ByteSize(size))).unwrap_or_default();
            tracing::info!("{}: {}{of}, {}/s", wanted.name, ByteSize(part.len), ByteSize(speed as u64));
        }
    }
    match wanted.size {
        Some(size) if part.len < size => Err(cut(format!("it ended after {}", ByteSize(part.len)))),
        _ => Ok(()),
    }
}
