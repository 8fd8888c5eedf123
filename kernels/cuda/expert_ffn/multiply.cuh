// The products of one warpgroup: weights are the M operand, tokens the N operand, and K is walked in one order by one
// chain of accumulators (per segment). So a row's bits depend on neither N, nor the tile, nor the other rows.
#pragma once
#include "../accumulators.cuh"
#include "ring.cuh"

namespace ffn {

using products::Accumulators;
using products::kScratchStride;

// The largest N at which all levels of the tree over segments wait in registers.
constexpr int kTokensWithAllLevels = 64;

// A stage's operands for one warpgroup.
struct Operands {
  layout::Descriptor weights, tokens;
};

// One block of 32 columns.
template <class S, int kTokens>
__device__ __forceinline__ void multiply_block(Accumulators<S::kTiles, kTokens>& acc, const Operands& at, int block) {
#pragma unroll
  for (int step = 0; step < 2; step++) {
#pragma unroll
    for (int m = 0; m < S::kTiles; m++) {
      Wgmma<kTokens>::accumulate(
          acc.v[m], at.weights.moved(block * S::kWeightBlockBytes + m * 8 * layout::kBlockBytes + step * 32),
          at.tokens.moved(block * layout::kBlockBytes + step * 32));
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
  __device__ __forceinline__ Operands operands() const {
    return {layout::strips_at(place.weights() + warpgroup * S::kTiles * 8 * layout::kBlockBytes, layout::kBlockBytes),
            layout::strips_at(place.tokens(), S::kTokenBytes)};
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
      const Operands at = operands();
      enter_stage();
      ptx::products_begin();
#pragma unroll
      for (int b = 0; b < S::kBlocks; b++) multiply_block<S>(acc, at, b);
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
      const Operands at = operands();
      enter_stage();
#pragma unroll 1
      for (int b = 0; b < rest; b++) {
        ptx::products_begin();
        multiply_block<S>(acc, at, b);
        ptx::products_commit();
      }
      acc.wait();
      leave_stage();
    }
  }

  // The same as a balanced binary tree over the segments (2, 4 or 8) that end at `ends`, each a chain of its own. Written
  // out as a tree, because a loop that decides by the segment's number which sums it completes spilled them all. Where
  // registers do not hold all levels, the upper ones wait in `scratch`: they are written and read once or twice per tile.
  template <int kTokens>
  __device__ __forceinline__ void run_segments(Accumulators<S::kTiles, kTokens>& acc, const int* ends, int segments,
                                               float4* scratch) {
    SegmentWalk walk{ends, ends[segments - 1]};
    subtree<2>(acc, walk, segments, scratch);
  }

 private:
  struct SegmentWalk {
    const int* ends;
    int blocks;
    int segment = 0, done = 0, in_stage = 0;
  };

  template <int kLevel, int kTokens>
  __device__ __forceinline__ void subtree(Accumulators<S::kTiles, kTokens>& acc, SegmentWalk& walk, int segments,
                                          float4* scratch) {
    if constexpr (kLevel < 0) {
      run_segment(acc, walk);
    } else {
      subtree<kLevel - 1>(acc, walk, segments, scratch);
      if (segments >> kLevel < 2) return;
      Accumulators<S::kTiles, kTokens> left;
      if constexpr (kLevel == 0 || kTokens <= kTokensWithAllLevels) {
        left = acc;
        subtree<kLevel - 1>(acc, walk, segments, scratch);
      } else {
        float4* const stored = scratch + (kLevel - 1) * (S::kTiles * kTokens / 8) * kScratchStride;
        acc.store(stored);
        subtree<kLevel - 1>(acc, walk, segments, scratch);
        left.load(stored);
      }
      acc.add(left);
    }
  }

  template <int kTokens>
  __device__ __forceinline__ void run_segment(Accumulators<S::kTiles, kTokens>& acc, SegmentWalk& walk) {
    const int end = walk.ends[walk.segment++];
    acc.clear();
    while (walk.done < end) {
      if (walk.in_stage == 0) enter_stage();
      const Operands at = operands();
      const int here = min(S::kBlocks - walk.in_stage, end - walk.done);
#pragma unroll 1
      for (int b = walk.in_stage; b < walk.in_stage + here; b++) {
        ptx::products_begin();
        multiply_block<S>(acc, at, b);
        ptx::products_commit();
      }
      acc.wait();
      walk.done += here;
      walk.in_stage += here;
      if (walk.in_stage == S::kBlocks || walk.done == walk.blocks) {
        leave_stage();
        walk.in_stage = 0;
      }
    }
  }
};

}  // namespace ffn
