//! What the property tests share.
#![allow(dead_code)]

use std::time::Duration;

use half::{bf16, f16};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sluice_kernels::cpu::{Cpu, Dtype, Isa, PackedMatrix, Pool, Slab, Source};

/// Every context a result must not depend on: all sets of this machine, 1 to 4 threads.
pub fn contexts() -> Vec<Cpu> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2, 4] {
            all.push(Cpu::new(isa, Pool::new(threads, Duration::ZERO).unwrap()).unwrap());
        }
    }
    all.push(Cpu::new(Isa::best(), Pool::new(3, Duration::from_micros(20)).unwrap()).unwrap());
    all
}

pub fn name(cpu: &Cpu) -> String {
    format!("{} on {} threads", cpu.isa(), cpu.threads())
}

pub struct Random(SmallRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.0.random_range(-1.0f32..1.0)).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    pub fn slab(&mut self, rows: usize, cols: usize) -> Slab {
        Slab::from_rows(cols, &self.values(rows * cols)).unwrap()
    }

    /// `n` distinct numbers below `of`, shuffled.
    pub fn distinct(&mut self, n: usize, of: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..of as u32).collect();
        for i in 0..n {
            let j = i + self.below(of - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }

    pub fn weights(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Weights {
        let values = self.values(rows * cols);
        Weights::new(dtype, rows, cols, &values)
    }
}

/// A matrix as a checkpoint holds it, and the values it stands for.
pub struct Weights {
    pub dtype: Dtype,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
}

impl Weights {
    pub fn new(dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Self {
        let mut bytes = Vec::new();
        let mut rounded = Vec::new();
        for x in values {
            match dtype {
                Dtype::F32 => {
                    bytes.extend(x.to_le_bytes());
                    rounded.push(*x);
                }
                Dtype::F16 => {
                    bytes.extend(f16::from_f32(*x).to_le_bytes());
                    rounded.push(f16::from_f32(*x).to_f32());
                }
                Dtype::Bf16 => {
                    bytes.extend(bf16::from_f32(*x).to_le_bytes());
                    rounded.push(bf16::from_f32(*x).to_f32());
                }
            }
        }
        Self { dtype, rows, cols, bytes, values: rounded }
    }

    pub fn source(&self) -> Source<'_> {
        Source::new(self.dtype, self.rows, self.cols, &self.bytes).unwrap()
    }

    pub fn pack(&self) -> PackedMatrix {
        PackedMatrix::pack(self.dtype, self.rows, self.cols, &self.bytes).unwrap()
    }
}

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The values of a row by the chain that the contract states.
pub fn chain(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |acc, (x, w)| x.mul_add(*w, acc))
}

pub fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Asserts that every value is within `error` of its twin, relative to `size` (the magnitude of what was summed).
pub fn assert_close(found: &[f32], expected: &[f64], size: f64, error: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        if f64::from(*f) == *e {
            continue;
        }
        let off = (f64::from(*f) - e).abs();
        assert!(off <= error * size.max(e.abs()), "{what}: value {i} is {f}, its twin {e}, off by {off:e}");
    }
}
