//! API keys: `Authorization: Bearer KEY`. Only their hashes are kept.

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, header};

use super::error::ApiError;

/// The keys that are let in; with none, everybody is. Clones change together.
#[derive(Clone)]
pub struct Keys(Arc<RwLock<Arc<[blake3::Hash]>>>);

impl Default for Keys {
    fn default() -> Self {
        Self::new([""; 0])
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.hashes() == other.hashes()
    }
}

/// Who asks. Decides what prefixes it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    key: Option<blake3::Hash>,
}

impl Keys {
    /// From the keys themselves.
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let hashes = keys.into_iter().map(|key| blake3::hash(key.as_ref().as_bytes())).collect();
        Self(Arc::new(RwLock::new(hashes)))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.hashes().len()
    }

    /// Lets in whom `other` does, and nobody else, here and in all clones.
    pub(super) fn become_those(&self, other: &Self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other.hashes();
    }

    fn hashes(&self) -> Arc<[blake3::Hash]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose request this is.
    ///
    /// # Errors
    /// 401 without a key, or with one that is not known.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let hashes = self.hashes();
        if hashes.is_empty() {
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
        let known = hashes.iter().fold(false, |known, one| known | (*one == hash));
        if known { Ok(Caller { key: Some(hash) }) } else { Err(ApiError::key("the API key is not known")) }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("count", &self.count()).finish()
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
}
