// Cuts the attention of a call into units of work, in one block, and says where each of its rows stands. Both are the same for
// all blocks of a model, so that they are made once per step.
#include "attention/units.cuh"

namespace attention {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

struct Tile {
  int row, rows, position;
  int block_begin, block_end;

  __device__ int chunk_begin() const { return block_begin / kChunkBlocks; }
  __device__ int chunks() const { return (block_end + kChunkBlocks - 1) / kChunkBlocks - chunk_begin(); }
};

// The last rows first: they see most, and long units should begin early.
__device__ Tile tile_of(const PlanParams& p, const kv::Segment& segment, int index, int tiles) {
  const int first = (tiles - 1 - index) * p.tile_rows, rows = min(p.tile_rows, segment.rows - first);
  const int position = segment.position + first;
  return {segment.row + first, rows, position, first_seen(position, p.window) / kBlockTokens,
          (position + rows + kBlockTokens - 1) / kBlockTokens};
}

__device__ int tiles_of(const PlanParams& p, const kv::Segment& segment) {
  return (segment.rows + p.tile_rows - 1) / p.tile_rows;
}

__device__ int sum_upto(int value, int lane) {
  for (int o = 1; o < 32; o <<= 1) {
    const int other = __shfl_up_sync(~0u, value, o);
    if (lane >= o) value += other;
  }
  return value;
}

// Replaces the values by the sums of those before them; returns the sum of all. By the whole block.
__device__ int sum_before(int (&values)[kMaxSegments], int (&warp_totals)[kWarps]) {
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  __syncthreads();
  const int mine = values[t], upto = sum_upto(mine, lane);
  if (lane == 31) warp_totals[warp] = upto;
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kWarps; w++) {
    if (w < warp) before += warp_totals[w];
    total += warp_totals[w];
  }
  values[t] = before + upto - mine;
  __syncthreads();
  return total;
}

struct Shared {
  int tiles[kMaxSegments];
  int chunks[kMaxSegments];
  int slots[kMaxSegments];
  int singles[kMaxSegments];
  int warp_totals[kWarps];
};

// How a tile is cut: chunks of its first unit, and units of one chunk each after it.
struct Cut {
  int first, singles, slots;
};

// All blocks of the launch begin with a first unit where there are enough; what is left when the last ones begin is shared out
// in ever smaller ones. A tile of not much more than a block's share stays whole; otherwise its first unit is a little less than
// that share, so that the single chunks after it even out what remains.
__device__ Cut cut(const PlanParams& p, int chunks, int tile, long long total, long long before) {
  const bool first_wave = static_cast<long long>(tile) * p.heads < p.blocks;
  const long long left = (first_wave ? total : total - before) * p.heads;
  if (4ll * chunks * p.blocks <= 5 * left) return {chunks, 0, 0};
  const int first = static_cast<int>(max(1ll, min(chunks - 1ll, left * 7 / (8ll * p.blocks))));
  return {first, chunks - first, 1 + chunks - first};
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) attention_plan(const __grid_constant__ PlanParams p) {
  __shared__ Shared shared;
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  kv::Segment mine{};
  if (t < p.segment_count) mine = p.segments[t];
  if (mine.rows < 0 || mine.position < 0 || mine.row < 0 || mine.pages < 0) __trap();
  shared.tiles[t] = tiles_of(p, mine);
  shared.chunks[t] = shared.slots[t] = shared.singles[t] = 0;
  __syncthreads();

  for (int s = warp; s < p.segment_count; s += kWarps) {
    const kv::Segment segment = p.segments[s];
    const int tiles = tiles_of(p, segment);
    int chunks = 0;
    for (int i = lane; i < tiles; i += 32) chunks += tile_of(p, segment, i, tiles).chunks();
    chunks = __reduce_add_sync(~0u, chunks);
    if (lane == 0) shared.chunks[s] = chunks;
  }
  const int tile_total = sum_before(shared.tiles, shared.warp_totals);
  const int chunk_total = sum_before(shared.chunks, shared.warp_totals);

  // First to count slots and units, then to write them.
  int slot_total = 0, single_total = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int s = warp; s < p.segment_count; s += kWarps) {
      const kv::Segment segment = p.segments[s];
      const int tiles = tiles_of(p, segment);
      const int tiles_before = shared.tiles[s];
      int chunks_before = shared.chunks[s], slots_before = shared.slots[s], singles_before = shared.singles[s];
      for (int i0 = 0; i0 < tiles; i0 += 32) {
        const int i = i0 + lane;
        const bool there = i < tiles;
        const Tile tile = tile_of(p, segment, there ? i : 0, tiles);
        const int chunks = there ? tile.chunks() : 0;
        const int before = chunks_before + sum_upto(chunks, lane) - chunks;
        const Cut c = chunks > 1 ? cut(p, chunks, tiles_before + i, chunk_total, before) : Cut{chunks, 0, 0};
        const int slot = slots_before + sum_upto(c.slots, lane) - c.slots;
        const int single = singles_before + sum_upto(c.singles, lane) - c.singles;
        if (pass == 1 && there) {
          const int number = tiles_before + i;
          const bool whole = c.singles == 0 || slot + c.slots > p.max_slots;
          Unit unit{tile.row, tile.rows, tile.position, segment.pages, tile.block_begin, tile.block_end, slot, slot,
                    whole ? 1 : c.slots, number};
          int end = (tile.chunk_begin() + c.first) * kChunkBlocks;
          if (!whole) unit.block_end = end;
          p.units[number] = unit;
          for (int j = 0; j < c.singles; j++) {
            unit.slot++;
            unit.block_begin = end;
            end = whole ? end : min(end + kChunkBlocks, tile.block_end);
            unit.block_end = end;
            p.units[tile_total + single + j] = unit;
          }
        }
        chunks_before = __shfl_sync(~0u, before + chunks, 31);
        slots_before = __shfl_sync(~0u, slot + c.slots, 31);
        singles_before = __shfl_sync(~0u, single + c.singles, 31);
      }
      __syncwarp();
      if (pass == 0 && lane == 0) {
        shared.slots[s] = slots_before;
        shared.singles[s] = singles_before;
      }
    }
    if (pass == 0) {
      slot_total = sum_before(shared.slots, shared.warp_totals);
      single_total = sum_before(shared.singles, shared.warp_totals);
      if (tile_total + single_total > p.max_units) __trap();
    }
  }
  if (t == 0) *p.header = {tile_total + single_total, tile_total, min(slot_total, p.max_slots), 0};
}

// places[row] of every row of the segments; a block per segment.
extern "C" __global__ void __launch_bounds__(128)
    kv_places(const kv::Segment* segments, const int* pages, int page_entries, int rows, kv::Place* places) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const kv::Segment segment = segments[blockIdx.x];
  for (int i = threadIdx.x; i < segment.rows; i += 128) {
    const int position = segment.position + i, entry = segment.pages + position / kv::kPageTokens;
    if (segment.row < 0 || segment.row + i >= rows || position < 0 || entry < 0 || entry >= page_entries) __trap();
    places[segment.row + i] = {position, pages[entry]};
  }
}

}  // namespace attention
