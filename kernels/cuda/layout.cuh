// How weights lie in a slot, and how tiles of weights and tokens lie in shared memory.
//
// A matrix of weights [rows, K] is a sequence of strips: 8 rows, all of K. A strip is a sequence of blocks of 8 rows x 32
// columns, 512 bytes, in the order in which wgmma reads shared memory under its 64-byte swizzle. So any run of strips
// over any run of blocks is a plain copy, and the inner dimension can be cut at every multiple of 32.
// gate and up are one matrix whose strips alternate: SiLU(gate) * up of a column meets in one thread.
#pragma once
#include "ptx.cuh"

namespace layout {

constexpr int kStripRows = 8;
constexpr int kBlockColumns = 32;
constexpr int kBlockBytes = kStripRows * kBlockColumns * 2;
constexpr int kBlockValues = kStripRows * kBlockColumns;

// Where in a block the 16 bytes of columns 8 * chunk .. 8 * chunk + 8 of a row lie.
__host__ __device__ constexpr int chunk_offset(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }

// wgmma's descriptor of an operand in shared memory: K-major, 64-byte swizzle, strips `strip_bytes` apart.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t strip_bytes) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | 1ull << 16 | static_cast<uint64_t>(strip_bytes >> 4) << 32 |
         2ull << 62;
}

// What to add to an operand to move it on by so many bytes.
__host__ __device__ constexpr uint64_t operand_offset(uint32_t bytes) { return bytes >> 4; }

}  // namespace layout
