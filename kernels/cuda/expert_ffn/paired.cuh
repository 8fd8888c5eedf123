// For experts of many rows: which tiles the two blocks of a cluster compute, and their shared memory.
#pragma once
#include "../ring.cuh"
#include "tiles.cuh"

namespace ffn::paired {

// Blocks of a cluster: they share one operand, and each brings half of it to both.
constexpr int kBlocks = 2;
constexpr uint16_t kBoth = 3;

constexpr int kStageColumns = 64;
constexpr int kStageBlocks = kStageColumns / layout::kBlockColumns;
static_assert(kBlocks == kStageBlocks, "each brings one block of a stage's weights");

// A tile is one group of weights, two warpgroups of 64 rows each, times a chunk of an expert's tokens.
constexpr int kTileStrips = layout::kGroupStrips;
constexpr int kWarpgroupStrips = kTileStrips / 2;
constexpr int kWeightBlockBytes = kTileStrips * layout::kBlockBytes;
constexpr int kWeightBytes = kStageBlocks * kWeightBlockBytes;
constexpr int kMaxChunk = 256;
// Tokens are copied in boxes of so many listed rows: those past the expert's end are of other experts, and of no output.
constexpr int kBoxRows = 32;
constexpr int kBoxBytes = kBoxRows * kStageColumns * 2;

struct alignas(128) TensorMap {
  uint8_t opaque[128];
};

__device__ __forceinline__ int up(int n, int unit) { return (n + unit - 1) / unit; }

// How the rows of an expert are cut: in even chunks. An even number of them is computed in pairs that share the weights; of
// an odd number each is computed for two groups of weights at once, which share the rows.
struct Cut {
  int chunks, rows;
  bool weights_shared;

  __device__ Cut(int all, int most) : chunks(up(all, most)) {
    rows = up(up(all, chunks), 16) * 16;
    weights_shared = chunks % kBlocks == 0;
  }
  __device__ __forceinline__ int pairs(int groups) const {
    return weights_shared ? groups * (chunks / kBlocks) : up(groups, kBlocks) * chunks;
  }
};

struct PairedTile {
  Phase phase;
  int entry;
  int strip;   // the first
  int strips;  // none beyond the matrix's end
  int row;     // of the expert
  int tokens;
  Cut cut;
};

// Pairs of tiles are numbered: first of all gate_up, then of all down. A block that waits for h waits for tiles that have
// begun.
struct Plan {
  int most;  // rows of a chunk
  int active;
  int total[2];
  int first[2][lists::kMaxUnits];  // number, of an entry's first pair
};

// The warp handing numbers out is the first block's; numbers reach both blocks' queues.
struct PairedQueue {
  uint64_t full[kQueueDepth];
  uint64_t empty[kQueueDepth];  // the first block's: all readers of both
  float4 numbers[kQueueDepth];
};
constexpr int kPairedReaders = kBlocks * (kConsumerWarps + 2);

constexpr int kMaxStages = 10;
constexpr int kRingBytes = 4 * (kWeightBytes + kMaxChunk * kStageColumns * 2);
constexpr int kPairedStagingBytes = 32 * 128;

struct Shared {
  uint8_t ring[kRingBytes];
  uint8_t staging[2][kPairedStagingBytes];
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
  PairedQueue queue;
  Plan plan;
  lists::Entry entries[lists::kMaxUnits];
};
static_assert(1024 + sizeof(Shared) <= 227 * 1024);

// By one warp.
__device__ __forceinline__ void make_plan(const Params& p, int max_rows, int active, Shared& shared, int lane) {
  const int most = min(p.max_chunk == 0 ? kMaxChunk : p.max_chunk, up(max_rows, kBoxRows) * kBoxRows);
  for (int phase = 0; phase < 2; phase++) {
    const int groups = up(strips_of(p, static_cast<Phase>(phase)), kTileStrips);
    int total = 0;
    for (int from = 0; from < active; from += 32) {
      const int entry = from + lane;
      const int pairs = entry < active ? Cut(shared.entries[entry].rows, most).pairs(groups) : 0;
      int upto = pairs;
      for (int o = 1; o < 32; o <<= 1) {
        const int before = __shfl_up_sync(~0u, upto, o);
        if (lane >= o) upto += before;
      }
      if (entry < active) shared.plan.first[phase][entry] = total + upto - pairs;
      total += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) shared.plan.total[phase] = total;
  }
  if (lane == 0) {
    shared.plan.most = most;
    shared.plan.active = active;
  }
}

// This block's tile of a pair; false past the last one.
__device__ __forceinline__ bool find_pair(const Params& p, const Shared& shared, int rank, int number, PairedTile& tile) {
  const Plan& plan = shared.plan;
  const int phase = number >= plan.total[0];
  if (phase) number -= plan.total[0];
  if (number >= plan.total[phase]) return false;
  int low = 0, high = plan.active;  // the last entry whose first pair is not after `number`
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (plan.first[phase][middle] <= number ? low : high) = middle;
  }
  number -= plan.first[phase][low];
  const int rows = shared.entries[low].rows;
  const Cut cut(rows, plan.most);
  int group, chunk;
  if (cut.weights_shared) {
    group = number / (cut.chunks / kBlocks);
    chunk = number % (cut.chunks / kBlocks) * kBlocks + rank;
  } else {
    group = number / cut.chunks * kBlocks + rank;
    chunk = number % cut.chunks;
  }
  const int strip = group * kTileStrips, row = chunk * cut.rows;
  const int strips = max(0, min(kTileStrips, strips_of(p, static_cast<Phase>(phase)) - strip));
  tile = {static_cast<Phase>(phase), low, strip, strips, row, min(cut.rows, rows - row), cut};
  return true;
}

class Place : public ring::Place<Shared> {
 public:
  __device__ Place(uint32_t shared, int most)
      : ring::Place<Shared>(shared, kWeightBytes + most * kStageColumns * 2,
                            min(kRingBytes / (kWeightBytes + most * kStageColumns * 2), kMaxStages)) {}

  __device__ __forceinline__ uint32_t weights() const { return stage(); }
  __device__ __forceinline__ uint32_t tokens() const { return stage() + kWeightBytes; }
};

// One role's place in the queue.
class PairedQueueEnd {
 public:
  __device__ explicit PairedQueueEnd(PairedQueue& queue) : queue_(queue) {}

  // By a whole warp.
  __device__ __forceinline__ int take(int lane) {
    ptx::barrier_wait_sent(ptx::shared_address(queue_.full + slot()), parity());
    const int number = __float_as_int(ptx::load_shared_floats(ptx::shared_address(queue_.numbers + slot())).x);
    __syncwarp();
    if (lane == 0) {
      ptx::barrier_arrive_in_cluster(ptx::address_in(ptx::shared_address(queue_.empty + slot()), 0));
    }
    turn_++;
    return number;
  }
  // By one thread of each block, before the warp takes the number: the first block's sends it.
  __device__ __forceinline__ void give(int rank, int number) const {
    const uint32_t full = ptx::shared_address(queue_.full + slot());
    ptx::barrier_expect(full, 16);
    if (rank > 0) return;
    ptx::barrier_wait_sent(ptx::shared_address(queue_.empty + slot()), parity() ^ 1);
#pragma unroll
    for (int block = 0; block < kBlocks; block++) {
      ptx::send_16(ptx::address_in(ptx::shared_address(queue_.numbers + slot()), block),
                   make_float4(__int_as_float(number), 0.f, 0.f, 0.f), ptx::address_in(full, block));
    }
  }

 private:
  __device__ __forceinline__ uint32_t slot() const { return turn_ % kQueueDepth; }
  __device__ __forceinline__ uint32_t parity() const { return turn_ / kQueueDepth & 1; }
  PairedQueue& queue_;
  uint32_t turn_ = 0;
};

}  // namespace ffn::paired
