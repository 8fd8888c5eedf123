// Attention over the paged cache of keys and values: decode and prefill, with the same bits.
//
// A block has a warp that draws units of work and streams their pages, and warpgroups that multiply. In decode a tile is the
// queries of one or a few rows, two blocks share a multiprocessor, and the time is that of the bytes; in prefill a tile is 128
// queries, and the time that of the products.
#include "attention/columns.cuh"
#include "attention/rows.cuh"

namespace attention {
namespace {

__device__ __forceinline__ int unit_word(const Params& p, int number, int word) {
  return reinterpret_cast<const int*>(p.units + number / p.heads)[word];
}

// The warp that loads: lanes 0 to 3 copy keys, 4 to 7 values, a page each.
template <class S>
__device__ __forceinline__ void stream_pages(const Params& p, Shared<S>& shared) {
  const int lane = threadIdx.x & 31;
  const uint64_t policy = S::kWarpgroups == 1 ? ptx::evict_first() : ptx::evict_normal();
  Turn<S::kStages> ring;
  Turn<kQueueDepth> queue;
  const int part = lane / kBlockPages;
  const uint32_t to = ptx::shared_address(shared.ring[0]) + part * S::kKeyBytes + lane % kBlockPages * S::kPartBytes;
  int number = blockIdx.x;
  // The first unit is read beside the number of units: it may be none.
  int word = 0;
  if (lane < kWorkWords - 2 && number / p.heads < p.max_units) word = unit_word(p, number, lane);
  const int units = p.header->units * p.heads;
  for (bool more = true; more; queue.advance()) {
    more = number < units;
    const int head = number % p.heads;
    if (lane == kWorkWords - 2) word = head;
    if (lane == kWorkWords - 1) {
      word = static_cast<int>(!more ? Next::kEnd : units <= static_cast<int>(gridDim.x) ? Next::kOnlyUnit : Next::kUnit);
    }
    ptx::barrier_wait(ptx::shared_address(shared.work_empty + queue.stage()), queue.parity() ^ 1);
    if (lane < kWorkWords) reinterpret_cast<volatile int*>(shared.work + queue.stage())[lane] = word;
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(ptx::shared_address(shared.work_full + queue.stage()));
    if (!more) break;

    Unit unit;
    for (int i = 0; i < static_cast<int>(sizeof(Unit) / 4); i++) {
      reinterpret_cast<int*>(&unit)[i] = __shfl_sync(~0u, word, i);
    }
    const int tokens = unit.position + unit.rows, pages = (tokens + kv::kPageTokens - 1) / kv::kPageTokens;
    // 32 pages' numbers at a time, the next before they are needed.
    const auto page_at = [&](int first) {
      const int index = first + lane;
      if (index >= min(pages, unit.block_end * kBlockPages)) return 0;
      if (unit.pages + index >= p.page_entries) __trap();
      const int page = p.pages[unit.pages + index];
      if (static_cast<unsigned>(page) >= static_cast<unsigned>(p.page_count)) __trap();
      return page;
    };
    int mine = 0, next = page_at(unit.block_begin * kBlockPages);
    for (int block = unit.block_begin; block < unit.block_end; block++) {
      const int in_list = (block - unit.block_begin) % kChunkBlocks;
      if (in_list == 0) {
        mine = next;
        if (block + kChunkBlocks < unit.block_end) next = page_at((block + kChunkBlocks) * kBlockPages);
      }
      // Late enough not to take a unit that another block could begin sooner.
      if (block + 1 == unit.block_end && lane == 0) number = static_cast<int>(atomicAdd(p.sync, 1u) + gridDim.x);
      const int page = __shfl_sync(~0u, mine, in_list * kBlockPages + lane % kBlockPages);
      const int count = min(kBlockPages, pages - block * kBlockPages);
      const uint32_t full = ptx::shared_address(shared.full + ring.stage());
      ptx::barrier_wait(ptx::shared_address(shared.empty + ring.stage()), ring.parity() ^ 1);
      if (lane == 0) ptx::barrier_expect(full, 2 * count * S::kPartBytes);
      __syncwarp();
      if (lane < 2 * kBlockPages && lane % kBlockPages < count) {
        const bf16* from = p.cache + ((static_cast<long long>(page) * p.heads + head) * 2 + part) * kv::part_values(S::kHead);
        ptx::copy_bulk(to + ring.stage() * S::kStageBytes, from, S::kPartBytes, full, policy);
      }
      ring.advance();
    }
    if (unit.block_begin == unit.block_end && lane == 0) number = static_cast<int>(atomicAdd(p.sync, 1u) + gridDim.x);
    number = __shfl_sync(~0u, number, 0);
    if (lane < kWorkWords - 2 && number < units) word = unit_word(p, number, lane);
  }
  // The last block to end leaves the counters as it found them.
  if (lane == 0 && atomicAdd(p.sync + 1, 1u) + 1 == gridDim.x) {
    p.sync[0] = 0;
    p.sync[1] = 0;
  }
}

template <class S, class Sums>
__device__ __forceinline__ void attend(const Params& p) {
  extern __shared__ uint8_t raw[];
  const uint32_t begin = ptx::shared_address(raw);
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(raw + ((begin + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment - begin));
  constexpr int kWarps = 4 * S::kWarpgroups;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; i++) {
      ptx::barrier_init(ptx::shared_address(shared.full + i), 1);
      ptx::barrier_init(ptx::shared_address(shared.empty + i), kWarps);
    }
    for (int i = 0; i < kQueueDepth; i++) {
      ptx::barrier_init(ptx::shared_address(shared.work_full + i), 1);
      ptx::barrier_init(ptx::shared_address(shared.work_empty + i), kWarps);
    }
    ptx::barrier_init_done();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  if (threadIdx.x < 128 * S::kWarpgroups) {
    if constexpr (S::kLoadRegisters > 0) ptx::registers_up<S::kSumRegisters>();
    Consumer<S, Sums>(p, shared).run();
  } else {
    if constexpr (S::kLoadRegisters > 0) ptx::registers_down<S::kLoadRegisters>();
    if (threadIdx.x < 128 * S::kWarpgroups + 32) stream_pages<S>(p, shared);
  }
}

// Head columns, queries per warpgroup, warpgroups, stages, blocks per multiprocessor.
using Decode64 = Shape<64, 8, 1, 6, 2>;
using Decode128 = Shape<128, 8, 1, 3, 2>;
using Prefill64 = Shape<64, 64, 2, 6, 1>;
using Prefill128 = Shape<128, 64, 2, 3, 1>;

// What the launch wrapper gives each block: all there is, or half of it.
constexpr int kPrefillShared = 227 * 1024, kDecodeShared = 112 * 1024;
static_assert(shared_bytes<Decode64>() <= kDecodeShared && shared_bytes<Decode128>() <= kDecodeShared &&
                  shared_bytes<Prefill64>() <= kPrefillShared && shared_bytes<Prefill128>() <= kPrefillShared,
              "too much shared memory");

}  // namespace

#define ATTENTION(name, shape, sums)                                                              \
  extern "C" __global__ void __launch_bounds__(shape::kThreads, shape::kBlocksPerMultiprocessor) \
      name(const __grid_constant__ Params p) {                                                    \
    attend<shape, sums<shape>>(p);                                                                \
  }

ATTENTION(attention_decode_64, Decode64, ByColumns)
ATTENTION(attention_decode_128, Decode128, ByColumns)
ATTENTION(attention_prefill_64, Prefill64, ByRows)
ATTENTION(attention_prefill_128, Prefill128, ByRows)

}  // namespace attention
