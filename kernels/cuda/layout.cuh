// How weights lie in a slot, and how tiles of weights and tokens lie in shared memory.
//
// A matrix of weights [rows, K] is cut into strips of 8 rows, and those into blocks of 8 rows x 32 columns: 512 bytes, in
// the order in which wgmma reads shared memory under its 64-byte swizzle. Sixteen strips make a group (the last may have
// fewer); a group is stored block by block, its strips' blocks side by side. So whole groups stream in long runs, and
// still any strips over any run of blocks are a few plain copies: tiles begin at any strip, and the inner dimension can
// be cut at every multiple of 32. (Stored strip by strip, in runs of 1 or 2 KB, weights streamed up to 7% slower.)
// gate and up are one matrix whose strips alternate: SiLU(gate) * up of a column meets in one thread.
#pragma once
#include "ptx.cuh"

namespace layout {

constexpr int kStripRows = 8;
constexpr int kBlockColumns = 32;
constexpr int kBlockBytes = kStripRows * kBlockColumns * 2;
constexpr int kBlockValues = kStripRows * kBlockColumns;

constexpr int kGroupStrips = 16;

// Strips of a matrix's group.
__host__ __device__ constexpr int strips_in_group(int group, int strips) {
  const int left = strips - group * kGroupStrips;
  return left < kGroupStrips ? left : kGroupStrips;
}

// Where the block of a strip begins, in values, in a matrix of `strips` strips of `blocks` blocks.
__host__ __device__ constexpr long long block_start(int strip, int block, int strips, int blocks) {
  const int group = strip / kGroupStrips;
  return (static_cast<long long>(group) * kGroupStrips * blocks +
          static_cast<long long>(block) * strips_in_group(group, strips) + strip % kGroupStrips) *
         kBlockValues;
}

// Where in a block the 16 bytes of columns 8 * chunk .. 8 * chunk + 8 of a row lie.
__host__ __device__ constexpr int chunk_offset(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }

// wgmma's descriptor of an operand in shared memory. Its address is broadcast from the warp's first lane, so that the
// compiler knows that all have the same one and moves it in uniform registers: computed by every lane, it made a chain of
// about 100 cycles between two products.
struct Descriptor {
  uint32_t low, high;

  __device__ __forceinline__ Descriptor(uint32_t address, uint32_t high)
      : low(__shfl_sync(~0u, (address & 0x3FFFF) >> 4 | 1u << 16, 0)), high(high) {}

  // The operand so many bytes further on.
  __device__ __forceinline__ uint64_t moved(uint32_t bytes) const {
    return static_cast<uint64_t>(high) << 32 | (low + (bytes >> 4));
  }
};

// K-major, 64-byte swizzle, strips `strip_bytes` apart: as weights lie, and gathered tokens.
__device__ __forceinline__ Descriptor strips_at(uint32_t address, uint32_t strip_bytes) {
  return {address, strip_bytes >> 4 | 2u << 30};
}

// K-major, 128-byte swizzle, rows of 64 columns: as a tensor map writes tokens.
__device__ __forceinline__ Descriptor wide_rows_at(uint32_t address) { return {address, 1024 >> 4 | 1u << 30}; }

}  // namespace layout
