//! The dtypes weights are kept in.

use std::fmt;
use std::str::FromStr;

use super::simd::Simd;
use crate::Error;

/// The dtype of weights in memory. Activations and sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = Error;

    /// Accepts the names of safetensors (`BF16`) and of Hugging Face configurations (`bfloat16`).
    fn from_str(s: &str) -> Result<Self, Error> {
        match s.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(Dtype::F32),
            "f16" | "float16" => Ok(Dtype::F16),
            "bf16" | "bfloat16" => Ok(Dtype::Bf16),
            _ => Err(Error::Unsupported { what: format!("dtype {s:?} is not one of f32, f16, bf16") }),
        }
    }
}

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// How a dtype lies in a panel's row of [`PANEL`] outputs, and how vectors are read from it.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// The place in a panel's row of output `o`.
    fn slot(o: usize) -> usize;
    /// Elements of a panel's row per lane of a strip's load: the start of strip k is at `k * LANES * SPREAD`.
    const SPREAD: usize;
    /// Both vectors of a strip: outputs `k*LANES..` and `16 + k*LANES..`, for a pointer to strip k's start.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn strip<S: Simd>(p: *const Self) -> (S::V, S::V);
    /// LANES values in memory order (a row-major table).
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn contiguous<S: Simd>(p: *const Self) -> S::V;
    /// One value.
    fn widen(self) -> f32;
}

impl Weight for f32 {
    const SPREAD: usize = 1;
    fn slot(o: usize) -> usize {
        o
    }
    #[inline(always)]
    unsafe fn strip<S: Simd>(p: *const f32) -> (S::V, S::V) {
        // SAFETY: the caller's.
        unsafe { (S::load(p), S::load(p.add(PANEL / 2))) }
    }
    #[inline(always)]
    unsafe fn contiguous<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// IEEE half precision, as stored.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F16(pub(crate) u16);

impl Weight for F16 {
    const SPREAD: usize = 1;
    fn slot(o: usize) -> usize {
        o
    }
    #[inline(always)]
    unsafe fn strip<S: Simd>(p: *const F16) -> (S::V, S::V) {
        // SAFETY: the caller's.
        unsafe { (S::load_f16(p.cast()), S::load_f16(p.add(PANEL / 2).cast())) }
    }
    #[inline(always)]
    unsafe fn contiguous<S: Simd>(p: *const F16) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

/// The upper half of an f32, as stored.
///
/// In a panel's row, outputs o and 16 + o share a 32-bit word (o in the low half), so that one load and one integer
/// operation each give two vectors without a shuffle.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

impl Weight for Bf16 {
    const SPREAD: usize = 2;
    fn slot(o: usize) -> usize {
        let (word, high) = (o % (PANEL / 2), o / (PANEL / 2));
        2 * word + if cfg!(target_endian = "little") { high } else { 1 - high }
    }
    #[inline(always)]
    unsafe fn strip<S: Simd>(p: *const Bf16) -> (S::V, S::V) {
        // SAFETY: the caller's.
        unsafe { S::load_bf16_pair(p.cast()) }
    }
    #[inline(always)]
    unsafe fn contiguous<S: Simd>(p: *const Bf16) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}
