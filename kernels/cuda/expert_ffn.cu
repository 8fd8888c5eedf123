// The experts of a block, in one persistent launch: h = SiLU(x gate^T) * (x up^T), then y = h down^T.
//
// A block has one warp that streams weights, three that gather rows of tokens by index, and two warpgroups that
// multiply. Nothing waits for the whole grid: a counter per expert says how much of its h is there, and the weight warp
// runs ahead of it into the down product. Blocks wait for one another, so the grid must be resident: at most one block
// per multiprocessor, and one launch at a time per device (the wrapper's workspace sees to it).
#include "expert_ffn/store.cuh"

namespace ffn {
namespace {

__device__ __forceinline__ int depth_of(const Params& p, Phase phase) {
  return (phase == kDown ? p.f : p.d) / layout::kBlockColumns;
}

template <class S>
__device__ __forceinline__ bool next_tile(Shared<S>& shared, QueueEnd& queue, int lane, Tile& tile) {
  return find_tile<S>(shared.plan, queue.take(shared.queue, lane), tile);
}

// The weight warp: a lane copies one block of the strips that the tile has of one group.
template <class S>
__device__ __forceinline__ void stream_weights(const Params& p, Shared<S>& shared) {
  const int lane = threadIdx.x & 31, chunk = shared.chunk;
  const bool dynamic = shared.plan.dynamic;
  const uint64_t once = ptx::evict_first(), again = ptx::evict_normal();
  Place<S> place(ptx::shared_address(&shared), chunk);
  QueueEnd queue;
  Tile tile;
  for (int number = dynamic ? blockIdx.x : 0;;) {
    if (lane == 0) queue.give(shared.queue, number);
    __syncwarp();
    if (!find_tile<S>(shared.plan, number, tile)) return;
    const lists::Entry entry = shared.entries[tile.entry];
    const int depth = depth_of(p, tile.phase), stages = (depth + S::kBlocks - 1) / S::kBlocks;
    const int strips = strips_of(p, tile.phase);
    const int group = tile.strip / layout::kGroupStrips + lane / S::kBlocks, block = lane % S::kBlocks;
    const int begin = max(tile.strip, group * layout::kGroupStrips);
    const int end = min(tile.strip + tile.strips, (group + 1) * layout::kGroupStrips);
    const bf16* from = p.weights + entry.slot * p.slot_stride + (tile.phase == kDown ? 2ll * p.d * p.f : 0) +
                       layout::block_start(begin, block, strips, depth);
    const int step = S::kBlocks * layout::strips_in_group(group, strips) * layout::kBlockValues;
    const uint32_t to = block * S::kWeightBlockBytes + (begin - tile.strip) * layout::kBlockBytes;
    number++;
    for (int row = 0; row < entry.rows; row += chunk) {
      const bool last = row + chunk >= entry.rows;
      for (int k = 0; k < stages; k++) {
        // Early enough to hide the counter's latency, late enough not to take a tile that another block could begin
        // sooner.
        if (dynamic && last && k == max(0, stages - 2 * place.stages()) && lane == 0) {
          number = static_cast<int>(atomicAdd(p.sync + p.units + 1, 1u) + gridDim.x);
        }
        const int blocks = min(S::kBlocks, depth - k * S::kBlocks);
        place.wait_empty();
        if (lane == 0) ptx::barrier_expect(place.full(), tile.strips * blocks * layout::kBlockBytes);
        __syncwarp();
        if (begin < end && block < blocks) {
          ptx::copy_bulk(place.weights() + to, from + static_cast<long long>(k) * step,
                         (end - begin) * layout::kBlockBytes, place.full(), last ? once : again);
        }
        place.advance();
      }
    }
    number = __shfl_sync(~0u, number, 0);
  }
}

// The gather warps: rows of x, or of h once the whole expert's h is there.
template <class S>
__device__ __forceinline__ void gather_tokens(const Params& p, Shared<S>& shared) {
  const int t = threadIdx.x - 32 * (kConsumerWarps + 1), lane = t & 31, warp = t >> 5, chunk = shared.chunk;
  // Lanes take the four 16-byte pieces of a block's row, then two rows, then the stage's blocks, then further rows: eight
  // lanes that write together then touch all banks.
  constexpr int kRowsPerWarp = 8 / S::kBlocks, kRows = kRowsPerWarp * kGatherWarps;
  const int piece = lane & 3, block = (lane >> 3) % S::kBlocks;
  const int first = warp * kRowsPerWarp + (lane >> 3) / S::kBlocks * 2 + (lane >> 2 & 1);
  Place<S> place(ptx::shared_address(&shared), chunk);
  QueueEnd queue;
  Tile tile;
  while (next_tile(shared, queue, lane, tile)) {
    const lists::Entry entry = shared.entries[tile.entry];
    const int depth = depth_of(p, tile.phase);
    const int stride = tile.phase == kDown ? p.f : p.x_stride;
    for (int row = 0; row < entry.rows; row += chunk) {
      const int tokens = min(chunk, entry.rows - row);
      ptx::named_barrier(3, kGatherThreads);  // nobody reads the former chunk's list any more
      for (int i = t; i < tokens; i += kGatherThreads) {
        const int pair = entry.start + row + i;
        shared.chunk_source[i] = tile.phase == kDown ? pair : shared.source[pair];
      }
      if (tile.phase == kDown && row == 0) {
        if (lane == 0) {
          const unsigned whole = strips_of(p, kGateUp) * ((entry.rows + chunk - 1) / chunk);
          ptx::spin([&] { return ptx::load_acquire(p.sync + tile.entry) >= whole; });
        }
        __syncwarp();
      }
      ptx::named_barrier(3, kGatherThreads);
      const bf16* from = (tile.phase == kDown ? p.h : p.x) + block * layout::kBlockColumns + piece * 8;
      for (int at = block; at < depth + block; at += S::kBlocks, from += S::kBlocks * layout::kBlockColumns) {
        place.wait_empty();
        if (at < depth) {
          const uint32_t to = place.tokens() + block * layout::kBlockBytes;
#pragma unroll 4
          for (int i = first; i < tokens; i += kRows) {
            ptx::copy_16(to + (i >> 3) * S::kTokenBytes + layout::chunk_offset(i & 7, piece),
                         from + static_cast<long long>(shared.chunk_source[i]) * stride);
          }
        }
        ptx::copies_arrive(place.full());
        place.advance();
      }
    }
  }
}

// One tile of one chunk by one warpgroup, with kTokens >= the chunk's tokens.
template <class S, bool kSegmented, int kTokens>
__device__ __forceinline__ void multiply_and_store(const Params& p, Chain<S>& chain, Phase phase, const Output& out,
                                                   uint32_t staging, int t) {
  Accumulators<S::kTiles, kTokens> acc;
  if (phase == kGateUp) {
    chain.run(acc, depth_of(p, kGateUp));
    store_bf16<S, kTokens, kGateUp>(p, acc, out, staging, chain.warpgroup, t);
    return;
  }
  if constexpr (kSegmented) {
    float4* const scratch = p.scratch + (blockIdx.x * 2ll + chain.warpgroup) * kScratchPieces + t;
    chain.run_segments(acc, p.segment_ends, p.segments, scratch);
  } else {
    chain.run(acc, depth_of(p, kDown));
  }
  if (p.y_is_f32) {
    store_f32<S>(p, acc, out, t);
  } else {
    store_bf16<S, kTokens, kDown>(p, acc, out, staging, chain.warpgroup, t);
  }
}

// The smallest compiled N that holds the chunk.
template <class S, bool kSegmented, int kTokens, int... kMore>
__device__ __forceinline__ void multiply_chunk(const Params& p, Chain<S>& chain, Phase phase, const Output& out,
                                               uint32_t staging, int t) {
  if constexpr (sizeof...(kMore) > 0) {
    if (out.tokens > kTokens) {
      multiply_chunk<S, kSegmented, kMore...>(p, chain, phase, out, staging, t);
      return;
    }
  }
  multiply_and_store<S, kSegmented, kTokens>(p, chain, phase, out, staging, t);
}

// The two warpgroups.
template <class S, bool kSegmented, int... kTokens>
__device__ __forceinline__ void multiply_tiles(const Params& p, Shared<S>& shared) {
  const int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127, lane = t & 31;
  const uint32_t staging = ptx::shared_address(shared.staging[warpgroup]);
  Place<S> place(ptx::shared_address(&shared), shared.chunk);
  Chain<S> chain{place, warpgroup, lane};
  QueueEnd queue;
  Tile tile;
  while (next_tile(shared, queue, lane, tile)) {
    const lists::Entry entry = shared.entries[tile.entry];
    const int strips = min(8 * S::kTiles, tile.strips - warpgroup * 8 * S::kTiles);
    for (int row = 0; row < entry.rows; row += shared.chunk) {
      if (strips <= 0) {
        chain.skip(depth_of(p, tile.phase));
        continue;
      }
      const Output out{entry.start + row, min(shared.chunk, entry.rows - row), tile.strip + warpgroup * 8 * S::kTiles,
                       strips, shared.target};
      multiply_chunk<S, kSegmented, kTokens...>(p, chain, tile.phase, out, staging, t);
      ptx::named_barrier(1 + warpgroup, 128);  // all rows of the warpgroup are stored
      if (tile.phase == kGateUp && t == 0) ptx::add_release(p.sync + tile.entry, strips);
    }
  }
}

// The chunk that the launch's fullest expert needs.
template <int... kTokens>
__device__ int choose_chunk(const Params& p, int max_rows) {
  int chosen = 0;
  ((chosen = (p.max_chunk == 0 || kTokens <= p.max_chunk) && chosen < max_rows ? kTokens : chosen), ...);
  return chosen;
}

// The lists, by all threads; the last warp makes the plan.
template <class S, int... kTokens>
__device__ __forceinline__ void read_lists(const Params& p, Shared<S>& shared) {
  const int t = threadIdx.x, lane = t & 31;
  const bool few = p.few.pairs > 0, planner = t >= kThreads - 32;
  if (!few) {
    for (int i = t; i < p.units; i += kThreads) shared.entries[i] = p.entries[i];
  }
  if (!planner) return;
  const lists::Header header =
      few ? lists::list_few(p.few, lane, shared.entries, shared.few_source, shared.few_target) : *p.header;
  if (lane == 0) {
    shared.source = few ? shared.few_source : p.source;
    shared.target = few ? shared.few_target : p.target;
    shared.chunk = choose_chunk<kTokens...>(p, header.max_rows);
    shared.plan = make_plan<S>(p, header.active);
  }
}

// Producers give up registers that the accumulators of large tiles need.
constexpr int kConsumerRegisters = 224;
constexpr int kProducerRegisters = 56;

// kTokens: the values of N that are compiled, rising; also the chunks that the ring is cut for.
template <class S, bool kSegmented, bool kMoveRegisters, int... kTokens>
__device__ __forceinline__ void run(const Params& p) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::shared_address(raw) % kSharedAlignment;
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(raw + (kSharedAlignment - misaligned) % kSharedAlignment);
  const int t = threadIdx.x, warp = t >> 5;
  if (t == 0) {
    for (int i = 0; i < S::kMaxStages; i++) {
      ptx::barrier_init(ptx::shared_address(shared.full + i), kGatherThreads + 1);
      ptx::barrier_init(ptx::shared_address(shared.empty + i), kConsumerWarps);
    }
    for (int i = 0; i < kQueueDepth; i++) {
      ptx::barrier_init(ptx::shared_address(shared.queue.full + i), 1);
      ptx::barrier_init(ptx::shared_address(shared.queue.empty + i), kQueueReaders);
    }
    ptx::barrier_init_done();
  }
  ptx::wait_for_previous_kernel();
  read_lists<S, kTokens...>(p, shared);
  __syncthreads();
  ptx::let_next_kernel_start();

  if (warp < kConsumerWarps) {
    if constexpr (kMoveRegisters) ptx::registers_up<kConsumerRegisters>();
    multiply_tiles<S, kSegmented, kTokens...>(p, shared);
  } else {
    if constexpr (kMoveRegisters) ptx::registers_down<kProducerRegisters>();
    if (warp == kConsumerWarps) {
      stream_weights(p, shared);
    } else {
      gather_tokens(p, shared);
    }
  }

  // The last block leaves the counters as it found them.
  __syncthreads();
  if (t == 0) {
    __threadfence();
    if (atomicAdd(p.sync + p.units, 1u) == gridDim.x - 1) {
      for (int i = 0; i < p.units + 2; i++) p.sync[i] = 0;
    }
  }
}

// Small: six stages of 8 tokens to three of 128. Wide: seven of 64 to four of 256; and, for segments, whose waiting sums
// need registers, seven of 96 to five of 192. Large: five of 64 to four of 160.
using Small = Shape<1, 4, 128, 6 * (32768 + 2048)>;
using Wide = Shape<1, 2, 256, 4 * (16384 + 32768)>;
using WideSegmented = Shape<1, 2, 192, 5 * (16384 + 24576)>;
using Large = Shape<2, 2, 160, 4 * (32768 + 20480)>;
// What the launch wrapper asks for: all that a block can have.
constexpr int kSharedLimit = 227 * 1024;
static_assert(shared_bytes<Small>() <= kSharedLimit && shared_bytes<Wide>() <= kSharedLimit &&
              shared_bytes<WideSegmented>() <= kSharedLimit &&
              shared_bytes<Large>() <= kSharedLimit);

}  // namespace
}  // namespace ffn

extern "C" {

__global__ void __launch_bounds__(ffn::kThreads, 1) expert_ffn_small(const __grid_constant__ ffn::Params p) {
  ffn::run<ffn::Small, false, false, 8, 16, 32, 64, 96, 128>(p);
}
__global__ void __launch_bounds__(ffn::kThreads, 1) expert_ffn_small_segmented(const __grid_constant__ ffn::Params p) {
  ffn::run<ffn::Small, true, true, 8, 16, 32, 64>(p);
}
__global__ void __launch_bounds__(ffn::kThreads, 1) expert_ffn_wide_segmented(const __grid_constant__ ffn::Params p) {
  ffn::run<ffn::WideSegmented, true, true, 96, 128, 160, 192>(p);
}
__global__ void __launch_bounds__(ffn::kThreads, 1) expert_ffn_wide(const __grid_constant__ ffn::Params p) {
  ffn::run<ffn::Wide, false, true, 64, 128, 192, 256>(p);
}
__global__ void __launch_bounds__(ffn::kThreads, 1) expert_ffn_large(const __grid_constant__ ffn::Params p) {
  ffn::run<ffn::Large, false, true, 64, 96, 128, 160>(p);
}

}
