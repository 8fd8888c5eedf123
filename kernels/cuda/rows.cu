// Ops on whole rows: RMS norm with the residual before it, and copies by row number.
#include "ptx.cuh"

namespace {

using ptx::bf16;

constexpr int kThreads = 256;
// Pieces of 8 columns that a thread may have.
constexpr int kMaxPieces = 4;

struct Eight {
  float v[8];
};

__device__ Eight load(const bf16* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 f = __bfloat1622float2(pairs[i]);
    out.v[2 * i] = f.x;
    out.v[2 * i + 1] = f.y;
  }
  return out;
}

__device__ void store(bf16* to, const Eight& x) {
  *reinterpret_cast<uint4*>(to) = make_uint4(ptx::pack_bf16(x.v[0], x.v[1]), ptx::pack_bf16(x.v[2], x.v[3]),
                                             ptx::pack_bf16(x.v[4], x.v[5]), ptx::pack_bf16(x.v[6], x.v[7]));
}

}  // namespace

// x[row] += delta[row], rounded, where delta is not null; out[row] = x[row] / sqrt(mean of squares + eps) * weight. A block per
// row. Thread t sums the squares of pieces t, t + 256, ... of 8 columns in order, and the threads' sums meet in a fixed tree.
extern "C" __global__ void __launch_bounds__(kThreads)
    add_rmsnorm(bf16* x, const bf16* delta, const float* weight, bf16* out, int columns, float eps) {
  __shared__ float warp_sums[kThreads / 32];
  const int t = threadIdx.x;
  const long long row = blockIdx.x * static_cast<long long>(columns);
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  Eight mine[kMaxPieces];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kMaxPieces; j++) {
    const int column = (t + j * kThreads) * 8;
    if (column >= columns) break;
    mine[j] = load(x + row + column);
    if (delta) {
      const Eight d = load(delta + row + column);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        mine[j].v[i] = __bfloat162float(__float2bfloat16_rn(__fadd_rn(mine[j].v[i], d.v[i])));
      }
      store(x + row + column, mine[j]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) squares = __fmaf_rn(mine[j].v[i], mine[j].v[i], squares);
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, o));
  if (t % 32 == 0) warp_sums[t / 32] = squares;
  __syncthreads();
  squares = 0;
  for (int w = 0; w < kThreads / 32; w++) squares = __fadd_rn(squares, warp_sums[w]);
  const float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(columns)), eps)));
#pragma unroll
  for (int j = 0; j < kMaxPieces; j++) {
    const int column = (t + j * kThreads) * 8;
    if (column >= columns) break;
#pragma unroll
    for (int i = 0; i < 8; i++) mine[j].v[i] = __fmul_rn(__fmul_rn(mine[j].v[i], scale), weight[column + i]);
    store(out + row + column, mine[j]);
  }
}

// to[to_rows[i]] = from[from_rows[i]], where a null list means row i: gather, scatter, and the embedding of token ids.
extern "C" __global__ void __launch_bounds__(kThreads)
    copy_rows(const bf16* from, const int* from_rows, int from_count, bf16* to, const int* to_rows, int to_count, int columns) {
  const int i = blockIdx.y, column = (blockIdx.x * kThreads + threadIdx.x) * 8;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (column >= columns) return;
  const int source = from_rows ? from_rows[i] : i, target = to_rows ? to_rows[i] : i;
  if (static_cast<unsigned>(source) >= static_cast<unsigned>(from_count) ||
      static_cast<unsigned>(target) >= static_cast<unsigned>(to_count)) {
    __trap();
  }
  *reinterpret_cast<uint4*>(to + static_cast<long long>(target) * columns + column) =
      *reinterpret_cast<const uint4*>(from + static_cast<long long>(source) * columns + column);
}
