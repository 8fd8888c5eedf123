// A block's shared memory: a ring of blocks of keys and values between the warp that loads and the warpgroups that multiply.
#pragma once
#include <stddef.h>

#include "units.cuh"

namespace attention {

// Heads of `kHead` columns; each of `kWarpgroups` warpgroups takes `kQueries` of a tile's queries.
// Where they are rows of the products, warps share nothing of them.
template <int kHead_, int kQueries_, int kWarpgroups_, int kStages_, int kBlocksPerMultiprocessor_>
struct Shape {
  static constexpr int kHead = kHead_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocksPerMultiprocessor = kBlocksPerMultiprocessor_;
  // Sums of a thread; at least as many as a fold's factors take.
  static constexpr int kSums = kQueries * kHead / 128 < 6 ? 6 : kQueries * kHead / 128;
  static constexpr int kShared = kQueries == 64 ? 8 : kQueries;
  // Where registers are short, the warp that loads gets a warpgroup of its own, which gives most of its share away.
  static constexpr int kThreads = 128 * kWarpgroups + (kWarpgroups > 1 ? 128 : 32);
  static constexpr int kLoadRegisters = kWarpgroups > 1 ? 40 : 0;
  static constexpr int kSumRegisters = 232;
  // Of a page, keys or values.
  static constexpr int kPartBytes = 2 * kv::part_values(kHead);
  // Of a stage: four pages of keys, then four of values.
  static constexpr int kKeyBytes = kBlockPages * kPartBytes;
  static constexpr int kStageBytes = 2 * kKeyBytes;
};

// What a block does next. Where no block of a launch has a second unit, those of a tile fold its parts together.
enum class Next : int { kEnd, kUnit, kOnlyUnit };

// A unit for one key head; none ends the launch.
struct Work {
  Unit unit;
  int head;
  Next next;
};
constexpr int kWorkWords = sizeof(Work) / 4;
constexpr int kQueueDepth = 2;

template <class S>
struct Shared {
  uint8_t ring[S::kStages][S::kStageBytes];
  // Queries as the product's operand; at a unit's end its output.
  uint8_t queries[S::kWarpgroups][S::kQueries * S::kHead * 2];
  // Sums of the chunks before, each thread's own; at a tile's end its parts' factors.
  float values[S::kWarpgroups][S::kSums][128];
  // What the warps of a warpgroup tell one another where queries are columns: weights, maxima and sums.
  uint8_t weights[S::kWarpgroups][S::kShared * kBlockTokens * 2];
  float warp_maxima[S::kWarpgroups][4][S::kShared];
  float warp_sums[S::kWarpgroups][4][S::kShared];
  int last[S::kWarpgroups];
  uint64_t full[S::kStages];
  uint64_t empty[S::kStages];
  uint64_t work_full[kQueueDepth];
  uint64_t work_empty[kQueueDepth];
  Work work[kQueueDepth];
};

constexpr int kSharedAlignment = 128;
template <class S>
constexpr int shared_bytes() {
  return kSharedAlignment + static_cast<int>(sizeof(Shared<S>));
}

// One role's place in a ring of so many stages.
template <int kStages>
class Turn {
 public:
  __device__ __forceinline__ int stage() const { return stage_; }
  __device__ __forceinline__ uint32_t parity() const { return parity_; }
  __device__ __forceinline__ void advance() {
    if (++stage_ == kStages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// wgmma's descriptor of an operand that lies in pieces of 8 rows x 16 bytes: pieces along the inner dimension follow one
// another, and rows of pieces are `row_bytes` apart.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t row_bytes) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(kv::kPieceBytes >> 4) << 16 |
         static_cast<uint64_t>(row_bytes >> 4) << 32;
}
// The same value in a register that a warp shares, where operands are made.
__device__ __forceinline__ uint32_t uniform(uint32_t address) { return __shfl_sync(~0u, address, 0); }
// What to add to an operand to move it on by so many bytes.
__host__ __device__ constexpr uint64_t operand_offset(uint32_t bytes) { return bytes >> 4; }

}  // namespace attention
