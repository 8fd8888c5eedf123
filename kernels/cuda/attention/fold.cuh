// Sums over parts of the positions, brought to one reference.
//
// A query's weights are relative to a reference: its largest score so far (in log2), rounded up to a multiple of 8. So what was
// summed before is brought to a new reference by a power of two, exactly, and needs nothing where the reference stays, as it
// mostly does.
#pragma once
#include "shared.cuh"

namespace attention {

__device__ __forceinline__ float reference_of(float score) { return __fmul_rn(ceilf(__fmul_rn(score, 0.125f)), 8.f); }

struct Factors {
  float reference, old, next;
};

// What the sums so far and the next ones are multiplied by. A side that saw nothing has sums of zero.
__device__ __forceinline__ Factors factors(float old_reference, float next_reference) {
  const float reference = fmaxf(old_reference, next_reference);
  return {reference, ptx::power_of_two(__fsub_rn(old_reference, reference)),
          ptx::power_of_two(__fsub_rn(next_reference, reference))};
}

__device__ __forceinline__ float fold(const Factors& f, float old, float next) {
  return __fmaf_rn(old, f.old, __fmul_rn(next, f.next));
}

// A finished value; adding zero makes a zero positive, whatever was masked.
__device__ __forceinline__ float normalised(float value, float inverse) {
  return __fadd_rn(__fmul_rn(value, inverse), 0.f);
}

// Where a tile's part for one key head lies: a row per query of the tile.
template <class S>
__device__ __forceinline__ long long part_row(const Params& p, int slot, int head, int warpgroup) {
  return ((static_cast<long long>(slot) * p.heads + head) * S::kWarpgroups + warpgroup) * S::kQueries;
}

// Folds a tile's parts in order into its output rows, by one warpgroup: some queries at a time, four columns a thread.
template <class S>
class PartFold {
 public:
  static constexpr int kPieces = S::kHead / 4;
  static constexpr int kRows = 128 / kPieces;
  static constexpr int kAtOnce = S::kQueries / kRows < 2 ? 1 : 2;
  static constexpr int kQueries = kRows * kAtOnce;
  static constexpr int kParts = 32;
  static constexpr int kAhead = 8;

  struct Scratch {
    float old[kQueries][kParts], next[kQueries][kParts], sum[kQueries][kParts];
  };

  __device__ PartFold(const Params& p, const Unit& unit, int head, int warpgroup, Scratch& scratch)
      : p_(p), unit_(unit), scratch_(scratch), head_(head), warpgroup_(warpgroup), t_(threadIdx.x % 128) {}

  __device__ __forceinline__ void run() {
    for (int query = 0; query < S::kQueries; query += kQueries) {
      if ((warpgroup_ * S::kQueries + query) / p_.group >= unit_.rows) return;
      run_queries(query);
    }
  }

  // One of as many shares as there are parts. All of a share's values are loaded at once, to `loaded`.
  __device__ __forceinline__ void run_share(int share, float4* loaded) {
    static_assert(kQueries == S::kQueries, "the factors of all queries at once");
    constexpr int kItems = S::kQueries * kPieces;
    const int begin = share * kItems / unit_.parts, items = (share + 1) * kItems / unit_.parts - begin;
    const long long first = part_row<S>(p_, unit_.first_slot, head_, warpgroup_);
    float references[kQueries / 4];
#pragma unroll
    for (int i = 0; i < kQueries / 4; i++) references[i] = -INFINITY;
    const int mine = begin + t_, query = mine / kPieces, column = mine % kPieces * 4;
    float4 value = {};
    float sum = 0;
    for (int part0 = 0; part0 < unit_.parts; part0 += kParts) {
      const int parts = min(kParts, unit_.parts - part0);
      for (int i = t_; i < items * parts; i += 128) {
        const int part = i / items, item = begin + i - part * items;
        if (!is_there(item / kPieces)) continue;
        const long long at = first + item / kPieces + (part0 + part) * step();
        ptx::copy_16(ptx::shared_address(loaded + i), p_.part_values + at * S::kHead + item % kPieces * 4);
      }
      list_factors(0, first, part0, parts, references);
      ptx::copies_wait();
      ptx::named_barrier(1 + warpgroup_, 128);
      for (int j = 0; t_ < items && j < parts; j++) {
        const Factors f{0.f, scratch_.old[query][j], scratch_.next[query][j]};
        const float4 next = loaded[j * items + t_];
        sum = fold(f, sum, scratch_.sum[query][j]);
        value = {fold(f, value.x, next.x), fold(f, value.y, next.y), fold(f, value.z, next.z), fold(f, value.w, next.w)};
      }
      ptx::named_barrier(1 + warpgroup_, 128);
    }
    if (t_ < items) store(query, column, value, sum);
  }

 private:
  // Parts are so many rows apart.
  __device__ __forceinline__ long long step() const {
    return static_cast<long long>(p_.heads) * S::kWarpgroups * S::kQueries;
  }
  __device__ __forceinline__ bool is_there(int query) const {
    return (warpgroup_ * S::kQueries + query) / p_.group < unit_.rows;
  }

  __device__ __forceinline__ void run_queries(int query0) {
    const long long first = part_row<S>(p_, unit_.first_slot, head_, warpgroup_) + query0;
    const int row = t_ / kPieces, column = t_ % kPieces * 4;
    float references[kQueries / 4];
    float4 values[kAtOnce] = {};
    float sums[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kQueries / 4; i++) references[i] = -INFINITY;
    for (int part0 = 0; part0 < unit_.parts; part0 += kParts) {
      const int parts = min(kParts, unit_.parts - part0);
      list_factors(query0, first, part0, parts, references);
      for (int j0 = 0; j0 < parts; j0 += kAhead) {
        float4 next[kAtOnce][kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
#pragma unroll
          for (int i = 0; i < kAtOnce; i++) {
            if (j0 + j >= parts || !is_there(query0 + row + i * kRows)) continue;
            const long long at = first + row + i * kRows + (part0 + j0 + j) * step();
            next[i][j] = __ldcg(reinterpret_cast<const float4*>(p_.part_values + at * S::kHead + column));
          }
        }
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
          if (j0 + j >= parts) break;
#pragma unroll
          for (int i = 0; i < kAtOnce; i++) {
            const int query = row + i * kRows;
            const Factors f{0.f, scratch_.old[query][j0 + j], scratch_.next[query][j0 + j]};
            sums[i] = fold(f, sums[i], scratch_.sum[query][j0 + j]);
            values[i] = {fold(f, values[i].x, next[i][j].x), fold(f, values[i].y, next[i][j].y),
                         fold(f, values[i].z, next[i][j].z), fold(f, values[i].w, next[i][j].w)};
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) store(query0 + row + i * kRows, column, values[i], sums[i]);
  }

  __device__ __forceinline__ void store(int query, int column, const float4& value, float sum) const {
    const int number = warpgroup_ * S::kQueries + query, row = number / p_.group;
    if (row >= unit_.rows) return;
    const float inverse = __frcp_rn(sum);
    bf16* to = p_.out + static_cast<long long>(unit_.row + row) * p_.out_stride +
               (head_ * p_.group + number - row * p_.group) * S::kHead + column;
    *reinterpret_cast<uint2*>(to) =
        make_uint2(ptx::pack_bf16(normalised(value.x, inverse), normalised(value.y, inverse)),
                   ptx::pack_bf16(normalised(value.z, inverse), normalised(value.w, inverse)));
  }

  // The factors of up to 32 parts, a lane each; a warp does every fourth query.
  __device__ __forceinline__ void list_factors(int query0, long long first, int part0, int parts,
                                               float (&references)[kQueries / 4]) {
    const int warp = t_ / 32, lane = t_ % 32;
    ptx::named_barrier(1 + warpgroup_, 128);
#pragma unroll
    for (int i = 0; i < kQueries / 4; i++) {
      const int query = 4 * i + warp;
      float2 part = {-INFINITY, 0.f};
      if (lane < parts && is_there(query0 + query)) part = __ldcg(p_.part_sums + first + query + (part0 + lane) * step());
      float upto = part.x;
#pragma unroll
      for (int o = 1; o < 32; o *= 2) {
        const float other = __shfl_up_sync(~0u, upto, o);
        if (lane >= o) upto = fmaxf(upto, other);
      }
      upto = fmaxf(upto, references[i]);
      float before = __shfl_up_sync(~0u, upto, 1);
      if (lane == 0) before = references[i];
      references[i] = __shfl_sync(~0u, upto, 31);
      const Factors f = factors(before, part.x);
      scratch_.old[query][lane] = f.old;
      scratch_.next[query][lane] = f.next;
      scratch_.sum[query][lane] = part.y;
    }
    ptx::named_barrier(1 + warpgroup_, 128);
  }

  const Params& p_;
  const Unit& unit_;
  Scratch& scratch_;
  const int head_, warpgroup_, t_;
};

}  // namespace attention
