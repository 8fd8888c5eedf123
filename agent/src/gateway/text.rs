//! Text to token ids and back, as the gateway needs it.

use serde_json::{Map, Value};

/// A tokenizer and a chat template.
pub trait TextModel: Send + Sync + 'static {
    /// Token ids of a text; with `special` those the tokenizer puts around a text too (a leading BOS).
    ///
    /// # Errors
    /// What the tokenizer cannot do.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError>;

    /// The text of token ids.
    fn decode(&self, ids: &[u32], skip_special: bool) -> String;

    /// The bytes a token stands for within a text; those of a special token are its name.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    /// Text from tokens one by one.
    fn detokenizer(&self, skip_special: bool) -> Box<dyn Detokenizer>;

    /// A conversation as one text.
    ///
    /// # Errors
    /// The model has no template, or its template refuses the conversation.
    fn render(&self, chat: &Conversation) -> Result<String, TextError>;
}

/// What a chat template is given.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and what else the client gave.
    pub messages: Vec<Value>,
    /// The tools as the client gave them.
    pub tools: Option<Vec<Value>>,
    /// Ends with the start of an answer.
    pub add_generation_prompt: bool,
    /// Ends within the last message.
    pub continue_final_message: bool,
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
}

/// Text from tokens one by one: a character whose bytes are not all there is held back.
pub trait Detokenizer: Send {
    /// The text that is certain with one more token.
    fn push(&mut self, id: u32) -> String;
    /// What was held back.
    fn finish(&mut self) -> String;
}

/// Why a text cannot become tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer failed.
    #[error("the text cannot be tokenized: {0}")]
    Tokenizer(String),
    /// The model has no chat template.
    #[error("the model has no chat template: use /v1/completions")]
    NoTemplate,
    /// The template refused the conversation.
    #[error("the chat template refused the conversation: {0}")]
    Template(String),
}
