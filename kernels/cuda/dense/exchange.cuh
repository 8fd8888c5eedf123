// The sums of a cluster's segments: block q gets those of every fourth group of 8 tokens from all blocks, and adds them.
//
// They travel as they lie in registers: thread t of a warpgroup sends to thread t of the same warpgroup, 16 bytes per 64
// weight rows. A turn is up to four groups, one for each block.
#pragma once
#include "../accumulators.cuh"
#include "shared.cuh"

namespace dense {

using products::Accumulators;

template <class S>
class Exchange {
 public:
  static constexpr int kTokens = 8 * kSegments;  // of a turn
  static constexpr int kSlotBytes = S::kTiles * 128 * 16;
  static constexpr int kTurnBytes = kSegments * kSlotBytes;

  __device__ static int turns_at_once(const Work<S>& work) { return work.chunk > kTokens ? kMaxTurns : 1; }
  __device__ static int bytes(const Work<S>& work) { return 2 * turns_at_once(work) * kTurnBytes; }

  // `room`: what bytes() says of shared memory.
  __device__ Exchange(uint32_t shared, uint32_t room, const Work<S>& work, int warpgroup, int t)
      : rank_(work.rank), t_(t), at_once_(turns_at_once(work)) {
    mine_ = room + warpgroup * at_once_ * kTurnBytes;
    sent_ = shared + offsetof(Shared<S>, sent) + warpgroup * kMaxTurns * 8;
    taken_ = shared + offsetof(Shared<S>, taken) + warpgroup * kMaxTurns * 8;
    int per_tile = 0;
    for (int row = 0; row < work.tokens; row += work.chunk) {
      per_tile += (min(work.chunk, work.tokens - row) + kTokens - 1) / kTokens;
    }
    left_ = work.tiles * per_tile;
  }

  // Calls `store(group, m, sums)` for this block's groups of a tile, m counting 64 weight rows.
  template <int kN, class Store>
  __device__ __forceinline__ void run(const Accumulators<S::kTiles, kN>& acc, int tokens, Store store) {
#pragma unroll
    for (int first = 0; first < kN / 8; first += kSegments) {
      if (first * 8 >= tokens) break;  // as in all blocks of the cluster
      const uint32_t offset = 8 * turn_, room = mine_ + turn_ * kTurnBytes;
      const bool takes = (first + rank_) * 8 < tokens;
      if (t_ == 0) ptx::barrier_expect(sent_ + offset, takes ? kTurnBytes : 0);
      ptx::barrier_wait(taken_ + offset, parity_ ^ 1);
#pragma unroll
      for (int q = 0; q < kSegments && first + q < kN / 8; q++) {
        if ((first + q) * 8 >= tokens) break;
        const uint32_t to = ptx::address_in(room + rank_ * kSlotBytes + t_ * 16, q);
        const uint32_t barrier = ptx::address_in(sent_ + offset, q);
#pragma unroll
        for (int m = 0; m < S::kTiles; m++) {
          const float* v = acc.v[m] + 4 * (first + q);
          ptx::send_16(to + m * 128 * 16, make_float4(v[0], v[1], v[2], v[3]), barrier);
        }
      }
      float4 sums[S::kTiles];
      if (takes) {
        ptx::barrier_wait_sent(sent_ + offset, parity_);
#pragma unroll
        for (int m = 0; m < S::kTiles; m++) {
          const uint32_t slot = room + (m * 128 + t_) * 16;
          const float4 low = add(ptx::load_shared_floats(slot), ptx::load_shared_floats(slot + kSlotBytes));
          const float4 high =
              add(ptx::load_shared_floats(slot + 2 * kSlotBytes), ptx::load_shared_floats(slot + 3 * kSlotBytes));
          sums[m] = add(low, high);
        }
      }
      next_turn();
      if (takes) {
#pragma unroll
        for (int m = 0; m < S::kTiles; m++) store(first + rank_, m, sums[m]);
      }
    }
  }

 private:
  __device__ static __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
  }

  // Lets every block of the cluster send to this turn's room again: none may be told so after its last turn, when it may
  // be gone.
  __device__ __forceinline__ void next_turn() {
    __syncwarp();
    const int lane = t_ & 31;
    if (lane < kSegments && left_ > at_once_) ptx::barrier_arrive_in_cluster(ptx::address_in(taken_ + 8 * turn_, lane));
    left_--;
    if (++turn_ == at_once_) {
      turn_ = 0;
      parity_ ^= 1;
    }
  }

  int rank_, t_, at_once_;
  uint32_t mine_, sent_, taken_;
  int left_, turn_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace dense
