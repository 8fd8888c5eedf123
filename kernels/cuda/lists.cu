// Sorts the router's choices by expert, in one block; and brings rows into that order.
#include "lists.cuh"
#include "ptx.cuh"

namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

struct Scan {
  int rows;
  int active;
};

__device__ Scan scan_warp(Scan v, int lane) {
  for (int o = 1; o < 32; o <<= 1) {
    const int rows = __shfl_up_sync(~0u, v.rows, o);
    const int active = __shfl_up_sync(~0u, v.active, o);
    if (lane >= o) {
      v.rows += rows;
      v.active += active;
    }
  }
  return v;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    build_lists(const __grid_constant__ lists::Pairs p, lists::Header* header, lists::Entry* entries, int* source_list,
                int* target_list) {
  __shared__ int count[lists::kMaxUnits];
  __shared__ Scan warp_total[kWarps];
  __shared__ int max_rows, active_units;
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  ptx::let_next_kernel_start();
  if (t < lists::kMaxUnits) count[t] = 0;
  if (t == 0) max_rows = 0;
  __syncthreads();
  ptx::wait_for_previous_kernel();
  for (int pair = t; pair < p.pairs; pair += kThreads) {
    const unsigned id = p.ids[pair];
    if (id < static_cast<unsigned>(p.units)) atomicAdd(count + id, 1);
  }
  __syncthreads();

  const int rows = t < p.units ? count[t] : 0;
  const Scan upto = scan_warp({rows, rows > 0}, lane);
  if (lane == 31) warp_total[warp] = upto;
  if (rows > 0) atomicMax(&max_rows, rows);
  __syncthreads();
  Scan before{0, 0};
  for (int w = 0; w < kWarps; w++) {
    if (w < warp) {
      before.rows += warp_total[w].rows;
      before.active += warp_total[w].active;
    }
  }
  const int start = before.rows + upto.rows - rows;
  if (rows > 0) entries[before.active + upto.active - 1] = {p.slot_of(t), start, rows, t};
  if (t < p.units) count[t] = start;
  if (t == kThreads - 1) {
    const int active = before.active + upto.active;
    *header = {active, max_rows, before.rows + upto.rows, 0};
    active_units = active;
  }
  __syncthreads();
  if (t >= active_units && t < p.units) entries[t] = {0, 0, 0, 0};

  for (int pair = t; pair < p.pairs; pair += kThreads) {
    const unsigned id = p.ids[pair];
    if (id < static_cast<unsigned>(p.units)) {
      const int at = atomicAdd(count + id, 1);
      source_list[at] = p.source_of(pair);
      target_list[at] = p.target_of(pair);
    }
  }
}

// to[i] = x[source[i]] for each listed pair: a block for each pair that may be listed.
extern "C" __global__ void __launch_bounds__(256)
    gather_listed(const ptx::bf16* x, int x_stride, int columns, const lists::Header* header, const int* source,
                  ptx::bf16* to) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const int i = blockIdx.x;
  if (i >= header->total_rows) return;
  const uint4* const row = reinterpret_cast<const uint4*>(x + static_cast<long long>(source[i]) * x_stride);
  uint4* const out = reinterpret_cast<uint4*>(to + static_cast<long long>(i) * columns);
  for (int piece = threadIdx.x; piece < columns / 8; piece += 256) out[piece] = row[piece];
}
