// Many queries: they are the rows of both products, so that a query's scores and weights stay in the registers of four threads.
//
// Which operand is which changes no bit: an output is the same chain of the same products. Thread l of warp w holds, for queries
// 16w + l / 4 (registers 4j, 4j + 1) and 8 further (4j + 2, 4j + 3), the columns 8j + 2(l % 4) + {0, 1}: tokens of scores, or
// columns of the head.
#pragma once
#include "queries.cuh"
#include "wgmma.cuh"
#include "wgmma_registers.cuh"

namespace attention {

template <class S>
class ByRows : protected Queries<S> {
 protected:
  using Base = Queries<S>;
  using Base::group_, Base::lane_, Base::p_, Base::shared_, Base::t_, Base::unit_, Base::warp_;
  static_assert(S::kQueries == 64, "the rows of one product");
  static constexpr int kScores = kBlockTokens / 2, kValues = S::kHead / 2;

  __device__ ByRows(const Params& p, Shared<S>& shared) : Base(p, shared) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kValues; r++) values_[r] = 0.f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      references_[half] = -INFINITY;
#pragma unroll
      for (int i = 0; i < 8; i++) partial_[half][i] = 0.f;
    }
  }

  __device__ __forceinline__ void add_block(int start, bool masked, uint32_t keys) {
    float scores[kScores];
    multiply_keys(keys, scores);
    if (masked) mask(start, scores);
    const uint32_t values = keys + S::kKeyBytes;
    this->clear_unwritten(start, values);
    weigh(scores);
    multiply_values(values, scores);
  }

  // Sums of weights in the order that ByColumns adds them: tokens 16w + i and 8 further meet in partial sum (w, i); those
  // meet in a tree over i, then over w.
  __device__ __forceinline__ void finish_chunk() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float by_page[4];
#pragma unroll
      for (int w = 0; w < 4; w++) {
        float sum = __fadd_rn(partial_[half][2 * w], partial_[half][2 * w + 1]);
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
        by_page[w] = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
      }
      sums_[half] = __fadd_rn(__fadd_rn(by_page[0], by_page[1]), __fadd_rn(by_page[2], by_page[3]));
    }
  }

  __device__ __forceinline__ void add_to_chunks_before() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Factors f = factors(references_before_[half], references_[half]);
      references_[half] = f.reference;
      sums_[half] = fold(f, sums_before_[half], sums_[half]);
#pragma unroll
      for (int j = 0; j < kValues / 4; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int r = 4 * j + 2 * half + e;
          values_[r] = fold(f, shared_.values[group_][r][t_], values_[r]);
        }
      }
    }
  }

  __device__ __forceinline__ void keep() {
#pragma unroll
    for (int r = 0; r < kValues; r++) shared_.values[group_][r][t_] = values_[r];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      references_before_[half] = references_[half];
      sums_before_[half] = sums_[half];
    }
  }

  __device__ __forceinline__ void store_output() {
    const float first = __frcp_rn(sums_[0]), second = __frcp_rn(sums_[1]);
    const uint32_t to = this->queries() + (2 * warp_ + (lane_ >> 3 & 1)) * Base::kQueryRowBytes + (lane_ & 7) * 16;
    // All warps have read the queries.
    this->barrier();
#pragma unroll
    for (int j = 0; j < kValues / 4; j++) {
      const float* v = values_ + 4 * j;
      ptx::store_matrices(to + j * kv::kPieceBytes, ptx::pack_bf16(normalised(v[0], first), normalised(v[1], first)),
                          ptx::pack_bf16(normalised(v[2], second), normalised(v[3], second)));
    }
    this->store_rows();
  }

  __device__ __forceinline__ void store_part() {
    const long long first = part_row<S>(p_, unit_.slot, this->head_, group_);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = query_of(half);
      if (!this->is_there(query)) continue;
      float* row = p_.part_values + (first + query) * S::kHead + 2 * (lane_ & 3);
#pragma unroll
      for (int j = 0; j < kValues / 4; j++) {
        *reinterpret_cast<float2*>(row + 8 * j) = {values_[4 * j + 2 * half], values_[4 * j + 2 * half + 1]};
      }
      if (lane_ % 4 == 0) p_.part_sums[first + query] = {references_[half], sums_[half]};
    }
  }

 private:
  __device__ __forceinline__ int query_of(int half) const { return 16 * warp_ + lane_ / 4 + 8 * half; }

  __device__ __forceinline__ void multiply_keys(uint32_t keys, float (&scores)[kScores]) const {
#pragma unroll
    for (int r = 0; r < kScores; r++) scores[r] = 0.f;
    const uint64_t a = operand(uniform(this->queries()), Base::kQueryRowBytes);
    const uint64_t b = operand(uniform(keys), Base::kQueryRowBytes);  // rows of pieces as wide as the queries'
    ptx::products_begin();
#pragma unroll
    for (int k = 0; k < S::kHead / 16; k++) {
      constexpr uint64_t kStep = operand_offset(2 * kv::kPieceBytes);
      Wgmma<kBlockTokens>::accumulate(scores, a + k * kStep, b + k * kStep);
    }
    ptx::products_commit();
    ptx::products_wait<0>();
#pragma unroll
    for (int r = 0; r < kScores; r++) ptx::after_wait(scores[r]);
  }

  __device__ __forceinline__ void mask(int start, float (&scores)[kScores]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int position = unit_.position + this->row_of(query_of(half)), first = first_seen(position, p_.window);
#pragma unroll
      for (int j = 0; j < kScores / 4; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int here = start + 8 * j + 2 * (lane_ & 3) + e;
          if (here < first || here > position) scores[4 * j + 2 * half + e] = -INFINITY;
        }
      }
    }
  }

  // Scores to weights, relative to the new reference; what was summed before is brought to it.
  __device__ __forceinline__ void weigh(float (&scores)[kScores]) {
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float maximum = -INFINITY;
#pragma unroll
      for (int j = 0; j < kScores / 4; j++) {
        maximum = fmaxf(maximum, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
      const float reference = fmaxf(references_[half], reference_of(__fmul_rn(maximum, p_.scale)));
      // While a query has seen nothing, any finite number does.
      const float finite = reference == -INFINITY ? 0.f : reference;
      rescale[half] = ptx::power_of_two(__fsub_rn(references_[half], finite));
      references_[half] = reference;
#pragma unroll
      for (int j = 0; j < kScores / 4; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& score = scores[4 * j + 2 * half + e];
          score = ptx::exp2_approx(__fmaf_rn(score, p_.scale, -finite));
        }
      }
#pragma unroll
      for (int w = 0; w < 4; w++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& sum = partial_[half][2 * w + e];
          sum = __fmaf_rn(sum, rescale[half],
                          __fadd_rn(scores[8 * w + 2 * half + e], scores[8 * w + 4 + 2 * half + e]));
        }
      }
    }
    if (__any_sync(~0u, rescale[0] != 1.f || rescale[1] != 1.f)) {
#pragma unroll
      for (int r = 0; r < kValues; r++) values_[r] = __fmul_rn(values_[r], rescale[r >> 1 & 1]);
    }
  }

  __device__ __forceinline__ void multiply_values(uint32_t values, const float (&weights)[kScores]) {
    const uint64_t b = operand(uniform(values), 2 * kv::kPieceBytes);
    uint32_t a[kBlockPages][4];
#pragma unroll
    for (int page = 0; page < kBlockPages; page++) {
#pragma unroll
      for (int i = 0; i < 4; i++) a[page][i] = ptx::pack_bf16(weights[8 * page + 2 * i], weights[8 * page + 2 * i + 1]);
    }
    ptx::products_begin();
#pragma unroll
    for (int page = 0; page < kBlockPages; page++) {
      WgmmaRegisters<S::kHead>::accumulate(values_, a[page], b + operand_offset(page * S::kPartBytes));
    }
    ptx::products_commit();
    ptx::products_wait<0>();
#pragma unroll
    for (int r = 0; r < kValues; r++) ptx::after_wait(values_[r]);
  }

  float values_[kValues];
  float references_[2], sums_[2];
  // Of each row, by token: 2w + e is of tokens 16w + 2(l % 4) + e and 8 further.
  float partial_[2][8];
  float references_before_[2], sums_before_[2];
};

}  // namespace attention
