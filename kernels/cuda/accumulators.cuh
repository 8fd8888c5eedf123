// The sums of one warpgroup: `kTiles` x 64 rows of weights by kTokens tokens.
//
// Thread l of warp w holds, for token 8j + 2(l % 4) + {0, 1}, the weight rows 16w + l / 4 (values 4j, 4j + 1) and 8 further
// (4j + 2, 4j + 3).
#pragma once
#include "ptx.cuh"
#include "wgmma.cuh"

namespace products {

// Sums that wait in global memory: a thread's pieces of 16 bytes lie a warpgroup's pieces apart.
constexpr int kScratchStride = 128;

// They start from zeros instead of a first product that overwrites them: that form made ptxas spill and serialize the
// products.
template <int kTiles, int kTokens>
struct Accumulators {
  float v[kTiles][kTokens / 2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) v[m][i] = 0.f;
    }
  }
  __device__ __forceinline__ void add(const Accumulators& other) {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) v[m][i] = __fadd_rn(other.v[m][i], v[m][i]);
    }
  }
  __device__ __forceinline__ void store(float4* to) const {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i += 4) {
        to[(m * kTokens / 8 + i / 4) * kScratchStride] = make_float4(v[m][i], v[m][i + 1], v[m][i + 2], v[m][i + 3]);
      }
    }
  }
  __device__ __forceinline__ void load(const float4* from) {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i += 4) {
        const float4 four = from[(m * kTokens / 8 + i / 4) * kScratchStride];
        v[m][i] = four.x;
        v[m][i + 1] = four.y;
        v[m][i + 2] = four.z;
        v[m][i + 3] = four.w;
      }
    }
  }
  // The same in shared memory, from this thread's first piece on.
  __device__ __forceinline__ void store_shared(uint32_t to) const {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i += 4) {
        ptx::store_shared_floats(to + (m * kTokens / 8 + i / 4) * kScratchStride * 16,
                                 make_float4(v[m][i], v[m][i + 1], v[m][i + 2], v[m][i + 3]));
      }
    }
  }
  __device__ __forceinline__ void load_shared(uint32_t from) {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i += 4) {
        const float4 four = ptx::load_shared_floats(from + (m * kTokens / 8 + i / 4) * kScratchStride * 16);
        v[m][i] = four.x;
        v[m][i + 1] = four.y;
        v[m][i + 2] = four.z;
        v[m][i + 3] = four.w;
      }
    }
  }
  __device__ __forceinline__ void wait() {
    ptx::products_wait<0>();
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) ptx::after_wait(v[m][i]);
    }
  }
};

}  // namespace products
