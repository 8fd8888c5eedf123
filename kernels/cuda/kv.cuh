// How a page of the KV cache lies in memory.
//
// Per block, page and head: 16 keys, then 16 values, both in pieces of 8 rows x 16 bytes, as wgmma reads an operand without
// swizzle. Keys have tokens as rows. Values are transposed, columns of the head as rows: the inner dimension of the second
// product is the token. So pages go to shared memory by plain copies, and the products read them there as they lie.
#pragma once
#include "ptx.cuh"

namespace kv {

constexpr int kPageTokens = 16;
constexpr int kPieceBytes = 128;

// Values of the keys, and as many of the values, of one page and head.
__host__ __device__ constexpr int part_values(int head_dim) { return kPageTokens * head_dim; }

// Where column d of the key of a page's token lies, in values.
__host__ __device__ constexpr int key_offset(int head_dim, int token, int d) {
  return (token / 8 * (head_dim / 8) + d / 8) * 64 + token % 8 * 8 + d % 8;
}

// Where column d of the value of a page's token lies, in values, from the start of the values.
__host__ __device__ constexpr int value_offset(int token, int d) {
  return (d / 8 * 2 + token / 8) * 64 + d % 8 * 8 + token % 8;
}

// Where a row of a call stands: its position, and the page that holds it.
struct Place {
  int position;
  int page;
};

// Consecutive positions of one sequence: rows of a call that follow one another.
struct Segment {
  int row;       // the first
  int rows;
  int position;  // of the first
  int pages;     // where the sequence's pages begin in the list of pages
};

}  // namespace kv
