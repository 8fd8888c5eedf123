// What becomes of a finished tile: SiLU(gate) * up into h, or rows of y.
//
// A thread's two rows of weights (accumulators.cuh) are, in gate_up, the gate and the up row of the same column.
#pragma once
#include "multiply.cuh"

namespace ffn {

// Written instruction by instruction: the compiler may not choose another rounding in another variant.
__device__ __forceinline__ float silu_times(float gate, float up) {
  constexpr float kLog2E = 1.44269504088896340736f;
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(__fmul_rn(gate, -kLog2E)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(__fadd_rn(1.f, power)));
  return __fmul_rn(__fmul_rn(gate, inverse), up);
}

struct Output {
  int row0;           // first listed pair of the chunk
  int tokens;         // of the chunk
  int strip;          // the warpgroup's first
  int strips;         // of the warpgroup: at most 8 per 64 rows
  const int* target;  // row of y, per listed pair
};

// Through shared memory, 32 tokens at a time, so that a token's columns leave as 16-byte stores.
template <class S, int kTokens, Phase kPhase>
__device__ __forceinline__ void store_bf16(const Params& p, const Accumulators<S::kTiles, kTokens>& acc, const Output& out,
                                           uint32_t staging, int warpgroup, int t) {
  const int warp = t >> 5, lane = t & 31;
  constexpr int kGroups = kTokens / 8, kAtOnce = kStagingTokens / 8;
  // 16-byte pieces that 64 weight rows make for one token.
  constexpr int kPieces = kPhase == kGateUp ? 4 : 8;
  auto piece_address = [&](int token, int piece) { return staging + token * 128 + ((piece ^ (token & 7)) << 4); };
#pragma unroll
  for (int m = 0; m < S::kTiles; m++) {
    const int strips = out.strips - m * 8;
    if (strips <= 0) break;  // uniform in the warpgroup
    const int strip = out.strip + m * 8;
#pragma unroll
    for (int j0 = 0; j0 < kGroups; j0 += kAtOnce) {
      if (j0 * 8 >= out.tokens) break;  // uniform too
      ptx::named_barrier(1 + warpgroup, 128);
#pragma unroll
      for (int j = j0; j < j0 + kAtOnce && j < kGroups; j++) {
        const float* a = acc.v[m] + 4 * j;
        const int token = (j - j0) * 8 + (lane & 7);
        if constexpr (kPhase == kGateUp) {
          ptx::store_transposed(piece_address(token, warp),
                                ptx::pack_bf16(silu_times(a[0], a[2]), silu_times(a[1], a[3])));
        } else {
          ptx::store_transposed(piece_address(token, warp * 2 + (lane >> 3 & 1)), ptx::pack_bf16(a[0], a[1]),
                                ptx::pack_bf16(a[2], a[3]));
        }
      }
      ptx::named_barrier(1 + warpgroup, 128);
      const int tokens = min(kStagingTokens, out.tokens - j0 * 8);
      const int pieces = kPhase == kGateUp ? strips / 2 : strips;
      for (int i = t; i < tokens * kPieces; i += 128) {
        const int token = i / kPieces, piece = i % kPieces;
        if (piece >= pieces) continue;
        const int pair = out.row0 + j0 * 8 + token;
        bf16* to = kPhase == kGateUp
                       ? p.h + static_cast<long long>(pair) * p.f + strip * 4
                       : static_cast<bf16*>(p.y) + static_cast<long long>(out.target[pair]) * p.y_stride + strip * 8;
        *reinterpret_cast<uint4*>(to + piece * 8) = ptx::load_shared_16(piece_address(token, piece));
      }
    }
  }
}

// Subtrees leave as f32, straight from the registers: eight lanes write a whole sector.
template <class S, int kTokens>
__device__ __forceinline__ void store_f32(const Params& p, const Accumulators<S::kTiles, kTokens>& acc, const Output& out,
                                          int t) {
  const int warp = t >> 5, lane = t & 31;
#pragma unroll
  for (int m = 0; m < S::kTiles; m++) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; i++) {
      const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      const int strip = m * 8 + warp * 2 + (i >> 1 & 1);
      if (token < out.tokens && strip < out.strips) {
        float* row = static_cast<float*>(p.y) + static_cast<long long>(out.target[out.row0 + token]) * p.y_stride;
        row[(out.strip + strip) * 8 + (lane >> 2)] = acc.v[m][i];
      }
    }
  }
}

}  // namespace ffn
