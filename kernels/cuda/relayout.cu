// Lays a row-major matrix of weights out in strips (layout.cuh), once, when a slot is loaded.
#include "layout.cuh"

// `rows` rows of `columns` values at `stride` values. With `up`, `gate` and `up` have half of the rows each, and their
// strips alternate. One thread moves 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
    relayout(const ptx::bf16* gate, const ptx::bf16* up, long long stride, ptx::bf16* out, int rows, int columns) {
  const long long i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= static_cast<long long>(rows) * columns / 8) return;
  const int in_block = static_cast<int>(i % (layout::kBlockBytes / 16));
  const long long block = i / (layout::kBlockBytes / 16);
  const int blocks = columns / layout::kBlockColumns;
  const int strip = static_cast<int>(block / blocks), column = static_cast<int>(block % blocks) * layout::kBlockColumns;
  const int row = in_block >> 2, chunk = (in_block & 3) ^ (row >> 1 & 3);
  const ptx::bf16* matrix = up && (strip & 1) ? up : gate;
  const long long source_row = static_cast<long long>(up ? strip >> 1 : strip) * layout::kStripRows + row;
  reinterpret_cast<uint4*>(out)[i] =
      *reinterpret_cast<const uint4*>(matrix + source_row * stride + column + chunk * 8);
}
