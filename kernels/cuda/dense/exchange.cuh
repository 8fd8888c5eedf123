// The sums of a cluster's segments: block q gets those of every fourth group of 8 tokens from the other blocks, and adds
// them to its own.
//
// They travel as they lie in registers: thread t of a warpgroup sends to thread t of the same warpgroup, 16 bytes per 64
// weight rows. A turn is up to four groups, one for each block. All turns that there is room for are sent before the first
// is waited for.
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

  __device__ static int turns_at_once(const Work<S>& work) { return min(turns_of(work.chunk), S::kMaxTurns); }
  __device__ static int bytes(const Work<S>& work) { return 2 * turns_at_once(work) * kTurnBytes; }

  // `room`: what bytes() says of shared memory.
  __device__ Exchange(uint32_t shared, uint32_t room, const Work<S>& work, int warpgroup, int t)
      : rank_(work.rank), t_(t) {
    mine_ = room + warpgroup * turns_at_once(work) * kTurnBytes;
    sent_ = shared + offsetof(Shared<S>, sent) + warpgroup * S::kMaxTurns * 8;
    taken_ = shared + offsetof(Shared<S>, taken) + warpgroup * S::kMaxTurns * 8;
    for (int row = 0; row < work.tokens; row += work.chunk) {
      const int turns = turns_of(min(work.chunk, work.tokens - row));
#pragma unroll
      for (int i = 0; i < S::kMaxTurns; i++) uses_left_[i] += work.tiles * ((turns - i + S::kMaxTurns - 1) / S::kMaxTurns);
    }
  }

  // Calls `store(group, m, sums)` for this block's groups of a tile, m counting 64 weight rows.
  template <int kN, class Store>
  __device__ __forceinline__ void run(const Accumulators<S::kTiles, kN>& acc, int tokens, Store store) {
    constexpr int kTurns = turns_of(kN);
#pragma unroll
    for (int first = 0; first < kTurns; first += S::kMaxTurns) {
      if (first * kTokens >= tokens) break;  // as in all blocks of the cluster
#pragma unroll
      for (int i = 0; i < S::kMaxTurns && first + i < kTurns; i++) {
        if ((first + i) * kTokens < tokens) send(acc, (first + i) * kSegments, i, tokens);
      }
#pragma unroll
      for (int i = 0; i < S::kMaxTurns && first + i < kTurns; i++) {
        if ((first + i) * kTokens < tokens) receive(acc, (first + i) * kSegments, i, tokens, store);
      }
    }
  }

 private:
  __device__ static constexpr int turns_of(int tokens) { return (tokens + kTokens - 1) / kTokens; }
  __device__ __forceinline__ uint32_t room(int i) const { return mine_ + i * kTurnBytes; }
  __device__ __forceinline__ uint32_t parity(int i) const { return parities_ >> i & 1; }

  // The groups of the turn from `first` on, to the blocks that add them.
  template <int kN>
  __device__ __forceinline__ void send(const Accumulators<S::kTiles, kN>& acc, int first, int i, int tokens) {
    const bool takes = (first + rank_) * 8 < tokens;
    if (t_ == 0) ptx::barrier_expect(sent_ + 8 * i, takes ? kTurnBytes - kSlotBytes : 0);
    ptx::barrier_wait(taken_ + 8 * i, parity(i) ^ 1);
#pragma unroll
    for (int q = 0; q < kSegments && first + q < kN / 8; q++) {
      if ((first + q) * 8 >= tokens) break;
      if (q == rank_) continue;
      const uint32_t to = ptx::address_in(room(i) + rank_ * kSlotBytes + t_ * 16, q);
      const uint32_t barrier = ptx::address_in(sent_ + 8 * i, q);
#pragma unroll
      for (int m = 0; m < S::kTiles; m++) ptx::send_16(to + m * 128 * 16, four(acc, m, first + q), barrier);
    }
  }

  template <int kN, class Store>
  __device__ __forceinline__ void receive(const Accumulators<S::kTiles, kN>& acc, int first, int i, int tokens,
                                          Store store) {
    const bool takes = (first + rank_) * 8 < tokens;
    float4 sums[S::kTiles];
    if (takes) {
      ptx::barrier_wait_sent(sent_ + 8 * i, parity(i));
#pragma unroll
      for (int m = 0; m < S::kTiles; m++) {
        float4 part[kSegments];
#pragma unroll
        for (int q = 0; q < kSegments; q++) {
          const float4 theirs = ptx::load_shared_floats(room(i) + q * kSlotBytes + (m * 128 + t_) * 16);
          const float4 own = first + q < kN / 8 ? four(acc, m, first + q) : theirs;
          part[q] = select(q == rank_, own, theirs);
        }
        sums[m] = add(add(part[0], part[1]), add(part[2], part[3]));
      }
    }
    free(i);
    if (takes) {
#pragma unroll
      for (int m = 0; m < S::kTiles; m++) store(first + rank_, m, sums[m]);
    }
  }

  template <int kN>
  __device__ static __forceinline__ float4 four(const Accumulators<S::kTiles, kN>& acc, int m, int group) {
    const float* v = acc.v[m] + 4 * group;
    return make_float4(v[0], v[1], v[2], v[3]);
  }
  __device__ static __forceinline__ float4 select(bool first, float4 a, float4 b) {
    return make_float4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
  }
  __device__ static __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
  }

  // Lets every block of the cluster send to a turn's room again: none may be told so after its last use, when it may be
  // gone.
  __device__ __forceinline__ void free(int i) {
    __syncwarp();
    const int lane = t_ & 31;
    if (--uses_left_[i] > 0 && lane < kSegments) ptx::barrier_arrive_in_cluster(ptx::address_in(taken_ + 8 * i, lane));
    parities_ ^= 1u << i;
  }

  int rank_, t_;
  uint32_t mine_, sent_, taken_;
  int uses_left_[S::kMaxTurns] = {};
  uint32_t parities_ = 0;
};

}  // namespace dense
