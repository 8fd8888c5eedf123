//! Laying matrices out in the order that the products read them.

use super::Error;
use super::device::{Device, Kernel};
use super::launch::{Start, argument, launch};
use super::merge::int;

const THREADS: u32 = 256;
const VALUES_PER_THREAD: usize = 8;

/// The kernel.
#[derive(Debug)]
pub(crate) struct Relayout {
    kernel: Kernel,
}

impl Relayout {
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self { kernel: device.kernel("relayout", "relayout", THREADS)? })
    }

    /// Lays out one matrix of `(rows, columns)`; or two of half the rows each, their strips of 8 rows taking turns.
    ///
    /// # Safety
    /// `from` are the addresses of the matrices, the second 0 if there is one; their rows are `stride` values apart. At `to`
    /// there is room for both.
    pub unsafe fn run(
        &self,
        device: &Device,
        from: [u64; 2],
        stride: usize,
        to: u64,
        (rows, columns): (usize, usize),
    ) -> Result<(), Error> {
        let [mut first, mut second] = from;
        let (mut stride, mut to) = (stride as i64, to);
        let (mut rows_i32, mut columns_i32) = (int(rows)?, int(columns)?);
        let blocks = (rows * columns).div_ceil(VALUES_PER_THREAD * THREADS as usize);
        let mut arguments = [
            argument(&mut first),
            argument(&mut second),
            argument(&mut stride),
            argument(&mut to),
            argument(&mut rows_i32),
            argument(&mut columns_i32),
        ];
        let grid = (int(blocks)?.unsigned_abs(), 1);
        // SAFETY: the parameters of `relayout`; the memory is the caller's.
        unsafe { launch(device, self.kernel, grid, Start::AfterPrevious, &mut arguments) }
    }
}
