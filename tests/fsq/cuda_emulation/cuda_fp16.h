// __half on the host, with the conversions of the CPU kernels.
#pragma once
#include <stdint.h>
#include <string.h>

namespace host_numbers {
#include "numbers.h"
}

struct __half {
  uint16_t bits;
};
static inline float __half2float(__half v) { return host_numbers::to_float(host_numbers::f16_t{v.bits}); }
static inline __half __float2half_rn(float v) {
  host_numbers::f16_t to;
  host_numbers::store(&to, v);
  return __half{to.bits};
}
