// Which rows each expert takes: made by build_lists, or by expert_ffn itself where they are few.
#pragma once

namespace lists {

constexpr int kMaxUnits = 512;

// One expert that has rows: entries `start .. start + rows` of the source and target lists.
struct Entry {
  int slot;
  int start;
  int rows;
  int unit;
};

// `active` entries follow, in order of unit; the rest up to the number of units is zero.
struct Header {
  int active;
  int max_rows;
  int total_rows;
  int reserved;
};

// What the lists are made from. `ids[pair]` is a unit, or anything outside 0..units for a pair that is not for this
// device; slots: unit -> slot, or null for the identity; source, target: pair -> row, or null for pair / top_k and pair.
// The order of a unit's rows is arbitrary: no row's bits depend on it.
struct Pairs {
  const int* ids;
  const int* slots;
  const int* source;
  const int* target;
  int pairs, top_k, units;
  int slot_count, source_rows, target_rows;

  __device__ int slot_of(int unit) const { return below(slots ? slots[unit] : unit, slot_count); }
  __device__ int source_of(int pair) const { return below(source ? source[pair] : pair / top_k, source_rows); }
  __device__ int target_of(int pair) const { return below(target ? target[pair] : pair, target_rows); }

 private:
  // An index out of bounds ends the launch with an error: what reads the lists trusts them.
  __device__ static int below(int index, int len) {
    if (static_cast<unsigned>(index) >= static_cast<unsigned>(len)) __trap();
    return index;
  }
};

// Pairs that one warp sorts in the prologue of expert_ffn, which saves a launch.
constexpr int kFew = 32;

// The lists of up to kFew pairs, by one warp.
__device__ inline Header list_few(const Pairs& p, int lane, Entry* entries, int* source_list, int* target_list) {
  const bool present = lane < p.pairs;
  const unsigned unit = present ? p.ids[lane] : ~0u;
  const bool kept = unit < static_cast<unsigned>(p.units);
  const unsigned below_me = (1u << lane) - 1, same = __match_any_sync(~0u, unit);
  const int rank = __popc(same & below_me), rows = kept ? __popc(same) : 0;
  const unsigned firsts = __ballot_sync(~0u, kept && rank == 0);
  int start = 0, entry = 0;
  for (int other = 0; other < 32; other++) {
    const bool smaller = __shfl_sync(~0u, unit, other) < unit;
    start += smaller;
    entry += smaller && (firsts >> other & 1);
  }
  if (kept) {
    source_list[start + rank] = p.source_of(lane);
    target_list[start + rank] = p.target_of(lane);
    if (rank == 0) entries[entry] = {p.slot_of(unit), start, rows, static_cast<int>(unit)};
  }
  const int kept_pairs = __popc(__ballot_sync(~0u, kept));
  return {__popc(firsts), __reduce_max_sync(~0u, rows), kept_pairs, 0};
}

}  // namespace lists
