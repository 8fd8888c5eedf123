//! How much an attention rank takes at a time, and how much it keeps.

use crate::schemas::{quantity, rules};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much an attention rank takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "!has(self.prefillTokens) || self.prefillTokens >= self.prefillChunk",
    "prefillTokens must not be less than prefillChunk",
)])))]
pub struct Batching {
    /// Tokens of a prompt that travel together at most.
    #[schemars(range(min = 1, max = 65536))]
    pub prefill_chunk: i32,
    /// Prompt tokens under way per rank. Without it, four chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub prefill_tokens: Option<i32>,
    /// Sequences per rank at one time.
    #[schemars(range(min = 1, max = 65536))]
    pub max_sequences: i32,
    /// Tokens of one attention step at most. Without it, the larger of 512 and `prefillChunk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_step_tokens: Option<i32>,
    /// Groups that decoding sequences move in, so that one group's attention overlaps another's experts.
    #[schemars(range(min = 1, max = 8))]
    pub waves: i32,
}

impl Default for Batching {
    fn default() -> Self {
        Self { prefill_chunk: 512, prefill_tokens: None, max_sequences: 256, max_step_tokens: None, waves: 1 }
    }
}

/// The KV cache of an attention rank. With neither `tokens` nor `memory`, the rank takes what the device has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "!has(self.tokens) || !has(self.memory)",
    "give the size either in tokens or in memory",
)])))]
pub struct KvCache {
    /// Its size, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub tokens: Option<i64>,
    /// Its size, in bytes (`40Gi`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub memory: Option<IntOrString>,
    /// Tokens per page. Workers on the CPU take 16 only.
    #[schemars(range(min = 1, max = 1024))]
    pub page_size: i32,
    /// Whether prompts that begin alike share their pages, within one API key.
    pub prefix_cache: bool,
}

impl Default for KvCache {
    fn default() -> Self {
        Self { tokens: None, memory: None, page_size: 16, prefix_cache: true }
    }
}
