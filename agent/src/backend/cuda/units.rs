//! The units that a worker holds, and launches over them: one for each slice of the experts that has rows.

use std::collections::BTreeMap;

use half::bf16;
use sluice_core::ids::{Slice, Unit};
use sluice_kernels::cuda::{
    Buffer, Device, Error, ExpertCall, ExpertFfn, ExpertShape, ExpertSlots, ExpertSource, Output, Pairs,
    Rows, Tuning,
};

use super::CudaConfig;
use super::lists::Lists;
use super::weights::UnitWeights;
use crate::backend::error::StepError;
use crate::backend::holdings::Holdings;
use crate::model::spec::ModelSpec;

/// Slots of a worker, what they hold, and the workspaces of their slices.
pub struct Units {
    experts: usize,
    inner: usize,
    hidden: usize,
    segments: u8,
    pairs: usize,
    widest: u8,
    slots: Option<ExpertSlots>,
    held: Vec<Option<Unit>>,
    /// By lo and hi.
    spaces: BTreeMap<(u8, u8), ExpertFfn>,
    pub holdings: Holdings,
    /// Whole experts of each block, by their slots, where all are held whole: what a span needs.
    whole: Vec<Option<Buffer<i32>>>,
}

/// One row through one unit.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub slice: Slice,
    pub expert: u16,
    pub slot: u32,
    /// Row read, of what experts read.
    pub src: u32,
    /// Row written, of what experts write.
    pub dst: u32,
}

impl Units {
    /// Claims the slots.
    pub fn new(
        device: &Device,
        spec: &ModelSpec,
        inner: usize,
        experts: usize,
        pairs: usize,
        config: &CudaConfig,
    ) -> Result<Self, Error> {
        let (segments, slices) = (config.segments, config.slices.max(1));
        let widest = usize::from(segments / slices).max(1);
        // Slices differ in length where segments are uneven: the longest one's room.
        let shapes = (0..usize::from(slices)).map(|part| {
            let held = part * widest..(part + 1) * widest;
            ExpertShape::new(spec.hidden, inner, usize::from(segments), held)
        });
        let shapes: Vec<ExpertShape> = shapes.collect::<Result<_, _>>()?;
        let largest = shapes.into_iter().max_by_key(ExpertShape::slot_values);
        let slots = match largest {
            Some(shape) if config.slots > 0 => Some(ExpertSlots::new(device, &shape, config.slots as usize)?),
            _ => None,
        };
        Ok(Self {
            experts,
            inner,
            hidden: spec.hidden,
            segments,
            pairs,
            widest: widest as u8,
            slots,
            held: vec![None; config.slots as usize],
            spaces: BTreeMap::new(),
            holdings: Holdings::new(spec, segments),
            whole: (0..spec.blocks.len()).map(|_| None).collect(),
        })
    }

    fn shape(&self, slice: Slice) -> Result<ExpertShape, Error> {
        let held = usize::from(slice.lo)..usize::from(slice.hi);
        Ok(ExpertShape::new(self.hidden, self.inner, usize::from(self.segments), held)?)
    }

    /// Puts a unit into a slot, laid out as the kernels read it. Waits until it is there: launches read weights before the
    /// work ahead of them has ended.
    pub fn install(&mut self, device: &Device, slot: u32, unit: &UnitWeights) -> Result<(), Error> {
        self.free(slot);
        self.load(device, slot, unit)?;
        if let Some(held) = self.held.get_mut(slot as usize) {
            *held = Some(unit.unit);
            self.holdings.add(unit.unit, slot);
            self.forget_whole(unit.unit.block);
        }
        Ok(())
    }

    fn load(&mut self, device: &Device, slot: u32, unit: &UnitWeights) -> Result<(), Error> {
        let shape = self.shape(unit.unit.slice)?;
        self.workspace(device, unit.unit.slice)?;
        let Some(slots) = &mut self.slots else {
            return Err(sluice_kernels::Error::Range { what: "slot", index: slot as usize, len: 0 }.into());
        };
        let (gate, up, down) =
            (device.upload(&unit.gate)?, device.upload(&unit.up)?, device.upload(&unit.down)?);
        let source = ExpertSource { gate: gate.as_view(), up: up.as_view(), down: down.as_view() };
        slots.load_slice(device, slot as usize, &shape, &source)?;
        device.synchronize()
    }

    /// The workspace of a slice, claimed when the first unit of it comes.
    pub fn workspace(&mut self, device: &Device, slice: Slice) -> Result<(), Error> {
        let key = (slice.lo, slice.hi);
        if !self.spaces.contains_key(&key) {
            let space = ExpertFfn::new(device, &self.shape(slice)?, self.experts, self.pairs)?;
            self.spaces.insert(key, space);
        }
        Ok(())
    }

    /// Empties a slot.
    pub fn free(&mut self, slot: u32) {
        if let Some(unit) = self.held.get_mut(slot as usize).and_then(Option::take) {
            self.holdings.remove(unit, slot);
            self.forget_whole(unit.block);
        }
    }

    fn forget_whole(&mut self, block: u16) {
        if let Some(whole) = self.whole.get_mut(usize::from(block)) {
            *whole = None;
        }
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.held.len()
    }

    /// Rows of a launch, at most.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Segments that a slot has room for.
    pub fn widest(&self) -> u8 {
        self.widest
    }

    /// Whether a slot holds a unit.
    pub fn holds(&self, slot: u32, unit: Unit) -> bool {
        self.held.get(slot as usize).is_some_and(|held| *held == Some(unit))
    }

    /// The slots of a block's experts on the device, where every one is held whole.
    pub fn all_whole(&mut self, device: &Device, block: u16) -> Result<bool, Error> {
        self.holdings.prepare(block);
        let (Some(held), Some(whole)) = (self.holdings.block(block), self.whole.get_mut(usize::from(block)))
        else {
            return Ok(false);
        };
        if whole.is_some() {
            return Ok(true);
        }
        let slot = |cover: &Vec<u32>| match cover[..] {
            [unit] => i32::try_from(held.units[unit as usize].1).ok(),
            _ => None,
        };
        let Some(slots) = held.covers.iter().map(slot).collect::<Option<Vec<i32>>>() else {
            return Ok(false);
        };
        *whole = Some(device.upload(&slots)?);
        Ok(true)
    }

    /// Runs the choices of `rows` rows of x over whole experts of a block, as they lie on the device: output (row, k) goes to
    /// row `row * K + k`.
    #[allow(clippy::too_many_arguments)]
    pub fn run_whole(
        &mut self,
        device: &Device,
        block: u16,
        ids: &Buffer<i32>,
        (rows, top_k): (usize, usize),
        x: &Buffer<bf16>,
        y: &mut Buffer<f32>,
    ) -> Result<(), StepError> {
        let key = (0, self.segments);
        let slots = self.whole.get(usize::from(block)).and_then(Option::as_ref);
        let (Some(space), Some(weights), Some(slots)) = (self.spaces.get_mut(&key), &self.slots, slots)
        else {
            return Err(StepError::Inconsistent("a span over experts that are not here"));
        };
        let pairs =
            Pairs { slots: Some(slots.as_view()), ..Pairs::in_order(ids.slice(..rows * top_k), top_k) };
        // The mean, twice: what most of the experts have at most.
        let expected = (2 * rows * top_k).div_ceil(self.experts).min(rows);
        let call = ExpertCall {
            weights,
            x: Rows { data: x, stride: self.hidden },
            y: Output::Subtree(y),
            y_stride: self.hidden,
            tuning: Tuning::for_rows(expected),
        };
        Ok(space.run(device, &pairs, call)?)
    }

    /// Runs items, each through its slot's slice of an expert.
    pub fn run(
        &mut self,
        device: &Device,
        lists: &mut Lists,
        items: &[Item],
        x: &Buffer<bf16>,
        y: &mut Buffer<f32>,
    ) -> Result<(), StepError> {
        for (&(lo, hi), space) in &mut self.spaces {
            let of = |item: &&Item| (item.slice.lo, item.slice.hi) == (lo, hi);
            let these = || items.iter().filter(of);
            let mut counts = vec![0usize; self.experts];
            let mut slots = vec![0u32; self.experts];
            for item in these() {
                let expert = usize::from(item.expert);
                let (Some(count), Some(slot)) = (counts.get_mut(expert), slots.get_mut(expert)) else {
                    return Err(StepError::Range { what: "expert", index: expert, len: self.experts });
                };
                *count += 1;
                *slot = item.slot;
            }
            let fullest = counts.iter().copied().max().unwrap_or(0);
            let Some(weights) = self.slots.as_ref().filter(|_| fullest > 0) else { continue };
            lists.clear();
            let ids = lists.push(these().map(|item| u32::from(item.expert)));
            let source = lists.push(these().map(|item| item.src));
            let target = lists.push(these().map(|item| item.dst));
            let slots = lists.push(slots);
            lists.send(device)?;
            let pairs = Pairs {
                ids: lists.view(&ids),
                top_k: 1,
                slots: Some(lists.view(&slots)),
                source: Some(lists.view(&source)),
                target: Some(lists.view(&target)),
            };
            let call = ExpertCall {
                weights,
                x: Rows { data: x, stride: self.hidden },
                y: Output::Subtree(y),
                y_stride: self.hidden,
                tuning: Tuning::for_rows(fullest),
            };
            space.run(device, &pairs, call)?;
        }
        Ok(())
    }
}
