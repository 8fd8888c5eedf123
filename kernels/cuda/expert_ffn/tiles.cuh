// Which tiles a block computes, and how its roles learn of them.
#pragma once
#include "params.cuh"

namespace ffn {

__device__ __forceinline__ int strips_of(const Params& p, Phase phase) {
  return (phase == kDown ? p.d : 2 * p.f) / layout::kStripRows;
}

struct Tile {
  Phase phase;
  int entry;
  int strip;   // the first
  int strips;  // 1 .. S::kStrips
};

// Numbers tiles: whole tiles over the strips `begin .. end` of each of `entries` experts, first of all gate_up, then of
// all down. No gate_up tile comes after a down tile, so a block that waits for h waits for tiles that have begun.
struct Plan {
  bool dynamic;  // numbers are drawn from the launch's counter, or else are this block's own 0, 1, 2, ...
  int first_entry, entries;
  int begin[2], end[2];
};

template <class S>
__device__ Plan make_plan(const Params& p, int active) {
  const int blocks = gridDim.x, block = blockIdx.x, strips[2] = {strips_of(p, kGateUp), strips_of(p, kDown)};
  // Measured (docs/kernels.md): a phase that has hardly more tiles than there are blocks is better cut evenly; otherwise
  // drawing tiles evens out that some blocks run faster. Large tiles are for many rows, which experts share unevenly.
  const int tiles = active * (min(strips[0], strips[1]) / S::kStrips);
  const bool few = S::kTiles == 1 && 3 * tiles < 4 * blocks;
  const bool own = active > 0 && active <= blocks && (p.split == Split::kOwn || (p.split == Split::kAuto && few));
  if (!own) return {true, 0, active, {0, 0}, {strips[0], strips[1]}};
  const int entry = ((block + 1) * active - 1) / blocks, first = entry * blocks / active;
  const int rank = block - first, of = (entry + 1) * blocks / active - first;
  Plan plan{false, entry, 1, {}, {}};
  for (int phase = 0; phase < 2; phase++) {
    const int unit = phase == kGateUp ? 2 : 1;  // a gate strip and its up strip stay together
    plan.begin[phase] = rank * (strips[phase] / unit) / of * unit;
    plan.end[phase] = (rank + 1) * (strips[phase] / unit) / of * unit;
  }
  return plan;
}

template <class S>
__device__ __forceinline__ bool find_tile(const Plan& plan, int number, Tile& tile) {
#pragma unroll
  for (int phase = 0; phase < 2; phase++) {
    const int begin = plan.begin[phase], end = plan.end[phase];
    const int per_entry = (end - begin + S::kStrips - 1) / S::kStrips;
    if (number < plan.entries * per_entry) {
      const int entry = number / per_entry, strip = begin + (number - entry * per_entry) * S::kStrips;
      tile = {static_cast<Phase>(phase), plan.first_entry + entry, strip, min(S::kStrips, end - strip)};
      return true;
    }
    number -= plan.entries * per_entry;
  }
  return false;
}

// The weight warp hands the numbers on to the other roles through a short queue.
constexpr int kQueueDepth = 4;
constexpr int kQueueReaders = kConsumerWarps + kGatherWarps;

struct Queue {
  uint64_t full[kQueueDepth];
  uint64_t empty[kQueueDepth];
  int numbers[kQueueDepth];
};

// One role's place in the queue.
class QueueEnd {
 public:
  // By a whole warp.
  __device__ __forceinline__ int take(Queue& queue, int lane) {
    ptx::barrier_wait(ptx::shared_address(queue.full + slot()), parity());
    const int number = *static_cast<volatile int*>(queue.numbers + slot());
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(ptx::shared_address(queue.empty + slot()));
    turn_++;
    return number;
  }
  // By one thread.
  __device__ __forceinline__ void give(Queue& queue, int number) {
    ptx::barrier_wait(ptx::shared_address(queue.empty + slot()), parity() ^ 1);
    *static_cast<volatile int*>(queue.numbers + slot()) = number;
    ptx::barrier_arrive(ptx::shared_address(queue.full + slot()));
    turn_++;
  }

 private:
  __device__ __forceinline__ uint32_t slot() const { return turn_ % kQueueDepth; }
  __device__ __forceinline__ uint32_t parity() const { return turn_ / kQueueDepth & 1; }
  uint32_t turn_ = 0;
};

}  // namespace ffn
