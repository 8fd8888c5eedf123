// Floats as integers of the same order, for reductions that a warp does in one instruction.
#pragma once
#include <math.h>

namespace order {

// An integer that is above 0 and orders as the values do, both zeros alike. NaN orders below everything, so that the choice is
// defined.
__device__ __forceinline__ unsigned order_of(float x) {
  const int bits = __float_as_int(isnan(x) ? -INFINITY : __fadd_rn(x, 0.f));
  return bits < 0 ? ~bits : bits | 0x80000000;
}
__device__ __forceinline__ float value_of(unsigned order) {
  return __int_as_float(order & 0x80000000 ? order & 0x7FFFFFFF : ~order);
}

}  // namespace order
