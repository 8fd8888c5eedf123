//! The hash chain by which full pages are found.
//!
//! The hash of page i commits to the salt and to all token ids up to its end: blake3, keyed by the salt, over the
//! hash of page i-1 and the page's ids. 256 bits: nobody can make two prompts meet, nor probe another salt's pages.

/// What identifies a full page's contents.
pub(super) type PageHash = [u8; 32];

/// The chain after some full pages.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    key: [u8; 32],
    hash: PageHash,
}

impl Chain {
    /// Before the first page.
    pub(super) fn new(salt: u64) -> Self {
        let key = blake3::derive_key("sluice.dev 2026 KV prefix page", &salt.to_le_bytes());
        Self { key, hash: [0; 32] }
    }

    /// After one more page. All pages of a pool are of one length, so the ids need no length of their own.
    pub(super) fn next(&self, page: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.hash);
        for id in page {
            hasher.update(&id.to_le_bytes());
        }
        Self { key: self.key, hash: *hasher.finalize().as_bytes() }
    }

    pub(super) fn hash(&self) -> PageHash {
        self.hash
    }
}
