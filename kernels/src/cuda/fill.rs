//! Seeded random values, made on the device.

use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::launch::{Start, argument, launch};

const THREADS: u32 = 256;
const BLOCKS_PER_MULTIPROCESSOR: usize = 16;

/// Fills buffers with values that only depend on a seed and their index.
#[derive(Debug)]
pub struct Fill {
    kernel: Kernel,
}

impl Fill {
    /// Finds the kernel.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self { kernel: device.kernel("fill", "fill_normal", THREADS)? })
    }

    /// Nearly normal values of standard deviation `scale`.
    pub fn normal(
        &self,
        device: &Device,
        out: &mut Buffer<bf16>,
        seed: u64,
        scale: f32,
    ) -> Result<(), Error> {
        let (mut values, mut seed, mut scale) = (out.len() as i64, seed, scale);
        let mut pointer = device.address_mut(out);
        let blocks = (device.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR) as u32;
        let mut arguments =
            [argument(&mut pointer), argument(&mut values), argument(&mut seed), argument(&mut scale)];
        // SAFETY: the parameters of `fill_normal`; it writes `values` values of the buffer, which is borrowed mutably.
        unsafe { launch(device, self.kernel, (blocks, 1), Start::AfterPrevious, &mut arguments) }
    }
}
