//! A model's tokenizer and chat template, as the gateway asks for them.

use std::sync::Arc;

use crate::gateway::{self, TextError, TextModel};
use crate::model::Model;
use crate::model::chat::{self, ChatTemplates};
use crate::model::tokenizer::{Detokenizer, Tokenizer};

/// The text side of a model.
#[derive(Clone, Debug)]
pub struct ModelText {
    tokenizer: Arc<Tokenizer>,
    chat: Option<Arc<ChatTemplates>>,
}

impl ModelText {
    /// Of a model.
    pub fn new(model: &Model) -> Self {
        Self { tokenizer: model.tokenizer.clone(), chat: model.chat.clone() }
    }
}

struct Streamed {
    tokenizer: Arc<Tokenizer>,
    inner: Detokenizer,
}

impl gateway::Detokenizer for Streamed {
    fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.inner.push(&self.tokenizer, id, &mut text);
        text
    }

    fn finish(&mut self) -> String {
        let mut text = String::new();
        self.inner.finish(&self.tokenizer, &mut text);
        text
    }
}

impl TextModel for ModelText {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(text, special).map_err(|e| TextError::Tokenizer(e.to_string()))
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.tokenizer.decode(ids, skip_special)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.bytes(id).unwrap_or_default()
    }

    fn detokenizer(&self, skip_special: bool) -> Box<dyn gateway::Detokenizer> {
        Box::new(Streamed { tokenizer: self.tokenizer.clone(), inner: Detokenizer::continuing(skip_special) })
    }

    fn render(&self, conversation: &gateway::Conversation) -> Result<String, TextError> {
        let templates = self.chat.as_ref().ok_or(TextError::NoTemplate)?;
        let conversation = chat::Conversation {
            messages: &conversation.messages,
            tools: conversation.tools.as_deref(),
            documents: None,
            add_generation_prompt: conversation.add_generation_prompt,
            continue_final_message: conversation.continue_final_message,
            variables: Some(&conversation.kwargs),
        };
        templates.render(&conversation).map_err(|e| TextError::Template(e.to_string()))
    }
}
