// Random weights made on the device: a model of a given shape without a file.
#include "ptx.cuh"

namespace {

__device__ uint32_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x >> 32);
}

}  // namespace

// out[i]: a function of (seed, i) alone, nearly normal with deviation `scale`.
extern "C" __global__ void __launch_bounds__(256)
    fill_normal(ptx::bf16* out, long long values, unsigned long long seed, float scale) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < values; i += gridDim.x * 256ll) {
    const uint32_t bits = mix(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull + seed);
    const int sum = static_cast<int>(bits & 255) + static_cast<int>(bits >> 8 & 255) +
                    static_cast<int>(bits >> 16 & 255) + static_cast<int>(bits >> 24) - 510;
    // The sum of four bytes has a standard deviation of 147.8.
    out[i] = __float2bfloat16_rn(__fmul_rn(static_cast<float>(sum), __fmul_rn(scale, 1.0f / 147.8f)));
  }
}
