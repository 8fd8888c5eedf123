// What each block of a launch for many rows computes, and its shared memory.
#pragma once
#include "../ring.cuh"
#include "params.cuh"

namespace dense::many {

// Blocks of a cluster: they share one operand, and each brings half of it to both.
constexpr int kBlocks = 2;
constexpr uint16_t kBoth = 3;
static_assert(kBlocks == kStageBlocks, "each brings one block of a stage's weights");

// A tile is one group of weights, two warpgroups of 64 rows each, times a chunk of tokens.
constexpr int kTileStrips = layout::kGroupStrips;
constexpr int kWarpgroupStrips = kTileStrips / 2;
constexpr int kWeightBlockBytes = kTileStrips * layout::kBlockBytes;
constexpr int kWeightBytes = kStageBlocks * kWeightBlockBytes;

struct Tile {
  int group;
  int strips;  // of the group; none beyond the matrix's end
  int row;     // the chunk's first; there may be none from it on
};

// A cluster takes every so-manyth pair of tiles: two chunks of the same weights, or the same chunk of two groups.
struct Work {
  int rank;  // of the block in its cluster
  int first, step, pairs;
  int groups, chunks, strips;
  int depth;  // stages of K
  bool weights_shared;

  __device__ explicit Work(const Params& p)
      : rank(blockIdx.x % kBlocks),
        first(blockIdx.x / kBlocks),
        step(gridDim.x / kBlocks),
        chunks((p.rows + p.chunk - 1) / p.chunk),
        strips(p.outputs / layout::kStripRows),
        depth(p.columns / kStageColumns),
        weights_shared(p.shared == kWeightsShared) {
    groups = (strips + kTileStrips - 1) / kTileStrips;
    pairs = weights_shared ? groups * half(chunks) : half(groups) * chunks;
  }
  __device__ __forceinline__ Tile tile(int pair, int chunk_rows) const {
    int group, chunk;
    if (weights_shared) {
      group = pair / half(chunks);
      chunk = pair % half(chunks) * kBlocks + rank;
    } else {
      group = pair / chunks * kBlocks + rank;
      chunk = pair % chunks;
    }
    return {group, max(0, min(kTileStrips, strips - group * kTileStrips)), chunk * chunk_rows};
  }
  // Whether no other cluster, nor a later tile of this one, reads a tile's weights.
  __device__ __forceinline__ bool weights_read_once() const { return chunks <= (weights_shared ? kBlocks : 1); }

 private:
  __device__ static __forceinline__ int half(int n) { return (n + kBlocks - 1) / kBlocks; }
};

constexpr int kMaxStages = 16;
// The ring, and behind it the room for sums that wait.
constexpr int kPoolBytes = 225 * 1024;

struct Shared {
  uint8_t pool[kPoolBytes];
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
};

static_assert(kSharedAlignment + sizeof(Shared) <= kSharedLimit);

// The sums of half a tree, of both warpgroups.
__host__ __device__ constexpr int waiting_bytes(int chunk) { return kTileStrips * layout::kStripRows * chunk * 4; }

// A stage is two blocks of the group's strips, and then the chunk's tokens in rows of 128 bytes.
class Place : public ring::Place<Shared> {
 public:
  __device__ Place(uint32_t shared, int chunk)
      : ring::Place<Shared>(shared, stage_bytes(chunk),
                            min((kPoolBytes - waiting_bytes(chunk)) / stage_bytes(chunk), kMaxStages)) {}

  __device__ __forceinline__ uint32_t weights() const { return stage(); }
  __device__ __forceinline__ uint32_t tokens() const { return stage() + kWeightBytes; }

 private:
  __device__ static int stage_bytes(int chunk) { return kWeightBytes + chunk * kStageColumns * 2; }
};

}  // namespace dense::many
