//! A worker's slab on a device: the residual stream and what experts read in bf16, what experts return in f32, so that a whole
//! expert's output and a slice's subtree may lie in the same row. (A merge rounds the former to bf16: its bits are the same.)

use half::bf16;
use sluice_core::ids::Row;
use sluice_core::slab::SlabLayout;
use sluice_kernels::cuda::{Buffer, Device, Error};

/// All rows of a worker, by the numbers of its [`SlabLayout`].
#[derive(Debug)]
pub struct WorkerSlab {
    /// The residual stream: rows below `layout.tokens`.
    pub residual: Buffer<bf16>,
    /// What experts read: the input rows, then the landing rows.
    pub inputs: Buffer<bf16>,
    /// What experts write: the return rows, then both banks of outputs, and a row of zeros.
    pub outputs: Buffer<f32>,
    layout: SlabLayout,
    hidden: usize,
}

/// Where a row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the residual stream.
    Residual(u32),
    /// Among what experts read.
    Input(u32),
    /// Among what experts write.
    Output(u32),
}

/// Where a row of a layout lies; `None` out of range.
pub fn place(layout: &SlabLayout, row: Row) -> Option<Place> {
    let (inputs, returns, landing) = (layout.tokens, 2 * layout.tokens, layout.landing(0));
    let outputs = layout.output(0, 0);
    match row {
        row if row < inputs => Some(Place::Residual(row)),
        row if row < returns => Some(Place::Input(row - inputs)),
        row if row < landing => Some(Place::Output(row - returns)),
        row if row < outputs => Some(Place::Input(row - landing + layout.tokens)),
        row if row < layout.rows() => Some(Place::Output(row - outputs + (landing - returns))),
        _ => None,
    }
}

impl WorkerSlab {
    /// A zeroed slab.
    pub fn new(device: &Device, layout: SlabLayout, hidden: usize) -> Result<Self, Error> {
        let rows = |rows: u32| (rows as usize).max(1) * hidden;
        Ok(Self {
            residual: device.zeros(rows(layout.tokens))?,
            inputs: device.zeros(rows(layout.tokens + layout.landing))?,
            outputs: device.zeros(rows(zero_row(&layout) + 1))?,
            layout,
            hidden,
        })
    }

    /// The row of zeros among what experts write.
    pub fn zero_row(&self) -> u32 {
        zero_row(&self.layout)
    }

    /// Where a row lies; `None` out of range.
    pub fn place(&self, row: Row) -> Option<Place> {
        place(&self.layout, row)
    }

    /// Appends the values of rows. Waits for the device.
    pub fn read(&self, device: &Device, rows: &[Row], into: &mut Vec<f32>) -> Result<(), Error> {
        for (first, count) in self.runs(rows) {
            let part = |row: u32| row as usize * self.hidden..(row as usize + count) * self.hidden;
            let halves = |from: &Buffer<bf16>, row, into: &mut Vec<f32>| {
                let values = device.download(&from.slice(part(row)))?;
                into.extend(values.into_iter().map(bf16::to_f32));
                Ok::<_, Error>(())
            };
            match first {
                None => into.resize(into.len() + self.hidden, f32::NAN),
                Some(Place::Residual(row)) => halves(&self.residual, row, into)?,
                Some(Place::Input(row)) => halves(&self.inputs, row, into)?,
                Some(Place::Output(row)) => into.extend(device.download(&self.outputs.slice(part(row)))?),
            }
        }
        Ok(())
    }

    /// Writes rows from what [`Self::read`] of another slab gave.
    pub fn write(&mut self, device: &Device, rows: &[Row], values: &[f32]) -> Result<(), Error> {
        let mut values = values;
        let runs: Vec<_> = self.runs(rows).collect();
        for (first, count) in runs {
            let Some((now, rest)) = values.split_at_checked(count * self.hidden) else { return Ok(()) };
            values = rest;
            let part = |row: u32| row as usize * self.hidden..(row as usize + count) * self.hidden;
            let halves = || now.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>();
            match first {
                None => {}
                Some(Place::Residual(row)) => {
                    device.write(&halves(), &mut self.residual.slice_mut(part(row)))?;
                }
                Some(Place::Input(row)) => {
                    device.write(&halves(), &mut self.inputs.slice_mut(part(row)))?;
                }
                Some(Place::Output(row)) => device.write(now, &mut self.outputs.slice_mut(part(row)))?,
            }
        }
        Ok(())
    }

    /// Runs of rows that lie one after the other.
    fn runs<'a>(&'a self, rows: &'a [Row]) -> impl Iterator<Item = (Option<Place>, usize)> + 'a {
        let follows = |a: &Row, b: &Row| match (self.place(*a), self.place(*b)) {
            (Some(Place::Residual(a)), Some(Place::Residual(b)))
            | (Some(Place::Input(a)), Some(Place::Input(b)))
            | (Some(Place::Output(a)), Some(Place::Output(b))) => a + 1 == b,
            _ => false,
        };
        rows.chunk_by(follows).map(|run| (self.place(run[0]), run.len()))
    }
}

fn zero_row(layout: &SlabLayout) -> u32 {
    layout.groups * layout.top_k * layout.parts + 2 * layout.outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_has_a_place_of_its_own() {
        let layout = SlabLayout { tokens: 3, groups: 5, top_k: 2, parts: 4, landing: 7, outputs: 6 };
        let places: Vec<Place> = (0..layout.rows()).map(|row| place(&layout, row).unwrap()).collect();
        let distinct: HashSet<_> = places.iter().map(|place| format!("{place:?}")).collect();
        assert_eq!(distinct.len(), places.len());
        assert_eq!(place(&layout, layout.input(2)), Some(Place::Input(2)));
        assert_eq!(place(&layout, layout.landing(0)), Some(Place::Input(3)));
        assert_eq!(place(&layout, layout.output(0, 0)), Some(Place::Output(40)));
        assert_eq!(place(&layout, layout.output(1, 5)), Some(Place::Output(zero_row(&layout) - 1)));
        assert_eq!(place(&layout, layout.rows()), None);
    }
}
