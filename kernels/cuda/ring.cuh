// A ring of stages in shared memory between warps that load and warps that multiply.
#pragma once
#include <stddef.h>

#include "ptx.cuh"

namespace ring {

// One role's place. All roles walk the same stages in the same order. `Shared` begins with the ring's bytes and has
// arrays of barriers `full` and `empty`, one of each per stage.
template <class Shared>
class Place {
 public:
  __device__ Place(uint32_t shared, uint32_t stage_bytes, int stages)
      : shared_(shared), stage_bytes_(stage_bytes), stages_(stages) {}

  __device__ __forceinline__ int stages() const { return stages_; }
  __device__ __forceinline__ uint32_t stage() const { return shared_ + stage_ * stage_bytes_; }
  __device__ __forceinline__ uint32_t full() const { return shared_ + offsetof(Shared, full) + 8 * stage_; }
  __device__ __forceinline__ uint32_t empty() const { return shared_ + offsetof(Shared, empty) + 8 * stage_; }
  __device__ __forceinline__ void wait_full() const { ptx::barrier_wait(full(), parity_); }
  __device__ __forceinline__ void wait_empty() const { ptx::barrier_wait(empty(), parity_ ^ 1); }
  __device__ __forceinline__ void advance() {
    if (++stage_ == stages_) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  uint32_t shared_, stage_bytes_;
  int stages_, stage_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace ring
