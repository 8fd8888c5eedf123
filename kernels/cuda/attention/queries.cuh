// A warpgroup's queries, and what is the same however they are multiplied: their rows, their way to shared memory and back,
// and the walk over a unit's blocks of positions.
#pragma once
#include "fold.cuh"

namespace attention {

template <class S>
class Queries {
 protected:
  static constexpr int kQueryRowBytes = S::kHead / 8 * kv::kPieceBytes;

  __device__ Queries(const Params& p, Shared<S>& shared)
      : p_(p), shared_(shared), group_(threadIdx.x / 128), t_(threadIdx.x % 128), warp_(t_ / 32), lane_(t_ % 32) {}

  // The row of the tile that a query of this warpgroup belongs to. Those past the last row count as its.
  __device__ __forceinline__ int row_of(int query) const {
    return min((group_ * S::kQueries + query) / p_.group, unit_.rows - 1);
  }
  __device__ __forceinline__ bool is_there(int query) const {
    return (group_ * S::kQueries + query) / p_.group < unit_.rows;
  }
  __device__ __forceinline__ void barrier() const { ptx::named_barrier(1 + group_, 128); }
  __device__ __forceinline__ uint32_t queries() const { return ptx::shared_address(shared_.queries[group_]); }

  // A head's columns are pieces of 8; a row of pieces is 8 queries.
  template <class Do>
  __device__ __forceinline__ void each_piece(Do act) const {
    constexpr int kPieces = S::kHead / 8;
    for (int i = t_; i < S::kQueries * kPieces; i += 128) {
      const int query = i / kPieces, piece = i % kPieces;
      const int number = group_ * S::kQueries + query, row = number / p_.group;
      const uint32_t at = queries() + query / 8 * kQueryRowBytes + piece * kv::kPieceBytes + query % 8 * 16;
      act(at, row, (head_ * p_.group + number - row * p_.group) * S::kHead + piece * 8);
    }
  }

  __device__ __forceinline__ void load_queries() const {
    each_piece([&](uint32_t at, int row, int column) {
      uint4 q = {0, 0, 0, 0};
      if (row < unit_.rows) {
        q = *reinterpret_cast<const uint4*>(p_.q + static_cast<long long>(unit_.row + row) * p_.q_stride + column);
      }
      ptx::store_shared_16(at, q);
    });
    ptx::fence_shared_for_products();
    barrier();
  }

  // Rows of the output leave from where the queries were, in pieces of 16 bytes. A thread stores the pieces that it loads next.
  __device__ __forceinline__ void store_rows() const {
    barrier();
    each_piece([&](uint32_t at, int row, int column) {
      if (row >= unit_.rows) return;
      *reinterpret_cast<uint4*>(p_.out + static_cast<long long>(unit_.row + row) * p_.out_stride + column) =
          ptx::load_shared_16(at);
    });
  }

  // Values past the tile's last position are not the sequence's, or not copied: zero times whatever is there must be zero.
  __device__ __forceinline__ void clear_unwritten(int start, uint32_t values) const {
    const int there = unit_.position + unit_.rows - start;
    if (there >= kBlockTokens) return;
    // A piece has 8 tokens of 8 columns.
    for (int i = t_; i < kBlockTokens / 8 * S::kHead; i += 128) {
      const int piece = i / S::kHead, column = i % S::kHead, keep = there - 8 * piece;
      if (keep >= 8) continue;
      const uint32_t at = values + piece / 2 * S::kPartBytes + column / 8 * 2 * kv::kPieceBytes +
                          piece % 2 * kv::kPieceBytes + column % 8 * 16;
      uint4 v = ptx::load_shared_16(at);
      uint32_t* words = reinterpret_cast<uint32_t*>(&v);
#pragma unroll
      for (int w = 0; w < 4; w++) words[w] = keep >= 2 * w + 2 ? words[w] : keep == 2 * w + 1 ? words[w] & 0xFFFF : 0;
      ptx::store_shared_16(at, v);
    }
    ptx::fence_shared_for_products();
    barrier();
  }

  // After a part is written: whoever finishes a tile's last part folds them all. Where each unit has a block of its own, all
  // run at once, and each waits for the others and folds its share.
  __device__ __forceinline__ void arrive() const {
    using Fold = PartFold<S>;
    static_assert(sizeof(typename Fold::Scratch) <= sizeof(shared_.values[0]), "the sums' memory must hold the factors");
    Fold fold(p_, unit_, head_, group_, *reinterpret_cast<typename Fold::Scratch*>(shared_.values[group_]));
    const bool together = S::kWarpgroups == 1 && next_ == Next::kOnlyUnit;
    const unsigned parts = unit_.parts;
    unsigned* arrived = p_.arrivals + (static_cast<long long>(unit_.tile) * p_.heads + head_) * S::kWarpgroups + group_;
    __threadfence();
    barrier();
    if (t_ == 0) {
      const unsigned before = atomicAdd(arrived, 1u);
      if (together) {
        ptx::spin([=] { return ptx::load_acquire(arrived) >= parts; });
      } else if (before + 1 == parts) {
        *arrived = 0;
      }
      shared_.last[group_] = together || before + 1 == parts;
    }
    barrier();
    if (!shared_.last[group_]) return;
    __threadfence();
    if constexpr (S::kWarpgroups == 1) {
      if (together) {
        // The block has no other unit: nothing is on its way to the ring.
        fold.run_share(unit_.slot - unit_.first_slot, reinterpret_cast<float4*>(shared_.ring[0]));
        if (t_ == 0 && atomicAdd(arrived, 1u) + 1 == 2 * parts) *arrived = 0;
        return;
      }
    }
    fold.run();
  }

  const Params& p_;
  Shared<S>& shared_;
  const int group_, t_, warp_, lane_;
  Unit unit_;
  int head_;
  Next next_;
};

// Runs a warpgroup: `Sums` is what holds its queries' sums, by columns or by rows of the products.
template <class S, class Sums>
class Consumer : Sums {
 public:
  __device__ Consumer(const Params& p, Shared<S>& shared) : Sums(p, shared) {}

  __device__ __forceinline__ void run() {
    for (;;) {
      Shared<S>& shared = this->shared_;
      ptx::barrier_wait(ptx::shared_address(shared.work_full + queue_.stage()), queue_.parity());
      this->unit_ = shared.work[queue_.stage()].unit;
      this->head_ = shared.work[queue_.stage()].head;
      this->next_ = shared.work[queue_.stage()].next;
      __syncwarp();
      if (this->lane_ == 0) ptx::barrier_arrive(ptx::shared_address(shared.work_empty + queue_.stage()));
      queue_.advance();
      if (this->next_ == Next::kEnd) return;
      if (this->unit_.block_begin < this->unit_.block_end) run_unit(this->unit_);
    }
  }

 private:
  __device__ __forceinline__ void run_unit(const Unit& unit) {
    const bool idle = !this->is_there(0);
    const int first_row = this->row_of(0), last_row = this->row_of(S::kQueries - 1);
    // Positions that some query sees, and those that all see.
    const int some_begin = first_seen(unit.position + first_row, this->p_.window);
    const int some_end = idle ? 0 : unit.position + last_row + 1;
    const int all_begin = first_seen(unit.position + last_row, this->p_.window), all_end = unit.position + first_row + 1;
    if (!idle) this->load_queries();
    bool before = false;
    for (int block = unit.block_begin; block < unit.block_end;) {
      this->clear();
      const int chunk_end = min(unit.block_end, (block / kChunkBlocks + 1) * kChunkBlocks);
      for (; block < chunk_end; block++) {
        const int start = block * kBlockTokens, end = start + kBlockTokens, stage = ring_.stage();
        ptx::barrier_wait(ptx::shared_address(this->shared_.full + stage), ring_.parity());
        if (start < some_end && end > some_begin) {
          this->add_block(start, start < all_begin || end > all_end, ptx::shared_address(this->shared_.ring[stage]));
        }
        __syncwarp();
        if (this->lane_ == 0) ptx::barrier_arrive(ptx::shared_address(this->shared_.empty + stage));
        ring_.advance();
      }
      if (idle) continue;
      this->finish_chunk();
      if (before) this->add_to_chunks_before();
      before = true;
      if (block < unit.block_end) this->keep();
    }
    if (idle) return;
    if (unit.parts == 1) {
      this->store_output();
    } else {
      this->store_part();
      this->arrive();
    }
  }

  Turn<S::kStages> ring_;
  Turn<kQueueDepth> queue_;
};

}  // namespace attention
