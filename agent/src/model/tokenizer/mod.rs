//! Text to token ids and back.
//!
//! The tokenizers crate encodes. Decoding is here, token by token and by bytes: a stream must never show half a
//! character or take back what it has shown, and log-probabilities carry each token's exact bytes.

mod decoder;
mod detokenizer;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use decoder::TokenDecoder;
pub use detokenizer::Detokenizer;
use serde_json::Value;

use super::files::{FileError, ModelFiles};

const FILE: &str = "tokenizer.json";

/// What is wrong with a `tokenizer.json`, or with a text for it.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// There is no such file.
    #[error("{} does not exist{hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do, by what is there instead.
        hint: &'static str,
    },
    /// It could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no tokenizer.
    #[error("{}: not a tokenizer: {reason}; download it again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// It decodes in a way that is not implemented here.
    #[error("{}: the decoder {what} is not supported", path.display())]
    Decoder {
        /// The file.
        path: PathBuf,
        /// The decoder, by name.
        what: String,
    },
    /// A text could not be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
}

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoder: TokenDecoder,
    special: BTreeSet<u32>,
    size: usize,
}

impl Tokenizer {
    /// Reads a model's `tokenizer.json`.
    ///
    /// # Errors
    /// It is missing, broken, or needs a decoder that is not implemented.
    pub fn open(files: &ModelFiles) -> Result<Self, TokenizerError> {
        let path = files.path(FILE);
        let Some(bytes) = files.read(FILE)? else {
            let hint = if files.list("", "tokenizer.model")?.is_empty() {
                "; download it from where the weights are from"
            } else {
                "; tokenizer.model is not read, save the tokenizer with transformers' AutoTokenizer"
            };
            return Err(TokenizerError::Missing { path, hint });
        };
        Self::parse(&path, &bytes)
    }

    /// Reads a tokenizer from the content of its file.
    ///
    /// # Errors
    /// It is broken, or needs a decoder that is not implemented.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TokenizerError> {
        let broken = |reason: String| TokenizerError::Broken { path: path.to_owned(), reason };
        let json: Value = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
        let decoder = TokenDecoder::parse(json.get("decoder").unwrap_or(&Value::Null))
            .map_err(|what| TokenizerError::Decoder { path: path.to_owned(), what })?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| broken(error.to_string()))?;
        // Prompts are cut by nobody but the server, and never padded.
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        inner.with_padding(None);
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let size = inner.get_vocab(true).values().max().map_or(0, |highest| *highest as usize + 1);
        if size == 0 {
            return Err(broken("its vocabulary is empty".to_owned()));
        }
        Ok(Self { inner, decoder, special, size })
    }

    /// Token ids are below this. A model may have more rows, which no token uses.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The ids of a text; special tokens written out in it are recognised. `add_special` adds what the tokenizer puts
    /// around every text, such as a beginning-of-sequence token: wanted for plain prompts, not for the output of a chat
    /// template, which has written it already.
    ///
    /// # Errors
    /// The tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// A token's own bytes, out of context; `None` if there is no such token. They need not be whole characters.
    #[must_use]
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.inner.id_to_token(id).map(|token| self.decoder.bytes(&token).into_owned())
    }

    /// A token's text, out of context; what is no whole character is U+FFFD.
    #[must_use]
    pub fn text(&self, id: u32) -> Option<String> {
        self.bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The token that is written so in the vocabulary, such as `</s>`.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether a token is a mark rather than text: not shown in a completion.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The special tokens.
    pub fn special(&self) -> impl Iterator<Item = u32> {
        self.special.iter().copied()
    }

    /// The text of some tokens, as from the beginning of a text. Unknown ids are nothing.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(skip_special);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push(self, id, &mut text);
        }
        detokenizer.finish(self, &mut text);
        text
    }

    fn token(&self, id: u32) -> Option<Cow<'_, str>> {
        self.inner.id_to_token(id).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests;
