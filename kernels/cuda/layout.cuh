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

// wgmma's descriptor of an operand in shared memory: K-major, 64-byte swizzle, strips `strip_bytes` apart.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t strip_bytes) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | 1ull << 16 | static_cast<uint64_t>(strip_bytes >> 4) << 32 |
         2ull << 62;
}

// The same under the 128-byte swizzle, rows of 64 columns: as a tensor map writes tokens.
__device__ __forceinline__ uint64_t wide_operand(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | 1ull << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
         1ull << 62;
}

// What to add to an operand to move it on by so many bytes.
__host__ __device__ constexpr uint64_t operand_offset(uint32_t bytes) { return bytes >> 4; }

}  // namespace layout
