//! Text from tokens as they come.

use std::borrow::Cow;

use super::Tokenizer;
use super::decoder::{Start, TokenDecoder};

/// Turns one sequence's tokens into text, one at a time. What it has given out never changes: bytes of a character
/// that is not complete wait for the next token.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// At most three bytes of an unfinished character.
    pending: Vec<u8>,
    begun: Begun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// No token yet.
    No,
    /// So many characters of the beginning are still to be dropped if they are there.
    Stripping(usize),
    Yes,
}

impl Detokenizer {
    /// For a text of its own. `skip_special` leaves special tokens out.
    #[must_use]
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, pending: Vec::new(), begun: Begun::No }
    }

    /// For a text that continues another, such as a completion behind its prompt: a blank at its beginning is text.
    #[must_use]
    pub fn continuing(skip_special: bool) -> Self {
        Self { begun: Begun::Yes, ..Self::new(skip_special) }
    }

    /// Appends to `text` what is certain after one more token. A token that the tokenizer does not have adds nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        if self.skip_special && tokenizer.is_special(id) {
            return;
        }
        let Some(token) = tokenizer.token(id) else { return };
        let decoder = &tokenizer.decoder;
        let token = self.begin(decoder, token, text);
        let mut decoded = decoder.bytes(&token);
        if let Begun::Stripping(left) = self.begun {
            let left = strip(decoder.start(), &mut decoded, left);
            self.begun = left.map_or(Begun::Yes, Begun::Stripping);
        }
        self.pending.extend_from_slice(&decoded);
        self.flush(decoder, text);
    }

    /// Appends what the text ends in: an unfinished character is U+FFFD.
    pub fn finish(&mut self, tokenizer: &Tokenizer, text: &mut String) {
        replacement(&tokenizer.decoder, self.pending.len(), text);
        self.pending.clear();
    }

    fn begin<'a>(&mut self, decoder: &TokenDecoder, token: Cow<'a, str>, text: &mut String) -> Cow<'a, str> {
        let first = self.begun == Begun::No;
        if !first {
            if *decoder == TokenDecoder::Words {
                text.push(' ');
            }
            return token;
        }
        self.begun = Begun::Yes;
        match decoder.start() {
            Start::Keep => token,
            Start::Strip(_, count) => {
                self.begun = Begun::Stripping(count);
                token
            }
            Start::FirstToken(mark) => Cow::Owned(token.replace(mark, "")),
        }
    }

    fn flush(&mut self, decoder: &TokenDecoder, text: &mut String) {
        let mut bytes = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    bytes = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(length) = error.error_len() else {
                bytes = rest;
                break;
            };
            replacement(decoder, length, text);
            bytes = &rest[length..];
        }
        self.pending = bytes.to_vec();
    }
}

/// Drops up to `left` of the decoder's character from the front; `None` once something else was found.
fn strip(start: Start, bytes: &mut Cow<'_, [u8]>, mut left: usize) -> Option<usize> {
    let Start::Strip(character, _) = start else { return None };
    let mut buffer = [0; 4];
    let character = character.encode_utf8(&mut buffer).as_bytes();
    let mut dropped = 0;
    while left > 0 && bytes[dropped..].starts_with(character) {
        dropped += character.len();
        left -= 1;
    }
    if dropped > 0 {
        *bytes = Cow::Owned(bytes[dropped..].to_vec());
    }
    (left > 0 && bytes.is_empty()).then_some(left)
}

/// `length` bytes that are no character. As the decoders of the tokenizers crate: one mark for each byte where bytes
/// are tokens, else one for all of them.
fn replacement(decoder: &TokenDecoder, length: usize, text: &mut String) {
    let marks = match decoder {
        TokenDecoder::Text { .. } => length,
        TokenDecoder::ByteLevel | TokenDecoder::Words => usize::from(length > 0),
    };
    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
}
