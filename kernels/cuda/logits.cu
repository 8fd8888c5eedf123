// What sampling needs of each row of logits: the best one, and the logarithm of the sum of all exponentials.
//
// A row is cut in slices of 4,096, a block each. A thread adds its slice's terms in order, then warps, then the block, by
// fixed trees; the row's last block folds the slices. So the bits are a function of the row alone.
#include <limits.h>

#include "order.cuh"
#include "ptx.cuh"

namespace {

using order::order_of;
using order::value_of;

constexpr int kThreads = 256;
constexpr int kSlice = 4096;
constexpr int kPieces = kSlice / (4 * kThreads);  // of 16 bytes, per thread
constexpr float kLog2E = 1.44269504088896340736f;

struct Part {
  unsigned order;  // of the best
  int id;
  float sum;  // of exponentials, relative to the best
  int reserved;
};

// Mirrored by the launch wrapper, field by field.
struct Params {
  const float* logits;  // [rows] at stride
  Part* parts;          // [rows][slices]
  unsigned* done;       // [rows]: zero between launches
  int* ids;
  float* best;
  float* log_sums;
  int columns, stride;
};
static_assert(sizeof(Params) == 56, "change the launch wrapper too");

// What exponentials are relative to.
__device__ __forceinline__ float reference_of(unsigned order) {
  const float best = value_of(order);
  return best == -INFINITY ? 0.f : best;
}
__device__ __forceinline__ float exp_above(float x, float reference) {
  return ptx::exp2_approx(__fmul_rn(__fsub_rn(x, reference), kLog2E));
}

// The best of a warp, the lower id of equals, in every lane.
__device__ __forceinline__ void best_of_warp(unsigned& order, int& id) {
  const unsigned best = __reduce_max_sync(~0u, order);
  id = __reduce_min_sync(~0u, order == best ? id : INT_MAX);
  order = best;
}
// The same bits in every lane.
__device__ __forceinline__ float sum_of_warp(float sum) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, apart));
  return sum;
}

// The row's slices, by one warp.
__device__ __forceinline__ void fold(const Params& p, int row, int lane) {
  const int slices = gridDim.x;
  const Part* parts = p.parts + static_cast<long long>(row) * slices;
  unsigned order = 0;
  int id = INT_MAX;
  for (int i = lane; i < slices; i += 32) {
    const uint4 part = __ldcg(reinterpret_cast<const uint4*>(parts + i));
    if (part.x > order) {
      order = part.x;
      id = static_cast<int>(part.y);
    }
  }
  best_of_warp(order, id);
  const float reference = reference_of(order);
  float sum = 0.f;
  for (int i = lane; i < slices; i += 32) {
    const uint4 part = __ldcg(reinterpret_cast<const uint4*>(parts + i));
    sum = __fmaf_rn(__uint_as_float(part.z), exp_above(reference_of(part.x), reference), sum);
  }
  sum = sum_of_warp(sum);
  if (lane == 0) {
    p.ids[row] = id;
    p.best[row] = value_of(order);
    p.log_sums[row] = __fadd_rn(reference, logf(sum));
    p.done[row] = 0;
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) summarise_logits(const Params p) {
  __shared__ unsigned orders[kThreads / 32];
  __shared__ int ids[kThreads / 32];
  __shared__ float sums[kThreads / 32];
  __shared__ bool last;
  const int t = threadIdx.x, warp = t >> 5, lane = t & 31, row = blockIdx.y;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();

  float v[kPieces][4];
  const float* const from = p.logits + static_cast<long long>(row) * p.stride;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int column = blockIdx.x * kSlice + (i * kThreads + t) * 4;
    const float4 four = column < p.columns ? *reinterpret_cast<const float4*>(from + column)
                                           : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    v[i][0] = four.x;
    v[i][1] = four.y;
    v[i][2] = four.z;
    v[i][3] = four.w;
  }
  unsigned order = 0;
  int id = INT_MAX;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const unsigned mine = order_of(v[i][j]);
      if (mine > order) {
        order = mine;
        id = blockIdx.x * kSlice + (i * kThreads + t) * 4 + j;
      }
    }
  }
  best_of_warp(order, id);
  if (lane == 0) {
    orders[warp] = order;
    ids[warp] = id;
  }
  __syncthreads();
  order = lane < kThreads / 32 ? orders[lane] : 0;
  id = lane < kThreads / 32 ? ids[lane] : INT_MAX;
  best_of_warp(order, id);
  const float reference = reference_of(order);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) sum = __fadd_rn(sum, exp_above(v[i][j], reference));
  }
  sum = sum_of_warp(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (t == 0) {
    sum = 0.f;
    for (int i = 0; i < kThreads / 32; i++) sum = __fadd_rn(sum, sums[i]);
    const uint4 part = {order, static_cast<unsigned>(id), __float_as_uint(sum), 0};
    *reinterpret_cast<uint4*>(p.parts + static_cast<long long>(row) * gridDim.x + blockIdx.x) = part;
    __threadfence();
    last = atomicAdd(p.done + row, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && warp == 0) fold(p, row, lane);
}
