// What a launch of expert_ffn is told, and the shapes of its tiles.
#pragma once
#include "../layout.cuh"
#include "../lists.cuh"

namespace ffn {

using ptx::bf16;

constexpr int kMaxSegments = 8;

// How tiles are dealt to blocks; the same bits in each.
enum class Split : int {
  kAuto = 0,
  // Every expert has blocks of its own: with few experts no block then crosses from one to the next.
  kOwn = 1,
  // Whole tiles in order from a counter: evens out blocks that run at different speeds.
  kDynamic = 2,
};

enum Phase : int { kGateUp = 0, kDown = 1 };

// Mirrored by the launch wrapper, field by field.
struct Params {
  const bf16* weights;             // slots: gate_up, then down
  const bf16* x;                   // slab of input rows
  lists::Pairs few;                // up to lists::kFew pairs to list, or none where they are listed already:
  const lists::Header* header;
  const lists::Entry* entries;
  const int* source;               // row of x, per listed pair
  const int* target;               // row of y, per listed pair
  bf16* h;                         // [listed pairs, f]
  void* y;                         // slab of output rows: bf16, or f32 for subtrees
  float4* scratch;                 // 2 x kScratchPieces per block, for segments in wide tiles; else unused
  unsigned* sync;                  // a ready counter per entry, blocks done, next tile: zero between launches
  long long slot_stride;           // values
  int x_stride, y_stride;          // values
  int d, f;                        // f: the inner columns held
  int units;
  int max_chunk;                   // most rows of one tile, or 0 for the most that the variant has
  Split split;
  int y_is_f32;
  int segments;                    // of the inner columns held; 1 in the variants without segments
  int segment_ends[kMaxSegments];  // in blocks of 32 columns
};

static_assert(sizeof(lists::Pairs) == 56 && sizeof(Params) == 216, "change the launch wrapper too");

// Two levels of sums of a warpgroup for up to 192 tokens, twice.
constexpr int kScratchPieces = 2 * 192 / 8 * 128;

constexpr int kConsumerWarps = 8;
constexpr int kGatherWarps = 3;
constexpr int kGatherThreads = 32 * kGatherWarps;
constexpr int kThreads = 32 * (kConsumerWarps + 1 + kGatherWarps);

}  // namespace ffn
