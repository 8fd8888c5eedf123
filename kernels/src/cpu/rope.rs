//! Rotary position embedding.

use std::ops::Range;

use super::context::Cpu;
use super::rows::check_heads;
use super::simd::{Kernel, Simd, dispatch};
use super::slab::{Rows, Slab};
use crate::Error;
use crate::error::{below, same};

/// Cosines and sines per position, `[positions][rotary_dim / 2]` each, as the model's scaling makes them.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for `rotary_dim` rotated values per head.
    pub fn new(rotary_dim: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self, Error> {
        let half = rotary_dim / 2;
        if half == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(Error::Unsupported {
                what: format!("rotary dimension {rotary_dim}: it must be even and above 0"),
            });
        }
        same("sines (as many as cosines)", cos.len(), sin.len())?;
        same("cosines of whole positions", cos.len() / half * half, cos.len())?;
        Ok(Self { half, cos, sin })
    }

    /// Positions it holds.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Rotated values per head.
    pub fn rotary_dim(&self) -> usize {
        2 * self.half
    }
}

impl Cpu {
    /// Turns in place the heads (of `head` values) in the columns of each row by its position: the pair (i, i + half)
    /// of the first `rotary_dim` values becomes `(a cos - b sin, b cos + a sin)`; the rest of the head stays.
    pub fn rope(
        &mut self,
        slab: &mut Slab,
        rows: Rows<'_>,
        cols: Range<usize>,
        head: usize,
        positions: &[u32],
        table: &RopeTable,
    ) -> Result<(), Error> {
        check_heads(slab, rows, &cols, head)?;
        same("positions (as many as rows)", rows.len(), positions.len())?;
        if table.rotary_dim() > head {
            return Err(Error::Size {
                what: "rotary dimension (at most the head's)",
                expected: head,
                found: table.rotary_dim(),
            });
        }
        for position in positions {
            below("position", *position as usize, table.positions())?;
        }
        let (isa, writer, half) = (self.isa, slab.writer(), table.half);
        self.bands(rows.len(), cols.len(), &|band| {
            for i in band {
                let at = positions[i] as usize * half;
                let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
                // SAFETY: the heads lie in the row, and each row is written by one thread.
                unsafe {
                    let heads = writer.row(rows.at(i)).add(cols.start);
                    dispatch(isa, Turn { heads, count: cols.len() / head, head, cos, sin });
                }
            }
        });
        Ok(())
    }
}

struct Turn<'a> {
    heads: *mut f32,
    count: usize,
    head: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.cos.len();
        let whole = half / S::LANES * S::LANES;
        for h in 0..self.count {
            // SAFETY: both halves of the head lie in the row, and the table's lines have `half` values.
            unsafe {
                let a = self.heads.add(h * self.head);
                let b = a.add(half);
                let mut i = 0;
                while i < whole {
                    let (x, y) = (S::load(a.add(i)), S::load(b.add(i)));
                    let (c, s) = (S::load(self.cos.as_ptr().add(i)), S::load(self.sin.as_ptr().add(i)));
                    let minus = S::sub(S::splat(0.0), S::mul(y, s));
                    S::store(a.add(i), S::fma(x, c, minus));
                    S::store(b.add(i), S::fma(y, c, S::mul(x, s)));
                    i += S::LANES;
                }
                while i < half {
                    let (x, y, c, s) = (*a.add(i), *b.add(i), self.cos[i], self.sin[i]);
                    *a.add(i) = x.mul_add(c, 0.0 - y * s);
                    *b.add(i) = y.mul_add(c, x * s);
                    i += 1;
                }
            }
        }
    }
}
