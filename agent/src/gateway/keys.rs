//! Where API keys come from: a file, or a directory as a Secret is mounted. They are read again when they change.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::auth::Keys;

/// How often they are looked at. Read, not only looked at: a mounted Secret changes by a link that is set anew.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// They cannot be read.
    #[error("the API keys in {}, of --api-key-file, cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// They would let nobody in.
    #[error(
        "{} holds no API key: in a file, one key a line (lines beginning with # are comments); in a directory, one key a \
         file",
        .0.display()
    )]
    None(PathBuf),
    /// A file of a directory, with something else in it.
    #[error("{} of --api-key-file holds not one API key but {words} words: each file of a directory has one", path.display())]
    NotOne {
        /// The file.
        path: PathBuf,
        /// How many there are.
        words: usize,
    },
}

impl Keys {
    /// From a file with one key a line, where empty lines and those beginning with `#` are skipped; or from a directory
    /// whose files, but for those whose names begin with a dot, have one key each.
    ///
    /// # Errors
    /// What cannot be read, or that there is no key.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        Ok(Self::new(read(path)?))
    }

    /// Lets in whom the file or directory names, as it changes, for as long as the process runs. What is wrong with it
    /// is logged, once, and the keys from before stay in use.
    pub async fn watch(&self, path: &Path) {
        let (mut fresh, mut complaint) = (None, String::new());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = path.to_owned();
            let Ok(read) = tokio::task::spawn_blocking(move || Self::read(&looked)).await else { return };
            self.look(read, &mut fresh, &mut complaint);
        }
    }

    /// Takes what was there at two looks: whoever writes a file in place is seen half-way.
    fn look(&self, read: Result<Self, KeysError>, fresh: &mut Option<Self>, complaint: &mut String) {
        let before = fresh.take();
        match read {
            Ok(read) => {
                complaint.clear();
                if read == *self {
                } else if before.as_ref() == Some(&read) {
                    self.become_those(&read);
                    tracing::info!(keys = self.count(), "the API keys have been read again");
                } else {
                    *fresh = Some(read);
                }
            }
            Err(e) => {
                let said = e.source().map_or_else(|| e.to_string(), |why| format!("{e}: {why}"));
                if said != *complaint {
                    tracing::error!("{said}; the keys from before stay in use");
                    *complaint = said;
                }
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<String>, KeysError> {
    let keys = if path.is_dir() { directory(path)? } else { lines(path)? };
    if keys.is_empty() { Err(KeysError::None(path.to_owned())) } else { Ok(keys) }
}

fn text(path: &Path) -> Result<String, KeysError> {
    std::fs::read_to_string(path).map_err(|source| KeysError::Read { path: path.to_owned(), source })
}

fn lines(path: &Path) -> Result<Vec<String>, KeysError> {
    let text = text(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

fn directory(path: &Path) -> Result<Vec<String>, KeysError> {
    let fail = |source| KeysError::Read { path: path.to_owned(), source };
    let mut files = vec![];
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        // Mounted Secrets have their files in a directory of a hidden name, and links to them beside it.
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !is_hidden && !entry.path().is_dir() {
            files.push(entry.path());
        }
    }
    // Their order says nothing, and changes.
    files.sort();
    files.into_iter().map(one).collect()
}

fn one(path: PathBuf) -> Result<String, KeysError> {
    let text = text(&path)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [key] => Ok((*key).to_owned()),
        words => Err(KeysError::NotOne { words: words.len(), path }),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header};

    use super::*;

    fn lets_in(keys: &Keys, key: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap());
        keys.caller(&headers).is_ok()
    }

    #[test]
    fn a_file_has_a_key_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "# mine\n\nalpha\n beta \n").unwrap();
        let keys = Keys::read(&file).unwrap();
        assert!(lets_in(&keys, "beta") && !lets_in(&keys, "# mine"));
        std::fs::write(&file, "# none\n").unwrap();
        assert!(matches!(Keys::read(&file), Err(KeysError::None(_))));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(Keys::read(&file), Err(KeysError::Read { .. })));
    }

    /// As the kubelet mounts it.
    fn mount(dir: &Path, version: &str, keys: &[(&str, &str)]) {
        let hidden = dir.join(format!("..{version}"));
        std::fs::create_dir(&hidden).unwrap();
        for (name, key) in keys {
            std::fs::write(hidden.join(name), key).unwrap();
            let _ = std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name));
        }
        std::os::unix::fs::symlink(format!("..{version}"), dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        for entry in std::fs::read_dir(dir).unwrap() {
            // Links to what is no longer there.
            let path = entry.unwrap().path();
            if !path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn a_mounted_secret_has_a_key_a_file_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(matches!(Keys::read(dir), Err(KeysError::None(_))));
        mount(dir, "1", &[("ann", "alpha\n"), ("bob", "beta")]);
        let keys = Keys::read(dir).unwrap();
        let shared = keys.clone();
        assert!(lets_in(&keys, "alpha") && lets_in(&keys, "beta"));

        let (mut fresh, mut complaint) = (None, String::new());
        let mut look = || {
            keys.look(Keys::read(dir), &mut fresh, &mut complaint);
            complaint.clone()
        };
        mount(dir, "2", &[("bob", "beta"), ("eve", "gamma")]);
        assert_eq!(look(), "");
        assert!(lets_in(&shared, "alpha"), "it was seen once");
        assert_eq!(look(), "");
        assert!(!lets_in(&shared, "alpha") && lets_in(&shared, "beta") && lets_in(&shared, "gamma"));

        mount(dir, "3", &[("bob", "beta and more")]);
        for _ in 0..3 {
            assert!(look().contains("bob of --api-key-file holds not one API key but 3 words"));
        }
        mount(dir, "4", &[]);
        for _ in 0..3 {
            assert!(look().contains("holds no API key"));
        }
        assert!(lets_in(&shared, "gamma") && !lets_in(&shared, "other"), "the door is not open");
        mount(dir, "5", &[("bob", "delta")]);
        assert_eq!((look(), look()), (String::new(), String::new()));
        assert!(lets_in(&shared, "delta") && !lets_in(&shared, "gamma"));
    }
}
