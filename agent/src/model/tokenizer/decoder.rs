//! From a token as the vocabulary writes it to its bytes.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::Value;

/// The `decoder` of a `tokenizer.json`, as far as language models use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenDecoder {
    /// Every character stands for one byte (GPT-2, Qwen, OLMoE, Llama 3).
    ByteLevel,
    /// Text, in which some characters stand for others (Llama 2, Mixtral).
    Text {
        /// From, to.
        replace: Vec<(String, String)>,
        /// `<0x0A>` is the byte 10.
        byte_fallback: bool,
        /// What the beginning of a text loses.
        start: Start,
    },
    /// Words without a decoder, joined by blanks.
    Words,
}

/// What the beginning of a text loses, for the blank that encoding put in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Keep,
    /// Up to so many of this character.
    Strip(char, usize),
    /// All of this character in the first token.
    FirstToken(char),
}

impl TokenDecoder {
    /// Understands the decoder's description; the error names the part that is unknown.
    pub fn parse(json: &Value) -> Result<Self, String> {
        if json.is_null() {
            return Ok(Self::Words);
        }
        let steps = match kind(json) {
            "Sequence" => json["decoders"].as_array().map(Vec::as_slice).unwrap_or_default(),
            _ => std::slice::from_ref(json),
        };
        if steps.iter().any(|step| kind(step) == "ByteLevel") {
            return match steps
                .iter()
                .find(|step| !matches!(kind(step), "ByteLevel" | "Fuse" | "ByteFallback"))
            {
                None => Ok(Self::ByteLevel),
                Some(other) => Err(format!("`{}` beside `ByteLevel`", kind(other))),
            };
        }
        let mut replace = Vec::new();
        let (mut byte_fallback, mut fused, mut start) = (false, false, Start::Keep);
        for step in steps {
            match kind(step) {
                "Replace" if !fused => {
                    let (Some(from), Some(to)) =
                        (step["pattern"]["String"].as_str(), step["content"].as_str())
                    else {
                        return Err("`Replace` with a regular expression".to_owned());
                    };
                    replace.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && step["stop"].as_u64() == Some(0) => {
                    let character = step["content"].as_str().and_then(|content| content.chars().next());
                    let count = step["start"].as_u64().and_then(|count| usize::try_from(count).ok());
                    let (Some(character), Some(count)) = (character, count) else {
                        return Err("`Strip` without `content` and `start`".to_owned());
                    };
                    start = Start::Strip(character, count);
                }
                "Metaspace" => {
                    let Some(mark) = step["replacement"].as_str().filter(|mark| mark.chars().count() == 1)
                    else {
                        return Err("`Metaspace` without a replacement character".to_owned());
                    };
                    let keep = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    if !keep && let Some(mark) = mark.chars().next() {
                        start = Start::FirstToken(mark);
                    }
                    replace.push((mark.to_owned(), " ".to_owned()));
                }
                other => return Err(format!("`{other}`")),
            }
        }
        Ok(Self::Text { replace, byte_fallback, start })
    }

    /// The bytes of a token in the middle of a text.
    pub fn bytes<'a>(&self, token: &'a str) -> Cow<'a, [u8]> {
        match self {
            Self::Words => Cow::Borrowed(token.as_bytes()),
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_level).collect();
                // Added tokens are written as they are.
                bytes.map_or(Cow::Borrowed(token.as_bytes()), Cow::Owned)
            }
            Self::Text { replace, byte_fallback, .. } => {
                if *byte_fallback && let Some(byte) = fallback_byte(token) {
                    return Cow::Owned(vec![byte]);
                }
                let mut token = Cow::Borrowed(token);
                for (from, to) in replace {
                    if token.contains(from.as_str()) {
                        token = Cow::Owned(token.replace(from.as_str(), to));
                    }
                }
                match token {
                    Cow::Borrowed(token) => Cow::Borrowed(token.as_bytes()),
                    Cow::Owned(token) => Cow::Owned(token.into_bytes()),
                }
            }
        }
    }

    /// What the beginning of a text loses.
    pub fn start(&self) -> Start {
        match self {
            Self::Text { start, .. } => *start,
            Self::ByteLevel | Self::Words => Start::Keep,
        }
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("without a type")
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && !digits.starts_with('+')).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 for itself, the other 68 bytes, in
/// order, for U+0100 and up.
fn byte_level(character: char) -> Option<u8> {
    static OTHERS: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..=u8::MAX).filter(|byte| !stands_for_itself(*byte)).collect());
    match u8::try_from(character) {
        Ok(byte) => stands_for_itself(byte).then_some(byte),
        Err(_) => OTHERS.get((character as usize).checked_sub(256)?).copied(),
    }
}

fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}
