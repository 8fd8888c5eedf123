// Sums a large array with wide loads, one contiguous part per thread: what reading weights from DRAM can reach at most.
#include <stddef.h>
#include <stdint.h>

// `bytes` must be a multiple of 512.
uint64_t sum(const uint64_t *data, size_t bytes) {
  typedef uint64_t v8 __attribute__((vector_size(64)));
  const v8 *p = (const v8 *)data;
  v8 a = {0}, b = {0}, c = {0}, d = {0}, e = {0}, f = {0}, g = {0}, h = {0};
  for (size_t i = 0; i < bytes / 64; i += 8) {
    a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
    e += p[i + 4], f += p[i + 5], g += p[i + 6], h += p[i + 7];
  }
  a += b + c + d + e + f + g + h;
  return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}
