//! The placement as the file that agents read it from.

use crate::placing::{Placed, SliceNow};
use serde_json::json;
use sluice_crds::PlacedWorker;

/// The placement, with its generations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Of the list.
    generation: u64,
    /// The list.
    pub list: Vec<PlacedWorker>,
    /// The rows.
    pub slices: Vec<SliceNow>,
}

impl Table {
    /// Takes what was decided. Whether anything changed.
    pub fn take(&mut self, placed: &Placed) -> bool {
        let before = self.clone();
        if self.list != placed.list {
            self.list.clone_from(&placed.list);
            self.generation += 1;
        }
        for (blocks, units) in &placed.slices {
            match self.slices.iter_mut().find(|s| s.blocks == *blocks) {
                Some(now) if now.units == *units => {}
                Some(now) => {
                    now.units.clone_from(units);
                    now.generation += 1;
                }
                None => {
                    let (blocks, units) = (blocks.clone(), units.clone());
                    self.slices.push(SliceNow { blocks, generation: 1, units });
                }
            }
        }
        before != *self
    }

    /// The newest of its generations.
    pub fn newest(&self) -> u64 {
        self.slices.iter().map(|s| s.generation).max().unwrap_or(0).max(self.generation)
    }

    /// JSON, which is YAML.
    pub fn text(&self, segments: i32) -> String {
        let workers: Vec<_> = self
            .list
            .iter()
            .map(|w| json!({ "number": w.number, "name": w.name, "role": w.role, "address": w.address }))
            .collect();
        let slices: Vec<_> = self
            .slices
            .iter()
            .map(|s| {
                let units = s.units.iter().map(|u| {
                    json!({
                        "worker": u.worker, "block": u.block, "expert": u.expert, "slice": u.slice,
                        "state": u.state, "fraction": f64::from(u.fraction) / 10000.0,
                    })
                });
                json!({
                    "blocks": [s.blocks.start, s.blocks.end],
                    "generation": s.generation,
                    "units": units.collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({ "generation": self.generation, "segments": segments, "workers": workers, "slices": slices })
            .to_string()
    }
}
