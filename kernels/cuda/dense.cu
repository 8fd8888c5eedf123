// Dense products: y[rows, outputs] = x[rows, columns] W^T.
//
// Weights are the tensor core's M operand and tokens its N operand. K is one chain of accumulations; or, where a matrix
// has too few rows to keep every multiprocessor busy at many tokens, four chains of a quarter of K each, computed by the
// four blocks of a cluster and added as (0 + 1) + (2 + 3). Which of the two is a property of the matrix. So a row's bits
// depend on neither the rows beside it, nor the tile, nor how many blocks there are.
//
// A block has one warp that streams weights, one that brings tokens, and two warpgroups that multiply. Weights are never
// written while the model serves, so they stream before the kernel ahead has ended.
#include "dense/exchange.cuh"
#include "dense/store.cuh"

namespace dense {
namespace {

// The weight warp: a lane copies one block of the strips that the tile has of one group.
template <class S>
__device__ __forceinline__ void stream_weights(const Params& p, const Work<S>& work, Place<S> place) {
  const int lane = threadIdx.x & 31, strips = p.outputs / layout::kStripRows;
  const int depth = p.columns / layout::kBlockColumns, block = lane % kStageBlocks;
  const uint64_t once = ptx::evict_first(), again = ptx::evict_normal();
  for (int i = 0; i < work.tiles; i++) {
    const Tile tile = work.tile(i);
    const int group = tile.strip / layout::kGroupStrips + lane / kStageBlocks;
    const int begin = max(tile.strip, group * layout::kGroupStrips);
    const int end = min(tile.strip + tile.strips, (group + 1) * layout::kGroupStrips);
    const bf16* const from =
        p.weights + layout::block_start(begin, work.first_stage * kStageBlocks + block, strips, depth);
    const int step = kStageBlocks * layout::strips_in_group(group, strips) * layout::kBlockValues;
    for (int chunk = work.chunks(); chunk > 0; chunk--) {
      for (int k = 0; k < work.stages; k++) {
        place.wait_empty();
        if (lane == 0) ptx::barrier_expect(place.full(), tile.strips * kStageBlocks * layout::kBlockBytes);
        __syncwarp();
        if (begin < end) {
          ptx::copy_bulk(place.weights(block) + (begin - tile.strip) * layout::kBlockBytes,
                         from + static_cast<long long>(k) * step, (end - begin) * layout::kBlockBytes, place.full(),
                         chunk == 1 ? once : again);
        }
        place.advance();
      }
    }
  }
}

// One thread.
template <class S>
__device__ __forceinline__ void bring_tokens(const TensorMap& x, const Work<S>& work, Place<S> place) {
  ptx::prefetch_map(&x);
  ptx::wait_for_previous_kernel();
  for (int i = 0; i < work.tiles; i++) {
    for (int row = 0; row < work.tokens; row += work.chunk) {
      for (int k = 0; k < work.stages; k++) {
        place.wait_empty();
        ptx::barrier_expect(place.full(), work.chunk * kStageColumns * 2);
        ptx::copy_box(place.tokens(), &x, (work.first_stage + k) * kStageColumns, row, place.full());
        place.advance();
      }
    }
  }
}

// Every warp releases every stage: none may fall a whole ring behind another.
__device__ __forceinline__ void release(uint32_t empty, int lane) {
  if (lane == 0) ptx::barrier_arrive(empty);
}

// acc = weights x tokens over the block's stages.
template <class S, int kTokens>
__device__ __forceinline__ void multiply(Accumulators<S::kTiles, kTokens>& acc, Place<S>& place, int stages, int warpgroup,
                                         int lane) {
  acc.clear();
  uint32_t previous = 0;
  for (int k = 0; k < stages; k++) {
    const layout::Descriptor weights = layout::strips_at(
        place.weights(0) + warpgroup * S::kWarpgroupStrips * layout::kBlockBytes, layout::kBlockBytes);
    const layout::Descriptor tokens = layout::wide_rows_at(place.tokens());
    place.wait_full();
    ptx::products_begin();
#pragma unroll
    for (int step = 0; step < kStageColumns / 16; step++) {
      const uint32_t block = step / 2 * place.block_bytes() + step % 2 * 32;
#pragma unroll
      for (int m = 0; m < S::kTiles; m++) {
        Wgmma<kTokens>::accumulate(acc.v[m], weights.moved(block + m * 8 * layout::kBlockBytes), tokens.moved(step * 32));
      }
    }
    ptx::products_commit();
    if (k > 0) {
      ptx::products_wait<1>();
      release(previous, lane);
    }
    previous = place.empty();
    place.advance();
  }
  acc.wait();
  release(previous, lane);
}

// One tile of one chunk by one warpgroup, with the smallest compiled N that holds the chunk.
template <class S, int kTokens, int... kMore>
__device__ __forceinline__ void multiply_chunk(Place<S>& place, const Work<S>& work, Exchange<S>& exchange,
                                               const Store& store, int warpgroup, bool cut) {
  if constexpr (sizeof...(kMore) > 0) {
    if (store.tokens > kTokens) {
      multiply_chunk<S, kMore...>(place, work, exchange, store, warpgroup, cut);
      return;
    }
  }
  Accumulators<S::kTiles, kTokens> acc;
  multiply<S>(acc, place, work.stages, warpgroup, store.lane);
  if (cut) {
    exchange.run(acc, store.tokens, store);
    return;
  }
#pragma unroll
  for (int group = 0; group < kTokens / 8; group++) {
    if (group * 8 >= store.tokens) break;
#pragma unroll
    for (int m = 0; m < S::kTiles; m++) {
      const float* v = acc.v[m] + 4 * group;
      store(group, m, make_float4(v[0], v[1], v[2], v[3]));
    }
  }
}

// The two warpgroups.
template <class S, int... kTokens>
__device__ __forceinline__ void multiply_tiles(const Params& p, Shared<S>& shared, const Work<S>& work, Place<S> place,
                                               int ring_bytes) {
  const int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127, warp = t >> 5, lane = t & 31;
  const uint32_t base = ptx::shared_address(&shared);
  const uint32_t staging = ptx::shared_address(shared.staging[threadIdx.x >> 5]);
  const bool cut = p.segments > 1;
  Exchange<S> exchange(base, base + ring_bytes, work, warpgroup, t);
  if (warpgroup * S::kWarpgroupStrips >= work.max_strips) {
    // No tile of the launch has strips for this warpgroup.
    for (int k = work.tiles * work.chunks() * work.stages; k > 0; k--) {
      place.wait_full();
      release(place.empty(), lane);
      place.advance();
    }
    if (cut) ptx::cluster_wait();
    return;
  }
  // What is sent must find its barriers set up.
  if (cut) ptx::cluster_wait();
  for (int i = 0; i < work.tiles; i++) {
    const Tile tile = work.tile(i);
    for (int row = 0; row < work.tokens; row += work.chunk) {
      const Store store{p,   staging,
                        warp, lane,
                        row, min(work.chunk, work.tokens - row),
                        tile.strip + warpgroup * S::kWarpgroupStrips,
                        min(S::kWarpgroupStrips, tile.strips - warpgroup * S::kWarpgroupStrips)};
      multiply_chunk<S, kTokens...>(place, work, exchange, store, warpgroup, cut);
    }
  }
}

// Producers give up registers that the accumulators need.
constexpr int kConsumerRegisters = 224;
constexpr int kProducerRegisters = 56;

// kTokens: the values of N that are compiled, rising; also the chunks that a launch may ask for.
template <class S, int... kTokens>
__device__ __forceinline__ void run(const TensorMap& x, const Params& p) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::shared_address(raw) % kSharedAlignment;
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(raw + (kSharedAlignment - misaligned) % kSharedAlignment);
  const int t = threadIdx.x, warp = t >> 5;
  if (t == 0) {
    for (int i = 0; i < kMaxStages; i++) {
      ptx::barrier_init(ptx::shared_address(shared.full + i), 2);
      ptx::barrier_init(ptx::shared_address(shared.empty + i), kConsumerWarps);
    }
    for (int i = 0; i < 2 * S::kMaxTurns; i++) {
      ptx::barrier_init(ptx::shared_address(shared.sent[0] + i), 1);
      ptx::barrier_init(ptx::shared_address(shared.taken[0] + i), kSegments * kConsumerWarps / 2);
    }
    ptx::barrier_init_done();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  const Work<S> work(p);
  const int ring_bytes = kPoolBytes - (p.segments > 1 ? Exchange<S>::bytes(work) : 0);
  const Place<S> place(ptx::shared_address(&shared), work, ring_bytes);
  if (p.segments > 1) ptx::cluster_arrive();

  if (warp < kConsumerWarps) {
    ptx::registers_up<kConsumerRegisters>();
    multiply_tiles<S, kTokens...>(p, shared, work, place, ring_bytes);
  } else {
    ptx::registers_down<kProducerRegisters>();
    if (warp == kConsumerWarps) {
      stream_weights(p, work, place);
    } else if (t == 32 * (kConsumerWarps + 1)) {
      bring_tokens(x, work, place);
    }
    if (p.segments > 1) ptx::cluster_wait();
  }
}

// Flat: 128 weight rows x up to 256 tokens. Tall: 256 x up to 128.
using Flat = Shape<1, 4>;
using Tall = Shape<2, 2>;
static_assert(kSharedAlignment + sizeof(Shared<Flat>) <= kSharedLimit && kSharedAlignment + sizeof(Shared<Tall>) <= kSharedLimit);

}  // namespace
}  // namespace dense

extern "C" {

__global__ void __launch_bounds__(dense::kThreads, 1)
    dense_flat(const __grid_constant__ dense::TensorMap x, const __grid_constant__ dense::Params p) {
  dense::run<dense::Flat, 8, 16, 32, 64, 96, 128, 192, 256>(x, p);
}
__global__ void __launch_bounds__(dense::kThreads, 1)
    dense_tall(const __grid_constant__ dense::TensorMap x, const __grid_constant__ dense::Params p) {
  dense::run<dense::Tall, 8, 16, 32, 64, 96, 128>(x, p);
}

}
