// Adds up what a token's experts returned, in the router's order.
#include "ptx.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kMaxSlices = 8;
// Rows whose loads are begun before the first is used.
constexpr int kAhead = 8;

struct Eight {
  float v[8];
};

__device__ Eight from_bf16(uint4 raw) {
  Eight out;
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
  for (int i = 0; i < 4; i++) {
    const float2 f = __bfloat1622float2(pairs[i]);
    out.v[2 * i] = f.x;
    out.v[2 * i + 1] = f.y;
  }
  return out;
}

__device__ void weigh(Eight& sum, float weight, const Eight& y) {
  for (int i = 0; i < 8; i++) sum.v[i] = __fmaf_rn(weight, y.v[i], sum.v[i]);
}

__device__ void finish(const Eight& sum, const ptx::bf16* residual, ptx::bf16* out) {
  Eight total = sum;
  if (residual) {
    const Eight r = from_bf16(*reinterpret_cast<const uint4*>(residual));
    for (int i = 0; i < 8; i++) total.v[i] = __fadd_rn(r.v[i], sum.v[i]);
  }
  *reinterpret_cast<uint4*>(out) =
      make_uint4(ptx::pack_bf16(total.v[0], total.v[1]), ptx::pack_bf16(total.v[2], total.v[3]),
                 ptx::pack_bf16(total.v[4], total.v[5]), ptx::pack_bf16(total.v[6], total.v[7]));
}

// Row numbers of the outputs in their slab, or null where output i lies in row i.
struct RowNumbers {
  const int* rows;
  int slab_rows;

  __device__ long long operator[](long long i) const {
    const long long row = rows ? rows[i] : i;
    if (row < 0 || row >= slab_rows) __trap();
    return row;
  }
};

}  // namespace

// out[t] = residual[t] + sum over k of weights[t][k] * y[rows[t * top_k + k]], as one chain of fused multiply-adds from 0.
// residual may be null.
extern "C" __global__ void __launch_bounds__(kThreads)
    merge(const ptx::bf16* y, int slab_rows, const int* rows, const float* weights, const ptx::bf16* residual, ptx::bf16* out, int top_k, int d) {
  const long long token = blockIdx.y;
  const int column = (blockIdx.x * kThreads + threadIdx.x) * 8;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (column >= d) return;
  const RowNumbers numbers{rows, slab_rows};
  Eight sum{};
  for (int k0 = 0; k0 < top_k; k0 += kAhead) {
    uint4 raw[kAhead];
    float weight[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (k0 + i < top_k) {
        raw[i] = *reinterpret_cast<const uint4*>(y + numbers[token * top_k + k0 + i] * d + column);
        weight[i] = weights[token * top_k + k0 + i];
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (k0 + i < top_k) weigh(sum, weight[i], from_bf16(raw[i]));
    }
  }
  finish(sum, residual ? residual + token * d + column : nullptr, out + token * d + column);
}

// The same for experts held in slices: y[rows[(t * top_k + k) * slices + s]] is the f32 subtree of slice s. The sum over the
// slices is the balanced tree, rounded to bf16 as a whole expert's output is: the same bits as from one holder.
extern "C" __global__ void __launch_bounds__(kThreads)
    merge_slices(const float* y, int slab_rows, const int* rows, const float* weights, const ptx::bf16* residual, ptx::bf16* out, int top_k, int slices,
                 int d) {
  const long long token = blockIdx.y;
  const int column = (blockIdx.x * kThreads + threadIdx.x) * 8;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (column >= d) return;
  const RowNumbers numbers{rows, slab_rows};
  Eight sum{};
  for (int k = 0; k < top_k; k++) {
    Eight part[kMaxSlices];
#pragma unroll
    for (int s = 0; s < kMaxSlices; s++) {
      if (s < slices) {
        const float4* row = reinterpret_cast<const float4*>(y + numbers[(token * top_k + k) * slices + s] * d + column);
        const float4 low = row[0], high = row[1];
        part[s] = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
      }
    }
#pragma unroll
    for (int width = 1; width < kMaxSlices; width *= 2) {
#pragma unroll
      for (int s = 0; s < kMaxSlices; s += 2 * width) {
        if (s + width < slices) {
          for (int i = 0; i < 8; i++) part[s].v[i] = __fadd_rn(part[s].v[i], part[s + width].v[i]);
        }
      }
    }
    for (int i = 0; i < 8; i++) part[0].v[i] = __bfloat162float(__float2bfloat16_rn(part[0].v[i]));
    weigh(sum, weights[token * top_k + k], part[0]);
  }
  finish(sum, residual ? residual + token * d + column : nullptr, out + token * d + column);
}
