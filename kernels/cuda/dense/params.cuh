// What a launch of a dense product is told, and what each of its blocks computes.
#pragma once
#include "../layout.cuh"

namespace dense {

using ptx::bf16;

// Blocks of a cluster where K is cut: each computes one segment of the same outputs.
constexpr int kSegments = 4;
// Columns of a stage, in whole blocks of weights.
constexpr int kStageColumns = 64;
constexpr int kStageBlocks = kStageColumns / layout::kBlockColumns;

struct alignas(128) TensorMap {
  uint8_t opaque[128];
};

// Mirrored by the launch wrapper, field by field.
struct Params {
  const bf16* weights;  // [outputs, columns], in strips and blocks
  void* y;              // [rows, outputs] at y_stride: f32 or bf16
  int rows;
  int outputs, columns;
  int y_stride;   // values
  int y_is_f32;
  int segments;   // 1, or kSegments: then blocks come in clusters of as many
  int chunk;      // tokens of a tile; rows of the tensor map's box, but where two blocks share tokens
  int shared;     // dense_many: kWeightsShared, or kTokensShared
};

// What the two blocks of a cluster of dense_many share.
constexpr int kWeightsShared = 0;
constexpr int kTokensShared = 1;

static_assert(sizeof(Params) == 48, "change the launch wrapper too");

constexpr int kConsumerWarps = 8;
// A warp streams weights and one brings tokens; registers are moved by whole warpgroups.
constexpr int kThreads = 32 * (kConsumerWarps + 4);

// A block's shared memory is aligned to 1 KB by hand.
constexpr int kSharedAlignment = 1024;
// What the launch wrapper asks for: all that a block can have.
constexpr int kSharedLimit = 227 * 1024;

// A tile is two warpgroups of `kTiles` x 64 weight rows each, times a chunk of tokens. Up to `kMaxTurns` exchanges of a
// warpgroup may be under way.
template <int kTiles_, int kMaxTurns_>
struct Shape {
  static constexpr int kTiles = kTiles_;
  static constexpr int kMaxTurns = kMaxTurns_;
  static constexpr int kWarpgroupStrips = kTiles * 8;
  static constexpr int kStrips = 2 * kWarpgroupStrips;
};

struct Tile {
  int strip;  // the first
  int strips;
};

// A cluster, or a block that is one, takes a run of strips in as many tiles as any other; a block of it takes one segment
// of K. All of it is a function of the launch's arguments.
template <class S>
struct Work {
  int rank;         // of the block in its cluster
  int begin, end;   // strips
  int tiles;
  int max_strips;   // of any tile of the launch
  int first_stage;  // of K
  int stages;
  int tokens, chunk;

  __device__ explicit Work(const Params& p) : tokens(p.rows), chunk(p.chunk) {
    const int strips = p.outputs / layout::kStripRows, units = gridDim.x / p.segments, unit = blockIdx.x / p.segments;
    rank = blockIdx.x % p.segments;
    begin = static_cast<int>(static_cast<long long>(strips) * unit / units);
    end = static_cast<int>(static_cast<long long>(strips) * (unit + 1) / units);
    const int most = (strips + units - 1) / units;
    tiles = (most + S::kStrips - 1) / S::kStrips;
    max_strips = (most + tiles - 1) / tiles;
    const int depth = p.columns / kStageColumns;
    first_stage = depth * rank / p.segments;
    stages = depth * (rank + 1) / p.segments - first_stage;
  }
  __device__ __forceinline__ Tile tile(int i) const {
    const int strips = end - begin, first = strips * i / tiles;
    return {begin + first, strips * (i + 1) / tiles - first};
  }
  __device__ __forceinline__ int chunks() const { return (tokens + chunk - 1) / chunk; }
};

}  // namespace dense
