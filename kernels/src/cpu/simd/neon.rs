//! `AArch64` Advanced SIMD: 4 lanes, 32 registers.

use std::arch::aarch64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

// SAFETY of every block: the trait's own conditions; each is a plain instruction of the set.
impl Simd for Neon {
    const LANES: usize = 4;
    const ACCUMULATORS: usize = 24;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // Stable Rust has no prefetch intrinsic here.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly))
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn less(a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcltq_f32(a, b), x, y) }
    }
    #[inline(always)]
    unsafe fn exp2_biased(t: float32x4_t) -> float32x4_t {
        unsafe {
            let shifted = vshlq_n_u32::<23>(vreinterpretq_u32_f32(t));
            vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> float32x4_t {
        // Stable Rust has no half-precision vector type: widen in integer registers. Exact for every finite value
        // and infinity: the exponent is rebased by a multiplication with 2^112, which also normalises subnormals.
        unsafe {
            let words = vmovl_u16(vld1_u16(p));
            let sign = vshlq_n_u32::<16>(vandq_u32(words, vdupq_n_u32(0x8000)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(words, vdupq_n_u32(0x7fff)));
            let rebased =
                vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits(0x7780_0000)));
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x0f80_0000));
            let infinite = vorrq_u32(magnitude, vdupq_n_u32(0x7f80_0000));
            let bits = vbslq_u32(special, infinite, vreinterpretq_u32_f32(rebased));
            vreinterpretq_f32_u32(vorrq_u32(sign, bits))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pair(p: *const u32) -> (float32x4_t, float32x4_t) {
        unsafe {
            let words = vld1q_u32(p);
            let high = vandq_u32(words, vdupq_n_u32(0xffff_0000));
            (vreinterpretq_f32_u32(vshlq_n_u32::<16>(words)), vreinterpretq_f32_u32(high))
        }
    }
}
