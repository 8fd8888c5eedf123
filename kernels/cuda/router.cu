// From a router's logits to experts and weights: the CPU kernels' sequence of operations, and so their bits.
#include "order.cuh"
#include "ptx.cuh"

namespace {

using order::order_of;
using order::value_of;

constexpr int kThreads = 128;
// Experts per lane, for up to 128 and up to 512 experts.
constexpr int kFewMine = 4;
constexpr int kMaxMine = 16;

// Mirrored by the launch wrapper, field by field.
struct Params {
  const float* logits;  // [rows][experts]
  const float* bias;    // added to select, never to weigh; or null
  int* ids;             // [rows][top_k]: by falling selection score, ties to the lower id
  float* weights;       // [rows][top_k]
  float* gaps;          // [rows]: from the last chosen to the best left out; or null
  int rows, experts, top_k;
  int sigmoid, renormalise;
  float scale;
};
static_assert(sizeof(Params) == 64, "change the launch wrapper too");

// e^x as the CPU kernels compute it.
__device__ float exp_rn(float x) {
  constexpr float kRound = 12582912.f, kLog2E = 1.44269504088896340736f;
  const float held = 88.f < x ? 88.f : x;
  const float biased = __fmaf_rn(held, kLog2E, kRound), n = __fsub_rn(biased, kRound);
  float r = __fmaf_rn(n, -355.f / 512.f, held);
  r = __fmaf_rn(n, 2.1219444e-4f, r);
  float p = 1.9875691e-4f;
  p = __fmaf_rn(p, r, 1.3981999e-3f);
  p = __fmaf_rn(p, r, 8.333452e-3f);
  p = __fmaf_rn(p, r, 4.1665796e-2f);
  p = __fmaf_rn(p, r, 1.6666665e-1f);
  p = __fmaf_rn(p, r, 0.5f);
  const float tail = __fmaf_rn(p, __fmul_rn(r, r), r);
  const float power = __int_as_float((__float_as_int(biased) << 23) + 0x3f800000);
  return x < -87.f ? 0.f : __fmul_rn(__fadd_rn(tail, 1.f), power);
}

// The larger; b where either is NaN.
__device__ float larger(float a, float b) { return b < a ? a : b; }

// A warp per row; lane l has experts l, l + 32, ...
template <int kMine>
__device__ __forceinline__ void choose(const Params& p) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (row >= p.rows) return;
  float scores[kMine];
  unsigned order[kMine];  // 0: none, or chosen
  float maximum = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < kMine; j++) {
    const int expert = lane + 32 * j;
    scores[j] = expert < p.experts ? p.logits[static_cast<long long>(row) * p.experts + expert] : -INFINITY;
    if (expert < p.experts) maximum = larger(maximum, scores[j]);
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) {
    const float other = __shfl_xor_sync(~0u, maximum, o);
    maximum = lane & o ? larger(other, maximum) : larger(maximum, other);
  }
#pragma unroll
  for (int j = 0; j < kMine; j++) {
    if (lane + 32 * j >= p.experts) continue;
    if (p.sigmoid) {
      scores[j] = __fdiv_rn(1.f, __fadd_rn(1.f, exp_rn(__fsub_rn(0.f, scores[j]))));
    } else {
      scores[j] = exp_rn(__fsub_rn(scores[j], maximum));
      sum = __fadd_rn(sum, scores[j]);
    }
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, o));
#pragma unroll
  for (int j = 0; j < kMine; j++) {
    const int expert = lane + 32 * j;
    order[j] = 0;
    if (expert >= p.experts) continue;
    if (!p.sigmoid) scores[j] = __fdiv_rn(scores[j], sum);
    order[j] = order_of(p.bias ? __fadd_rn(scores[j], p.bias[expert]) : scores[j]);
  }

  float chosen_sum = 0, chosen_score = 0, last = 0, gap = INFINITY;
  int chosen_id = 0;
  for (int k = 0; k < min(p.top_k + 1, p.experts); k++) {
    unsigned mine = 0;
#pragma unroll
    for (int j = 0; j < kMine; j++) mine = max(mine, order[j]);
    const unsigned best = __reduce_max_sync(~0u, mine);
    if (k == p.top_k) {
      gap = __fsub_rn(last, value_of(best));
      break;
    }
    last = value_of(best);
    unsigned lowest = ~0u;
    float score = 0;
#pragma unroll
    for (int j = kMine - 1; j >= 0; j--) {
      if (order[j] == best) {
        lowest = lane + 32 * j;
        score = scores[j];
      }
    }
    const unsigned id = __reduce_min_sync(~0u, lowest);
    score = __shfl_sync(~0u, score, id % 32);
#pragma unroll
    for (int j = 0; j < kMine; j++) {
      if (id == lane + 32 * j) order[j] = 0;
    }
    chosen_sum = __fadd_rn(chosen_sum, score);
    if (lane == k) {
      chosen_score = score;
      chosen_id = id;
    }
  }
  if (lane < p.top_k) {
    const long long at = static_cast<long long>(row) * p.top_k + lane;
    p.ids[at] = chosen_id;
    p.weights[at] = __fmul_rn(p.renormalise ? __fdiv_rn(chosen_score, chosen_sum) : chosen_score, p.scale);
  }
  if (lane == 0 && p.gaps) p.gaps[row] = gap;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) route_128(const __grid_constant__ Params p) { choose<kFewMine>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) route_512(const __grid_constant__ Params p) { choose<kMaxMine>(p); }
