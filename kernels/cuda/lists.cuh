// Which rows each expert takes: written by build_lists, read by expert_ffn.
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

}  // namespace lists
