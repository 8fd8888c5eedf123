//! Which slots hold an expert whole, for spans.

use sluice_core::ids::Unit;

use crate::model::spec::{BlockSpec, ModelSpec};

/// The units held here, by block. A block is put in order when a span first needs it, so that filling thousands of
/// slots one by one stays cheap.
#[derive(Debug)]
pub struct Holdings {
    segments: u8,
    blocks: Vec<BlockHoldings>,
}

/// The units of one block held here.
#[derive(Clone, Debug, Default)]
pub struct BlockHoldings {
    /// The units and their slots; sorted by unit once in order.
    pub units: Vec<(Unit, u32)>,
    /// For each expert the indexes into `units` of slices that make it whole, in order; empty if there are none.
    pub covers: Vec<Vec<u32>>,
    in_order: bool,
}

impl Holdings {
    /// Nothing held.
    pub fn new(spec: &ModelSpec, segments: u8) -> Self {
        let experts = |block: &BlockSpec| block.feed_forward.moe().map_or(0, |moe| moe.experts);
        let empty = |experts| BlockHoldings { covers: vec![Vec::new(); experts], ..BlockHoldings::default() };
        Self { segments, blocks: spec.blocks.iter().map(|block| empty(experts(block))).collect() }
    }

    /// A slot holds a unit from now on.
    pub fn add(&mut self, unit: Unit, slot: u32) {
        if let Some(block) = self.blocks.get_mut(usize::from(unit.block)) {
            block.units.push((unit, slot));
            block.in_order = false;
        }
    }

    /// A slot holds a unit no more.
    pub fn remove(&mut self, unit: Unit, slot: u32) {
        if let Some(block) = self.blocks.get_mut(usize::from(unit.block)) {
            block.units.retain(|held| *held != (unit, slot));
            block.in_order = false;
        }
    }

    /// Puts a block in order for [`Self::block`].
    pub fn prepare(&mut self, block: u16) {
        if let Some(block) = self.blocks.get_mut(usize::from(block))
            && !block.in_order
        {
            block.sort(self.segments);
        }
    }

    /// What is held of a block, as of [`Self::prepare`].
    pub fn block(&self, block: u16) -> Option<&BlockHoldings> {
        self.blocks.get(usize::from(block))
    }
}

impl BlockHoldings {
    fn sort(&mut self, segments: u8) {
        self.units.sort_unstable();
        for (expert, cover) in self.covers.iter_mut().enumerate() {
            let expert = expert as u16;
            let first = self.units.partition_point(|(unit, _)| unit.expert < expert);
            let end = self.units.partition_point(|(unit, _)| unit.expert <= expert);
            *cover = widest_cover(&self.units[first..end], segments);
            cover.iter_mut().for_each(|at| *at += first as u32);
        }
        self.in_order = true;
    }
}

/// The fewest equal slices that make an expert whole, of the units of that expert.
fn widest_cover(units: &[(Unit, u32)], segments: u8) -> Vec<u32> {
    let mut width = segments;
    while width > 0 {
        let cover: Vec<u32> = (0..segments / width)
            .map_while(|part| {
                let (lo, hi) = (part * width, (part + 1) * width);
                units.iter().position(|(unit, _)| (unit.slice.lo, unit.slice.hi) == (lo, hi))
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

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::ids::Slice;

    #[test]
    fn covers_take_the_widest_whole_set() {
        let unit = |expert, lo, hi| Unit { block: 0, expert, slice: Slice { lo, hi } };
        let mut held = Holdings {
            segments: 8,
            blocks: vec![BlockHoldings { covers: vec![vec![]; 3], ..Default::default() }],
        };
        for (slot, (expert, lo, hi)) in
            [(2, 4, 8), (0, 0, 8), (2, 0, 2), (2, 0, 4), (0, 0, 4), (1, 0, 4), (0, 4, 8)]
                .into_iter()
                .enumerate()
        {
            held.add(unit(expert, lo, hi), slot as u32);
        }
        let covers = |held: &mut Holdings| {
            held.prepare(0);
            let block = held.block(0).unwrap();
            let slots =
                |cover: &Vec<u32>| cover.iter().map(|&at| block.units[at as usize].1).collect::<Vec<_>>();
            block.covers.iter().map(slots).collect::<Vec<_>>()
        };
        assert_eq!(covers(&mut held), [vec![1], vec![], vec![3, 0]]);
        held.remove(unit(0, 0, 8), 1);
        assert_eq!(covers(&mut held), [vec![4, 6], vec![], vec![3, 0]]);
        held.remove(unit(2, 4, 8), 0);
        assert_eq!(covers(&mut held), [vec![4, 6], vec![], vec![]]);
    }
}
