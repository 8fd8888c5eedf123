//! Why a model cannot be fetched.

use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The endpoint.
    #[error("--endpoint {endpoint:?}: {why}; write it as https://huggingface.co")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
    /// A file or the directory.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The hub wants to know who asks, or does not give it to who it is.
    #[error(
        "{url}: the hub answers {status}: give --token-file a token that may read the repository (and accept its terms \
         on the hub)"
    )]
    Refused {
        /// What was asked for.
        url: String,
        /// The answer.
        status: u16,
    },
    /// There is no such repository, revision or file.
    #[error("{0}: the hub has no such thing: look at --repository, --revision and --endpoint")]
    Missing(String),
    /// It did not come, or not all of it. Tried again.
    #[error("{url}: {why}")]
    Cut {
        /// What was asked for.
        url: String,
        /// What happened.
        why: String,
    },
    /// The hub says what makes no sense.
    #[error("the hub's list of files makes no sense: {0}")]
    Listing(String),
    /// A file that the model needs.
    #[error("the repository has no {0}: only models with weights in safetensors files can be served")]
    Lacks(String),
    /// A file of another size.
    #[error("{file} has {is} bytes, and the hub says {due}: it is not kept")]
    Size {
        /// The file.
        file: String,
        /// What came.
        is: u64,
        /// What should have come.
        due: u64,
    },
    /// A file with other bytes.
    #[error("{file} has the SHA-256 {is}, and the hub says {due}: it is not kept")]
    Checksum {
        /// The file.
        file: String,
        /// Of what came.
        is: String,
        /// Of what should have come.
        due: String,
    },
}

impl FetchError {
    /// A file's.
    pub(super) fn file(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path: path.clone(), source }
    }

    /// Whether another attempt may do better.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Cut { .. })
    }
}
