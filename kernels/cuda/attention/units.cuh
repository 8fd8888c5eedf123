// What a launch of attention is told, and how its work is cut.
//
// A tile is consecutive rows of a segment with all query heads of one key head. The positions that a tile sees are walked in
// blocks of 64 and chunks of 512, both aligned to the sequence's start. A unit of work is a run of a tile's chunks for one key
// head: either the first few, folded as they come, or one more. The bits do not depend on how a tile is cut into units.
#pragma once
#include "../kv.cuh"

namespace attention {

using ptx::bf16;

constexpr int kBlockTokens = 64;
constexpr int kBlockPages = kBlockTokens / kv::kPageTokens;
constexpr int kChunkBlocks = 8;
constexpr int kMaxSegments = 1024;

// Mirrored by the launch wrapper, field by field, as all structs here.
struct Unit {
  int row, rows;               // of the tile
  int position;                // of its first row
  int pages;                   // where the sequence's pages begin
  int block_begin, block_end;  // blocks of positions; none in a unit that is left over
  int slot;                    // its part, where the tile is cut into several
  int first_slot, parts;       // of the tile
  int tile;
};

struct Header {
  int units;
  int tiles;
  int slots;
  int reserved;
};

// The positions that a row sees.
__device__ __forceinline__ int first_seen(int position, int window) { return window > 0 ? max(0, position + 1 - window) : 0; }

struct PlanParams {
  const kv::Segment* segments;
  Header* header;
  Unit* units;
  int segment_count;
  int tile_rows;  // most rows of a tile
  int heads;      // of keys
  int blocks;     // of the launch
  int window;     // or 0
  int max_units, max_slots;
};

struct Params {
  const bf16* cache;  // the pages of a block
  const bf16* q;
  bf16* out;
  const Header* header;
  const Unit* units;
  const int* pages;
  float* part_values;  // [slot][head][query][column]
  float2* part_sums;   // [slot][head][query]: the maximum, and the sum of weights
  unsigned* arrivals;  // [tile][head][warpgroup]: parts that are done; zero between launches
  unsigned* sync;      // next unit, blocks done: zero between launches
  int q_stride, out_stride;  // values
  int page_entries;          // of the list of pages
  int page_count;            // of the cache
  int heads;                 // of keys
  int group;                 // query heads per key head
  int window;                // or 0
  float scale;               // of the scores, in units of log2
  int max_units;
  int reserved;
};

static_assert(sizeof(Unit) == 40 && sizeof(PlanParams) == 56 && sizeof(Params) == 120, "change the launch wrapper too");

}  // namespace attention
