// The block's shared memory: a ring of stages between the warps that load and the warpgroups that multiply, and what
// the roles share beside it.
#pragma once
#include "../ring.cuh"
#include "tiles.cuh"

namespace ffn {

// A tile is two warpgroups of `kTiles` x 64 weight rows each, times up to kMaxChunk tokens; a stage of the ring holds
// `kBlocks` blocks of 32 columns of both.
template <int kTiles_, int kBlocks_, int kMaxChunk_, int kRingBytes_>
struct Shape {
  static constexpr int kTiles = kTiles_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kMaxChunk = kMaxChunk_;
  static constexpr int kRingBytes = kRingBytes_;
  static constexpr int kStrips = 2 * kTiles * 8;
  // Weights lie block by block, the tile's strips side by side; tokens eight rows at a time, all blocks of them.
  static constexpr int kWeightBlockBytes = kStrips * layout::kBlockBytes;
  static constexpr int kWeightBytes = kBlocks * kWeightBlockBytes;
  static constexpr int kTokenBytes = kBlocks * layout::kBlockBytes;
  // Stages at the smallest chunk: as many as the ring ever has.
  static constexpr int kMaxStages = kRingBytes / (kWeightBytes + kTokenBytes);
};

// The staging of one warpgroup's output: 32 tokens x 64 columns of bf16.
constexpr int kStagingTokens = 32;
constexpr int kStagingBytes = kStagingTokens * 128;

template <class S>
struct Shared {
  uint8_t ring[S::kRingBytes];
  uint8_t staging[2][kStagingBytes];
  uint64_t full[S::kMaxStages];
  uint64_t empty[S::kMaxStages];
  Queue queue;
  Plan plan;
  int chunk;  // most tokens of a tile
  int chunk_source[S::kMaxChunk];  // rows that the gather warps read for the chunk at hand
  const int* source;               // the launch's lists: of Params, or those of a few pairs:
  const int* target;
  int few_source[lists::kFew];
  int few_target[lists::kFew];
  lists::Entry entries[lists::kMaxUnits];
};

// The struct is aligned to 1 KB by hand.
constexpr int kSharedAlignment = 1024;
template <class S>
constexpr int shared_bytes() {
  return kSharedAlignment + static_cast<int>(sizeof(Shared<S>));
}

// One role's place in the ring. How many stages the ring's bytes make depends on the launch's chunk.
template <class S>
class Place : public ring::Place<Shared<S>> {
 public:
  __device__ Place(uint32_t shared, int chunk)
      : ring::Place<Shared<S>>(shared, S::kWeightBytes + chunk / 8 * S::kTokenBytes,
                               S::kRingBytes / (S::kWeightBytes + chunk / 8 * S::kTokenBytes)) {}

  __device__ __forceinline__ uint32_t weights() const { return this->stage(); }
  __device__ __forceinline__ uint32_t tokens() const { return weights() + S::kWeightBytes; }
};

}  // namespace ffn
