//! Which slots hold an expert whole, for spans.

use std::sync::Arc;

use sluice_core::ids::Unit;

use crate::backend::weights::UnitWeights;
use crate::model::spec::ModelSpec;

/// The units held here, by block.
#[derive(Debug)]
pub struct Holdings {
    segments: u8,
    blocks: Vec<BlockHoldings>,
}

/// The units of one block held here.
#[derive(Clone, Debug, Default)]
pub struct BlockHoldings {
    /// The units and their slots, sorted by unit.
    pub units: Vec<(Unit, u32)>,
    /// For each expert the indexes into `units` of slices that make it whole, in order; empty if there are none.
    pub covers: Vec<Vec<u32>>,
}

impl Holdings {
    /// Nothing held.
    pub fn new(spec: &ModelSpec, segments: u8) -> Self {
        let experts =
            |block: &crate::model::spec::BlockSpec| block.feed_forward.moe().map_or(0, |moe| moe.experts);
        let empty = |experts| BlockHoldings { units: Vec::new(), covers: vec![Vec::new(); experts] };
        Self { segments, blocks: spec.blocks.iter().map(|block| empty(experts(block))).collect() }
    }

    /// What is held of a block.
    pub fn block(&self, block: u16) -> Option<&BlockHoldings> {
        self.blocks.get(usize::from(block))
    }

    /// After a slot changed.
    pub fn rebuild(&mut self, slots: &[Option<Arc<UnitWeights>>]) {
        self.blocks.iter_mut().for_each(|block| block.units.clear());
        for (slot, held) in slots.iter().enumerate() {
            if let Some(held) = held
                && let Some(block) = self.blocks.get_mut(usize::from(held.unit.block))
            {
                block.units.push((held.unit, slot as u32));
            }
        }
        for block in &mut self.blocks {
            block.units.sort_unstable();
            let BlockHoldings { units, covers } = block;
            for (expert, cover) in covers.iter_mut().enumerate() {
                *cover = widest_cover(units, expert as u16, self.segments);
            }
        }
    }
}

/// The fewest equal slices that make an expert whole.
fn widest_cover(units: &[(Unit, u32)], expert: u16, segments: u8) -> Vec<u32> {
    let mut width = segments;
    while width > 0 {
        let cover: Vec<u32> = (0..segments / width)
            .map_while(|part| {
                let (lo, hi) = (part * width, (part + 1) * width);
                units
                    .iter()
                    .position(|(unit, _)| unit.expert == expert && (unit.slice.lo, unit.slice.hi) == (lo, hi))
            })
            .map(|at| at as u32)
            .collect();
        if cover.len() == usize::from(segments / width) {
            return cover;
        }
        width /= 2;
    }
    Vec::new()
}
