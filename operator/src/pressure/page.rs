//! The page `/v1/pressure` of gateways, as far as the operator reads it. What it does not know it passes over, so that it
//! reads agents of the release before and after.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// A gateway's page.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Page {
    /// The front.
    pub front: Option<Front>,
    /// The workers that it has heard of of late.
    pub workers: Vec<WorkerPage>,
}

/// A gateway's own state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Front {
    /// Sequences under way.
    pub sequences: usize,
    /// New sequences that wait for a rank.
    pub waiting: usize,
    /// Sequences that wait to be bound again.
    pub waiting_replays: usize,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WorkerPage {
    /// How long ago it said this, in seconds.
    pub heard_seconds: f64,
    /// All that it should hold is loaded.
    pub ready: bool,
    /// Why it cannot go on.
    pub failure: Option<String>,
    /// KV pages in use.
    pub kv_pages: KvPages,
    /// The slices of the placement as it knows them.
    pub tables: Vec<TablePage>,
    /// What it is among others.
    pub member: Option<Member>,
}

/// KV pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KvPages {
    /// Held by sequences.
    pub used: u32,
    /// In all.
    pub total: u32,
}

/// How far a worker is with a slice of the placement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TablePage {
    /// Its blocks, from and up to.
    pub blocks: [u16; 2],
    /// The generation that the worker goes by.
    pub generation: u64,
    /// What it should hold and has not loaded: block, expert, and its segments, from and up to.
    #[serde(default)]
    pub missing: Vec<[u16; 4]>,
}

/// What a worker is among others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Rises with each start.
    pub incarnation: u64,
    /// The hash of all that decides bits.
    pub numerics: Option<String>,
    /// The model, once it is loaded.
    pub model: Option<ModelPage>,
    /// Units it has room for.
    pub slots: Option<u32>,
    /// What somebody has to do something about.
    pub problem: Option<String>,
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ModelPage {
    /// For each block whether it has experts.
    pub moe: Vec<bool>,
    /// Experts of a block.
    pub experts: u16,
    /// Experts of a token.
    #[serde(default)]
    pub top_k: u8,
    /// Segments of an expert's inner dimension.
    #[serde(default)]
    pub segments: u8,
}

impl Page {
    /// Its workers by name.
    pub fn by_name(&self) -> BTreeMap<&str, &WorkerPage> {
        self.workers.iter().filter_map(|w| Some((w.member.as_ref()?.name.as_str(), w))).collect()
    }
}

impl WorkerPage {
    /// What it says of a slice.
    pub fn table(&self, blocks: &Range<u16>) -> Option<&TablePage> {
        self.tables.iter().find(|t| t.blocks == [blocks.start, blocks.end])
    }
}

impl TablePage {
    /// Whether a unit that it should hold is not loaded.
    pub fn misses(&self, block: i32, expert: i32, slice: [i32; 2]) -> bool {
        let unit = [block, expert, slice[0], slice[1]];
        self.missing.iter().any(|m| m.map(i32::from) == unit)
    }
}
