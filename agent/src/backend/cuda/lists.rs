//! Row numbers of a step, sent to the device at once.

use std::ops::Range;

use sluice_kernels::cuda::{Buffer, Device, Error, View};

/// Integers that kernels read. Reused from step to step; room grows to the largest step and stays.
#[derive(Debug)]
pub struct Lists {
    host: Vec<i32>,
    device: Buffer<i32>,
}

impl Lists {
    /// Room for so many.
    pub fn new(device: &Device, room: usize) -> Result<Self, Error> {
        Ok(Self { host: Vec::with_capacity(room), device: device.zeros(room.max(1))? })
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.host.clear();
    }

    /// Appends a list.
    pub fn push(&mut self, values: impl IntoIterator<Item = u32>) -> Range<usize> {
        let start = self.host.len();
        // What has no i32 is out of every kernel's bounds, as -1 is.
        self.host.extend(values.into_iter().map(|value| i32::try_from(value).unwrap_or(-1)));
        start..self.host.len()
    }

    /// Sends them all.
    pub fn send(&mut self, device: &Device) -> Result<(), Error> {
        if self.host.is_empty() {
            return Ok(());
        }
        if self.host.len() > self.device.len() {
            self.device = device.zeros(self.host.len().next_power_of_two())?;
        }
        device.write(&self.host, &mut self.device.slice_mut(..self.host.len()))
    }

    /// A list, once sent.
    pub fn view(&self, list: &Range<usize>) -> View<'_, i32> {
        self.device.slice(list.clone())
    }
}
