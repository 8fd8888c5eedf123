//! A worker's slab: the residual stream in one slab, everything else in another, so that a kernel can read the one
//! while it writes the other.

use sluice_core::ids::Row;
use sluice_core::slab::SlabLayout;
use sluice_kernels::cpu::Slab;

/// All rows of a worker, by the numbers of its [`SlabLayout`].
#[derive(Debug)]
pub struct WorkerSlab {
    /// The residual stream: rows below `layout.tokens`.
    pub residual: Slab,
    /// The other regions.
    pub rest: Slab,
    layout: SlabLayout,
}

impl WorkerSlab {
    /// A zeroed slab.
    pub fn new(layout: SlabLayout, hidden: usize) -> Self {
        let rest = layout.rows() - layout.tokens;
        Self {
            residual: Slab::new(layout.tokens as usize, hidden),
            rest: Slab::new(rest as usize, hidden),
            layout,
        }
    }

    /// Where a row of another region lies in `rest`; `None` for a residual row.
    pub fn in_rest(&self, row: Row) -> Option<u32> {
        row.checked_sub(self.layout.tokens)
    }

    /// Where a token's input row lies in `rest`.
    pub fn input(&self, token: u32) -> u32 {
        self.layout.input(token) - self.layout.tokens
    }

    /// A row's values; `None` out of range.
    pub fn row(&self, row: Row) -> Option<&[f32]> {
        match self.in_rest(row) {
            None => Some(self.residual.row(row as usize)),
            Some(row) => ((row as usize) < self.rest.rows()).then(|| self.rest.row(row as usize)),
        }
    }

    /// A row's values, to write; `None` out of range.
    pub fn row_mut(&mut self, row: Row) -> Option<&mut [f32]> {
        match self.in_rest(row) {
            None => Some(self.residual.row_mut(row as usize)),
            Some(row) => ((row as usize) < self.rest.rows()).then(|| self.rest.row_mut(row as usize)),
        }
    }
}

/// A slab for intermediate rows that grows to the largest step.
#[derive(Debug, Default)]
pub struct Scratch(Option<Slab>);

impl Scratch {
    /// At least `rows` rows of exactly `cols` values, holding anything.
    pub fn get(&mut self, rows: usize, cols: usize) -> &mut Slab {
        let slab = self.0.take().filter(|slab| slab.cols() == cols && slab.rows() >= rows);
        self.0.insert(slab.unwrap_or_else(|| Slab::new(rows.next_power_of_two(), cols)))
    }
}
