// The products of one warpgroup: weights are the M operand, tokens the N operand, and K is walked in one order by one
// chain of accumulators (per segment). So a row's bits depend on neither N, nor the tile, nor the other rows.
#pragma once
#include "ring.cuh"
#include "wgmma.cuh"

namespace ffn {

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
  __device__ __forceinline__ void wait() {
    ptx::products_wait<0>();
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) ptx::after_wait(v[m][i]);
    }
  }
};

// One block of 32 columns. Accumulators start from zeros instead of a first product that overwrites them: that form made
// ptxas spill and serialize the products.
template <class S, int kTokens>
__device__ __forceinline__ void multiply_block(Accumulators<S::kTiles, kTokens>& acc, uint64_t weights, uint64_t tokens) {
#pragma unroll
  for (int step = 0; step < 2; step++) {
#pragma unroll
    for (int m = 0; m < S::kTiles; m++) {
      Wgmma<kTokens>::accumulate(acc.v[m], weights + layout::operand_offset(m * 8 * S::kStripBytes + step * 32),
                                 tokens + layout::operand_offset(step * 32));
    }
  }
}

// The chains of one warpgroup over the stages of the ring.
template <class S>
struct Chain {
  Place<S>& place;
  int warpgroup, lane;

  // Every warp releases every stage: none may fall a whole ring behind another.
  __device__ __forceinline__ void release(uint32_t empty) const {
    if (lane == 0) ptx::barrier_arrive(empty);
  }
  __device__ __forceinline__ void leave_stage() {
    release(place.empty());
    place.advance();
  }
  __device__ __forceinline__ void enter_stage() const {
    place.wait_full();
    ptx::fence_shared_for_products();
  }
  template <int kTokens>
  __device__ __forceinline__ void multiply(Accumulators<S::kTiles, kTokens>& acc, int block) const {
    const uint64_t weights = layout::operand(place.weights() + warpgroup * S::kTiles * 8 * S::kStripBytes, S::kStripBytes);
    const uint64_t tokens = layout::operand(place.tokens(), S::kStripBytes);
    const uint64_t offset = layout::operand_offset(block * layout::kBlockBytes);
    multiply_block<S>(acc, weights + offset, tokens + offset);
  }

  // Stages that are not multiplied: the tile ends before this warpgroup's strips.
  __device__ __forceinline__ void skip(int blocks) {
    for (int k = 0; k < blocks; k += S::kBlocks) {
      place.wait_full();
      leave_stage();
    }
  }

  // acc = weights x tokens over `blocks` blocks.
  template <int kTokens>
  __device__ __forceinline__ void run(Accumulators<S::kTiles, kTokens>& acc, int blocks) {
    acc.clear();
    uint32_t previous = 0;
    const int whole = blocks / S::kBlocks;
    for (int k = 0; k < whole; k++) {
      enter_stage();
      ptx::products_begin();
#pragma unroll
      for (int b = 0; b < S::kBlocks; b++) multiply(acc, b);
      ptx::products_commit();
      if (k > 0) {
        ptx::products_wait<1>();
        release(previous);
      }
      previous = place.empty();
      place.advance();
    }
    acc.wait();
    if (whole > 0) release(previous);
    const int rest = blocks - whole * S::kBlocks;
    if (rest > 0) {
      enter_stage();
#pragma unroll 1
      for (int b = 0; b < rest; b++) {
        ptx::products_begin();
        multiply(acc, b);
        ptx::products_commit();
      }
      acc.wait();
      leave_stage();
    }
  }

  // The same as a balanced binary tree over segments, each a chain of its own. Sums wait in `pending`, one per level; the
  // bits of a segment's number say which of them its own sum completes.
  template <int kTokens>
  __device__ __forceinline__ void run_segments(Accumulators<S::kTiles, kTokens>& acc, const int* ends, int segments) {
    constexpr int kLevels = 3;
    static_assert(1 << kLevels == kMaxSegments);
    Accumulators<S::kTiles, kTokens> pending[kLevels];
    // Without a first value they would be live from the kernel's start, for every N at once.
#pragma unroll
    for (int level = 0; level < kLevels; level++) pending[level].clear();
    int done = 0, in_stage = 0;
    for (int segment = 0; segment < segments; segment++) {
      acc.clear();
      while (done < ends[segment]) {
        if (in_stage == 0) enter_stage();
        const int here = min(S::kBlocks - in_stage, ends[segment] - done);
#pragma unroll 1
        for (int b = in_stage; b < in_stage + here; b++) {
          ptx::products_begin();
          multiply(acc, b);
          ptx::products_commit();
        }
        acc.wait();
        done += here;
        in_stage += here;
        if (in_stage == S::kBlocks || done == ends[segments - 1]) {
          leave_stage();
          in_stage = 0;
        }
      }
      fold<0>(acc, pending, segment);
    }
  }

 private:
  template <int kLevel, int kLevels, int kTokens>
  __device__ __forceinline__ void fold(Accumulators<S::kTiles, kTokens>& acc,
                                       Accumulators<S::kTiles, kTokens> (&pending)[kLevels], int segment) {
    if constexpr (kLevel < kLevels) {
      if (segment >> kLevel & 1) {
        acc.add(pending[kLevel]);
        fold<kLevel + 1>(acc, pending, segment);
      } else {
        pending[kLevel] = acc;
      }
    }
  }
};

}  // namespace ffn
