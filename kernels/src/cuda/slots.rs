//! Slots: the weights of the experts that a device holds, in the order that the kernels read.

use cudarc::driver::CudaView;
use half::bf16;

use super::device::{Buffer, Device};
use super::relayout::Relayout;
use super::{Error, ExpertShape};
use crate::error::{below, same};

/// Slots for experts of one shape or for narrower slices of them, claimed at once.
#[derive(Debug)]
pub struct ExpertSlots {
    shape: ExpertShape,
    slots: usize,
    weights: Buffer<bf16>,
    relayout: Relayout,
}

/// A whole expert's matrices on the device, row-major: gate and up `[f, d]`, down `[d, f]`.
#[derive(Debug)]
pub struct ExpertSource<'a> {
    /// The gate matrix.
    pub gate: CudaView<'a, bf16>,
    /// The up matrix.
    pub up: CudaView<'a, bf16>,
    /// The down matrix.
    pub down: CudaView<'a, bf16>,
}

impl ExpertSlots {
    /// Claims `slots` empty slots.
    pub fn new(device: &Device, shape: &ExpertShape, slots: usize) -> Result<Self, Error> {
        Ok(Self {
            shape: shape.clone(),
            slots,
            weights: device.zeros(slots * shape.slot_values())?,
            relayout: Relayout::new(device)?,
        })
    }

    /// How many there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The most that each holds.
    pub fn shape(&self) -> &ExpertShape {
        &self.shape
    }

    pub(crate) fn weights(&self) -> &Buffer<bf16> {
        &self.weights
    }

    /// Whether a slot has room for a slice of this shape.
    pub(crate) fn has_room(&self, shape: &ExpertShape) -> bool {
        shape.slot_values() <= self.shape.slot_values()
    }

    /// Lays the held columns of an expert out in a slot.
    pub fn load(&mut self, device: &Device, slot: usize, source: &ExpertSource<'_>) -> Result<(), Error> {
        let shape = self.shape.clone();
        self.load_slice(device, slot, &shape, source)
    }

    /// Lays the columns that `shape` holds of an expert out in a slot. What a slot holds is the caller's to know: a launch
    /// over slots of another shape reads nothing that is not a weight, but computes nonsense.
    pub fn load_slice(
        &mut self,
        device: &Device,
        slot: usize,
        shape: &ExpertShape,
        source: &ExpertSource<'_>,
    ) -> Result<(), Error> {
        below("slot", slot, self.slots)?;
        if !self.has_room(shape) {
            return Err(crate::Error::Unsupported {
                what: format!("{shape:?} in a slot for {:?}: it has no room", self.shape),
            }
            .into());
        }
        let (d, f) = (shape.hidden(), shape.whole_inner());
        for (what, matrix) in [("gate", &source.gate), ("up", &source.up), ("down", &source.down)] {
            same("values of an expert's matrix (hidden times inner size)", d * f, matrix.len())
                .map_err(|error| crate::Error::Unsupported { what: format!("{what}: {error}") })?;
        }
        let held = shape.inner();
        let slot_start = slot * self.shape.slot_values();
        let weights = device.address_mut(&mut self.weights);
        let [gate, up, down] = [&source.gate, &source.up, &source.down].map(|matrix| device.address(matrix));
        let bytes = |values: usize| (values * size_of::<bf16>()) as u64;
        let (first_row, first_column) = (bytes(held.start * d), bytes(held.start));
        let to_gate_up = weights + bytes(slot_start);
        let to_down = to_gate_up + bytes(2 * d * held.len());
        // SAFETY: gate and up have the rows `held`, d long; the slot has room for both.
        unsafe {
            let from = [gate + first_row, up + first_row];
            self.relayout.run(device, from, d, to_gate_up, (2 * held.len(), d))?;
        }
        // SAFETY: down has d rows of f values, of which the columns `held` go behind gate and up.
        unsafe { self.relayout.run(device, [down + first_column, 0], f, to_down, (d, held.len())) }
    }
}
