// What becomes of finished sums: rows of y.
#pragma once
#include "params.cuh"

namespace dense {

// Shared memory of a warp that its rows pass through.
constexpr int kStagingBytes = 256;

// One warp's part of a group of 8 tokens: its 16 of 64 weight rows, two strips of 8. `sums` lie as accumulators.cuh says.
struct Store {
  const Params& p;
  uint32_t staging;  // of the warp
  int warp;          // of the warpgroup
  int lane;
  int row;     // of y, the chunk's first
  int tokens;  // of the chunk
  int strip;   // the warpgroup's first
  int strips;  // of the warpgroup

  __device__ __forceinline__ void operator()(int group, int m, float4 sums) const {
    const int at = m * 8 + warp * 2;  // of the warpgroup's strips
    if (at >= strips) return;
    if (p.y_is_f32) {
      floats(group, at, sums);
    } else {
      halves(group, at, sums);
    }
  }

 private:
  // Straight from registers: eight lanes write a whole sector.
  __device__ __forceinline__ void floats(int group, int at, float4 sums) const {
    const int token = group * 8 + (lane & 3) * 2;
    float* const to = static_cast<float*>(p.y) + static_cast<long long>(row + token) * p.y_stride +
                      (strip + at) * layout::kStripRows + (lane >> 2);
    const bool second = at + 1 < strips;
    if (token < tokens) {
      to[0] = sums.x;
      if (second) to[8] = sums.z;
    }
    if (token + 1 < tokens) {
      to[p.y_stride] = sums.y;
      if (second) to[p.y_stride + 8] = sums.w;
    }
  }

  // Through shared memory, so that a token's 16 values leave as one sector.
  __device__ __forceinline__ void halves(int group, int at, float4 sums) const {
    __syncwarp();
    ptx::store_transposed(staging + (lane & 7) * 32 + (lane >> 3 & 1) * 16, ptx::pack_bf16(sums.x, sums.y),
                          ptx::pack_bf16(sums.z, sums.w));
    __syncwarp();
    const int token = group * 8 + (lane >> 1), half = lane & 1;
    if (lane < 16 && token < tokens && at + half < strips) {
      bf16* const to = static_cast<bf16*>(p.y) + static_cast<long long>(row + token) * p.y_stride +
                       (strip + at + half) * layout::kStripRows;
      *reinterpret_cast<uint4*>(to) = ptx::load_shared_16(staging + lane * 16);
    }
  }
};

}  // namespace dense
