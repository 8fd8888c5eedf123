// Norm and rotation of the heads of queries and keys, and keys and values into the cache.
#include "kv.cuh"

namespace {

using ptx::bf16;

constexpr int kThreads = 256;

// Mirrored by the launch wrapper, field by field.
struct Params {
  bf16* qkv;                 // rows of queries, keys and values, head after head
  bf16* cache;               // the pages of a block
  const kv::Place* places;   // of each row
  const float* cosines;      // [position][half]
  const float* sines;
  const float* query_norm;   // a factor per column of a head, or null for no norm
  const float* key_norm;
  int rows, stride;          // stride: values
  int heads, kv_heads;
  int half;                  // columns i and i + half turn together, i below half; the rest stay
  int positions, pages;      // of the tables, and of the cache
  float eps;
};
static_assert(sizeof(Params) == 88, "change the launch wrapper too");

// One head, by a warp: lane l has columns l, l + 32, ... A column's partner is the same lane's, since half is a multiple of 32.
template <int kHead>
__device__ __forceinline__ void turn_head(const Params& p) {
  constexpr int kMine = kHead / 32;
  const int lane = threadIdx.x & 31, head = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  const long long row = blockIdx.y;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (head >= p.heads + 2 * p.kv_heads) return;
  const kv::Place place = p.places[row];
  if (static_cast<unsigned>(place.position) >= static_cast<unsigned>(p.positions) ||
      static_cast<unsigned>(place.page) >= static_cast<unsigned>(p.pages)) {
    __trap();
  }
  bf16* in = p.qkv + row * p.stride + head * kHead + lane;
  const int token = place.position % kv::kPageTokens;
  const int kv_head = head < p.heads + p.kv_heads ? head - p.heads : head - p.heads - p.kv_heads;
  bf16* part = p.cache + (static_cast<long long>(place.page) * p.kv_heads + kv_head) * 2 * kv::part_values(kHead);
  if (head >= p.heads + p.kv_heads) {
    part += kv::part_values(kHead);
#pragma unroll
    for (int j = 0; j < kMine; j++) part[kv::value_offset(token, lane + 32 * j)] = in[32 * j];
    return;
  }

  float x[kMine];
#pragma unroll
  for (int j = 0; j < kMine; j++) x[j] = __bfloat162float(in[32 * j]);
  const float* norm = head < p.heads ? p.query_norm : p.key_norm;
  if (norm) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kMine; j++) squares = __fmaf_rn(x[j], x[j], squares);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, o));
    const float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, kHead), p.eps)));
#pragma unroll
    for (int j = 0; j < kMine; j++) x[j] = __fmul_rn(__fmul_rn(x[j], scale), norm[lane + 32 * j]);
  }
  const int pairs = p.half / 32;
  const float* cosines = p.cosines + static_cast<long long>(place.position) * p.half + lane;
  const float* sines = p.sines + static_cast<long long>(place.position) * p.half + lane;
  float turned[kMine];
#pragma unroll
  for (int j = 0; j < kMine; j++) turned[j] = x[j];
#pragma unroll
  for (int half = 1; half <= kMine / 2; half *= 2) {
    if (pairs != half) continue;
#pragma unroll
    for (int j = 0; j < half; j++) {
      const float a = x[j], b = x[j + half], c = cosines[32 * j], s = sines[32 * j];
      turned[j] = __fmaf_rn(a, c, -__fmul_rn(b, s));
      turned[j + half] = __fmaf_rn(b, c, __fmul_rn(a, s));
    }
  }
#pragma unroll
  for (int j = 0; j < kMine; j++) {
    const bf16 value = __float2bfloat16_rn(turned[j]);
    if (head < p.heads) {
      in[32 * j] = value;
    } else {
      part[kv::key_offset(kHead, token, lane + 32 * j)] = value;
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) rope_append_64(const __grid_constant__ Params p) { turn_head<64>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) rope_append_128(const __grid_constant__ Params p) { turn_head<128>(p); }
