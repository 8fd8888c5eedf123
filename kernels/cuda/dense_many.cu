// Dense products of many rows: the sums of dense.cu, by blocks that walk all of K.
//
// A block computes the segments of its outputs one after the other and adds them as (0 + 1) + (2 + 3): the same chains and
// the same tree as where a cluster of four shares them, so the same bits, without an exchange. Two blocks of a cluster
// share their weights or their tokens: each brings half of them to both.
#include "accumulators.cuh"
#include "dense/many.cuh"
#include "dense/store.cuh"

namespace dense::many {
namespace {

using products::Accumulators;

// The weight warp: a lane for each block of columns that this block brings.
__device__ __forceinline__ void stream_weights(const Params& p, const Work& work, Place place) {
  const int lane = threadIdx.x & 31, block = work.weights_shared ? work.rank : lane;
  const bool copies = lane < (work.weights_shared ? 1 : kStageBlocks);
  const int depth = p.columns / layout::kBlockColumns;
  const uint64_t policy = work.weights_read_once() ? ptx::evict_first() : ptx::evict_normal();
  for (int pair = work.first; pair < work.pairs; pair += work.step) {
    const Tile tile = work.tile(pair, p.chunk);
    const int bytes = tile.strips * layout::kBlockBytes;
    const bf16* const from =
        p.weights + layout::block_start(tile.group * layout::kGroupStrips, block, work.strips, depth);
    const int step = kStageBlocks * tile.strips * layout::kBlockValues;
    for (int k = 0; k < work.depth; k++) {
      place.wait_empty();
      if (lane == 0) ptx::barrier_expect(place.full(), kStageBlocks * bytes);
      __syncwarp();
      if (copies && bytes > 0) {
        const uint32_t to = place.weights() + block * kWeightBlockBytes;
        const bf16* const piece = from + static_cast<long long>(k) * step;
        if (work.weights_shared) {
          ptx::copy_bulk_to(kBoth, to, piece, bytes, place.full(), policy);
        } else {
          ptx::copy_bulk(to, piece, bytes, place.full(), policy);
        }
      }
      place.advance();
    }
  }
}

// One thread.
__device__ __forceinline__ void bring_tokens(const TensorMap& x, const Params& p, const Work& work, Place place) {
  ptx::prefetch_map(&x);
  ptx::wait_for_previous_kernel();
  const int half = p.chunk / kBlocks;
  for (int pair = work.first; pair < work.pairs; pair += work.step) {
    const Tile tile = work.tile(pair, p.chunk);
    for (int k = 0; k < work.depth; k++) {
      place.wait_empty();
      ptx::barrier_expect(place.full(), p.chunk * kStageColumns * 2);
      if (work.weights_shared) {
        ptx::copy_box(place.tokens(), &x, k * kStageColumns, tile.row, place.full());
      } else {
        ptx::copy_box_to(kBoth, place.tokens() + work.rank * half * kStageColumns * 2, &x, k * kStageColumns,
                         tile.row + work.rank * half, place.full());
      }
      place.advance();
    }
  }
}

// One warpgroup.
struct Consumer {
  Place& place;
  int warpgroup, t;

  // Both blocks wait for both before they fill a stage again, and for every warp: none may fall a whole ring behind
  // another.
  __device__ __forceinline__ void release(uint32_t empty) const {
    const int lane = t & 31;
    if (lane < kBlocks) ptx::barrier_arrive_in_cluster(ptx::address_in(empty, lane));
  }

  // sums = weights x tokens over so many stages.
  template <int kTokens>
  __device__ __forceinline__ void multiply(Accumulators<1, kTokens>& sums, int stages) const {
    sums.clear();
    uint32_t previous = 0;
    for (int k = 0; k < stages; k++) {
      const layout::Descriptor weights = layout::strips_at(
          place.weights() + warpgroup * kWarpgroupStrips * layout::kBlockBytes, layout::kBlockBytes);
      const layout::Descriptor tokens = layout::wide_rows_at(place.tokens());
      place.wait_full();
      ptx::products_begin();
#pragma unroll
      for (int step = 0; step < kStageColumns / 16; step++) {
        Wgmma<kTokens>::accumulate(sums.v[0], weights.moved(step / 2 * kWeightBlockBytes + step % 2 * 32),
                                   tokens.moved(step * 32));
      }
      ptx::products_commit();
      if (k > 0) {
        ptx::products_wait<1>();
        release(previous);
      }
      previous = place.empty();
      place.advance();
    }
    sums.wait();
    release(previous);
  }

  // The tree over the segments. Registers hold two of its sums; the third waits in shared memory.
  template <int kTokens>
  __device__ __forceinline__ void multiply_segments(Accumulators<1, kTokens>& sums, int depth, uint32_t waiting) const {
    Accumulators<1, kTokens> other;
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
      const int first = 2 * half;
      multiply(sums, depth * (first + 1) / kSegments - depth * first / kSegments);
      multiply(other, depth * (first + 2) / kSegments - depth * (first + 1) / kSegments);
      sums.add(other);
      if (half == 0) {
        __syncwarp();  // the last tile's rows have left this memory
        sums.store_shared(waiting);
      }
    }
    other.load_shared(waiting);
    sums.add(other);
  }
};

// The two warpgroups, with the N that the launch's chunk is.
template <int kTokens, int... kMore>
__device__ __forceinline__ void multiply_tiles(const Params& p, const Work& work, Place place, uint32_t shared) {
  if constexpr (sizeof...(kMore) > 0) {
    if (p.chunk != kTokens) {
      multiply_tiles<kMore...>(p, work, place, shared);
      return;
    }
  }
  const int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127, warp = t >> 5;
  const Consumer consumer{place, warpgroup, t};
  const uint32_t waiting = shared + kPoolBytes - waiting_bytes(kTokens) / 2 * (2 - warpgroup) + t * 16;
  // A warp's rows pass through where its first sums waited.
  const uint32_t staging = waiting - (t & 31) * 16;
  static_assert(kStagingBytes <= 32 * 16);
  for (int pair = work.first; pair < work.pairs; pair += work.step) {
    const Tile tile = work.tile(pair, kTokens);
    Accumulators<1, kTokens> sums;
    if (p.segments > 1) {
      consumer.multiply_segments(sums, work.depth, waiting);
    } else {
      consumer.multiply(sums, work.depth);
    }
    const Store store{p,
                      staging,
                      warp,
                      t & 31,
                      tile.row,
                      min(kTokens, p.rows - tile.row),
                      tile.group * kTileStrips + warpgroup * kWarpgroupStrips,
                      min(kWarpgroupStrips, tile.strips - warpgroup * kWarpgroupStrips)};
#pragma unroll
    for (int group = 0; group < kTokens / 8; group++) {
      if (group * 8 >= store.tokens) break;
      const float* v = sums.v[0] + 4 * group;
      store(group, 0, make_float4(v[0], v[1], v[2], v[3]));
    }
  }
}

// Producers give up registers that the accumulators need.
constexpr int kConsumerRegisters = 232;
constexpr int kProducerRegisters = 40;

template <int... kTokens>
__device__ __forceinline__ void run(const TensorMap& x, const Params& p) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::shared_address(raw) % kSharedAlignment;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (kSharedAlignment - misaligned) % kSharedAlignment);
  const int t = threadIdx.x, warp = t >> 5;
  if (t == 0) {
    for (int i = 0; i < kMaxStages; i++) {
      ptx::barrier_init(ptx::shared_address(shared.full + i), 2);
      ptx::barrier_init(ptx::shared_address(shared.empty + i), kBlocks * kConsumerWarps);
    }
    ptx::barrier_init_done();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  // Neither block may be sent to before its barriers are set up.
  ptx::cluster_arrive();
  const Work work(p);
  const Place place(ptx::shared_address(&shared), p.chunk);
  ptx::cluster_wait();

  if (warp < kConsumerWarps) {
    ptx::registers_up<kConsumerRegisters>();
    multiply_tiles<kTokens...>(p, work, place, ptx::shared_address(&shared));
  } else {
    ptx::registers_down<kProducerRegisters>();
    if (warp == kConsumerWarps) {
      stream_weights(p, work, place);
    } else if (t == 32 * (kConsumerWarps + 1)) {
      bring_tokens(x, p, work, place);
    }
  }
  // Neither may be gone while the other still releases stages.
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

}  // namespace
}  // namespace dense::many

extern "C" __global__ void __launch_bounds__(dense::kThreads, 1)
    dense_many(const __grid_constant__ dense::TensorMap x, const __grid_constant__ dense::Params p) {
  dense::many::run<16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192>(x, p);
}
