//! The vector operations every kernel is written in, once for all instruction sets.
//!
//! Each operation gives the same bits per lane on every set. Comparisons are written as `a < b ? x : y`, because
//! the sets disagree about `min` and `max` of NaN and of signed zeros.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use super::isa::Isa;

/// One instruction set.
///
/// # Safety
/// Every function may be called only where the set's instructions are enabled (inside [`dispatch`] or another
/// entry point with the set's `target_feature`s), and pointers must be valid for the lanes they name.
pub(crate) trait Simd: Copy + 'static {
    /// Lanes of a vector; divides [`LINE`].
    const LANES: usize;
    /// Vector registers a tile may spend on accumulators.
    const ACCUMULATORS: usize;
    type V: Copy;

    /// Asks for the cache line at an address, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Per lane `a < b ? x : y`; false where either is NaN.
    unsafe fn less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Per lane `2^n`, given the bits of `1.5 * 2^23 + n` with n in -126..=127.
    unsafe fn exp2_biased(t: Self::V) -> Self::V;
    unsafe fn load_f16(p: *const u16) -> Self::V;
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// LANES words, each with two bf16: the low halves and the high halves.
    unsafe fn load_bf16_pair(p: *const u32) -> (Self::V, Self::V);
}

/// A computation that runs on any instruction set. `run` must be `#[inline(always)]`, with everything it calls, so
/// that it is compiled with the entry point's features.
pub(crate) trait Kernel {
    type Output;
    /// # Safety
    /// As [`Simd`], plus what the kernel says of its own pointers.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set.
///
/// # Safety
/// The set must be available on this machine, and the kernel's own conditions must hold.
#[inline]
pub(crate) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this function enables the set's features; the rest is the caller's.
        unsafe { kernel.run::<Avx512>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run::<Avx2>() }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn neon<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run::<Neon>() }
    }
    // SAFETY: the caller says that the set is available, and vouches for the kernel's pointers.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon(kernel),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// Lanes of a virtual vector: the fixed unit of loops whose lanes are all independent or are reduced by
/// [`super::reduce`]. Every set's lane count divides it.
pub(crate) const LINE: usize = 16;

/// Per lane the larger; `b` where either is NaN.
#[inline(always)]
pub(crate) unsafe fn max<S: Simd>(a: S::V, b: S::V) -> S::V {
    // SAFETY: the caller's, as for every operation of `Simd`.
    unsafe { S::less(b, a, a, b) }
}
