// The block's shared memory: the ring of stages, behind it the room that a cluster's sums are exchanged in.
#pragma once
#include "../ring.cuh"
#include "params.cuh"
#include "store.cuh"

namespace dense {

constexpr int kMaxStages = 32;
// The ring and the exchange, whose sizes depend on the launch.
constexpr int kPoolBytes = 215 * 1024;

template <class S>
struct Shared {
  uint8_t pool[kPoolBytes];
  uint8_t staging[kConsumerWarps][kStagingBytes];
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
  uint64_t sent[2][S::kMaxTurns];
  uint64_t taken[2][S::kMaxTurns];
  // A tile that has fewer strips than its warpgroups multiply: what they read beyond it is of no output, but must exist.
  uint8_t beyond[S::kWarpgroupStrips * layout::kBlockBytes];
};

// A stage is `kStageBlocks` blocks of the tile's strips, block by block, and then the chunk's tokens in rows of 128
// bytes.
template <class S>
class Place : public ring::Place<Shared<S>> {
 public:
  __device__ Place(uint32_t shared, const Work<S>& work, int ring_bytes)
      : ring::Place<Shared<S>>(shared, stage_bytes(work), min(ring_bytes / stage_bytes(work), kMaxStages)),
        block_bytes_(work.max_strips * layout::kBlockBytes) {}

  __device__ __forceinline__ int block_bytes() const { return block_bytes_; }
  __device__ __forceinline__ uint32_t weights(int block) const { return this->stage() + block * block_bytes_; }
  __device__ __forceinline__ uint32_t tokens() const { return weights(kStageBlocks); }

 private:
  __device__ static int stage_bytes(const Work<S>& work) {
    return kStageBlocks * work.max_strips * layout::kBlockBytes + work.chunk * kStageColumns * 2;
  }
  int block_bytes_;
};

}  // namespace dense
