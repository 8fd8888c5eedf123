//! Which rank has lately seen a prefix: a hint that breaks ties, so a collision costs nothing but the reuse.

use crate::ids::WorkerId;
use std::collections::{BTreeMap, HashMap};

/// The shortest prefix worth a hint; the others are its doublings.
const SHORTEST: usize = 64;

#[derive(Debug)]
pub(super) struct Affinity {
    capacity: usize,
    stamp: u64,
    ranks: HashMap<u64, (WorkerId, u64)>,
    by_stamp: BTreeMap<u64, u64>,
}

impl Affinity {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, stamp: 0, ranks: HashMap::new(), by_stamp: BTreeMap::new() }
    }

    /// The rank that last saw the longest known prefix.
    pub(super) fn find(&self, prefixes: &[u64]) -> Option<WorkerId> {
        prefixes.iter().rev().find_map(|hash| self.ranks.get(hash).map(|(rank, _)| *rank))
    }

    pub(super) fn note(&mut self, prefixes: &[u64], rank: WorkerId) {
        for &hash in prefixes {
            self.stamp += 1;
            if let Some((_, old)) = self.ranks.insert(hash, (rank, self.stamp)) {
                self.by_stamp.remove(&old);
            }
            self.by_stamp.insert(self.stamp, hash);
        }
        while self.ranks.len() > self.capacity
            && let Some((_, oldest)) = self.by_stamp.pop_first()
        {
            self.ranks.remove(&oldest);
        }
    }
}

/// Hashes of the prefixes of 64, 128, 256, ... tokens, shortest first.
pub(super) fn prefixes(salt: u64, prompt: &[u32]) -> Vec<u64> {
    let mut hashes = Vec::new();
    let mut hash = salt ^ 0x9e37_79b9_7f4a_7c15;
    let mut boundary = SHORTEST;
    for (at, &id) in prompt.iter().enumerate() {
        hash = (hash ^ u64::from(id)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
        if at + 1 == boundary {
            hashes.push(hash);
            boundary *= 2;
        }
    }
    hashes
}
