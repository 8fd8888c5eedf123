//! What sampling needs of rows of logits, made where they are.

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::experts::check_rows;
use super::kv::at_most;
use super::launch::{Start, argument, launch};
use super::merge::int;

/// `kThreads` of `logits.cu`.
const THREADS: u32 = 256;
/// `kSlice`.
const SLICE: usize = 4096;
/// `Part`, in values of 4 bytes.
const PART_VALUES: usize = 4;
/// Values of a 16-byte access.
const PIECE: usize = 4;

/// The workspace for rows of one length. One launch at a time uses it.
#[derive(Debug)]
pub struct LogitSummary {
    columns: usize,
    parts: Buffer<u32>,
    done: Buffer<u32>,
    kernel: Kernel,
}

/// One value per row.
#[derive(Debug)]
pub struct Summary<'a> {
    /// The largest logit's number, the lower of equals. NaN is below every number.
    pub ids: &'a mut Buffer<i32>,
    /// That logit.
    pub best: &'a mut Buffer<f32>,
    /// The logarithm of the sum of all exponentials; NaN where a logit is. A logit less this is its log-probability.
    pub log_sums: &'a mut Buffer<f32>,
}

/// `Params`.
#[repr(C)]
struct Params {
    logits: u64,
    parts: u64,
    done: u64,
    ids: u64,
    best: u64,
    log_sums: u64,
    columns: i32,
    stride: i32,
}

impl LogitSummary {
    /// For up to `max_rows` rows of `columns` logits.
    pub fn new(device: &Device, columns: usize, max_rows: usize) -> Result<Self, Error> {
        if columns == 0 || !columns.is_multiple_of(PIECE) || columns > 1 << 24 {
            return Err(crate::Error::Unsupported {
                what: format!("rows of {columns} logits: use a multiple of {PIECE}"),
            }
            .into());
        }
        Ok(Self {
            columns,
            parts: device.zeros(max_rows * columns.div_ceil(SLICE) * PART_VALUES)?,
            done: device.zeros(max_rows)?,
            kernel: device.kernel("logits", "summarise_logits", THREADS)?,
        })
    }

    /// Summarises the first `rows` rows, `stride` values apart.
    pub fn run(
        &mut self,
        device: &Device,
        rows: usize,
        logits: &Buffer<f32>,
        stride: usize,
        out: Summary<'_>,
    ) -> Result<(), Error> {
        let Summary { ids, best, log_sums } = out;
        check_rows("logits", rows, logits.len(), stride, self.columns)?;
        at_most("rows of logits (as of the workspace)", self.done.len(), rows)?;
        let shortest = ids.len().min(best.len()).min(log_sums.len());
        at_most("rows of logits (as of what is made of them)", shortest, rows)?;
        if rows == 0 {
            return Ok(());
        }
        let mut params = Params {
            logits: device.address(logits),
            parts: device.address_mut(&mut self.parts),
            done: device.address_mut(&mut self.done),
            ids: device.address_mut(ids),
            best: device.address_mut(best),
            log_sums: device.address_mut(log_sums),
            columns: int(self.columns)?,
            stride: int(stride)?,
        };
        let grid = (self.columns.div_ceil(SLICE) as u32, int(rows)?.unsigned_abs());
        // SAFETY: `Params` is the kernel's; every size is checked above.
        unsafe { launch(device, self.kernel, grid, Start::Overlapped, &mut [argument(&mut params)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel reads this struct field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernel() {
        assert_eq!(std::mem::offset_of!(Params, columns), 48);
        assert_eq!(size_of::<Params>(), 56);
    }
}
