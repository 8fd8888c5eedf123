// The experts of a block for many rows each: the products of expert_ffn.cu by clusters of two blocks that share an operand.
//
// The chains are the same, so the bits are. Rows of x come already gathered in the order of the lists (gather_listed): then
// tokens, like weights, are brought by bulk copies, half of the shared operand by each block to both. Numbers of pairs of
// tiles are drawn by the first block of a cluster.
#include "expert_ffn/paired.cuh"
#include "expert_ffn/store.cuh"

namespace ffn::paired {
namespace {

using products::Accumulators;

// What store.cuh asks of a shape of tiles.
struct One {
  static constexpr int kTiles = 1;
};

__device__ __forceinline__ int stages_of(const Params& p, Phase phase) {
  return (phase == kDown ? p.f : p.d) / kStageColumns;
}

// The weight warp: a lane for each block of columns that this block brings. It also hands out the numbers.
__device__ __forceinline__ void stream_weights(const Params& p, Shared& shared, int rank, int lane) {
  const uint64_t once = ptx::evict_first(), again = ptx::evict_normal();
  const int clusters = gridDim.x / kBlocks;
  Place place(ptx::shared_address(&shared), shared.plan.most);
  PairedQueueEnd queue(shared.queue);
  for (int next = blockIdx.x / kBlocks;;) {
    if (lane == 0) queue.give(rank, next);
    __syncwarp();
    PairedTile tile{.cut = Cut(1, 1)};
    if (!find_pair(p, shared, rank, queue.take(lane), tile)) return;
    const lists::Entry entry = shared.entries[tile.entry];
    const bool shared_weights = tile.cut.weights_shared, copies = lane < (shared_weights ? 1 : kStageBlocks);
    const int block = shared_weights ? rank : lane, bytes = tile.strips * layout::kBlockBytes;
    const int stages = stages_of(p, tile.phase);
    const uint64_t policy = tile.cut.chunks <= (shared_weights ? kBlocks : 1) ? once : again;
    const bf16* const from = p.weights + entry.slot * p.slot_stride + (tile.phase == kDown ? 2ll * p.d * p.f : 0) +
                             layout::block_start(tile.strip, block, strips_of(p, tile.phase), stages * kStageBlocks);
    const int step = kStageBlocks * tile.strips * layout::kBlockValues;
    for (int k = 0; k < stages; k++) {
      // Early enough to hide the counter's latency, late enough not to take a pair that another cluster could begin sooner.
      if (rank == 0 && lane == 0 && k == max(0, stages - 2 * place.stages())) {
        next = static_cast<int>(atomicAdd(p.sync + p.units + 1, 1u)) + clusters;
      }
      place.wait_empty();
      if (lane == 0) ptx::barrier_expect(place.full(), kStageBlocks * bytes);
      __syncwarp();
      if (copies && bytes > 0) {
        const uint32_t to = place.weights() + block * kWeightBlockBytes;
        const bf16* const piece = from + static_cast<long long>(k) * step;
        if (shared_weights) {
          ptx::copy_bulk_to(kBoth, to, piece, bytes, place.full(), policy);
        } else {
          ptx::copy_bulk(to, piece, bytes, place.full(), policy);
        }
      }
      place.advance();
    }
  }
}

// A warp: a lane for each box of rows, of x or of h once the whole expert's h is there.
__device__ __forceinline__ void bring_tokens(const TensorMap& x, const TensorMap& h, const Params& p, Shared& shared,
                                             int rank, int lane) {
  if (lane == 0) {
    ptx::prefetch_map(&x);
    ptx::prefetch_map(&h);
  }
  Place place(ptx::shared_address(&shared), shared.plan.most);
  PairedQueueEnd queue(shared.queue);
  PairedTile tile{.cut = Cut(1, 1)};
  while (find_pair(p, shared, rank, queue.take(lane), tile)) {
    const lists::Entry entry = shared.entries[tile.entry];
    if (tile.phase == kDown) {
      if (lane == 0) {
        const unsigned whole = strips_of(p, kGateUp) * tile.cut.chunks;
        ptx::spin([&] { return ptx::load_acquire(p.sync + tile.entry) >= whole; });
      }
      __syncwarp();
      ptx::fence_for_copies();
    }
    const TensorMap* const map = tile.phase == kDown ? &h : &x;
    const int boxes = up(tile.tokens, kBoxRows), row = entry.start + tile.row + lane * kBoxRows;
    const bool alone = tile.cut.weights_shared, copies = lane < boxes && (alone || lane % kBlocks == rank);
    for (int k = 0, stages = stages_of(p, tile.phase); k < stages; k++) {
      place.wait_empty();
      if (lane == 0) ptx::barrier_expect(place.full(), boxes * kBoxBytes);
      __syncwarp();
      if (copies) {
        const uint32_t to = place.tokens() + lane * kBoxBytes;
        if (alone) {
          ptx::copy_box(to, map, k * kStageColumns, row, place.full());
        } else {
          ptx::copy_box_to(kBoth, to, map, k * kStageColumns, row, place.full());
        }
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
};

// One tile by one warpgroup, with the smallest compiled N that holds its tokens.
template <int kTokens, int... kMore>
__device__ __forceinline__ void multiply_tile(const Params& p, const Consumer& consumer, const PairedTile& tile,
                                              const Output& out, uint32_t staging) {
  if constexpr (sizeof...(kMore) > 0) {
    if (out.tokens > kTokens) {
      multiply_tile<kMore...>(p, consumer, tile, out, staging);
      return;
    }
  }
  Accumulators<1, kTokens> sums;
  consumer.multiply(sums, stages_of(p, tile.phase));
  if (tile.phase == kGateUp) {
    store_bf16<One, kTokens, kGateUp>(p, sums, out, staging, consumer.warpgroup, consumer.t);
  } else if (p.y_is_f32) {
    store_f32<One>(p, sums, out, consumer.t);
  } else {
    store_bf16<One, kTokens, kDown>(p, sums, out, staging, consumer.warpgroup, consumer.t);
  }
}

// The two warpgroups.
template <int... kTokens>
__device__ __forceinline__ void multiply_tiles(const Params& p, Shared& shared, int rank) {
  const int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127, lane = t & 31;
  const uint32_t staging = ptx::shared_address(shared.staging[warpgroup]);
  Place place(ptx::shared_address(&shared), shared.plan.most);
  const Consumer consumer{place, warpgroup, t};
  PairedQueueEnd queue(shared.queue);
  PairedTile tile{.cut = Cut(1, 1)};
  while (find_pair(p, shared, rank, queue.take(lane), tile)) {
    const int strips = max(0, min(kWarpgroupStrips, tile.strips - warpgroup * kWarpgroupStrips));
    const Output out{shared.entries[tile.entry].start + tile.row, tile.tokens, tile.strip + warpgroup * kWarpgroupStrips,
                     strips, p.target};
    multiply_tile<kTokens...>(p, consumer, tile, out, staging);
    if (tile.phase == kGateUp) {
      ptx::fence_for_copies();                 // h is read by bulk copies
      ptx::named_barrier(1 + warpgroup, 128);  // all rows of the warpgroup are stored
      if (t == 0) ptx::add_release(p.sync + tile.entry, strips);
    }
  }
}

// Producers give up registers that the accumulators need.
constexpr int kConsumerRegisters = 224;
constexpr int kProducerRegisters = 56;

template <int... kTokens>
__device__ __forceinline__ void run(const TensorMap& x, const TensorMap& h, const Params& p) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::shared_address(raw) % 1024;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - misaligned) % 1024);
  const int t = threadIdx.x, warp = t >> 5, lane = t & 31, rank = blockIdx.x % kBlocks;
  if (t == 0) {
    for (int i = 0; i < kMaxStages; i++) {
      ptx::barrier_init(ptx::shared_address(shared.full + i), 2);
      ptx::barrier_init(ptx::shared_address(shared.empty + i), kBlocks * kConsumerWarps);
    }
    for (int i = 0; i < kQueueDepth; i++) {
      ptx::barrier_init(ptx::shared_address(shared.queue.full + i), 1);
      ptx::barrier_init(ptx::shared_address(shared.queue.empty + i), kPairedReaders);
    }
    ptx::barrier_init_done();
  }
  ptx::wait_for_previous_kernel();
  for (int i = t; i < p.units; i += kThreads) shared.entries[i] = p.entries[i];
  __syncthreads();
  if (warp == 0) make_plan(p, p.header->max_rows, p.header->active, shared, lane);
  __syncthreads();
  ptx::let_next_kernel_start();
  // Neither block may be sent to before its barriers are set up.
  ptx::cluster_arrive();
  ptx::cluster_wait();

  if (warp < kConsumerWarps) {
    ptx::registers_up<kConsumerRegisters>();
    multiply_tiles<kTokens...>(p, shared, rank);
  } else {
    ptx::registers_down<kProducerRegisters>();
    if (warp == kConsumerWarps) {
      stream_weights(p, shared, rank, lane);
    } else if (warp == kConsumerWarps + 1) {
      bring_tokens(x, h, p, shared, rank, lane);
    }
  }

  // Neither may be gone while the other still releases stages.
  ptx::cluster_arrive();
  ptx::cluster_wait();
  // The last block leaves the counters as it found them.
  if (t == 0) {
    __threadfence();
    if (atomicAdd(p.sync + p.units, 1u) == gridDim.x - 1) {
      for (int i = 0; i < p.units + 2; i++) p.sync[i] = 0;
    }
  }
}

}  // namespace
}  // namespace ffn::paired

extern "C" __global__ void __launch_bounds__(ffn::kThreads, 1)
    expert_ffn_paired(const __grid_constant__ ffn::paired::TensorMap x, const __grid_constant__ ffn::paired::TensorMap h,
                      const __grid_constant__ ffn::Params p) {
  ffn::paired::run<32, 64, 96, 128, 144, 160, 192, 224, 256>(x, h, p);
}
