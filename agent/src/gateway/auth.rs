//! API keys: `Authorization: Bearer KEY`. Only their hashes are kept.

use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, header};

use super::error::ApiError;

/// The keys that are let in; with none, everybody is.
#[derive(Clone, Default)]
pub struct Keys {
    hashes: Vec<blake3::Hash>,
}

/// Who asks. Decides what prefixes it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    key: Option<blake3::Hash>,
}

/// A file of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("the API keys in {path}, the --api-key-file, cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It would let nobody in.
    #[error("{0} holds no API key: one key a line, lines beginning with # are comments")]
    None(PathBuf),
}

impl Keys {
    /// From the keys themselves.
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self { hashes: keys.into_iter().map(|key| blake3::hash(key.as_ref().as_bytes())).collect() }
    }

    /// From a file with one key a line; empty lines and those beginning with `#` are skipped.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KeysError::Read { path: path.to_owned(), source })?;
        let keys =
            Self::new(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')));
        if keys.hashes.is_empty() { Err(KeysError::None(path.to_owned())) } else { Ok(keys) }
    }

    /// Whose request this is.
    ///
    /// # Errors
    /// 401 without a key, or with one that is not known.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.hashes.is_empty() {
            return Ok(Caller { key: None });
        }
        let missing = || ApiError::key("an API key is needed: send `Authorization: Bearer KEY`");
        let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?.as_bytes();
        let (scheme, key) = value.split_at_checked(7).ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(missing());
        }
        let hash = blake3::hash(key.trim_ascii());
        // blake3 compares in constant time; all keys are looked at whichever fits.
        let known = self.hashes.iter().fold(false, |known, one| known | (*one == hash));
        if known { Ok(Caller { key: Some(hash) }) } else { Err(ApiError::key("the API key is not known")) }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("count", &self.hashes.len()).finish()
    }
}

impl Caller {
    /// Prefixes are shared only under one salt: one API key and one `cache_salt`.
    pub fn salt(&self, cache_salt: Option<&str>) -> u64 {
        if self.key.is_none() && cache_salt.is_none() {
            return 0;
        }
        let mut hasher = blake3::Hasher::new_derive_key("sluice prefix cache salt");
        hasher.update(self.key.as_ref().map_or(&[0; 32], blake3::Hash::as_bytes).as_slice());
        hasher.update(cache_salt.unwrap_or_default().as_bytes());
        let bytes = hasher.finalize();
        u64::from_le_bytes(std::array::from_fn(|i| bytes.as_bytes()[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn asked(keys: &Keys, value: &str) -> Result<Caller, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        keys.caller(&headers)
    }

    #[test]
    fn only_known_keys_are_let_in() {
        let keys = Keys::new(["one", "two"]);
        assert!(asked(&keys, "Bearer one").is_ok() && asked(&keys, "bearer  two ").is_ok());
        for bad in ["Bearer three", "Bearer", "Bearer ", "Basic one", "one", "Bearer one two"] {
            assert_eq!(asked(&keys, bad).unwrap_err().status, 401, "{bad}");
        }
        assert_eq!(keys.caller(&HeaderMap::new()).unwrap_err().status, 401);
        assert!(Keys::default().caller(&HeaderMap::new()).is_ok());
        assert!(!format!("{keys:?}").contains("one"));
    }

    #[test]
    fn salts_differ_by_key_and_by_the_client_s_own_salt() {
        let keys = Keys::new(["one", "two"]);
        let (one, two) = (asked(&keys, "Bearer one").unwrap(), asked(&keys, "Bearer two").unwrap());
        let open = Keys::default().caller(&HeaderMap::new()).unwrap();
        let salts = [
            one.salt(None),
            two.salt(None),
            open.salt(None),
            one.salt(Some("a")),
            two.salt(Some("a")),
            open.salt(Some("a")),
        ];
        for (i, a) in salts.iter().enumerate() {
            assert!(salts[i + 1..].iter().all(|b| a != b), "{salts:?}");
        }
        assert_eq!(one.salt(Some("a")), asked(&keys, "Bearer one").unwrap().salt(Some("a")));
    }

    #[test]
    fn a_file_of_keys() {
        let dir = std::env::temp_dir().join(format!("sluice-keys-{}", std::process::id()));
        std::fs::write(&dir, "# mine\n\nalpha\n beta \n").unwrap();
        let keys = Keys::read(&dir).unwrap();
        assert!(asked(&keys, "Bearer beta").is_ok() && asked(&keys, "Bearer # mine").is_err());
        std::fs::write(&dir, "# none\n").unwrap();
        assert!(matches!(Keys::read(&dir), Err(KeysError::None(_))));
        std::fs::remove_file(&dir).unwrap();
        assert!(matches!(Keys::read(&dir), Err(KeysError::Read { .. })));
    }
}
