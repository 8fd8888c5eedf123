// Few queries: they are the columns of both products.
//
// Scores are keys (64 tokens as rows) times queries; the output, transposed, is values (columns of the head as rows) times
// weights. Thread l of warp w holds, for queries 8j + 2(l % 4) + {0, 1}, the rows 16w + l / 4 (registers 4j, 4j + 1) and 8
// further (4j + 2, 4j + 3).
#pragma once
#include "queries.cuh"
#include "wgmma.cuh"

namespace attention {

template <class S>
class ByColumns : protected Queries<S> {
 protected:
  using Base = Queries<S>;
  using Base::group_, Base::lane_, Base::p_, Base::shared_, Base::t_, Base::unit_, Base::warp_;
  static constexpr int kProducts = S::kHead / 64, kRegisters = S::kQueries / 2, kMine = S::kQueries / 4;
  static constexpr int kWeightRowBytes = kBlockTokens / 8 * kv::kPieceBytes;

  __device__ ByColumns(const Params& p, Shared<S>& shared) : Base(p, shared) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kProducts; i++) {
#pragma unroll
      for (int r = 0; r < kRegisters; r++) values_[i][r] = 0.f;
    }
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      references_[x] = -INFINITY;
      sums_[x] = 0.f;
    }
  }

  __device__ __forceinline__ void add_block(int start, bool masked, uint32_t keys) {
    float scores[kRegisters];
    multiply_keys(keys, scores);
    if (masked) mask(start, scores);
    const uint32_t values = keys + S::kKeyBytes;
    this->clear_unwritten(start, values);
    weigh(scores);
    store_weights(scores);
    ptx::fence_shared_for_products();
    this->barrier();
    multiply_values(values);
  }

  // The sums of weights over the warpgroup's threads, in one order.
  __device__ __forceinline__ void finish_chunk() {
#pragma unroll
    for (int x = 0; x < kMine; x++) {
#pragma unroll
      for (int o = 4; o < 32; o *= 2) sums_[x] = __fadd_rn(sums_[x], __shfl_xor_sync(~0u, sums_[x], o));
      if (lane_ < 4) shared_.warp_sums[group_][warp_][query_of(x)] = sums_[x];
    }
    this->barrier();
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      const auto of = [&](int w) { return shared_.warp_sums[group_][w][query_of(x)]; };
      sums_[x] = __fadd_rn(__fadd_rn(of(0), of(1)), __fadd_rn(of(2), of(3)));
    }
    this->barrier();
  }

  __device__ __forceinline__ void add_to_chunks_before() {
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      const Factors f = factors(references_before_[x], references_[x]);
      references_[x] = f.reference;
      sums_[x] = fold(f, sums_before_[x], sums_[x]);
#pragma unroll
      for (int i = 0; i < kProducts; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int r = x / 2 * 4 + 2 * half + (x & 1);
          values_[i][r] = fold(f, shared_.values[group_][i * kRegisters + r][t_], values_[i][r]);
        }
      }
    }
  }

  __device__ __forceinline__ void keep() {
#pragma unroll
    for (int i = 0; i < kProducts; i++) {
#pragma unroll
      for (int r = 0; r < kRegisters; r++) shared_.values[group_][i * kRegisters + r][t_] = values_[i][r];
    }
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      references_before_[x] = references_[x];
      sums_before_[x] = sums_[x];
    }
  }

  __device__ __forceinline__ void store_output() {
#pragma unroll
    for (int x = 0; x < kMine; x++) sums_[x] = __frcp_rn(sums_[x]);
    const uint32_t to = this->queries() + (2 * warp_ + (lane_ >> 3 & 1)) * kv::kPieceBytes + (lane_ & 7) * 16;
#pragma unroll
    for (int j = 0; j < S::kQueries / 8; j++) {
#pragma unroll
      for (int i = 0; i < kProducts; i++) {
        const float* v = values_[i] + 4 * j;
        const float low = sums_[2 * j], high = sums_[2 * j + 1];
        ptx::store_transposed(to + j * Base::kQueryRowBytes + i * 8 * kv::kPieceBytes,
                              ptx::pack_bf16(normalised(v[0], low), normalised(v[1], high)),
                              ptx::pack_bf16(normalised(v[2], low), normalised(v[3], high)));
      }
    }
    this->store_rows();
  }

  __device__ __forceinline__ void store_part() {
    const long long first = part_row<S>(p_, unit_.slot, this->head_, group_);
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      const int query = query_of(x), r = x / 2 * 4 + (x & 1);
      if (!this->is_there(query)) continue;
      float* row = p_.part_values + (first + query) * S::kHead + 16 * warp_ + lane_ / 4;
#pragma unroll
      for (int i = 0; i < kProducts; i++) {
        row[64 * i] = values_[i][r];
        row[64 * i + 8] = values_[i][r + 2];
      }
      if (t_ < 4) p_.part_sums[first + query] = {references_[x], sums_[x]};
    }
  }

 private:
  // The query of register slot x of a thread's kMine.
  __device__ __forceinline__ int query_of(int x) const { return x / 2 * 8 + 2 * (lane_ & 3) + (x & 1); }

  __device__ __forceinline__ void multiply_keys(uint32_t keys, float (&scores)[kRegisters]) const {
#pragma unroll
    for (int r = 0; r < kRegisters; r++) scores[r] = 0.f;
    const uint64_t a = operand(uniform(keys), Base::kQueryRowBytes);  // rows of pieces as wide as the queries'
    const uint64_t b = operand(uniform(this->queries()), Base::kQueryRowBytes);
    ptx::products_begin();
#pragma unroll
    for (int k = 0; k < S::kHead / 16; k++) {
      constexpr uint64_t kStep = operand_offset(2 * kv::kPieceBytes);
      Wgmma<S::kQueries>::accumulate(scores, a + k * kStep, b + k * kStep);
    }
    ptx::products_commit();
    ptx::products_wait<0>();
#pragma unroll
    for (int r = 0; r < kRegisters; r++) ptx::after_wait(scores[r]);
  }

  __device__ __forceinline__ void mask(int start, float (&scores)[kRegisters]) const {
    const int token = start + 16 * warp_ + lane_ / 4;
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      const int position = unit_.position + this->row_of(query_of(x)), first = first_seen(position, p_.window);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int here = token + 8 * half;
        if (here < first || here > position) scores[x / 2 * 4 + 2 * half + (x & 1)] = -INFINITY;
      }
    }
  }

  // Scores to weights, relative to the new reference; what was summed before is brought to it.
  __device__ __forceinline__ void weigh(float (&scores)[kRegisters]) {
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      const int r = x / 2 * 4 + (x & 1);
      float maximum = fmaxf(scores[r], scores[r + 2]);
#pragma unroll
      for (int o = 4; o < 32; o *= 2) maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, o));
      if (lane_ < 4) shared_.warp_maxima[group_][warp_][query_of(x)] = maximum;
    }
    this->barrier();
#pragma unroll
    for (int x = 0; x < kMine; x++) {
      float maximum = -INFINITY;
#pragma unroll
      for (int w = 0; w < 4; w++) maximum = fmaxf(maximum, shared_.warp_maxima[group_][w][query_of(x)]);
      const float reference = fmaxf(references_[x], reference_of(__fmul_rn(maximum, p_.scale)));
      // While a query has seen nothing, any finite number does.
      const float finite = reference == -INFINITY ? 0.f : reference;
      const float rescale = ptx::power_of_two(__fsub_rn(references_[x], finite));
      references_[x] = reference;
      const int r = x / 2 * 4 + (x & 1);
      scores[r] = ptx::exp2_approx(__fmaf_rn(scores[r], p_.scale, -finite));
      scores[r + 2] = ptx::exp2_approx(__fmaf_rn(scores[r + 2], p_.scale, -finite));
      sums_[x] = __fmaf_rn(sums_[x], rescale, __fadd_rn(scores[r], scores[r + 2]));
#pragma unroll
      for (int i = 0; i < kProducts; i++) {
        values_[i][r] = __fmul_rn(values_[i][r], rescale);
        values_[i][r + 2] = __fmul_rn(values_[i][r + 2], rescale);
      }
    }
  }

  __device__ __forceinline__ void store_weights(const float (&scores)[kRegisters]) const {
    const uint32_t to = ptx::shared_address(shared_.weights[group_]) +
                        (2 * warp_ + (lane_ >> 3 & 1)) * kv::kPieceBytes + (lane_ & 7) * 16;
#pragma unroll
    for (int j = 0; j < S::kQueries / 8; j++) {
      ptx::store_transposed(to + j * kWeightRowBytes, ptx::pack_bf16(scores[4 * j], scores[4 * j + 1]),
                            ptx::pack_bf16(scores[4 * j + 2], scores[4 * j + 3]));
    }
  }

  __device__ __forceinline__ void multiply_values(uint32_t values) {
    const uint64_t a = operand(uniform(values), 2 * kv::kPieceBytes);
    const uint64_t b = operand(uniform(ptx::shared_address(shared_.weights[group_])), kWeightRowBytes);
    ptx::products_begin();
#pragma unroll
    for (int page = 0; page < kBlockPages; page++) {
#pragma unroll
      for (int i = 0; i < kProducts; i++) {
        Wgmma<S::kQueries>::accumulate(values_[i], a + operand_offset(page * S::kPartBytes + i * 16 * kv::kPieceBytes),
                                       b + operand_offset(page * 2 * kv::kPieceBytes));
      }
    }
    ptx::products_commit();
    ptx::products_wait<0>();
#pragma unroll
    for (int i = 0; i < kProducts; i++) {
#pragma unroll
      for (int r = 0; r < kRegisters; r++) ptx::after_wait(values_[i][r]);
    }
  }

  float values_[kProducts][kRegisters];
  float references_[kMine], sums_[kMine];
  float references_before_[kMine], sums_before_[kMine];
};

}  // namespace attention
