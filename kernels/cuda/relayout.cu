// Lays a row-major matrix of weights out in strips and blocks (layout.cuh), once, when a slot is loaded.
#include "layout.cuh"

// `rows` rows of `columns` values at `stride` values. With `up`, `gate` and `up` have half of the rows each, and their
// strips alternate. One thread moves 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
    relayout(const ptx::bf16* gate, const ptx::bf16* up, long long stride, ptx::bf16* out, int rows, int columns) {
  const long long i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= static_cast<long long>(rows) * columns / 8) return;
  constexpr int kPieces = layout::kBlockBytes / 16;
  const int strips = rows / layout::kStripRows, blocks = columns / layout::kBlockColumns;
  const int piece = static_cast<int>(i % kPieces);
  const long long stored = i / kPieces;  // blocks before this one
  const int group = static_cast<int>(stored / (layout::kGroupStrips * blocks));
  const int in_group = static_cast<int>(stored - static_cast<long long>(group) * layout::kGroupStrips * blocks);
  const int wide = layout::strips_in_group(group, strips);
  const int strip = group * layout::kGroupStrips + in_group % wide, column = in_group / wide * layout::kBlockColumns;
  const int row = piece >> 2, chunk = (piece & 3) ^ (row >> 1 & 3);
  const ptx::bf16* matrix = up && (strip & 1) ? up : gate;
  const long long source_row = static_cast<long long>(up ? strip >> 1 : strip) * layout::kStripRows + row;
  reinterpret_cast<uint4*>(out)[i] =
      *reinterpret_cast<const uint4*>(matrix + source_row * stride + column + chunk * 8);
}
